// SPDX-License-Identifier: Apache-2.0
/**
 * The program that pods run in these tests.
 *
 *   talker.ts serve ADDRESS PORT             echo TCP and UDP; the answer begins with the client's address
 *   talker.ts tcp ADDRESS PORT BYTES         send that much over TCP, get it back, and print a TcpReport
 *   talker.ts udp ADDRESS PORT COUNT BYTES   send datagrams of that size, each after the previous answer; print a UdpReport
 *   talker.ts both ADDRESS PORT BYTES [SIZE…] tcp, and udp with datagrams of these sizes, else 20 of 1,000; print { tcp, udp }
 *   talker.ts hold ADDRESS PORT [BYTES]      one connection, with so much (default: a line) there and back every 10 ms until SIGINT, then its end; print a HoldReport
 *   talker.ts number ADDRESS PORT            numbered messages, one a ms, over TCP and over UDP until SIGINT; print a NumberReport
 *   talker.ts short ADDRESS PORT COUNT       connections and datagrams, each from a port of its own, one after the other; print a ShortReport
 */
import { createHash, randomBytes } from 'node:crypto';
import { createSocket, type SocketType } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, isIPv6 } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Hashes are SHA-256, of all bytes sent and of all bytes received. */
export interface TcpReport {
  seenAs: string;
  sent: string;
  received: string;
  bytes: number;
}

export interface UdpReport {
  seenAs: string;
  /** The source addresses of the answers. */
  from: string[];
  answers: number;
}

export interface HoldReport {
  rounds: number;
  /** The longest duration of a round, ms. */
  longestMs: number;
  error?: string;
}

/** How many connections, and how many datagrams, were answered. */
export interface ShortReport {
  tcp: number;
  udp: number;
}

/** What became of numbered messages. Each is echoed. */
export interface NumberReport {
  udp: Numbered;
  tcp: Numbered;
}

export interface Numbered {
  sent: number;
  lost: number;
  duplicated: number;
  /** Those that came after a later one. */
  overtaken: number;
  error?: string;
}

/** Convert an IPv4-mapped address to the usual form. */
const plain = (address = ''): string => address.replace(/^::ffff:(?=\d+\.)/, '');

const repeat = (count: number, size: number): number[] => Array.from({ length: count }, () => size);

const udpType = (address: string): SocketType => (isIPv6(address) ? 'udp6' : 'udp4');

async function serve(address: string, port: number): Promise<void> {
  const tcp = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.write(`${plain(socket.remoteAddress)}\n`);
    socket.pipe(socket);
  }).listen(port, address);
  const udp = createSocket(udpType(address), (message, { address, port }) =>
    udp.send([`${plain(address)}\n`, message], port, address),
  ).bind(port, address);
  await Promise.all([once(tcp, 'listening'), once(udp, 'listening')]);
  console.log('serving');
}

async function talkTcp(address: string, port: number, bytes: number): Promise<TcpReport> {
  const socket = connect({ host: address, port });
  socket.setTimeout(10_000, () => socket.destroy(new Error('silence for 10 s')));
  const sent = createHash('sha256');
  const received = createHash('sha256');
  let seenAs = '';
  let count = 0;
  socket.on('data', (data: Buffer) => {
    let rest = data;
    if (!seenAs.endsWith('\n')) {
      const end = data.indexOf('\n') + 1;
      seenAs += data.subarray(0, end || data.length).toString();
      rest = data.subarray(end || data.length);
    }
    received.update(rest);
    count += rest.length;
  });
  const ended = once(socket, 'end');
  const block = randomBytes(1 << 20);
  for (let left = bytes; left > 0; left -= block.length) {
    block.writeUInt32BE(left >>> 0);
    const piece = Buffer.from(block.subarray(0, Math.min(left, block.length)));
    sent.update(piece);
    if (!socket.write(piece)) await once(socket, 'drain');
  }
  socket.end();
  await ended;
  return { seenAs: seenAs.trim(), sent: sent.digest('hex'), received: received.digest('hex'), bytes: count };
}

async function talkUdp(address: string, port: number, sizes: readonly number[]): Promise<UdpReport> {
  const socket = createSocket(udpType(address));
  const from = new Set<string>();
  let seenAs = '';
  let answers = 0;
  for (const bytes of sizes) {
    const message = randomBytes(bytes);
    const answered = once(socket, 'message', { signal: AbortSignal.timeout(5000) }).catch(() => undefined);
    socket.send(message, port, address);
    const answer = (await answered) as [Buffer, { address: string }] | undefined;
    if (!answer) continue;
    const end = answer[0].indexOf('\n');
    if (message.equals(answer[0].subarray(end + 1))) answers++;
    seenAs = answer[0].subarray(0, end).toString();
    from.add(answer[1].address);
  }
  socket.close();
  return { seenAs, from: [...from], answers };
}

/** Connect, send a line, get it back, and end; and the same by a datagram, many times. */
async function short(address: string, port: number, count: number): Promise<ShortReport> {
  const report = { tcp: 0, udp: 0 };
  for (let i = 0; i < count; i++) {
    const socket = connect({ host: address, port, noDelay: true });
    socket.setTimeout(3000, () => socket.destroy(new Error('silence')));
    socket.end('line\n');
    let text = '';
    socket.on('data', (data: Buffer) => (text += data.toString()));
    await once(socket, 'end').catch(() => undefined);
    socket.destroy();
    if (text.endsWith('\nline\n')) report.tcp++;
    report.udp += (await talkUdp(address, port, [10])).answers;
  }
  return report;
}

async function hold(address: string, port: number, bytes: number): Promise<HoldReport> {
  const report: HoldReport = { rounds: -1, longestMs: 0 }; // The server's greeting does not count.
  const stop = new AbortController();
  process.once('SIGINT', () => stop.abort());
  const socket = connect({ host: address, port, noDelay: true });
  const message = Buffer.alloc(bytes, 'still there? ');
  try {
    for (let sentAt = performance.now(); !stop.signal.aborted; sentAt = performance.now()) {
      const due = report.rounds < 0 ? 1 : bytes;
      for (let got = 0; got < due;) {
        const [data] = (await once(socket, 'data', { signal: AbortSignal.timeout(15_000) })) as [Buffer];
        got += data.length;
      }
      if (report.rounds++ >= 0) report.longestMs = Math.max(report.longestMs, performance.now() - sentAt);
      else console.log('holding');
      await sleep(10);
      socket.write(message);
    }
    // The server must learn of the end, and answer it.
    socket.resume().end();
    await once(socket, 'end', { signal: AbortSignal.timeout(15_000) });
  } catch (error) {
    report.error = String(error);
  }
  socket.destroy();
  return report;
}

/** Keeps count of the echoes. */
class Echoes {
  readonly #times: number[] = [];
  #overtaken = 0;
  #last = -1;
  error?: string;

  /** The number of the next message. */
  next(): number {
    return this.#times.push(0) - 1;
  }

  note(number: number): void {
    this.#times[number] = (this.#times[number] ?? 0) + 1;
    if (number < this.#last) this.#overtaken++;
    else this.#last = number;
  }

  report(): Numbered {
    const count = (which: (times: number) => boolean): number => this.#times.filter(which).length;
    return {
      sent: this.#times.length,
      lost: count((times) => times === 0),
      duplicated: count((times) => times > 1),
      overtaken: this.#overtaken,
      ...(this.error !== undefined && { error: this.error }),
    };
  }
}

async function number(address: string, port: number): Promise<NumberReport> {
  const [udp, tcp] = [new Echoes(), new Echoes()];
  const datagrams = createSocket(udpType(address));
  datagrams.on('message', (message) => udp.note(Number(message.toString().split('\n')[1])));
  const socket = connect({ host: address, port, noDelay: true });
  let rest = '';
  socket.on('data', (data: Buffer) => {
    const lines = `${rest}${data.toString()}`.split('\n');
    rest = lines.pop()!;
    for (const line of lines) if (/^\d+$/.test(line)) tcp.note(Number(line)); // not the server's greeting
  });
  socket.on('error', (error) => (tcp.error = String(error)));
  datagrams.on('error', (error) => (udp.error = String(error)));
  await once(socket, 'connect');
  const timer = setInterval(() => {
    datagrams.send(String(udp.next()), port, address);
    socket.write(`${tcp.next()}\n`);
  }, 1);
  console.log('numbering');
  await once(process, 'SIGINT');
  clearInterval(timer);
  await sleep(500); // for what is under way
  datagrams.close();
  socket.destroy();
  return { udp: udp.report(), tcp: tcp.report() };
}

const [command, ...rest] = process.argv.slice(2);
const address = rest[0] ?? '';
const [port = 0, size = 0, ...more] = rest.slice(1).map(Number);
if (command === 'serve') await serve(address, port);
else {
  const report = {
    tcp: () => talkTcp(address, port, size),
    udp: () => talkUdp(address, port, repeat(size, more[0] ?? 0)),
    both: async () => ({
      tcp: await talkTcp(address, port, size),
      udp: await talkUdp(address, port, more.length > 0 ? more : repeat(20, 1000)),
    }),
    hold: () => hold(address, port, size || 13),
    number: () => number(address, port),
    short: () => short(address, port, size),
  }[command ?? ''];
  if (!report) throw new Error(`no such command: ${command}`);
  console.log(JSON.stringify(await report()));
}
