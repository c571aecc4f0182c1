// SPDX-License-Identifier: Apache-2.0
import ipaddr from 'ipaddr.js';
import { z } from 'zod';
import { errorText, quote, RipstopError } from '../errors.ts';
import {
  addressFamily,
  type Cidr,
  cidrContains,
  cidrCovers,
  type Family,
  familyKey,
  formatCidr,
  parseAddress,
  parseMaskedCidr,
} from '../net/ip.ts';
import { macToBytes, NO_MAC, parseMac } from '../net/mac.ts';
import { type AnnotationKeys, annotationKeys, type FamilyKeys } from './annotations.ts';
import { type BackendType, Fields, type NetConf } from './net-conf.ts';
import type { AlarmKind, Peer, PeerNode } from './peer.ts';

/**
 * What a Node object means. `ignored` with an alarm: a peer that we cannot talk to, which someone should know;
 * `pending`: not everything about it is known yet.
 */
export type ParsedNode = {
  readonly name: string;
  readonly uid: string;
  /** It has an annotation of ripstop's, so ripstop runs there. */
  readonly ripstop?: true;
} & (
  | { readonly kind: 'peer'; readonly peer: PeerNode; readonly mistaken?: string }
  | { readonly kind: 'pending' }
  | { readonly kind: 'ignored'; readonly reason: string; readonly alarm?: AlarmKind }
  | { readonly kind: 'malformed'; readonly reason: string; readonly alarm: AlarmKind }
);

/** What a lease must agree with. A family is enabled when its network is present. */
export interface LeaseSettings {
  readonly keys: AnnotationKeys;
  readonly backend: BackendType;
  /** With vxlan. */
  readonly vni?: number;
  readonly network?: Cidr;
  readonly ipv6Network?: Cidr;
}

/** @throws RipstopError when the annotation prefix is not valid. */
export function leaseSettings(netConf: NetConf, annotationPrefix?: string): LeaseSettings {
  return {
    keys: annotationKeys(annotationPrefix),
    backend: netConf.backend.type,
    ...(netConf.backend.type === 'vxlan' && { vni: netConf.backend.vni }),
    ...(netConf.network && { network: netConf.network }),
    ...(netConf.ipv6Network && { ipv6Network: netConf.ipv6Network }),
  };
}

/** The few fields of a Node that ripstop reads; zod drops the rest. */
export const nodeSchema = z.object({
  metadata: z.object({
    name: z.string().regex(/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/),
    uid: z.string().min(1).max(128),
    creationTimestamp: z.iso.datetime({ offset: true }),
    annotations: z.record(z.string(), z.string()).nullish(),
  }),
  spec: z
    .object({ podCIDR: z.string().nullish(), podCIDRs: z.array(z.string()).max(16).nullish() })
    .nullish(),
  status: z
    .object({
      addresses: z.array(z.object({ type: z.string(), address: z.string() })).nullish(),
      conditions: z
        .array(z.object({ type: z.string(), status: z.string(), reason: z.string().nullish() }))
        .nullish(),
    })
    .nullish(),
});

export type NodeObject = z.infer<typeof nodeSchema>;

/**
 * What a Node object, which anyone who may patch Nodes can write, means for the data plane. Never throws: `reason` says
 * what is wrong.
 */
export function parseNode(node: unknown, settings: LeaseSettings): ParsedNode {
  const parsed = nodeSchema.safeParse(node);
  if (!parsed.success) {
    return {
      ...looseIdentity(node),
      kind: 'malformed',
      reason: `no valid Node object: ${zodText(parsed.error)}`,
      alarm: 'malformed_node',
    };
  }
  const { name, uid, creationTimestamp, annotations } = parsed.data.metadata;
  const addresses = addressesText(parsed.data.status);
  const facts = {
    name,
    uid,
    createdAt: Date.parse(creationTimestamp),
    annotations: annotations ?? {},
    addresses,
  };
  return readLease(facts, podCidrsText(parsed.data.spec), settings);
}

/** What a Node's metadata says. */
export interface NodeFacts {
  readonly name: string;
  readonly uid: string;
  readonly createdAt: number;
  /** Those of the lease, at least. */
  readonly annotations: Readonly<Record<string, string>>;
  /** As {@link addressesText} gives them; undefined when they are not known. */
  readonly addresses?: string | undefined;
}

/**
 * {@link parseNode} of a Node whose shape has been checked.
 * @param podCidrs as {@link podCidrsText} gives them.
 */
export function readLease(node: NodeFacts, podCidrs: string, settings: LeaseSettings): ParsedNode {
  const { name, uid, annotations } = node;
  const ripstop = Object.keys(annotations).some((key) => key.startsWith('ripstop.io/'));
  const identity = { name, uid, ...(ripstop && { ripstop }) };
  if (annotations[settings.keys.managed] !== 'true') {
    return {
      ...identity,
      kind: 'ignored',
      reason: `no annotation ${settings.keys.managed}="true"`,
    };
  }
  const backendType = annotations[settings.keys.backendType];
  if (backendType !== settings.backend) {
    const what = backendType === undefined ? 'no backend-type' : `backend-type ${quote(backendType)}`;
    return {
      ...identity,
      kind: 'ignored',
      reason: `${what}; this node speaks to ${settings.backend} peers only`,
      alarm: 'other_backend',
    };
  }
  try {
    const cidrs = readPodCidrs(podCidrs);
    const v4 = parsePart(4, node, cidrs, settings);
    const v6 = parsePart(6, node, cidrs, settings);
    if (!v4 && !v6) {
      const reason =
        podCidrs === ''
          ? 'no podCIDR yet'
          : 'no lease published for an address family that this cluster uses';
      return { ...identity, kind: 'ignored', reason, alarm: 'no_lease' };
    }
    // Written out here and below: an object made by spreading takes more memory, and there are many.
    const peer = peerNode(node, v4, v6);
    return ripstop ? { name, uid, ripstop, kind: 'peer', peer } : { name, uid, kind: 'peer', peer };
  } catch (error) {
    const alarm = error instanceof OutsideError ? 'podcidr_outside' : 'malformed_lease';
    return { ...identity, kind: 'malformed', reason: errorText(error), alarm };
  }
}

function peerNode({ name, uid, createdAt }: NodeFacts, v4: Peer | undefined, v6: Peer | undefined): PeerNode {
  if (v4 && v6) return { name, uid, createdAt, v4, v6 };
  return v4 ? { name, uid, createdAt, v4 } : { name, uid, createdAt, v6: v6! };
}

/** A Node's podCIDRs as its spec has them, joined with commas: `podCIDRs`, or `podCIDR` from before dual stack. */
export function podCidrsText(spec: NodeObject['spec']): string {
  const { podCIDR, podCIDRs } = spec ?? {};
  return podCIDRs?.length ? podCIDRs.join(',') : (podCIDR ?? '');
}

/**
 * podCIDRs joined with commas, at most one for each family.
 * @throws RipstopError when one is no CIDR block, or a family has two.
 */
export function readPodCidrs(text: string): Cidr[] {
  if (text === '') return [];
  const cidrs = text.split(',').map((cidr) => {
    if (cidr.length > 64) throw new RipstopError(`podCIDR ${quote(cidr)} is not a CIDR block`);
    return parseMaskedCidr(cidr);
  });
  if (cidrs.length > 2 || (cidrs.length === 2 && cidrs[0]!.family === cidrs[1]!.family)) {
    throw new RipstopError(`two podCIDRs of one family: ${text.split(',').map(quote).join(', ')}`);
  }
  return cidrs;
}

class OutsideError extends RipstopError {}

/** One family's part, or undefined when the family is off here or the node takes no part in it. */
function parsePart(
  family: Family,
  { name, annotations, addresses }: NodeFacts,
  podCidrs: readonly Cidr[],
  settings: LeaseSettings,
): Peer | undefined {
  const network = family === 4 ? settings.network : settings.ipv6Network;
  const keys = settings.keys[familyKey(family)];
  const podCidr = podCidrs.find((cidr) => cidr.family === family);
  const data = annotations[keys.backendData];
  const publicIp = annotations[keys.publicIp];
  const published = (data !== undefined && data !== 'null') || publicIp !== undefined;
  if (!network || !podCidr || !published) return undefined;
  if (!cidrCovers(network, podCidr)) {
    throw new OutsideError(`podCIDR ${formatCidr(podCidr)} is outside Network ${formatCidr(network)}`);
  }
  const vtepIp = parsePublicIp(family, keys.publicIp, publicIp);
  if (cidrContains(podCidr, vtepIp)) {
    throw new RipstopError(
      `${keys.publicIp} ${vtepIp} lies in the node's own podCIDR ${formatCidr(podCidr)}`,
    );
  }
  const vtepMac =
    settings.vni === undefined ? NO_MAC : parseBackendData(keys.backendData, data, settings.vni);
  const others = readAddresses(family, addresses).filter(
    (one) => one !== vtepIp && !cidrContains(podCidr, one),
  );
  return {
    name,
    podCidr,
    vtepIp,
    vtepMac,
    behindNat: overwriteOf(annotations, keys) !== undefined,
    ...(others.length > 0 && { otherIps: others }),
    zeroChecksum: family === 6 && annotations[settings.keys.zeroChecksum] === 'true',
  };
}

/** How many of a Node's addresses are kept: kubelet writes one or two of each type. */
const ADDRESSES_MAX = 8;

/** A Node's addresses of any type, joined with commas; host names among them are skipped later. */
export function addressesText(status: NodeObject['status']): string {
  const addresses = status?.addresses ?? [];
  return addresses
    .slice(0, ADDRESSES_MAX)
    .map(({ address }) => address.slice(0, 64))
    .join(',');
}

/** Those of one family from which packets may come. */
function readAddresses(family: Family, text = ''): string[] {
  const usable = text
    .split(',')
    .flatMap((one) => parseAddress(one) ?? [])
    .filter((one) => addressFamily(one) === family && !isUseless(family, one));
  return [...new Set(usable)];
}

/** What the user asked to publish in place of the real address, if anything. */
export function overwriteOf(
  annotations: Readonly<Record<string, string>>,
  keys: FamilyKeys,
): string | undefined {
  return annotations[keys.publicIpOverwrite] || undefined;
}

/**
 * A published underlay address, canonical.
 * @throws RipstopError when it is of another family, or no tunnel can end there.
 */
export function parsePublicIp(family: Family, key: string, text: string | undefined): string {
  if (text === undefined) throw new RipstopError(`${key} is missing`);
  const address = text.length > 64 ? undefined : parseAddress(text);
  if (address === undefined || addressFamily(address) !== family) {
    throw new RipstopError(`${key} ${quote(text)} is not an IPv${family} address`);
  }
  if (isUseless(family, address)) {
    throw new RipstopError(`${key} ${text} is ${ipaddr.parse(address).range()}: no tunnel can end there`);
  }
  return address;
}

/** Whether no tunnel can end at this address. */
function isUseless(family: Family, address: string): boolean {
  const range = ipaddr.parse(address).range();
  const useless: string[] = ['unspecified', 'loopback', 'multicast', 'broadcast'];
  // A VTEP at a link-local IPv6 address would need a scope, which annotations cannot carry.
  return useless.includes(range) || (family === 6 && range === 'linkLocal');
}

/**
 * `{"VNI":1,"VtepMAC":"…"}`, read as Go does → the MAC, lower case.
 * @param vni the cluster's, which the data must name, if any.
 * @throws RipstopError naming the annotation and what is wrong with it.
 */
export function parseBackendData(key: string, text: string | undefined, vni: number): string {
  if (text === undefined || text === 'null') throw new RipstopError(`${key} is missing`);
  const fail = (why: string) => new RipstopError(`${key} ${quote(text)}: ${why}`);
  if (text.length > 1024) throw fail('longer than 1024 characters');
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw fail('no JSON');
  }
  const mistakes: string[] = [];
  const fields = new Fields(json, 'data.', mistakes);
  // Early versions of flannel wrote no VNI; it is the cluster's then. Unknown members are skipped.
  const given = fields.integer('VNI', vni, 0, 0xff_ffff);
  const mac = fields.get('VtepMAC');
  const vtepMac = typeof mac === 'string' ? parseMac(mac) : undefined;
  if (vtepMac === undefined) mistakes.push('VtepMAC is no MAC address such as 0a:58:0a:2a:00:01');
  if (vtepMac === undefined || mistakes.length > 0) throw fail(mistakes.join(', ').slice(0, 200));
  const bytes = macToBytes(vtepMac);
  if (bytes.every((byte) => byte === 0)) throw fail('VtepMAC is all zero');
  if (bytes[0]! & 1) throw fail('VtepMAC is a group address');
  if (given !== vni) throw new RipstopError(`${key} has VNI ${given}, but this cluster's is ${vni}`);
  return vtepMac;
}

/** A malformed object's name and UID if they can be read, so that its last good lease is found again. */
function looseIdentity(node: unknown): { name: string; uid: string } {
  const schema = z.object({ metadata: z.object({ name: z.string().catch(''), uid: z.string().catch('') }) });
  const parsed = schema.safeParse(node);
  const { name, uid } = parsed.success ? parsed.data.metadata : { name: '', uid: '' };
  return { name: name.slice(0, 253) || '(unnamed)', uid: uid.slice(0, 128) };
}

function zodText(error: z.ZodError): string {
  return error.issues
    .slice(0, 3)
    .map((issue) =>
      issue.path.length > 0 ? `${issue.path.join('.').slice(0, 80)}: ${issue.message}` : issue.message,
    )
    .join(', ');
}
