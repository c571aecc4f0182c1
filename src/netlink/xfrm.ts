// SPDX-License-Identifier: Apache-2.0
import type { Family } from '../net/ip.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, familyOf, readBlock, type Reader, Writer } from './wire.ts';

/* linux/xfrm.h */
export const XFRM_MSG_NEWPOLICY = 0x13;
export const XFRM_MSG_DELPOLICY = 0x14;
const XFRM_MSG_GETPOLICY = 0x15;
export const XFRM_MSG_UPDPOLICY = 0x19;
export const XFRM_MSG_FLUSHPOLICY = 0x1d;
const XFRMA = { tmpl: 5, policy: 7, mark: 21, ifId: 31 } as const;
const SELECTOR = 56;
const POLICY_ID = 64;
const POLICY_INFO = 168;
const ADDRESS = 16;
const TMPL = 64;
const DIRECTIONS = ['in', 'out', 'fwd'] as const;
const ACTIONS = ['allow', 'block'] as const;
const NEVER = 0xffffffff;

/** The ports that equal `value` in the bits of `mask`. */
export interface MaskedPort {
  readonly value: number;
  readonly mask: number;
}

/** A policy of IPsec: which packets must be transformed, or pass as they are. */
export interface Policy {
  readonly family: Family;
  readonly direction: (typeof DIRECTIONS)[number];
  readonly action: (typeof ACTIONS)[number];
  /** CIDR blocks. */
  readonly src: string;
  readonly dst: string;
  /** IPPROTO_ number; 0: any. */
  readonly protocol: number;
  /** Undefined: any. */
  readonly srcPort: MaskedPort | undefined;
  readonly dstPort: MaskedPort | undefined;
  readonly ifindex: number | undefined;
  readonly priority: number;
  readonly index: number;
  readonly mark: { readonly value: number; readonly mask: number } | undefined;
  /** Of an xfrm interface. */
  readonly interfaceId: number | undefined;
  /** How many transformations it asks for; 0: packets pass as they are. */
  readonly templates: number;
}

/** A policy without templates to be made, or any to be found for deletion. */
export type NewPolicy = Pick<Policy, 'direction' | 'src' | 'dst'> &
  Partial<Pick<Policy, 'action' | 'priority' | 'mark'>>;

/** Every policy of the namespace; the socket is one of protocol `xfrm`. */
export function listPolicies(socket: NetlinkSocket): Policy[] {
  const payload = new Uint8Array(POLICY_ID);
  return socket.dump({ type: XFRM_MSG_GETPOLICY, payload, what: () => 'list xfrm policies' }, (message) =>
    message.type === XFRM_MSG_NEWPOLICY ? readPolicy(message) : undefined,
  );
}

/** Undefined for a policy of another family (any), and for a deletion that does not say of what. */
export function readPolicy({ type, body }: Message): Policy | undefined {
  if (type !== XFRM_MSG_DELPOLICY) return readInfo(body, body);
  const info = body.attributes(POLICY_ID).get(XFRMA.policy);
  return info && readInfo(info, body);
}

/** `struct xfrm_userpolicy_info`; the attributes are those of the message. */
function readInfo(info: Reader, message: Reader): Policy | undefined {
  const family = familyOf(info.u16(40));
  if (family === undefined) return undefined;
  const attributes = message.attributes(info === message ? POLICY_INFO : POLICY_ID);
  const size = family === 4 ? 4 : ADDRESS;
  const mark = attributes.get(XFRMA.mark);
  return {
    family,
    dst: `${info.address(0, size)}/${info.u8(42)}`,
    src: `${info.address(ADDRESS, size)}/${info.u8(43)}`,
    dstPort: readPort(info, 32),
    srcPort: readPort(info, 36),
    protocol: info.u8(44),
    ifindex: info.u32(48) || undefined,
    priority: info.u32(152),
    index: info.u32(156),
    direction: DIRECTIONS[info.u8(160)] ?? 'fwd',
    action: ACTIONS[info.u8(161)] ?? 'allow',
    mark: mark && { value: mark.u32(0), mask: mark.u32(4) },
    interfaceId: attributes.u32(XFRMA.ifId),
    templates: (attributes.get(XFRMA.tmpl)?.length ?? 0) / TMPL,
  };
}

function readPort(info: Reader, at: number): MaskedPort | undefined {
  const mask = info.be16(at + 2);
  return mask === 0 ? undefined : { value: info.be16(at), mask };
}

/** Make a policy. EEXIST when there is one of this selector and direction. */
export function addPolicy(policy: NewPolicy): Request {
  const { direction, action = 'allow', priority = 0, mark } = policy;
  const writer = new Writer().raw(selector(policy));
  // Never expires: four limits without an end, four times of zero; and four counters.
  for (let i = 0; i < 8; i++) writer.struct([4, NEVER]);
  for (let i = 0; i < 8; i++) writer.struct([4, 0]);
  for (let i = 0; i < 8; i++) writer.struct([4, 0]);
  writer
    .struct([4, priority], [4, 0])
    .struct([1, DIRECTIONS.indexOf(direction)], [1, ACTIONS.indexOf(action)], [1, 0], [1, 0])
    .struct([4, 0]);
  writeMark(writer, mark);
  return {
    type: XFRM_MSG_NEWPOLICY,
    flags: CREATE.add,
    payload: writer.done(),
    what: () => describe('add', policy),
  };
}

/** Delete the policy of this selector, direction and mark. ENOENT when there is none. */
export function deletePolicy(policy: NewPolicy): Request {
  const writer = new Writer()
    .raw(selector(policy))
    .struct([4, 0], [1, DIRECTIONS.indexOf(policy.direction)], [1, 0], [2, 0]);
  writeMark(writer, policy.mark);
  return { type: XFRM_MSG_DELPOLICY, payload: writer.done(), what: () => describe('delete', policy) };
}

function describe(verb: string, { direction, src, dst }: NewPolicy): string {
  return `${verb} xfrm policy ${src} to ${dst}, ${direction}`;
}

function writeMark(writer: Writer, mark: NewPolicy['mark']): void {
  if (mark) writer.bytes(XFRMA.mark, new Uint8Array(Uint32Array.of(mark.value, mark.mask).buffer));
}

/** `struct xfrm_selector` for any protocol and port. */
function selector({ src, dst }: NewPolicy): Uint8Array {
  const bytes = Buffer.alloc(SELECTOR);
  const [source, target] = [readBlock(src), readBlock(dst)];
  bytes.set(target.bytes, 0);
  bytes.set(source.bytes, ADDRESS);
  bytes.writeUInt16LE(AF[target.family], 40);
  bytes[42] = target.length;
  bytes[43] = source.length;
  return bytes;
}
