// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiServer } from './server.ts';
import { TestClient, type TestWatch } from './client.support.ts';

let server: ApiServer;
let client: TestClient;

beforeEach(async () => {
  server = await ApiServer.start({ bookmarkIntervalMs: 30 });
  client = new TestClient(server);
  server.store.create('nodes', { metadata: { name: 'a' } });
});

afterEach(async () => {
  client.close();
  await server.close();
});

const nodes = '/api/v1/nodes';
let round = 0;
const touch = (): void => {
  const annotations = { round: String(++round) };
  server.store.patch('nodes', 'a', 'application/merge-patch+json', { metadata: { annotations } });
};

/** A watch that has received everything so far. */
async function watching(query = ''): Promise<TestWatch> {
  return client.watch(`resourceVersion=${server.store.revision}&${query}`);
}

describe('requests', () => {
  it('wait for the latency, until it is removed', async () => {
    const latency = server.faults.inject({ kind: 'latency', ms: 150 });
    const began = performance.now();
    expect((await client.get(nodes)).code).toBe(200);
    expect(performance.now() - began).toBeGreaterThan(145);
    expect(latency.hits).toBe(1);
    latency.remove();
    await client.get(nodes);
    expect(latency.hits).toBe(1);
  });

  it('are reset', async () => {
    server.faults.inject({ kind: 'reset' }, { times: 1 });
    await expect(client.get(nodes)).rejects.toMatchObject({ code: 'ECONNRESET' });
    expect((await client.get(nodes)).code).toBe(200);
  });

  it('hang without an answer', async () => {
    server.faults.inject({ kind: 'hang' }, { times: 1 });
    const answer = client.get(nodes).catch(() => 'closed');
    expect(await Promise.race([answer, sleep(150, 'nothing')])).toBe('nothing');
    expect((await client.get(nodes)).code).toBe(200);
    await server.close();
    expect(await answer).toBe('closed');
  });

  it.each([
    [401, 'Unauthorized'],
    [403, 'Forbidden'],
    [429, 'TooManyRequests'],
    [500, 'InternalError'],
    [503, 'ServiceUnavailable'],
  ] as const)('are refused with %i, the next two that match', async (code, reason) => {
    server.faults.inject(
      { kind: 'refuse', code, retryAfterSeconds: 7 },
      {
        times: 2,
        match: ({ verb, resource, user }) => verb === 'list' && resource === 'nodes' && user === 'admin',
      },
    );
    expect((await client.get(`${nodes}/a`)).code).toBe(200);
    for (let i = 0; i < 2; i++) {
      const answer = await client.get(nodes);
      expect(answer.code).toBe(code);
      expect(answer.headers['retry-after']).toBe('7');
      expect(answer.body).toMatchObject({ kind: 'Status', reason, code, details: { retryAfterSeconds: 7 } });
    }
    expect((await client.get(nodes)).code).toBe(200);
  });

  it('get half a body, ended cleanly or by a reset', async () => {
    server.faults.inject({ kind: 'truncate' }, { times: 1 });
    const cut = await client.get(nodes);
    expect(cut.code).toBe(200);
    expect(() => cut.body).toThrow(SyntaxError);
    server.faults.inject({ kind: 'truncate', end: 'reset' }, { times: 1 });
    await expect(client.get(nodes)).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('get a body that is not JSON', async () => {
    server.faults.inject({ kind: 'garbage' }, { times: 1 });
    const answer = await client.get(nodes);
    expect(() => answer.body).toThrow(SyntaxError);
  });

  it('get a body byte by byte', async () => {
    server.faults.inject({ kind: 'chunk', bytes: 1 });
    const { pieces, text, body } = await client.get(nodes);
    expect(pieces).toEqual(Array.from(text, () => 1));
    expect(body.items).toHaveLength(1);
  });
});

describe('connections', () => {
  it('hang before TLS', async () => {
    server.faults.connections = 'hang';
    const answer = client.get('/healthz').catch((error: { code: string }) => error.code);
    expect(await Promise.race([answer, sleep(150, 'nothing')])).toBe('nothing');
    server.faults.resetConnections();
    expect(await answer).toBe('ECONNRESET');
    server.faults.connections = 'serve';
    expect((await client.get('/healthz')).code).toBe(200);
  });

  it('are reset before TLS', async () => {
    server.faults.connections = 'reset';
    await expect(client.get('/healthz')).rejects.toMatchObject({ code: 'ECONNRESET' });
    server.faults.clear();
    expect((await client.get('/healthz')).code).toBe(200);
  });

  it('are reset while a watch runs on them', async () => {
    const watch = await watching();
    server.faults.resetConnections();
    expect(await watch.ended).toBe('ECONNRESET');
  });
});

describe('watches', () => {
  it('fall silent: no events, no bookmarks, no end', async () => {
    const watch = await watching('allowWatchBookmarks=true&timeoutSeconds=1');
    server.faults.inject({ kind: 'mute' }, { times: 1 });
    touch();
    await sleep(50);
    const silent = watch.silentFor(1300);
    touch();
    expect(await silent).toBe(true);
    touch();
    const other = await watching();
    touch();
    expect(await other.take(1)).toEqual(['MODIFIED a']);
  });

  it('stop in the middle of an event, cleanly or with a reset', async () => {
    for (const [end, how] of [
      ['clean', 'end'],
      ['reset', 'ECONNRESET'],
    ] as const) {
      const watch = await watching();
      server.faults.inject({ kind: 'truncate', end }, { times: 1 });
      touch();
      expect(await watch.ended).toBe(how);
      const line = (await watch.line()) ?? '';
      expect(line).toMatch(/^\{"type":"MODIFIED","object":\{/);
      expect(() => JSON.parse(line) as unknown).toThrow(SyntaxError);
    }
  });

  it('get garbage instead of an event, and then go on', async () => {
    const watch = await watching();
    server.faults.inject({ kind: 'garbage' }, { times: 1 });
    touch();
    touch();
    const line = (await watch.line()) ?? '';
    expect(() => JSON.parse(line) as unknown).toThrow(SyntaxError);
    expect(await watch.take(1)).toEqual(['MODIFIED a']);
  });

  it('get events in pieces of any size, in order and whole', async () => {
    for (const bytes of [1, 7]) {
      const watch = await watching();
      const slow = server.faults.inject({ kind: 'chunk', bytes });
      touch();
      touch();
      slow.remove();
      touch();
      const rounds = [await watch.next(), await watch.next(), await watch.next()].map(
        ({ object }) => object.metadata.annotations?.['round'],
      );
      expect(rounds).toEqual([round - 2, round - 1, round].map(String));
      expect(watch.pieces.slice(0, 20)).toEqual(Array.from({ length: 20 }, () => bytes));
    }
  });

  it('get events twice', async () => {
    const watch = await watching();
    server.faults.inject({ kind: 'duplicate' }, { times: 1 });
    touch();
    expect(await watch.next()).toEqual(await watch.next());
  });

  it('get an event with an older resourceVersion', async () => {
    const before = server.store.get('nodes', 'a');
    const watch = await watching();
    server.faults.inject({ kind: 'stale' }, { times: 1 });
    touch();
    const fresh = await watch.next();
    const stale = await watch.next();
    expect(stale).toEqual({ type: 'MODIFIED', object: before });
    expect(Number(stale.object.metadata.resourceVersion)).toBeLessThan(
      Number(fresh.object.metadata.resourceVersion),
    );
  });

  it('are dropped if they match', async () => {
    server.tokens.set('other', 'someone');
    const mine = await watching();
    const theirs = await client.watch('', { token: 'other' });
    expect(server.faults.dropWatches(({ user }) => user === 'someone')).toBe(1);
    expect(await theirs.ended).toBe('end');
    expect(server.faults.dropWatches(undefined, 'reset')).toBe(1);
    expect(await mine.ended).toBe('ECONNRESET');
  });

  it('get 410 in the stream when history expires, now and from every resourceVersion seen before', async () => {
    const watch = await watching();
    const seen = server.store.revision;
    const { metadata } = (await client.get(`/api/v1/namespaces?limit=1`)).body;
    server.faults.expireHistory();
    expect(await watch.next()).toMatchObject({ type: 'ERROR', object: { code: 410, reason: 'Expired' } });
    expect(await watch.ended).toBe('end');
    const again = await client.watch(`resourceVersion=${seen}`);
    expect(await again.next()).toMatchObject({ type: 'ERROR', object: { code: 410 } });
    expect((await client.get(`/api/v1/namespaces?limit=1&continue=${metadata.continue}`)).code).toBe(410);
    const relisted = (await client.get(nodes)).body.metadata.resourceVersion;
    const fresh = await client.watch(`resourceVersion=${relisted}`);
    touch();
    expect(await fresh.take(1)).toEqual(['MODIFIED a']);
  });

  it('get 410 as the answer when history expires', async () => {
    const watch = await watching();
    const seen = server.store.revision;
    server.faults.expireHistory('status');
    expect(await watch.ended).toBe('end');
    expect(await watch.line()).toBeUndefined();
    expect((await client.get(`${nodes}?watch=1&resourceVersion=${seen}`)).code).toBe(410);
  });
});

it('clear removes every fault', async () => {
  server.faults.inject({ kind: 'refuse', code: 500 });
  server.faults.inject({ kind: 'garbage' });
  server.faults.goneAs = 'status';
  server.faults.clear();
  expect((await client.get(nodes)).body.items).toHaveLength(1);
  expect(server.faults.goneAs).toBe('stream');
});
