// SPDX-License-Identifier: Apache-2.0
/**
 * The program of a place: it serves at the addresses it is given, and is the client of flows. It takes an Order at a time
 * from its parent, and answers each.
 */
import { execFile } from 'node:child_process';
import { createHash, type Hash } from 'node:crypto';
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, isIPv6, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Flow, Message, Phase } from './flows.ts';

export type Order =
  | { readonly serve: readonly string[]; readonly ports: readonly number[] }
  /** Talk, each flow from a local port of its own: the first of two, since a new connection takes another. */
  | { readonly talk: readonly { readonly flow: Flow; readonly port: number }[]; readonly phase: Phase }
  /** What has been served since the last time. */
  | 'served'
  /** Close all clients' sockets. */
  | 'close';

/** What the client of a flow has seen in a phase. */
export interface Talked {
  readonly flow: number;
  readonly outcome: string;
  /** The socket's port; of a ping its identifier. */
  readonly port: number;
}

/** What the server of a flow has seen. */
export interface Served {
  readonly flow: number;
  readonly peer: string;
  readonly port: number;
  readonly bytes: number;
  readonly hash: string;
}

/** How long a client waits: for TCP, for the next datagram, and for the last one. */
const [TCP_MS, NEXT_MS, LAST_MS] = [1000, 60, 600];
const HEADER = 9;

/** The bytes of a message: its flow's number, its own number, whether it may be lost, and a pattern. */
function messageOf(flow: number, index: number, { bytes, mayBeLost }: Message): Buffer {
  const message = Buffer.alloc(bytes, `${flow}.${index} `);
  message.writeUInt32BE(flow, 0);
  message.writeUInt32BE(index, 4);
  message.writeUInt8(mayBeLost ? 1 : 0, 8);
  return message;
}

/** Convert an IPv4-mapped address to the usual form. */
const plain = (address = ''): string => address.replace(/^::ffff:(?=\d+\.)/, '');

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error);

// ---- Serving ----

const served = new Map<string, { flow: number; peer: string; port: number; bytes: number; hash: Hash }>();

function note(flow: number, peer: string, port: number, data: Buffer): void {
  const key = `${flow} ${peer} ${port}`;
  const record = served.get(key) ?? { flow, peer, port, bytes: 0, hash: createHash('sha1') };
  record.bytes += data.length;
  record.hash.update(data);
  served.set(key, record);
}

async function serve(address: string, port: number): Promise<void> {
  const tcp = createServer({ noDelay: true }, (socket) => {
    let flow: number | undefined;
    let before: Buffer = Buffer.alloc(0);
    socket.on('error', () => socket.destroy());
    socket.on('data', (data: Buffer) => {
      socket.write(data);
      before = flow === undefined ? Buffer.concat([before, data]) : data;
      if (flow === undefined && before.length < HEADER) return;
      flow ??= before.readUInt32BE(0);
      note(flow, plain(socket.remoteAddress), socket.remotePort ?? 0, before);
    });
  }).listen(port, address);
  const udp = createSocket(isIPv6(address) ? 'udp6' : 'udp4', (message, peer) => {
    if (message.length < HEADER) return;
    if (message[8] === 0) note(message.readUInt32BE(0), plain(peer.address), peer.port, message);
    udp.send(message, peer.port, peer.address);
  });
  udp.on('error', () => {}); // an ICMP error about an answer
  udp.bind(port, address);
  await Promise.all([once(tcp, 'listening'), once(udp, 'listening')]);
}

// ---- Talking ----

const connections = new Map<number, Socket>();
const sockets = new Map<number, UdpSocket>();

async function talkTcp(flow: Flow, phase: Phase, firstPort: number): Promise<Talked> {
  let socket = connections.get(flow.number);
  const isNew = !socket;
  const port = isNew ? firstPort + phase - 1 : firstPort;
  let error: string | undefined;
  try {
    if (!socket) {
      socket = connect({ host: flow.address, port: flow.port, localPort: port, noDelay: true });
      socket.on('error', (reason) => (error = codeOf(reason)));
      await once(socket, 'connect', { signal: AbortSignal.timeout(TCP_MS) });
      if (flow.tos) socket.setTypeOfService(flow.tos);
    }
  } catch {
    socket?.resetAndDestroy();
    return { flow: flow.number, port, outcome: `no connection: ${error ?? 'timeout'}` };
  }
  const answered = await echo(socket, flow);
  const { length } = flow.messages;
  const talked = `${isNew ? 'connected' : 'as before'}, ${answered} of ${length} answered`;
  if (answered < length) {
    connections.delete(flow.number);
    socket.resetAndDestroy();
    return { flow: flow.number, port, outcome: error ? `${talked}, then ${error}` : talked };
  }
  connections.set(flow.number, socket);
  if (phase === 1) return { flow: flow.number, port, outcome: talked };
  const closed = once(socket, 'close', { signal: AbortSignal.timeout(TCP_MS) });
  socket.end();
  const how = await closed.then(
    () => 'closed',
    () => 'not closed',
  );
  connections.delete(flow.number);
  socket.destroy();
  return { flow: flow.number, port, outcome: `${talked}, ${error ?? how}` };
}

/** Send messages, each when the one before has come back. @returns how many have come back unchanged */
async function echo(socket: Socket, flow: Flow): Promise<number> {
  let answered = 0;
  for (const [index, message] of flow.messages.entries()) {
    const sent = messageOf(flow.number, index, message);
    const received: Buffer[] = [];
    let left = sent.length;
    const whole = new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), TCP_MS);
      const done = (all: boolean): void => {
        clearTimeout(timer);
        resolve(all);
      };
      socket.on('data', (data: Buffer) => {
        received.push(data);
        left -= data.length;
        timer.refresh();
        if (left <= 0) done(true);
      });
      socket.on('close', () => done(false));
    });
    socket.write(sent);
    const isWhole = await whole;
    socket.removeAllListeners('data').removeAllListeners('close');
    if (!isWhole || !Buffer.concat(received).equals(sent)) break;
    answered++;
  }
  return answered;
}

async function talkUdp(flow: Flow, port: number): Promise<Talked> {
  const errors = new Set<string>();
  const answers = new Set<number>();
  let arrived = (): void => {};
  let socket = sockets.get(flow.number);
  if (!socket) {
    socket = createSocket(flow.family === 6 ? 'udp6' : 'udp4');
    sockets.set(flow.number, socket);
    socket.bind(port);
    await once(socket, 'listening');
    socket.connect(flow.port, flow.address);
    const connected = await once(socket, 'connect').catch(codeOf);
    if (typeof connected === 'string') {
      sockets.delete(flow.number);
      socket.close();
      return { flow: flow.number, port, outcome: `not connected, ${connected}` };
    }
  }
  const onError = (error: Error): unknown => errors.add(codeOf(error));
  socket.on('error', onError).on('message', (message: Buffer) => {
    const index = message.readUInt32BE(4);
    const sent = flow.messages[index];
    if (sent && messageOf(flow.number, index, sent).equals(message)) answers.add(index);
    else errors.add('wrong bytes');
    arrived();
  });
  const wait = (ms: number): Promise<void> =>
    Promise.race([sleep(ms), new Promise<void>((resolve) => (arrived = resolve))]);
  for (const [index, message] of flow.messages.entries()) {
    if (message.ttl) socket.setTTL(message.ttl);
    socket.send(messageOf(flow.number, index, message), (error) => error && errors.add(codeOf(error)));
    await wait(NEXT_MS);
  }
  const missing = (): number[] =>
    flow.messages.flatMap(({ mayBeLost }, index) => (mayBeLost || answers.has(index) ? [] : [index]));
  const end = performance.now() + LAST_MS;
  while (missing().length > 0 && performance.now() < end) await wait(Math.max(1, end - performance.now()));
  socket.removeAllListeners('message').removeAllListeners('error');
  socket.on('error', () => {});
  const lost = missing().length === 0 ? 'all answered' : `no answer to ${missing().join(' ')}`;
  if (flow.messages.some(({ mayBeLost }) => mayBeLost)) errors.delete('EMSGSIZE');
  return { flow: flow.number, port, outcome: [lost, ...[...errors].toSorted()].join(', ') };
}

async function ping(flow: Flow, identifier: number): Promise<Talked> {
  const { bytes, ttl } = flow.messages[0]!;
  const count = flow.messages.length;
  const argv = ['-n', '-i', '0.03', '-W', '0.5', '-c', count, '-e', identifier, '-s', bytes, '-Q', flow.tos];
  const words = [...argv, ...(ttl ? ['-t', ttl] : []), flow.address].map(String);
  const output = await new Promise<string>((resolve) => {
    execFile('ping', words, (_, stdout, stderr) => resolve(stdout + stderr));
  });
  const numbers = new Set(Array.from(output.matchAll(/icmp_seq=(\d+) ttl=/g), ([, number]) => number));
  const errors = new Set(
    Array.from(output.matchAll(/icmp_seq=\d+ (?!ttl=)(.*)|^ping: (.*)$/gm), (match) => match[1] ?? match[2]!),
  );
  return {
    flow: flow.number,
    port: identifier,
    outcome: [`${numbers.size} of ${count} answered`, ...[...errors].toSorted()].join(', '),
  };
}

// ---- Orders ----

async function obey(order: Order): Promise<unknown> {
  if (order === 'served') {
    const records = [...served.values()].map(({ hash, ...record }): Served => ({
      ...record,
      hash: hash.digest('hex'),
    }));
    served.clear();
    return records;
  }
  if (order === 'close') {
    for (const socket of connections.values()) socket.resetAndDestroy();
    for (const socket of sockets.values()) socket.close();
    connections.clear();
    sockets.clear();
    return undefined;
  }
  if ('serve' in order) {
    await Promise.all(order.serve.flatMap((address) => order.ports.map((port) => serve(address, port))));
    return undefined;
  }
  const { talk, phase } = order;
  return Promise.all(
    talk.map(({ flow, port }) => {
      if (flow.protocol === 'ping') return ping(flow, port);
      return flow.protocol === 'tcp' ? talkTcp(flow, phase, port) : talkUdp(flow, port);
    }),
  );
}

process.on('message', (order: Order) => {
  obey(order).then(
    (answer) => process.send!({ answer }),
    (error: unknown) => process.send!({ error: String((error as Error).stack ?? error) }),
  );
});
process.on('disconnect', () => process.exit());
