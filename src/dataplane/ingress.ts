// SPDX-License-Identifier: Apache-2.0

/** `--ingress`: `auto` takes XDP where the driver has it natively. */
export type IngressFlag = 'auto' | 'tc' | 'xdp';

/** Where packets from the wire are decapsulated: in the driver (XDP), or in tc. */
export interface Ingress {
  readonly hook: 'tc' | 'xdp';
  /** For people. */
  readonly why: string;
}

/** What must be known of the uplink: `ip -details link`'s kind, such as `veth`, `bond`, `vlan`; undefined for a NIC. */
export interface IngressLink {
  readonly name: string;
  readonly kind?: string | undefined;
}

/**
 * Choose by the flag and the interface. XDP on a veth makes its peer segment all that it sends, and costs most of the
 * throughput: `auto` never takes it there. Pure.
 * @param uplink undefined when it is gone.
 * @param refusal why its driver refused XDP when it was asked; undefined when it did not, or was not asked yet.
 */
export function chooseIngress(
  flag: IngressFlag,
  uplink: IngressLink | undefined,
  refusal: string | undefined,
): Ingress {
  if (flag !== 'auto') return { hook: flag, why: `--ingress ${flag} says so` };
  if (!uplink) return { hook: 'tc', why: 'the uplink is gone' };
  const { name, kind } = uplink;
  if (kind !== undefined) return { hook: 'tc', why: `${name} is a ${kind}, which is no NIC` };
  if (refusal !== undefined) return { hook: 'tc', why: refusal };
  return { hook: 'xdp', why: `the driver of ${name} has XDP` };
}
