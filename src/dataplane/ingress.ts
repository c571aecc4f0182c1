// SPDX-License-Identifier: Apache-2.0
/** Where packets from the wire are decapsulated: in the driver (XDP), or in tc. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { BpfError, BpfLink, type BpfProgram } from '#libbpf-ts';
import type { ProgramName } from './programs.ts';
import { linkKey } from './targets.ts';

/** `--ingress`: `auto` takes XDP where the driver has it natively. */
export type IngressWish = 'auto' | 'tc' | 'xdp';

export interface Ingress {
  readonly hook: 'tc' | 'xdp';
  /** For people. */
  readonly why: string;
}

/** What must be known of the uplink: `ip -details link`'s kind, such as `veth`, `bond`, `vlan`; undefined for a NIC. */
export interface IngressLink {
  readonly name: string;
  readonly ifindex: number;
  readonly kind?: string | undefined;
}

/** Drivers that refused, by interface: attaching resets a NIC's queues, so each is asked once. */
const refused = new Map<string, string>();

/**
 * Decide by the wish and the device; for `auto` on a NIC by attaching the program and pinning the link where the links
 * target keeps it. XDP on a veth makes its peer segment all that it sends, and costs most of the throughput: never by
 * itself.
 */
export function chooseIngress(
  wish: IngressWish,
  uplink: IngressLink | undefined,
  programs: Readonly<Record<ProgramName, BpfProgram>>,
  pinDir: string,
): Ingress {
  if (wish !== 'auto') return { hook: wish, why: `--ingress ${wish} says so` };
  if (!uplink) return { hook: 'tc', why: 'the uplink is gone' };
  const { name, ifindex, kind } = uplink;
  if (kind !== undefined) return { hook: 'tc', why: `${name} is a ${kind}, which is no NIC` };
  const pin = join(pinDir, linkKey('xdp_from_wire', name));
  if (existsSync(pin)) return { hook: 'xdp', why: `the driver of ${name} has XDP` };
  const known = refused.get(`${name} ${ifindex}`);
  if (known !== undefined) return { hook: 'tc', why: known };
  try {
    using link = BpfLink.attachXdp(programs.xdp_from_wire, ifindex, 'native');
    link.pin(pin);
    return { hook: 'xdp', why: `the driver of ${name} has XDP` };
  } catch (error) {
    if (!(error instanceof BpfError)) throw error;
    const why =
      error.code === 'EBUSY'
        ? `${name} has another XDP program`
        : `the driver of ${name} has no XDP (${error.code})`;
    refused.set(`${name} ${ifindex}`, why);
    return { hook: 'tc', why };
  }
}
