// SPDX-License-Identifier: Apache-2.0
/**
 * Datagrams between pods of a lab, each of a flow of its own: the kernel path takes the first packet of a flow, and so each
 * of these. The test's own process sends and receives them, so it knows when each was sent.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'vitest';
import { ipJson } from '../../src/lab/ip.ts';
import { netnsPath, type PodState } from '../../src/lab/index.ts';
import { addressFamily } from '../../src/net/ip.ts';
import { ethernet, ip, sealed, udp } from '../../src/net/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import { addressesOf, addressOf, inNetns, ping, PORT } from './support.ts';

/** How long what is to arrive may take. */
const PATIENCE_MS = 3000;
/** After which nothing of what was sent before is on its way any more. */
const SILENCE_MS = 200;

/** Below are the ports of sockets. */
const FIRST_PORT = 1024;
const PORTS = 20_000;
let flows = Math.floor(Math.random() * PORTS);

/** A pod whose packets a test sends and sees. */
export class Station implements Disposable {
  readonly pod: PodState;
  readonly socket: RawSocket;
  readonly #gateway: string;

  private constructor(pod: PodState, gateway: string) {
    this.pod = pod;
    this.#gateway = gateway;
    this.socket = new RawSocket(netnsPath(pod.netns), 'eth0');
  }

  /** @param other a pod of another node, that it can reach */
  static async of(pod: PodState, other: PodState): Promise<Station> {
    await ping(pod, other.ip, 1);
    const [hop] = await ipJson<{ lladdr: string }>(['neigh', 'show', 'dev', 'eth0'], inNetns(pod));
    return new Station(pod, hop!.lladdr);
  }

  [Symbol.dispose](): void {
    this.socket[Symbol.dispose]();
  }

  /** Send an IP packet to the pod's gateway. */
  send(packet: Uint8Array): void {
    expect(
      this.socket.send(ethernet({ dst: this.#gateway, src: '02:00:00:00:00:66' }, packet)),
    ).toBeUndefined();
  }

  /** All frames that have arrived since the last call. */
  received(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    for (let got = this.socket.receive(); got; got = this.socket.receive()) frames.push(got.frame);
    return frames;
  }

  /** Send the first datagram of a new flow to a port where a talker serves. Returns the text that it carries. */
  begin(address: string, port = PORT): string {
    const text = `flow ${++flows}.`;
    const src = addressOf(this.pod, addressFamily(address)!);
    const datagram = udp({ src: FIRST_PORT + (flows % PORTS), dst: port }, Buffer.from(text));
    this.send(sealed(ip({ src, dst: address, id: flows & 0xffff, flowLabel: flows }, datagram)));
    return text;
  }
}

/** How many of the new flows have reached the other pod, and how many of their answers the sender. */
export interface Arrived {
  readonly there: number;
  readonly back: number;
}

/** Texts that a station has received. */
class Texts {
  readonly #station: Station;
  readonly seen = new Set<string>();

  constructor(station: Station) {
    this.#station = station;
  }

  count(texts: readonly string[]): number {
    for (const frame of this.#station.received())
      for (const [text] of Buffer.from(frame)
        .toString('latin1')
        .matchAll(/flow \d+\./g))
        this.seen.add(text);
    return texts.filter((text) => this.seen.has(text)).length;
  }
}

export interface NewFlows {
  /** How many to each address. */
  count?: number;
  /** Default: all addresses of the other pod. */
  addresses?: readonly string[];
  /** Nothing is expected to arrive. */
  none?: boolean;
  patienceMs?: number;
}

/**
 * Begin new flows, in turns to each address, and see what arrives. Waits until all have arrived and are answered; where
 * `none` is expected, until nothing can be on its way any more.
 */
export async function begin(
  from: Station,
  to: Station,
  { count = 10, addresses = addressesOf(to.pod), none = false, patienceMs = PATIENCE_MS }: NewFlows = {},
): Promise<Arrived> {
  const [there, back] = [new Texts(to), new Texts(from)];
  const texts: string[] = [];
  for (let i = 0; i < count; i++) for (const address of addresses) texts.push(from.begin(address));
  const arrived = (): Arrived => ({ there: there.count(texts), back: back.count(texts) });
  if (none) await sleep(SILENCE_MS);
  const deadline = performance.now() + (none ? 0 : patienceMs);
  while (arrived().back < texts.length && performance.now() < deadline) await sleep(5);
  return arrived();
}
