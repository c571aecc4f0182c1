// SPDX-License-Identifier: Apache-2.0
/**
 * Flows that never rest, and the moment of each one's last arrival.
 *
 *   numbers.ts receive PORT           take and echo TCP and UDP; print Arrivals, one line every 20 ms
 *   numbers.ts send PORT ADDRESS…     to each address, over TCP and over UDP: one flow held all the time, and a fresh one
 *                                     every 100 ms, with a numbered message every 5 ms each
 */
import { createSocket } from 'node:dgram';
import { connect, createServer, isIPv6, type Socket } from 'node:net';

/** When the last message of a kind came, in ms of the machine's monotonic clock; by kinds such as `held udp4`. */
export type Arrivals = Record<string, number>;

const EVERY_MS = 5;
const FRESH_MS = 100;
const REPORT_MS = 20;

/** The machine's monotonic clock, which is the same for all processes. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6;

function receive(port: number): void {
  const arrivals: Arrivals = {};
  // A message is a line, `KIND NUMBER`. One that a TCP segment has only a part of does not count.
  const note = (text: string): void => {
    for (const [kind] of text.matchAll(/(held|fresh) \w+(?= \d+\n)/g)) arrivals[kind] = monotonicMs();
  };
  createServer({ noDelay: true }, (socket) => {
    socket.setEncoding('utf8').on('data', (text: string) => (note(text), socket.write(text)));
    socket.on('error', () => socket.destroy());
  }).listen(port, '::', () => console.log('receiving'));
  const udp = createSocket('udp6', (message, from) => {
    note(message.toString());
    udp.send(message, from.port, from.address, () => {});
  }).bind(port, '::');
  setInterval(() => console.log(JSON.stringify(arrivals)), REPORT_MS);
}

/** One flow: how to send a message, and to end it. */
interface Open {
  send: (message: string) => void;
  close: () => void;
}

function openUdp(address: string, port: number): Open {
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4').on('error', () => {});
  return { send: (message) => socket.send(message, port, address, () => {}), close: () => socket.close() };
}

function openTcp(address: string, port: number): Open {
  const socket: Socket = connect({ host: address, port, noDelay: true });
  socket.on('error', () => socket.destroy()).resume();
  const send = (message: string): void => void (socket.readyState === 'open' && socket.write(message));
  return { send, close: () => void socket.destroy() };
}

function send(address: string, port: number): void {
  for (const [protocol, open] of [
    ['udp', openUdp],
    ['tcp', openTcp],
  ] as const) {
    const kind = `${protocol}${isIPv6(address) ? 6 : 4}`;
    const held = open(address, port);
    let fresh = open(address, port);
    let n = 0;
    setInterval(() => {
      held.send(`held ${kind} ${n}\n`);
      fresh.send(`fresh ${kind} ${n++}\n`);
    }, EVERY_MS);
    setInterval(() => {
      fresh.close();
      fresh = open(address, port);
    }, FRESH_MS);
  }
}

const [command, port = '', ...addresses] = process.argv.slice(2);
if (command === 'receive') receive(Number(port));
else if (command === 'send') for (const address of addresses) send(address, Number(port));
