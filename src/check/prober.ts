// SPDX-License-Identifier: Apache-2.0
/**
 * The hidden command `check-prober`: what runs in each pod and on each node that takes part in a check. It sends probes
 * as it is told, answers those of others, and ends when its standard input does. It speaks JSON, one line each way.
 */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { errorText } from '../errors.ts';
import { type Outcome, type Probe, runProbe, warmUp } from './probe.ts';

/** The port of all probers that serve. Each is in a network namespace of its own. */
export const PORT = 4280;

/** What a prober may be asked: to send a probe, or which of these tokens have arrived by UDP. */
export type Question = { readonly probe: Probe } | { readonly seen: readonly string[] };
export type Answer = Outcome | readonly string[];

/** A question and its answer have the same number. The first line, without a number, says that it is ready. */
export interface Asked {
  readonly id: number;
  readonly question: Question;
}

export interface Answered {
  readonly id?: number;
  readonly answer?: Answer;
  /** It cannot serve. */
  readonly error?: string;
}

/** A token is this long at most. A larger datagram is a token and blanks. */
const MAX_TOKEN = 40;

/** @param port where to serve TCP and UDP; undefined: nowhere. */
export async function runProber(port: number | undefined): Promise<void> {
  const tell = (line: Answered): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
  const seen = new Set<string>();
  if (port !== undefined) {
    try {
      await serve(port, seen);
    } catch (error) {
      return tell({ error: `cannot serve port ${port}: ${errorText(error)}` });
    }
  }
  warmUp();
  tell({});
  const ask = async (question: Question): Promise<Answer> =>
    'seen' in question ? question.seen.filter((token) => seen.has(token)) : runProbe(question.probe);
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, question } = JSON.parse(line) as Asked;
    void ask(question).then((answer) => tell({ id, answer }));
  }
  process.exit();
}

/** Serve TCP and UDP, in both families where the system has IPv6. */
async function serve(port: number, seen: Set<string>): Promise<void> {
  try {
    await serveOn('::', port, seen);
  } catch (error) {
    if (!['EAFNOSUPPORT', 'EADDRNOTAVAIL'].includes(String((error as { code?: unknown }).code))) throw error;
    await serveOn('0.0.0.0', port, seen);
  }
}

async function serveOn(address: string, port: number, seen: Set<string>): Promise<void> {
  const tcp = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  tcp.listen(port, address);
  await once(tcp, 'listening');
  const udp = createSocket(address === '::' ? 'udp6' : 'udp4');
  udp.on('message', (message, from) => {
    const token = message.toString('latin1').trimEnd();
    // Others may send here too. No answer is larger than what it answers.
    if (!/^check-[\w-]+$/.test(token) || token.length > MAX_TOKEN) return;
    seen.add(token);
    udp.send(token, from.port, from.address, () => {});
  });
  udp.bind(port, address);
  await once(udp, 'listening');
}
