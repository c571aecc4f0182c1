// SPDX-License-Identifier: Apache-2.0
import { checkStatus } from './error.ts';
import type { Pointer } from './calls.ts';
import { checkPointer, libbpf, poll, readBytes, registerSampleCallback, unregister } from './ffi.ts';
import type { BpfMap } from './map.ts';

/**
 * The records of a `ringbuf` map, as the event loop hears of them. Each record is a copy, given in order; an open ring
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
    // What was written before us woke nobody.
    this.#drain();
  }

  /** Records that were not given yet are dropped. Closing twice is no error. */
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
    // Out of koffi's callback: promises settled inside it would wait for the next event (Node 26).
    setImmediate(() => {
      for (const record of records) if (!this.#closed) this.#onRecord(record);
    });
  }
}
