// SPDX-License-Identifier: Apache-2.0
import { endianness } from 'node:os';
import { checkStatus } from './error.ts';
import type { Bytes } from './calls.ts';
import { addressOf, libbpf } from './ffi.ts';

/**
 * Larger than any of the kernel's info structs. The kernel fills in the members that it knows, and leaves the rest
 * zero.
 */
const INFO_BYTES = 512;
const LITTLE = endianness() === 'LE';

/** One of `struct bpf_{map,prog,link}_info` (linux/bpf.h), read by the byte offsets of that header. */
export class Info {
  readonly #bytes = new Uint8Array(INFO_BYTES);
  readonly #view = new DataView(this.#bytes.buffer);

  /** Let the kernel fill an array, whose address goes into the member at `offset`. */
  lend(offset: number, array: Bytes): void {
    this.#view.setBigUint64(offset, addressOf(array), LITTLE);
  }

  setU32(offset: number, value: number): void {
    this.#view.setUint32(offset, value, LITTLE);
  }

  fill(fd: number, subject: string): this {
    const length = new Uint32Array([INFO_BYTES]);
    const status = libbpf().bpf_obj_get_info_by_fd(fd, this.#bytes, length);
    checkStatus('bpf_obj_get_info_by_fd', status, subject);
    return this;
  }

  u32(offset: number): number {
    return this.#view.getUint32(offset, LITTLE);
  }

  u64(offset: number): bigint {
    return this.#view.getBigUint64(offset, LITTLE);
  }

  hex(offset: number, size: number): string {
    return Buffer.from(this.#bytes.subarray(offset, offset + size)).toString('hex');
  }

  /** `char name[16]`, zero-terminated. */
  name(offset: number): string {
    const bytes = this.#bytes.subarray(offset, offset + 16);
    const end = bytes.indexOf(0);
    return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString();
  }
}
