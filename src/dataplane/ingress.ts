// SPDX-License-Identifier: Apache-2.0
/** Where packets from the wire are decapsulated: in the driver (XDP), or in tc. */
import { existsSync, rmSync } from 'node:fs';
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
  readonly mtu: number;
}

/**
 * What drivers said, by interface: attaching resets a NIC's queues, so each is asked once. Up to which MTU it has XDP a driver
 * tells only when a program is attached (and one, virtio-net, then drops what is larger), so with each MTU it is asked anew.
 */
const answers = new Map<string, { readonly mtu: number; readonly refusal?: string }>();

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
  const { name, ifindex, kind, mtu } = uplink;
  if (kind !== undefined) return { hook: 'tc', why: `${name} is a ${kind}, which is no NIC` };
  const pin = join(pinDir, linkKey('xdp_from_wire', name));
  const device = `${name} ${ifindex}`;
  const answer = answers.get(device);
  const isStale = answer !== undefined && answer.mtu !== mtu;
  if (isStale) detachXdp(pin);
  else if (answer?.refusal !== undefined) return { hook: 'tc', why: answer.refusal };
  try {
    if (!existsSync(pin)) {
      using link = BpfLink.attachXdp(programs.xdp_from_wire, ifindex, 'native');
      link.pin(pin);
    }
    answers.set(device, { mtu });
    return { hook: 'xdp', why: `the driver of ${name} has XDP` };
  } catch (error) {
    if (!(error instanceof BpfError)) throw error;
    const refusal = refusalOf(uplink, error.code);
    answers.set(device, { mtu, refusal });
    return { hook: 'tc', why: refusal };
  }
}

function detachXdp(pin: string): void {
  if (!existsSync(pin)) return;
  using link = BpfLink.openPinned(pin);
  link.detach(); // at once; an unpinned link goes a moment later
  rmSync(pin);
}

function refusalOf({ name, mtu }: IngressLink, code: string): string {
  if (code === 'EBUSY') return `${name} has another XDP program`;
  if (code === 'EOPNOTSUPP') return `the driver of ${name} has no XDP`;
  return `the driver of ${name} refuses XDP at an MTU of ${mtu} (${code})`;
}
