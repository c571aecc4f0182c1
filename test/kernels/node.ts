// SPDX-License-Identifier: Apache-2.0
/**
 * A node of the stories, run in its network namespace: the agent's data plane without an API server.
 *
 *   node.ts pass NODE   load the programs and bring everything to what the node should have, as a start or restart does
 *   node.ts strip NODE  take the programs off
 *   node.ts older NODE  attach from_pod at tc ingress of netkits, too, as a version that does not know them
 *
 * NODE is a NodeSpec as JSON; prints a PassReport.
 */
import { join } from 'node:path';
import type { Logger } from 'pino';
import { BpfProgram } from '#libbpf-ts';
import { Incarnation } from '../../src/agent/incarnation.ts';
import type { Mode } from '../../src/agent/options.ts';
import { AttachmentStore } from '../../src/cni/attachments.ts';
import type { PodDevice } from '../../src/cni/pod-device.ts';
import { configureVeth, createVeth, hostVethName } from '../../src/cni/pod-network.ts';
import { Steps } from '../../src/cni/steps.ts';
import { watchedFunctions } from '../../src/dataplane/changes.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import type { ClusterSnapshot } from '../../src/cluster/index.ts';
import type { Ingress, IngressFlag } from '../../src/dataplane/ingress.ts';
import { removePins } from '../../src/dataplane/programs.ts';
import { openTables, pinPaths } from '../../src/dataplane/tables.ts';
import { type LinkState, linksTarget, listLinks, parseLinkKey } from '../../src/dataplane/links.ts';
import { parseCidr } from '../../src/net/ip.ts';
import type { Outcome } from '../../src/reconcile/reconciled.ts';

/** A node's addresses of one family. */
export interface NodeAddresses {
  readonly ip: string;
  readonly podCidr: string;
  readonly vtepMac: string;
}

export interface NodeSpec extends NodeAddresses {
  readonly name: string;
  readonly network: string;
  /** Where the node is dual-stack. */
  readonly v6?: NodeAddresses & { readonly network: string };
  readonly uplink: string;
  /** Default: `auto`. */
  readonly ingress?: IngressFlag;
  /** Default: `veth`. */
  readonly podDevice?: PodDevice;
  readonly directRouting?: boolean;
  /** Default: `cni`. */
  readonly mode?: Mode;
  readonly bpffs: string;
  readonly runDir: string;
  readonly peers: readonly (NodeAddresses & { readonly name: string; readonly v6?: NodeAddresses })[];
}

export interface PassReport {
  /** What could not be made, in words. */
  readonly problems: readonly string[];
  /** The changes of a second pass in the same process, which should find nothing to do. */
  readonly again: readonly Outcome[];
  /** What was attached before, and is now. */
  readonly found: Readonly<Record<string, LinkState>>;
  readonly attached: Readonly<Record<string, LinkState>>;
  /** The hook where the uplink's packets are decapsulated, and why. */
  readonly ingress?: Ingress | undefined;
  /** The functions of the kernel whose changes move the epoch. */
  readonly watched: readonly string[];
}

function silence(): void {}

/** Load the programs and bring everything to what the node should have, as a start or restart does. */
export async function pass(spec: NodeSpec): Promise<PassReport> {
  const { name, bpffs, runDir, v6 } = spec;
  const families = [{ family: 4 as const, of: spec }, ...(v6 ? [{ family: 6 as const, of: v6 }] : [])].map(
    ({ family, of }) => ({ family, network: parseCidr(of.network), podCidr: parseCidr(of.podCidr) }),
  );
  const found = attachedIn(bpffs);
  const own = {
    name,
    uid: name,
    podCidrs: families.map(({ podCidr }) => podCidr),
    annotations: {},
    vtepMac: { v4: spec.vtepMac, ...(v6 && { v6: v6.vtepMac }) },
    nodePublicIp: {},
    internalIp: { v4: spec.ip, ...(v6 && { v6: v6.ip }) },
    flannelIsUp: false,
  };
  const peers = spec.peers.flatMap((peer) =>
    [peer, ...(v6 && peer.v6 ? [peer.v6] : [])].map(({ ip, podCidr, vtepMac }, i) => ({
      name: peer.name,
      podCidr: parseCidr(podCidr),
      vtepIp: ip,
      vtepMac,
      behindNat: false,
      zeroChecksum: i > 0,
    })),
  );
  const cluster: ClusterSnapshot = {
    revision: 1,
    peersRevision: 1,
    synced: true,
    peers,
    nodes: [],
    alarms: [],
    own,
  };
  const ended = new AbortController();
  const passes: Outcome[][] = [[]];
  using incarnation = new Incarnation({
    agent: {
      nodeName: name,
      netConf: '',
      mode: spec.mode ?? 'cni',
      ingress: spec.ingress ?? 'auto',
      podDevice: spec.podDevice ?? 'veth',
      flowTableSize: 4096,
      metricsTop: 250,
      iface: [spec.uplink],
      bpffs,
      runDir,
      subnetFile: join(runDir, 'subnet.env'),
      metricsAddr: '',
      ipMasq: false,
      setNodeNetworkUnavailable: false,
      ipamDir: '',
      stateDir: runDir,
    },
    netConf: {
      enableIpv4: true,
      enableIpv6: v6 !== undefined,
      network: families[0]!.network,
      ...(v6 && { ipv6Network: families[1]!.network }),
      backend: { type: 'vxlan', vni: 1, port: 8472, directRouting: spec.directRouting ?? false },
    },
    own,
    families,
    store: new AttachmentStore(runDir),
    subnets: { snapshot: () => cluster },
    onOutcomes: (outcomes) => void passes.at(-1)!.push(...outcomes),
    // A first pass, one that looks at what that has written, and one that should find nothing to do.
    onPass: async () => {
      if (passes.push([]) > 3) ended.abort();
      else incarnation.trigger();
    },
    hasMoved: () => false,
    log: { debug: silence, info: silence, warn: silence, error: silence } as unknown as Logger,
  });
  await incarnation.run(ended.signal);
  const failures = incarnation.statuses.flatMap(({ name: target, failures: of }) =>
    of.map(({ key, why }) => `${target} ${key}: ${why}`),
  );
  const problems = [...failures, ...(incarnation.notReady === undefined ? [] : [incarnation.notReady])];
  const ingress = incarnation.standing?.plan.links.ingress;
  return { problems, again: passes[2]!, found, ...now(bpffs), ingress };
}

/** Take the programs off. */
export function strip({ bpffs }: Pick<NodeSpec, 'bpffs'>): PassReport {
  const found = attachedIn(bpffs);
  removePins(pinPaths(bpffs));
  return { problems: [], again: [], found, ...now(bpffs) };
}

/**
 * The pods' links as a version leaves them that does not know netkits: it compares the interface of each link with the one
 * where it should be, and attaches another one where they differ.
 */
export async function older({ bpffs }: Pick<NodeSpec, 'bpffs'>): Promise<PassReport> {
  const { links, programs } = pinPaths(bpffs);
  const found = attachedIn(bpffs);
  using program = BpfProgram.openPinned(join(programs, 'from_pod'));
  const target = linksTarget({
    name: 'pod-links',
    hooks: ['from_pod'],
    pinDir: links,
    program: () => program,
  });
  const wanted = Object.entries(found).flatMap(([key, { ifindex }]) =>
    parseLinkKey(key).hook === 'from_pod' ? [[key, { ifindex, programId: program.info.id }] as const] : [],
  );
  const failures = await target.upsert(new Map(wanted));
  return { problems: [...failures.values()], again: [], found, ...now(bpffs) };
}

function now(bpffs: string): Pick<PassReport, 'attached' | 'watched'> {
  return { attached: attachedIn(bpffs), watched: watchedFunctions(pinPaths(bpffs).changes) };
}

function attachedIn(bpffs: string): Record<string, LinkState> {
  return Object.fromEntries(listLinks(pinPaths(bpffs).links));
}

export interface PodSpec {
  readonly name: string;
  /** The path of its network namespace, which must exist. */
  readonly netns: string;
  readonly ip: string;
  readonly ip6?: string;
}

/** The name of a pod's veth on its node. */
export function vethOf(pod: Pick<PodSpec, 'name'>): string {
  return hostVethName({ containerId: pod.name, ifname: 'eth0' });
}

/** Connect a pod to its node, as the CNI plugin does. The node's namespace is this one, or the named one. */
export async function connectPod(
  { name, netns, ip, ip6 }: PodSpec,
  node: Pick<NodeSpec, 'podCidr' | 'runDir' | 'v6'> & { netns?: string },
  kind: PodDevice = 'veth',
): Promise<void> {
  const namespaces = { pod: netns, node: node.netns };
  const hostIfname = vethOf({ name });
  const veth = await createVeth(hostIfname, 'eth0', 1450, namespaces, { kind });
  const addresses = [
    { ip, gateway: node.podCidr.replace('.0/24', '.1'), routes: ['0.0.0.0/0'] },
    ...(ip6 && node.v6 ? [{ ip: ip6, gateway: node.v6.podCidr.replace('/64', '1'), routes: ['::/0'] }] : []),
  ];
  await configureVeth(hostIfname, 'eth0', addresses, namespaces, new Steps());
  const attachment = {
    containerId: name,
    ifname: 'eth0',
    netns,
    network: 'story',
    hostIfname,
    ips: addresses.map(({ ip }) => ip),
    ...veth,
  };
  new AttachmentStore(node.runDir).put(attachment);
}

/** Packets that the programs have counted, by `hook verdict_reason`. */
export function countersOf({ bpffs }: Pick<NodeSpec, 'bpffs'>): Record<string, number> {
  using tables = openTables(bpffs);
  return Object.fromEntries(
    readCounters(tables).map(({ hook, verdict, reason, packets }) => [
      `${hook} ${verdict}_${reason}`,
      packets,
    ]),
  );
}

if (import.meta.main) {
  const [command, spec = ''] = process.argv.slice(2);
  const act = { pass, strip, older }[command ?? ''];
  if (!act) throw new Error(`no such command: ${command}`);
  console.log(JSON.stringify(await act(JSON.parse(spec) as NodeSpec)));
}
