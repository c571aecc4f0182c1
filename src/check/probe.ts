// SPDX-License-Identifier: Apache-2.0
/** One probe: a few packets to an address, and what became of them. It runs where the packets begin. */
import { lookup } from 'node:dns/promises';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatagramSocket, echo, getLink, listRoutes, NetlinkError, NetlinkSocket } from '#netlink';
import { errorText } from '../errors.ts';
import { addressFamily, cidrContains, parseCidr } from '../net/ip.ts';

/** What to send. `token` is the message; the server at the other side remembers it, and answers it. */
export type Probe =
  | {
      /** `mtu`: a datagram as large as the sender's MTU, and one of a byte more. `train`: many datagrams, one flow. */
      readonly protocol: 'tcp' | 'udp' | 'mtu' | 'train';
      readonly address: string;
      readonly port: number;
      readonly token: string;
    }
  | { readonly protocol: 'icmp'; readonly address: string }
  | { readonly protocol: 'dns'; readonly name: string };

/**
 * Why a probe failed. `lost`: no answer, and no error either. `not-refused`: a packet larger than the MTU was sent.
 * `no-rights`: this process may not send such packets.
 */
export type Failure =
  | 'lost'
  | 'refused'
  | 'unreachable'
  | 'prohibited'
  | 'too-big'
  | 'not-refused'
  | 'unknown-name'
  | 'no-rights'
  | 'error';

export interface Outcome {
  /** Undefined: it passed. */
  readonly failure?: Failure;
  /** What the system said. */
  readonly detail?: string;
  /** From the first packet to the answer, or until it was given up. */
  readonly milliseconds: number;
  /** The MTU of the sender, bytes. */
  readonly mtu?: number;
  /** The largest packet that the path is known to carry, bytes. */
  readonly pathMtu?: number;
  /** The own port, of a `train`. */
  readonly port?: number;
}

/** A datagram without an answer is sent again: so often, and after so long. */
const TRIES = 3;
const TRY_MS = 700;
/** Linux sends a lost SYN again after 1 s. */
const TCP_MS = 3000;
/** The resolver's own limit for one server is 5 s. */
const DNS_MS = 6000;
/** A flow is learned after a few packets. */
const TRAIN = { datagrams: 25, everyMs: 10 };

const CODES: Readonly<Record<string, Failure>> = {
  ECONNREFUSED: 'refused',
  EHOSTUNREACH: 'unreachable',
  ENETUNREACH: 'unreachable',
  EACCES: 'prohibited',
  EPERM: 'prohibited',
  EMSGSIZE: 'too-big',
  ETIMEDOUT: 'lost',
  ENOTFOUND: 'unknown-name',
  EAI_AGAIN: 'lost',
};

/** Load what probes need, which takes a moment that must not be part of the first one. */
export function warmUp(): void {
  using socket = DatagramSocket.connect('127.0.0.1', 9);
  socket.receive();
}

class Failed extends Error {
  readonly outcome: Omit<Outcome, 'milliseconds'>;

  constructor(outcome: Omit<Outcome, 'milliseconds'>) {
    super(outcome.failure);
    this.outcome = outcome;
  }
}

/** Carry out one probe. Never throws: an error is an outcome. */
export async function runProbe(probe: Probe): Promise<Outcome> {
  const begun = performance.now();
  const outcome = await attempt(probe).catch((error: unknown): Omit<Outcome, 'milliseconds'> => {
    if (error instanceof Failed) return error.outcome;
    const { code = '' } = error as { code?: string };
    return { failure: CODES[code] ?? 'error', detail: errorText(error) };
  });
  return { ...outcome, milliseconds: Math.round(performance.now() - begun) };
}

function attempt(probe: Probe): Promise<Omit<Outcome, 'milliseconds'>> {
  switch (probe.protocol) {
    case 'tcp':
      return tcp(probe);
    case 'udp':
      return udp(probe);
    case 'icmp':
      return icmp(probe.address);
    case 'mtu':
      return mtu(probe);
    case 'train':
      return train(probe);
    default:
      return dns(probe.name);
  }
}

type ToServer = Extract<Probe, { token: string }>;

async function udp({ address, port, token }: ToServer): Promise<object> {
  using socket = DatagramSocket.connect(address, port);
  const message = Buffer.from(token);
  await exchange(socket, message, (answer) => answer.equals(message));
  return {};
}

/** Connect, send the token and get it back. */
async function tcp({ address, port, token }: ToServer): Promise<object> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const socket = connect({ host: address, port });
  // A process that had to wait for the CPU runs its timers before it reads what has come meanwhile.
  const giveUp = (): unknown => setTimeout(() => reject(new Failed({ failure: 'lost' })), 50);
  const timer = setTimeout(giveUp, TCP_MS);
  let received = '';
  socket.setEncoding('utf8');
  socket.on('connect', () => socket.write(token));
  socket.on('data', (text: string) => {
    received += text;
    if (received === token) resolve();
  });
  socket.on('error', reject);
  socket.on('close', () => reject(new Failed({ failure: 'error', detail: 'closed without an answer' })));
  try {
    await promise;
    return {};
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

/**
 * Send until an answer comes. An answer to any of the tries counts.
 * @throws Failed with `lost`; NetlinkError when an ICMP error comes in place of an answer.
 */
async function exchange(
  socket: DatagramSocket,
  message: Uint8Array,
  isAnswer: (message: Buffer) => boolean,
): Promise<void> {
  for (let sent = 0; sent < TRIES; sent++) {
    socket.send(message);
    const deadline = performance.now() + TRY_MS;
    for (let pause = 1, isOver = false; !isOver; pause = Math.min(pause * 2, 20)) {
      await sleep(pause);
      isOver = performance.now() > deadline;
      for (let got = socket.receive(); got; got = socket.receive()) if (isAnswer(got)) return;
    }
  }
  throw new Failed({ failure: 'lost' });
}

/** An ICMP echo (RFC 792, RFC 4443). */
async function icmp(address: string): Promise<object> {
  try {
    const [result] = await echo([{ to: address, bytes: 84 }], { tries: TRIES, timeoutMs: TRIES * TRY_MS });
    if (result === 'answered') return {};
    throw new Failed({ failure: result === 'unreachable' ? result : 'lost' });
  } catch (error) {
    if (!(error instanceof NetlinkError) || !['EPERM', 'EACCES'].includes(error.code)) throw error;
    throw new Failed({ failure: 'no-rights', detail: 'it takes CAP_NET_RAW' });
  }
}

/** UDP's header and the IP header before it. */
const headerBytes = (socket: DatagramSocket): number => 8 + (socket.family === 4 ? 20 : 40);

/** A packet of exactly the own MTU arrives whole, and one byte more is refused at once, with the right MTU. */
async function mtu({ address, port, token }: ToServer): Promise<Omit<Outcome, 'milliseconds'>> {
  using socket = DatagramSocket.connect(address, port);
  socket.forbidFragments();
  const ours = ownMtu(address);
  const message = Buffer.alloc(ours - headerBytes(socket), ' ');
  message.write(token);
  try {
    await exchange(socket, message, (answer) => answer.equals(Buffer.from(token)));
  } catch (error) {
    if (error instanceof Failed) throw new Failed({ ...error.outcome, mtu: ours });
    if (!(error instanceof NetlinkError) || error.code !== 'EMSGSIZE') throw error;
    throw new Failed({ failure: 'too-big', mtu: ours, pathMtu: socket.pathMtu });
  }
  try {
    socket.send(Buffer.alloc(message.length + 1));
  } catch (error) {
    if (!(error instanceof NetlinkError) || error.code !== 'EMSGSIZE') throw error;
    const { pathMtu } = socket;
    if (pathMtu !== ours) throw new Failed({ failure: 'too-big', mtu: ours, pathMtu });
    return { mtu: ours };
  }
  throw new Failed({ failure: 'not-refused', mtu: ours });
}

/**
 * The MTU that packets to an address have by this pod's own configuration: its route's, or else its device's. Not asked by
 * looking up the route, whose answer knows what the path was found to carry lately.
 */
function ownMtu(address: string): number {
  using socket = NetlinkSocket.open('route');
  const family = addressFamily(address) ?? 4;
  const [route] = listRoutes(socket, { family })
    .map((one) => ({ ...one, prefix: parseCidr(one.dst) }))
    .filter(({ prefix }) => cidrContains(prefix, address))
    .toSorted((a, b) => b.prefix.length - a.prefix.length || a.metric - b.metric);
  if (!route) throw new Error(`the main routing table has no route to ${address}`);
  return route.mtu ?? getLink(socket, route.ifindex ?? 0)!.mtu;
}

/** Many datagrams of one flow, at least the last one answered. */
async function train({ address, port, token }: ToServer): Promise<Omit<Outcome, 'milliseconds'>> {
  using socket = DatagramSocket.connect(address, port);
  const message = Buffer.from(token);
  for (let sent = 1; sent < TRAIN.datagrams; sent++) {
    socket.send(message);
    await sleep(TRAIN.everyMs);
    while (socket.receive());
  }
  await exchange(socket, message, (answer) => answer.equals(message));
  return { port: socket.port };
}

/** By the C library, like most programs: with the search domains of the pod. */
async function dns(name: string): Promise<Omit<Outcome, 'milliseconds'>> {
  const tooLate = sleep(DNS_MS, undefined, { ref: false }).then(() => {
    throw new Failed({ failure: 'lost' });
  });
  const addresses = await Promise.race([lookup(name, { all: true }), tooLate]);
  return { detail: addresses.map(({ address }) => address).join(', ') };
}
