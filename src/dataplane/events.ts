// SPDX-License-Identifier: Apache-2.0
/**
 * Events: while somebody listens, programs report packets and what became of them into a ring buffer (bpf/events.h).
 * There is one listener at a time, and a new one takes over. When a listener dies, the programs fall silent by
 * themselves, since nobody moves on how many events are allowed.
 */
import { randomInt } from 'node:crypto';
import { hrtime } from 'node:process';
import { BpfMap, RingBuffer } from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { decode, kindSize } from './codec.ts';
import { hookNames, reasonNames, type Verdict } from './counters.ts';
import { currentGeneration } from './generation.ts';
import type { HookName } from './links.ts';
import { openTables, pinPaths, type Tables } from './tables.ts';

export interface PacketEvent {
  /** Wall clock, in nanoseconds since 1970. */
  readonly timeNs: bigint;
  /** Of the interface on whose hook the program is. */
  readonly ifindex: number;
  readonly hook: HookName;
  readonly verdict: Verdict;
  readonly reason: string;
  /** Of the whole frame. */
  readonly length: number;
  /** The beginning of the frame, as the program leaves it. */
  readonly bytes: Uint8Array;
}

export interface ListenOptions {
  /** Which packets to hear of, by verdict and reason. */
  readonly hears: (packet: Pick<PacketEvent, 'verdict' | 'reason'>) => boolean;
  /** One packet of so many. */
  readonly sample: number;
  /** So many events a second at most, on the whole node. */
  readonly rate: number;
  readonly onEvent: (event: PacketEvent) => void;
  /** Listening has ended by itself: another listener, or an agent that has replaced the maps. */
  readonly onEnd: (why: RipstopError) => void;
}

const KEY = 0;
const RING_BYTES = 1 << 20;
const REFILL_MS = 100;
const EVENT_BYTES = kindSize({ struct: 'event' });

/** Listen to what the programs of this node report, until it is closed. */
export class Listener implements Disposable {
  readonly #options: ListenOptions;
  readonly #tables: Tables & Disposable;
  readonly #ring: BpfMap;
  readonly #records: RingBuffer;
  readonly #timer: NodeJS.Timeout;
  readonly #owner = randomInt(1, 2 ** 32);
  readonly #isReplaced: () => boolean;
  /** From the programs' clock to the wall clock. */
  readonly #offsetNs = BigInt(Date.now()) * 1_000_000n - hrtime.bigint();
  #missed = 0;

  /** @throws RipstopError when there are no maps of this version. */
  constructor(bpffs: string, options: ListenOptions) {
    this.#options = options;
    using opened = new DisposableStack();
    this.#tables = opened.use(openTables(bpffs));
    const paths = pinPaths(bpffs);
    const generation = currentGeneration(paths)?.path;
    this.#isReplaced = () => currentGeneration(paths)?.path !== generation;
    this.#ring = opened.use(BpfMap.create('ringbuf', 'events', 0, 0, RING_BYTES));
    this.#records = opened.use(new RingBuffer(this.#ring, (bytes) => options.onEvent(this.#read(bytes))));
    this.#tables.events.set(KEY, this.#ring.fd);
    this.#allow(0);
    this.#timer = setInterval(() => this.#refill(), REFILL_MS);
    opened.move();
  }

  /** Packets that were over the rate, so far. */
  get missed(): number {
    return this.#missed;
  }

  close(): void {
    clearInterval(this.#timer);
    const { listeners, events } = this.#tables;
    if (listeners.get(KEY)?.owner === this.#owner)
      listeners.set(KEY, { reasons: 0, heard: 0, allowed: 0, sample: 0, owner: 0 });
    if (events.get(KEY) === this.#ring.info.id) events.delete(KEY);
    this.#records.close();
    this.#ring.close();
    this.#tables[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Allow the events of the next turn. Those that programs count at this very moment may go uncounted. */
  #allow(heard: number): void {
    const { hears, sample, rate } = this.#options;
    const reasons = reasonNames.reduce((bits, packet, i) => bits + (hears(packet) ? 2 ** i : 0), 0);
    const allowed = heard + Math.ceil((rate * REFILL_MS) / 1000);
    this.#tables.listeners.set(KEY, { reasons, heard, allowed, sample, owner: this.#owner });
  }

  #refill(): void {
    const { onEnd } = this.#options;
    const now = this.#tables.listeners.get(KEY);
    if (now?.owner !== this.#owner) {
      onEnd(new RipstopError('somebody else listens now: only one can listen on a node at a time'));
    } else if (this.#isReplaced()) {
      onEnd(new RipstopError('the agent has replaced the maps of the programs; start again'));
    } else {
      this.#missed += Math.max(0, now.heard - now.allowed);
      this.#allow(now.heard);
    }
  }

  #read(bytes: Uint8Array): PacketEvent {
    const event = decode({ struct: 'event' }, bytes);
    return {
      timeNs: BigInt(event.time_ns) + this.#offsetNs,
      ifindex: event.ifindex,
      hook: hookNames[event.hook]!,
      ...reasonNames[event.reason]!,
      length: event.length,
      bytes: bytes.subarray(EVENT_BYTES, EVENT_BYTES + event.captured),
    };
  }
}
