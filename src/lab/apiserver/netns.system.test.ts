// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../../host/run.ts';
import { listenInNetns } from './netns.ts';
import { ApiServer } from './server.ts';

const isRoot = process.getuid?.() === 0;
const name = `ripstop-api-${process.pid}`;
const netns = `/run/netns/${name}`;
const address = '192.0.2.53';

/** A client that is configured by its environment alone. Prints the answer's code and body. */
const script = `
const https = require('node:https');
const { URL_, CA, TOKEN } = process.env;
https.get(URL_, { ca: CA, headers: { authorization: 'Bearer ' + TOKEN } }, (response) => {
  let body = '';
  response.on('data', (text) => (body += text)).on('end', () => console.log(response.statusCode, body));
}).on('error', (error) => { console.log(error.code); });
`;

if (!isRoot) console.warn('skipped: a network namespace can only be made and entered by root');
describe.skipIf(!isRoot)('a listener in another network namespace', () => {
  let server: ApiServer;
  const get = (url: string, where?: string): Promise<string> =>
    run(process.execPath, ['-e', script], {
      ...(where && { netns: where }),
      env: { URL_: url, CA: server.caPem, TOKEN: server.adminToken },
    });

  beforeAll(async () => {
    await run('ip', ['netns', 'add', name]);
    await run('ip', ['-n', name, 'link', 'set', 'lo', 'up']);
    await run('ip', ['-n', name, 'address', 'add', `${address}/32`, 'dev', 'lo']);
    server = await ApiServer.start({ sans: [address] });
    server.store.create('nodes', { metadata: { name: 'from-outside' } });
  });

  afterAll(async () => {
    await server?.close();
    await tryRun('ip', ['netns', 'delete', name]);
  });

  it('serves TLS to clients inside, who cannot reach the server itself', async () => {
    const listener = await listenInNetns(netns, address, 6443);
    expect(listener.address()).toMatchObject({ address, port: 6443 });
    server.adoptListener(listener);
    const inside = await get(`https://${address}:6443/api/v1/nodes/from-outside`, netns);
    expect(inside).toMatch(/^200 .*"name":"from-outside"/);
    expect(await get(`${server.url}/healthz`, netns)).toBe('ECONNREFUSED\n');
    expect(await get(`${server.url}/healthz`)).toBe('200 ok\n');
    // Many in a row: a helper that is still there would accept some of them.
    const many = await Promise.all(
      Array.from({ length: 8 }, () => get(`https://${address}:6443/healthz`, netns)),
    );
    expect(new Set(many)).toEqual(new Set(['200 ok\n']));
  });

  it('says why it cannot listen', async () => {
    await expect(listenInNetns(netns, '198.51.100.1', 6443)).rejects.toThrow(
      /cannot listen on .* EADDRNOTAVAIL/,
    );
    await expect(listenInNetns(netns, address, 6443)).rejects.toThrow(/EADDRINUSE/);
    await expect(listenInNetns('/run/netns/ripstop-nowhere', address, 6443)).rejects.toThrow(/No such file/);
  });
});
