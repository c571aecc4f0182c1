// SPDX-License-Identifier: Apache-2.0
import { checkStatus } from './error.ts';
import type { Pointer } from './calls.ts';
import { checkPointer, libbpf, poll, readBytes, registerSampleCallback, unregister } from './ffi.ts';
import type { BpfMap } from './map.ts';

/**
 * The records of a `ringbuf` map, delivered by the event loop. Each record is a copy; they come in order. An open ring
 * buffer keeps the process alive.
 */
export class RingBuffer {
  readonly #onRecord: (bytes: Uint8Array) => void;
  readonly #callback: Pointer;
  readonly #ring: Pointer;
  readonly #poll: { close(): void };
  #pending: Uint8Array[] = [];
  #closed = false;

  constructor(map: BpfMap, onRecord: (bytes: Uint8Array) => void) {
    this.#onRecord = onRecord;
    this.#callback = registerSampleCallback((data, size) => this.#pending.push(readBytes(data, size)));
    try {
      const ring = libbpf().ring_buffer__new(map.fd, this.#callback, null, null);
      this.#ring = checkPointer('ring_buffer__new', ring, `map ${map.info.name}`);
    } catch (error) {
      unregister(this.#callback);
      throw error;
    }
    this.#poll = poll(libbpf().ring_buffer__epoll_fd(this.#ring), () => this.#drain());
    // Nothing announces records that were written earlier.
    this.#drain();
  }

  /** Close it. Records that have not been delivered are lost. Closing twice is no error. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#poll.close();
    libbpf().ring_buffer__free(this.#ring);
    unregister(this.#callback);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #drain(): void {
    if (this.#closed) return;
    checkStatus('ring_buffer__consume', libbpf().ring_buffer__consume(this.#ring));
    const records = this.#pending;
    this.#pending = [];
    if (records.length === 0) return;
    // Leave koffi's callback first: promises settled inside it would wait for the next event (Node 26).
    setImmediate(() => {
      for (const record of records) if (!this.#closed) this.#onRecord(record);
    });
  }
}
