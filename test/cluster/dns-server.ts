// SPDX-License-Identifier: Apache-2.0
/**
 * A small authoritative DNS server (RFC 1035) for the zone of these tests, on every address of its namespace:
 *
 *   dns-server.ts PORT       serve until the end; print a line `udp A NAME` for each query
 *
 * A UDP answer that is larger than the client accepts (512 bytes, or the size in its OPT record, RFC 6891) is
 * truncated, so that the client asks again over TCP.
 */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { answersOf, type RecordType } from './dns-zone.ts';

const TYPES: Readonly<Record<number, RecordType>> = { 1: 'A', 28: 'AAAA' };
const OPT = 41;
const HEADER_BYTES = 12;
const TRUNCATED = 0x0200;
const NXDOMAIN = 3;

interface Query {
  id: number;
  name: string;
  /** Undefined for a type without records in the zone. */
  type: RecordType | undefined;
  /** The raw question, which the answer repeats. */
  question: Buffer;
  recursionDesired: boolean;
  /** The largest UDP answer that the client accepts. */
  udpBytes: number;
}

function parse(message: Buffer): Query {
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (let length = message[at]!; length > 0; length = message[at]!) {
    labels.push(message.toString('latin1', at + 1, at + 1 + length).toLowerCase());
    at += 1 + length;
  }
  const end = at + 5;
  // The only additional record of a query is OPT: the root's name, its type, and in place of the class a size.
  const withOpt = message.readUInt16BE(10) > 0 && message[end] === 0 && message.readUInt16BE(end + 1) === OPT;
  return {
    id: message.readUInt16BE(0),
    name: labels.join('.'),
    type: TYPES[message.readUInt16BE(at + 1)],
    question: message.subarray(HEADER_BYTES, end),
    recursionDesired: (message.readUInt16BE(2) & 0x0100) > 0,
    udpBytes: withOpt ? Math.max(512, message.readUInt16BE(end + 3)) : 512,
  };
}

function answer({ id, name, type, question, recursionDesired, udpBytes }: Query, overUdp: boolean): Buffer {
  const zone = answersOf(name);
  const records = (zone && type ? zone[type] : []).map((rdata) => {
    // The name as a pointer to the question's, type, class IN, 30 s to live.
    const record = Buffer.from([0xc0, HEADER_BYTES, 0, rdata.length === 4 ? 1 : 28, 0, 1, 0, 0, 0, 30, 0, 0]);
    record.writeUInt16BE(rdata.length, 10);
    return Buffer.concat([record, rdata]);
  });
  const bytes = HEADER_BYTES + question.length + records.reduce((sum, { length }) => sum + length, 0);
  const truncated = overUdp && bytes > udpBytes;
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16BE(id, 0);
  // An authoritative response, with recursion available, like CoreDNS.
  const flags =
    0x8480 | (recursionDesired ? 0x0100 : 0) | (truncated ? TRUNCATED : 0) | (zone ? 0 : NXDOMAIN);
  header.writeUInt16BE(flags, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(truncated ? 0 : records.length, 6);
  return Buffer.concat([header, question, ...(truncated ? [] : records)]);
}

function respond(protocol: 'udp' | 'tcp', message: Buffer): Buffer {
  const query = parse(message);
  console.log(`${protocol} ${query.type ?? '?'} ${query.name}`);
  return answer(query, protocol === 'udp');
}

const port = Number(process.argv[2]);
const udp = createSocket({ type: 'udp6' }, (message, { address, port }) =>
  udp.send(respond('udp', message), port, address),
).bind(port);
const tcp = createServer((socket) => {
  let pending = Buffer.alloc(0);
  socket.on('error', () => socket.destroy());
  socket.on('data', (data: Buffer) => {
    pending = Buffer.concat([pending, data]);
    // Each message is preceded by its length.
    while (pending.length >= 2 && pending.length >= 2 + pending.readUInt16BE(0)) {
      const end = 2 + pending.readUInt16BE(0);
      const response = respond('tcp', pending.subarray(2, end));
      const length = Buffer.alloc(2);
      length.writeUInt16BE(response.length);
      socket.write(Buffer.concat([length, response]));
      pending = pending.subarray(end);
    }
  });
}).listen(port, '::');
await Promise.all([once(udp, 'listening'), once(tcp, 'listening')]);
console.log('serving');
