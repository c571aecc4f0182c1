// SPDX-License-Identifier: Apache-2.0

/** Offsets in `struct __sk_buff` of linux/bpf.h of the members that a test run takes. */
const OFFSETS = { mark: 8, priority: 32, ifindex: 40, cb0: 48, gsoSize: 176 } as const;

/** The size of `struct __sk_buff`. */
export const SK_BUFF_BYTES = 192;

/** What an skb says beside its packet. */
export interface SkBuff {
  readonly mark: number;
  readonly priority: number;
  /** The first word of the control block, which programs pass on to later programs. */
  readonly cb0: number;
  /** The device; in a test run the loopback device unless another one is given. */
  readonly ifindex: number;
  /** The payload bytes of each segment of a super-packet. */
  readonly gsoSize: number;
}

/** The context of a tc program's test run; what is not given is zero. */
export function encodeSkBuff(members: Partial<SkBuff>): Uint8Array {
  const view = new DataView(new ArrayBuffer(SK_BUFF_BYTES));
  for (const [name, value] of Object.entries(members) as [keyof SkBuff, number][])
    view.setUint32(OFFSETS[name], value, true);
  return new Uint8Array(view.buffer);
}

/** The inverse of {@link encodeSkBuff}. */
export function decodeSkBuff(bytes: Uint8Array): SkBuff {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const member = (name: keyof SkBuff): number => view.getUint32(OFFSETS[name], true);
  return {
    mark: member('mark'),
    priority: member('priority'),
    cb0: member('cb0'),
    ifindex: member('ifindex'),
    gsoSize: member('gsoSize'),
  };
}
