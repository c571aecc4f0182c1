// SPDX-License-Identifier: Apache-2.0
/** Captures in the format pcapng (draft-ietf-opsawg-pcapng), which Wireshark and tshark read. */

const SECTION = 0x0a0d0d0a;
const INTERFACE = 1;
const PACKET = 6;
const BYTE_ORDER = 0x1a2b3c4d;
const ETHERNET = 1;
const OPTION = { end: 0, comment: 1, packetFlags: 2, name: 2, timeResolution: 9, application: 4 } as const;
/** Timestamps are nanoseconds. */
const NANOSECONDS = 9;

export interface CapturedPacket {
  readonly timeNs: bigint;
  readonly device: string;
  readonly direction: 'in' | 'out';
  /** The beginning of the frame, and the length of the whole. */
  readonly bytes: Uint8Array;
  readonly length: number;
  readonly comment: string;
}

/** Makes the bytes of a capture, block by block. */
export class Pcapng {
  readonly #devices = new Map<string, number>();

  /** What a capture begins with. */
  start(application: string): Uint8Array {
    const length = Buffer.alloc(8, 0xff); // not given
    return block(SECTION, [
      u32(BYTE_ORDER),
      u16(1),
      u16(0),
      length,
      option(OPTION.application, text(application)),
      END,
    ]);
  }

  /** A packet, behind the description of its interface when that is new. */
  packet({ timeNs, device, direction, bytes, length, comment }: CapturedPacket): Uint8Array {
    const known = this.#devices.get(device);
    const id = known ?? this.#devices.size;
    const ofPacket = block(PACKET, [
      ...[id, Number(timeNs >> 32n), Number(timeNs & 0xffff_ffffn), bytes.length, length].map(u32),
      padded(bytes),
      option(OPTION.comment, text(comment)),
      option(OPTION.packetFlags, u32(direction === 'in' ? 1 : 2)),
      END,
    ]);
    if (known !== undefined) return ofPacket;
    this.#devices.set(device, id);
    const anyLength = u32(0);
    const named = [
      option(OPTION.name, text(device)),
      option(OPTION.timeResolution, Buffer.of(NANOSECONDS)),
      END,
    ];
    return Buffer.concat([block(INTERFACE, [u16(ETHERNET), u16(0), anyLength, ...named]), ofPacket]);
  }
}

/** A block has its length at both ends. */
function block(type: number, parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  const length = u32(body.length + 12);
  return Buffer.concat([u32(type), length, body, length]);
}

function option(code: number, value: Uint8Array): Buffer {
  return Buffer.concat([u16(code), u16(value.length), padded(value)]);
}

const END = option(OPTION.end, Buffer.alloc(0));

/** Everything is padded to whole units of 4 bytes. */
function padded(bytes: Uint8Array): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}

function text(value: string): Buffer {
  return Buffer.from(value);
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
