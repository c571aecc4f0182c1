// SPDX-License-Identifier: Apache-2.0

/** `--ingress`: `auto` takes XDP where the driver has it natively. */
export type IngressFlag = 'auto' | 'tc' | 'xdp';

/** The hook at which packets from the uplink are decapsulated: XDP (in the driver), or tc. */
export interface Ingress {
  readonly hook: 'tc' | 'xdp';
  /** The reason, for people. */
  readonly why: string;
}

/** The properties of the uplink on which the choice depends. */
export interface IngressLink {
  readonly name: string;
  /** The kind of the link, such as `veth`, `bond`, `vlan`; undefined for a NIC. */
  readonly kind?: string | undefined;
}

/**
 * Choose by the flag and the interface. `auto` never takes XDP on a veth: its peer would have to segment all that it
 * sends, which costs most of the throughput. Pure.
 * @param uplink undefined when it is gone.
 * @param refusal why its driver refused XDP; undefined when it accepted XDP, or when XDP was not tried yet.
 */
export function chooseIngress(
  flag: IngressFlag,
  uplink: IngressLink | undefined,
  refusal: string | undefined,
): Ingress {
  if (flag !== 'auto') return { hook: flag, why: `--ingress ${flag} says so` };
  if (!uplink) return { hook: 'tc', why: 'the uplink is gone' };
  const { name, kind } = uplink;
  if (kind !== undefined) return { hook: 'tc', why: `${name} is a ${kind}, not a NIC` };
  if (refusal !== undefined) return { hook: 'tc', why: refusal };
  return { hook: 'xdp', why: `the driver of ${name} has XDP` };
}
