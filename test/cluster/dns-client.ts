// SPDX-License-Identifier: Apache-2.0
/**
 * Asks the name server at an address.
 *
 *   dns-client.ts resolve SERVER NAME     by Node's resolver (c-ares), A and AAAA at once; print { A, AAAA }, sorted as text
 *   dns-client.ts pairs SERVER NAME N     N times from a new socket, an A and an AAAA query at once, without retries; print
 *                                         how many were answered, and from which addresses: { answered, from }
 */
import { createSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';

export interface Pairs {
  answered: number;
  from: string[];
}

async function resolve(server: string, name: string): Promise<Record<'A' | 'AAAA', string[]>> {
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([server]);
  const [A, AAAA] = await Promise.all([resolver.resolve4(name), resolver.resolve6(name)]);
  return { A: A.toSorted(), AAAA: AAAA.toSorted() };
}

function query(id: number, name: string, type: number): Buffer {
  const header = Buffer.from([0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
  const labels = name
    .split('.')
    .map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label)]));
  return Buffer.concat([header, ...labels, Buffer.from([0, 0, type, 0, 1])]);
}

async function pairs(server: string, name: string, count: number): Promise<Pairs> {
  const from = new Set<string>();
  let answered = 0;
  for (let round = 0; round < count; round++) {
    const socket = createSocket(isIPv6(server) ? 'udp6' : 'udp4');
    const seen = new Set<number>();
    const both = new Promise<void>((done) =>
      socket.on('message', (message, { address }) => {
        from.add(address);
        seen.add(message[1]!);
        if (seen.size === 2) done();
      }),
    );
    socket.bind(0);
    await once(socket, 'listening');
    socket.send(query(1, name, 1), 53, server);
    socket.send(query(2, name, 28), 53, server);
    await Promise.race([both, new Promise((resolve) => setTimeout(resolve, 2000).unref())]);
    socket.close();
    answered += seen.size;
  }
  return { answered, from: [...from] };
}

const [command, server = '', name = '', count = ''] = process.argv.slice(2);
console.log(
  JSON.stringify(
    command === 'resolve' ? await resolve(server, name) : await pairs(server, name, Number(count)),
  ),
);
