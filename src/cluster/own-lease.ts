// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import {
  addressFamily,
  type Cidr,
  cidrCovers,
  type Family,
  familyKey,
  formatCidr,
  perFamily,
  type PerFamily,
} from '../net/ip.ts';
import { type FamilyKeys, leaseAnnotations } from './annotations.ts';
import { type ApiClient, ApiError } from './api-client.ts';
import type { NetConf } from './net-conf.ts';
import {
  type LeaseSettings,
  type NodeObject,
  nodeSchema,
  overwriteOf,
  parseBackendData,
  parsePublicIp,
  podCidrsText,
  readPodCidrs,
} from './node-lease.ts';

/** What our own Node object says, trimmed to what publishing and start-up need. */
export interface OwnNode {
  readonly name: string;
  readonly uid: string;
  /** As in the spec, not yet checked against the network; see {@link ownPodCidrs}. */
  readonly podCidrs: readonly Cidr[];
  /** The annotations that a lease consists of or is steered by. */
  readonly annotations: Readonly<Record<string, string>>;
  /** The VTEP MACs that we published before, to be kept across restarts; undefined when absent or broken. */
  readonly vtepMac: PerFamily<string>;
  /** The user's `node-public-ip`: acts as `--public-ip`, and must be local. */
  readonly nodePublicIp: PerFamily<string>;
  /** The address that the kubelet registered; the uplink is chosen by it unless the user says otherwise. */
  readonly internalIp: PerFamily<string>;
  /** Whether the condition NetworkUnavailable=False with reason FlannelIsUp is there. */
  readonly flannelIsUp: boolean;
}

/** One family's part of our own lease, as it is to be published. */
export interface LeasePart {
  readonly publicIp: string;
  /** With vxlan. */
  readonly vtepMac?: string;
  /** Whether the device accepts packets without an outer UDP checksum over IPv6. Default: true, as our devices do. */
  readonly zeroChecksum?: boolean;
}

export interface OwnLease extends PerFamily<LeasePart> {
  /** Also set the condition NetworkUnavailable=False: only once the data plane forwards. */
  readonly flannelIsUp: boolean;
}

/**
 * Read our own Node.
 * @throws RipstopError naming what is wrong in it.
 */
export function parseOwnNode(node: unknown, settings: LeaseSettings): OwnNode {
  const parsed = nodeSchema.safeParse(node);
  if (!parsed.success) {
    throw new RipstopError('the API server answered with something that is no Node object', {
      details: parsed.error.message,
    });
  }
  const { name, uid } = parsed.data.metadata;
  const annotations = leaseAnnotations(parsed.data.metadata.annotations, settings.keys);
  const keysOf = (family: Family): FamilyKeys => settings.keys[familyKey(family)];
  return {
    name,
    uid,
    podCidrs: readPodCidrs(podCidrsText(parsed.data.spec)),
    annotations,
    vtepMac: perFamily((family) => publishedMac(annotations[keysOf(family).backendData], settings.vni)),
    nodePublicIp: perFamily((family) => userIp(family, keysOf(family).nodePublicIp, annotations)),
    internalIp: perFamily((family) => internalIp(family, parsed.data)),
    flannelIsUp: isUp(parsed.data),
  };
}

/**
 * The podCIDRs that this node's pods get their addresses from, one for each enabled family.
 * @throws RipstopError that explains who should have set a missing one, or which setting disagrees.
 */
export function ownPodCidrs(own: OwnNode, netConf: NetConf): PerFamily<Cidr> {
  const networks = [netConf.network, netConf.ipv6Network].filter((network) => network !== undefined);
  return perFamily((family) => ownPodCidr(own, family, networks));
}

function ownPodCidr(own: OwnNode, family: Family, networks: readonly Cidr[]): Cidr | undefined {
  const network = networks.find((network) => network.family === family);
  if (!network) return undefined;
  const cidr = own.podCidrs.find((cidr) => cidr.family === family);
  if (!cidr) throw withoutPodCidr(own, family, networks);
  if (!cidrCovers(network, cidr)) {
    throw new RipstopError(
      `node ${own.name} has podCIDR ${formatCidr(cidr)}, ` +
        `which is outside the network ${formatCidr(network)} of net-conf.json; ` +
        `make net-conf.json agree with kube-controller-manager's --cluster-cidr`,
    );
  }
  return cidr;
}

function withoutPodCidr(own: OwnNode, family: Family, networks: readonly Cidr[]): RipstopError {
  const clusterCidr = networks.map(formatCidr).join(',');
  const present = own.podCidrs.map(formatCidr).join(',');
  // Kubernetes never adds to podCIDRs that are set, so a node from before dual stack keeps its one.
  const hint =
    present === ''
      ? ''
      : `; it already has ${present}, to which Kubernetes adds nothing: ` +
        `delete the Node and let the kubelet register it again`;
  return new RipstopError(
    `node ${own.name} has no ${networks.length > 1 || family === 6 ? `IPv${family} ` : ''}podCIDR: ` +
      `kube-controller-manager assigns it when it runs with ` +
      `--allocate-node-cidrs=true --cluster-cidr=${clusterCidr} ` +
      `(kubeadm init --pod-network-cidr=${clusterCidr})${hint}`,
  );
}

/**
 * VNI and MAC as flannel writes them: compact and with the keys in this order, because its parser splits the text.
 * Backends without a VTEP have no data: `null`.
 */
export function formatBackendData(vni: number | undefined, vtepMac: string | undefined): string {
  return vni === undefined ? 'null' : JSON.stringify({ VNI: vni, VtepMAC: vtepMac });
}

/** A strategic-merge patch for `nodes/status`. */
export interface LeasePatch {
  metadata?: { annotations: Record<string, string | null> };
  status?: { conditions: Record<string, string>[] };
}

/**
 * The patch that makes our Node show `lease`; undefined when it already does. A family's part that we no longer have is
 * removed, so that peers stop sending to it. The user's own annotations are never touched.
 * @param now the condition's time.
 * @throws RipstopError when the user's `public-ip-overwrite` is no address.
 */
export function leasePatch(
  own: OwnNode,
  lease: OwnLease,
  settings: LeaseSettings,
  now: Date = new Date(),
): LeasePatch | undefined {
  const { keys, vni, backend } = settings;
  const wanted: Record<string, string | null> = {
    [keys.backendType]: backend,
    ...partAnnotations(4, lease.v4, own, keys.v4, vni),
    ...partAnnotations(6, lease.v6, own, keys.v6, vni),
    [keys.zeroChecksum]: lease.v6?.vtepMac === undefined || lease.v6.zeroChecksum === false ? null : 'true',
    [keys.podCidrs]: own.podCidrs.map(formatCidr).join(',') || null,
    [keys.managed]: 'true',
  };
  const changed = Object.entries(wanted).filter(([key, value]) => (own.annotations[key] ?? null) !== value);
  const setCondition = lease.flannelIsUp && !own.flannelIsUp;
  if (changed.length === 0 && !setCondition) return undefined;
  return {
    ...(changed.length > 0 && { metadata: { annotations: Object.fromEntries(changed) } }),
    ...(setCondition && { status: { conditions: [upCondition(now)] } }),
  };
}

/**
 * Make our Node show `lease`.
 * @returns whether anything had to be written.
 * @throws ApiError when the API server refuses.
 */
export async function publishLease(
  client: ApiClient,
  own: OwnNode,
  lease: OwnLease,
  settings: LeaseSettings,
): Promise<boolean> {
  const patch = leasePatch(own, lease, settings);
  if (!patch) return false;
  await patchNodeStatus(client, own.name, patch);
  return true;
}

/**
 * Remove everything that this node has published about itself. The user's own annotations stay.
 * @throws ApiError when the API server refuses.
 */
export async function withdrawLease(client: ApiClient, own: OwnNode, { keys }: LeaseSettings): Promise<void> {
  const ours = [keys.managed, keys.backendType, keys.zeroChecksum, keys.podCidrs].concat(
    [keys.v4, keys.v6].flatMap(({ backendData, publicIp }) => [backendData, publicIp]),
  );
  const present = ours.filter((key) => own.annotations[key] !== undefined);
  if (present.length === 0) return;
  await patchNodeStatus(client, own.name, {
    metadata: { annotations: Object.fromEntries(present.map((key) => [key, null])) },
  });
}

async function patchNodeStatus(client: ApiClient, name: string, patch: LeasePatch): Promise<void> {
  await client.request('PATCH', `/api/v1/nodes/${encodeURIComponent(name)}/status`, {
    body: patch,
    contentType: 'application/strategic-merge-patch+json',
  });
}

/**
 * Fetch our own Node, e.g. at start, before the reflector has synced.
 * @throws ApiError, with a hint when there is no Node of that name.
 */
export async function fetchOwnNode(
  client: ApiClient,
  name: string,
  settings: LeaseSettings,
): Promise<OwnNode> {
  try {
    return parseOwnNode(await client.request('GET', `/api/v1/nodes/${encodeURIComponent(name)}`), settings);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    const { status, reason, message } = error;
    throw new ApiError(
      `${message}; there is no node named ${name}: give the name that kubectl get nodes shows with --node-name`,
      {
        status,
        reason,
        cause: error,
      },
    );
  }
}

function partAnnotations(
  family: Family,
  part: LeasePart | undefined,
  own: OwnNode,
  keys: FamilyKeys,
  vni: number | undefined,
): Record<string, string | null> {
  if (!part) return { [keys.backendData]: null, [keys.publicIp]: null };
  const overwrite = overwriteOf(own.annotations, keys);
  return {
    [keys.backendData]: formatBackendData(vni, part.vtepMac),
    [keys.publicIp]: overwrite ? parsePublicIp(family, keys.publicIpOverwrite, overwrite) : part.publicIp,
  };
}

function upCondition(now: Date): Record<string, string> {
  const time = `${now.toISOString().slice(0, 19)}Z`;
  return {
    type: 'NetworkUnavailable',
    status: 'False',
    reason: 'FlannelIsUp',
    message: 'ripstop forwards for this node',
    lastTransitionTime: time,
    lastHeartbeatTime: time,
  };
}

function internalIp(family: Family, node: NodeObject): string | undefined {
  const addresses = node.status?.addresses ?? [];
  return addresses.find(({ type, address }) => type === 'InternalIP' && addressFamily(address) === family)
    ?.address;
}

function isUp(node: NodeObject): boolean {
  const condition = node.status?.conditions?.find(({ type }) => type === 'NetworkUnavailable');
  return condition?.status === 'False' && condition.reason === 'FlannelIsUp';
}

function publishedMac(data: string | undefined, vni: number | undefined): string | undefined {
  if (vni === undefined) return undefined;
  try {
    return parseBackendData('', data, vni);
  } catch {
    return undefined; // It will be published anew.
  }
}

function userIp(family: Family, key: string, annotations: Record<string, string>): string | undefined {
  return annotations[key] ? parsePublicIp(family, key, annotations[key]) : undefined;
}
