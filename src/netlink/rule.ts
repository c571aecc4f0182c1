// SPDX-License-Identifier: Apache-2.0
import type { Family } from '../net/ip.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, familyOf, readBlock, Writer } from './wire.ts';

/* linux/rtnetlink.h, linux/fib_rules.h */
export const RTM_NEWRULE = 32;
export const RTM_DELRULE = 33;
const RTM_GETRULE = 34;
const FIB_RULE_HDR = 12;
const FIB_RULE_INVERT = 2;
const FRA = {
  dst: 1,
  src: 2,
  iifname: 3,
  priority: 6,
  fwmark: 10,
  table: 15,
  fwmask: 16,
  oifname: 17,
  protocol: 21,
} as const;
/** FR_ACT_ by number. */
const ACTIONS = [
  'unspec',
  'table',
  'goto',
  'nop',
  'res3',
  'res4',
  'blackhole',
  'unreachable',
  'prohibit',
] as const;

/** A rule of policy routing (ip-rule(8)). */
export interface Rule {
  readonly family: Family;
  readonly priority: number;
  readonly action: (typeof ACTIONS)[number];
  /** To look up, for the action `table`. */
  readonly table: number;
  /** CIDR blocks; undefined: any. */
  readonly src: string | undefined;
  readonly dst: string | undefined;
  /** Names of devices. */
  readonly iif: string | undefined;
  readonly oif: string | undefined;
  readonly mark: { readonly value: number; readonly mask: number } | undefined;
  /** For all that the rest does not fit. */
  readonly not: boolean;
  /** Who made it, as with routes. */
  readonly protocol: number | undefined;
}

/** A rule to be made, or to be found for deletion. */
export type NewRule = Pick<Rule, 'family' | 'priority' | 'table'> &
  Partial<Pick<Rule, 'src' | 'dst' | 'iif' | 'oif' | 'mark' | 'not' | 'protocol'>>;

/** The rules of a family, in the order in which they are asked. */
export function listRules(socket: NetlinkSocket, family: Family): Rule[] {
  const payload = new Writer().struct([4, AF[family]], [4, 0], [4, 0]).done();
  return socket.dump({ type: RTM_GETRULE, payload, what: () => `list IPv${family} rules` }, readRule);
}

/** Undefined for a rule of another family. */
export function readRule({ body }: Message): Rule | undefined {
  const family = familyOf(body.u8(0));
  if (family === undefined) return undefined;
  const attributes = body.attributes(FIB_RULE_HDR);
  const block = (type: number, length: number): string | undefined =>
    attributes.has(type) ? `${attributes.address(type)}/${length}` : undefined;
  const mark = attributes.u32(FRA.fwmark);
  return {
    family,
    priority: attributes.u32(FRA.priority) ?? 0,
    action: ACTIONS[body.u8(7)] ?? 'unspec',
    table: attributes.u32(FRA.table) ?? body.u8(4),
    src: block(FRA.src, body.u8(2)),
    dst: block(FRA.dst, body.u8(1)),
    iif: attributes.text(FRA.iifname),
    oif: attributes.text(FRA.oifname),
    mark: mark === undefined ? undefined : { value: mark, mask: attributes.u32(FRA.fwmask) ?? 0xffffffff },
    not: (body.u32(8) & FIB_RULE_INVERT) !== 0,
    protocol: attributes.u8(FRA.protocol),
  };
}

/** Make a rule. EEXIST when there is the same. */
export function addRule(rule: NewRule): Request {
  return { ...request(RTM_NEWRULE, 'add', rule), flags: CREATE.add };
}

/** Delete the first rule that has all that is given. ENOENT when there is none. */
export function deleteRule(rule: NewRule): Request {
  return request(RTM_DELRULE, 'delete', rule);
}

function request(type: number, verb: string, rule: NewRule): Request {
  const { family, priority, table, mark } = rule;
  const src = rule.src === undefined ? undefined : readBlock(rule.src);
  const dst = rule.dst === undefined ? undefined : readBlock(rule.dst);
  const payload = new Writer()
    .struct([1, AF[family]], [1, dst?.length ?? 0], [1, src?.length ?? 0], [1, 0], [1, 0], [1, 0], [1, 0])
    .struct([1, ACTIONS.indexOf('table')], [4, rule.not ? FIB_RULE_INVERT : 0])
    .u32(FRA.priority, priority)
    .u32(FRA.table, table)
    .bytes(FRA.src, src?.bytes)
    .bytes(FRA.dst, dst?.bytes)
    .text(FRA.iifname, rule.iif)
    .text(FRA.oifname, rule.oif)
    .u32(FRA.fwmark, mark?.value)
    .u32(FRA.fwmask, mark?.mask)
    .u8(FRA.protocol, rule.protocol)
    .done();
  return { type, payload, what: () => `${verb} IPv${family} rule ${priority} to table ${table}` };
}
