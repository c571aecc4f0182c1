// SPDX-License-Identifier: Apache-2.0
import type { ServerResponse } from 'node:http';
import type { Faults } from './faults.ts';
import type { RequestInfo } from './routes.ts';

const garbage = Buffer.from('\u0000\ufffd{{"type":"ADDED","object":{"kind":]}\n');

/** Sends the frames of an answer (watch events, or one whole body), with the injected faults. */
export class Outlet {
  readonly request: RequestInfo;
  readonly #response: ServerResponse;
  readonly #faults: Faults;
  readonly #reset: () => void;
  /** Frames that a `chunk` fault delays, and those after them. */
  readonly #queue: { bytes: Buffer; step: number }[] = [];
  #closing: 'clean' | 'reset' | undefined;
  #muted = false;

  /** @param reset resets the connection that carries the response. */
  constructor(request: RequestInfo, response: ServerResponse, faults: Faults, reset: () => void) {
    this.request = request;
    this.#response = response;
    this.#faults = faults;
    this.#reset = reset;
  }

  /** Send a watch event. `older` returns the frame of an older state of its object, for the `stale` fault. */
  event(frame: Buffer, older: () => Buffer): void {
    if (this.#faults.strike('mute', this.request)) this.#muted = true;
    if (this.#muted) return;
    this.frame(frame);
    if (this.#faults.strike('duplicate', this.request)) this.#write(frame);
    if (this.#faults.strike('stale', this.request)) this.#write(older());
  }

  /** Send a bookmark, an ERROR event or a whole body. */
  frame(frame: Buffer): void {
    const cut = this.#faults.strike('truncate', this.request);
    if (cut) {
      this.#write(frame.subarray(0, frame.length >> 1));
      this.end(cut.end ?? 'clean');
    } else this.#write(this.#faults.strike('garbage', this.request) ? garbage : frame);
  }

  /** End the answer, or reset its connection, after all that has been written. */
  end(how: 'clean' | 'reset' = 'clean'): void {
    if (this.#muted || this.#closing) return;
    this.#closing = how;
    if (this.#queue.length === 0) this.#close();
  }

  /** Bytes that the client has not read yet. */
  get backlog(): number {
    return this.#response.writableLength + this.#queue.reduce((sum, { bytes }) => sum + bytes.length, 0);
  }

  /** Reset the connection at once. */
  abort(): void {
    this.#reset();
  }

  #write(bytes: Buffer): void {
    if (this.#muted || this.#closing || this.#response.destroyed) return;
    const step = this.#faults.strike('chunk', this.request)?.bytes;
    if (step === undefined && this.#queue.length === 0) {
      this.#response.write(bytes);
      return;
    }
    this.#queue.push({ bytes, step: Math.max(1, step ?? bytes.length) });
    if (this.#queue.length === 1) setImmediate(() => this.#pump());
  }

  #pump(): void {
    const [head] = this.#queue;
    if (!head || this.#response.destroyed) return;
    this.#response.write(head.bytes.subarray(0, head.step));
    head.bytes = head.bytes.subarray(head.step);
    if (head.bytes.length === 0) this.#queue.shift();
    if (this.#queue.length > 0) setImmediate(() => this.#pump());
    else if (this.#closing) this.#close();
  }

  #close(): void {
    if (this.#closing === 'clean') this.#response.end();
    // What was written must leave first, or the client sees only the reset.
    else this.#response.write('', () => setTimeout(this.#reset, 20));
  }
}
