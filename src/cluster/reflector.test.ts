// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { ApiServer, type Fault, type RequestInfo } from '../lab/apiserver/index.ts';
import { ApiClient } from './api-client.ts';
import {
  DEFAULT_TIMING,
  type FaultKind,
  Reflector,
  type ReflectorOptions,
  type ReflectorTiming,
} from './reflector.ts';

/** As in production, only quicker. */
const quick: Partial<ReflectorTiming> = {
  pageSize: 3,
  pageDeadlineMs: 400,
  listDeadlineMs: 2000,
  headerDeadlineMs: 400,
  watchSecondsMin: 60,
  watchSecondsMax: 60,
  idleMs: 10_000,
  healthyAfterMs: 100,
  backoffMinMs: 20,
  backoffMaxMs: 200,
  retryAfterMaxMs: 5000,
};

const annotated = z.object({
  metadata: z.object({ annotations: z.record(z.string(), z.string()).optional() }),
});
const project = (object: unknown): string => annotated.parse(object).metadata.annotations?.['v'] ?? '';

const watches = (request: RequestInfo): boolean => request.verb === 'watch';
const lists = (request: RequestInfo): boolean => request.verb === 'list';

let server: ApiServer;
let client: ApiClient;
let directory: string;
let reflector: Reflector<string>;
let changes: number;
let logged: { level: number; msg: string; why?: string }[];
/** The smallest number of items that any change left behind since the first sync. */
let fewest: number;

beforeEach(async () => {
  server = await ApiServer.start({ bookmarkIntervalMs: 60_000 });
  directory = await mkdtemp(path.join(tmpdir(), 'ripstop-reflector-'));
  await writeFile(path.join(directory, 'kubeconfig'), server.kubeconfig());
  client = await ApiClient.open({ kubeconfig: path.join(directory, 'kubeconfig') });
  for (let i = 1; i <= 7; i++) put(`n${i}`, 'first');
});

afterEach(async () => {
  await reflector.stop();
  client.close();
  await server.close();
  await rm(directory, { recursive: true });
});

function start(
  timing: Partial<ReflectorTiming> = {},
  projection: (object: unknown) => string = project,
  more: Pick<Partial<ReflectorOptions<string>>, 'metadataOnly' | 'listWhole'> = {},
): void {
  changes = 0;
  logged = [];
  fewest = Infinity;
  reflector = new Reflector({
    client,
    path: '/api/v1/nodes',
    project: projection,
    onChange: () => {
      changes++;
      if (reflector.synced) fewest = Math.min(fewest, reflector.items.size);
    },
    log: pino({ level: 'debug' }, { write: (line: string) => void logged.push(JSON.parse(line) as never) }),
    timing: { ...quick, ...timing },
    ...more,
  });
  reflector.start();
}

async function synced(timing: Partial<ReflectorTiming> = {}): Promise<void> {
  start(timing);
  await until(() => reflector.synced && reflector.health.connected);
}

function put(name: string, v: string): void {
  const metadata = { name, annotations: { v } };
  if (server.store.get('nodes', name)) {
    server.store.patch('nodes', name, 'application/merge-patch+json', { metadata });
  } else server.store.create('nodes', { metadata });
}

function content(): string {
  return [...reflector.items.values()]
    .map(({ name, value }) => `${name}=${value}`)
    .sort()
    .join(' ');
}

async function until(condition: () => boolean, what = 'the condition'): Promise<void> {
  const end = performance.now() + 4000;
  while (!condition()) {
    if (performance.now() > end) {
      throw new Error(`${what} did not come true: ${content()} ${JSON.stringify(reflector.health)}`);
    }
    await new Promise((resolve) => void setTimeout(resolve, 5));
  }
}

/** Make a change that only a working watch brings here. */
async function expectAlive(): Promise<void> {
  const mark = `mark-${server.store.revision}`;
  put('n1', mark);
  await until(() => content().includes(mark), mark);
}

const faults = (kind: FaultKind): number => reflector.health.activity.faults[kind] ?? 0;
const warnings = (): string[] => logged.filter(({ level }) => level >= 40).map(({ why, msg }) => why ?? msg);

describe('a reflector in good times', () => {
  it('lists page by page, is in sync, and follows additions, changes and deletions', async () => {
    await synced();
    expect(content()).toBe('n1=first n2=first n3=first n4=first n5=first n6=first n7=first');
    expect(changes).toBe(1);
    put('n8', 'new');
    put('n2', 'changed');
    server.store.delete('nodes', 'n3');
    await until(() => changes === 4);
    expect(content()).toBe('n1=first n2=changed n4=first n5=first n6=first n7=first n8=new');
    expect(reflector.health).toMatchObject({
      connected: true,
      activity: { lists: 1, watches: 1, faults: {} },
    });
    expect(warnings()).toEqual([]);
  });

  it('is not disturbed by changes of what it does not keep', async () => {
    await synced();
    const items = [...reflector.items.values()].map(({ value }) => value);
    for (let i = 0; i < 50; i++) {
      const metadata = { annotations: { heartbeat: String(i) } };
      server.store.patch('nodes', 'n1', 'application/merge-patch+json', { metadata });
    }
    const { resourceVersion } = server.store.get('nodes', 'n1')!.metadata;
    const version = (): string | undefined =>
      reflector.items.values().find(({ name }) => name === 'n1')?.resourceVersion;
    await until(() => version() === resourceVersion);
    expect(changes).toBe(1);
    expect([...reflector.items.values()].map(({ value }) => value)).toEqual(items);
    await expectAlive();
    expect(changes).toBe(2);
  });

  it('is in sync with an empty cluster too, and says so', async () => {
    for (let i = 1; i <= 7; i++) server.store.delete('nodes', `n${i}`);
    await synced();
    expect(changes).toBe(1);
    expect(reflector.items.size).toBe(0);
  });

  it('keeps of an object only what was projected', async () => {
    await synced();
    const [item] = reflector.items.values();
    expect(Object.keys(item!).sort()).toEqual(['name', 'resourceVersion', 'uid', 'value']);
  });

  it('renews a watch at the end of its life from where it was, without a list', async () => {
    await synced({ watchSecondsMin: 1, watchSecondsMax: 1 });
    await until(() => reflector.health.activity.watches === 3);
    await expectAlive();
    expect(reflector.health).toMatchObject({ activity: { lists: 1, faults: {} } });
  });

  it('goes on from bookmarks, so that a forgotten history of other events costs no list', async () => {
    await server.close();
    server = await ApiServer.start({ bookmarkIntervalMs: 30, historySize: 5 });
    await writeFile(path.join(directory, 'kubeconfig'), server.kubeconfig());
    client.close();
    client = await ApiClient.open({ kubeconfig: path.join(directory, 'kubeconfig') });
    put('n1', 'first');
    await synced();
    for (let i = 0; i < 20; i++) server.store.create('pods', { metadata: { name: `p${i}` } });
    await until(() => (reflector.health.lastEventAgeMs ?? 1e9) < 20);
    server.faults.dropWatches();
    await until(() => reflector.health.activity.watches === 2);
    await expectAlive();
    expect(reflector.health.activity.lists).toBe(1);
  });

  it('takes a node that is deleted and made again for another one', async () => {
    await synced();
    const before = [...reflector.items.values()].find(({ name }) => name === 'n2')!;
    server.store.delete('nodes', 'n2');
    put('n2', 'reborn');
    await until(() => content().includes('n2=reborn'));
    const after = [...reflector.items.values()].filter(({ name }) => name === 'n2');
    expect(after).toHaveLength(1);
    expect(after[0]!.uid).not.toBe(before.uid);
    expect(reflector.items.size).toBe(7);
  });

  it('stops at once, whatever it is doing', async () => {
    await synced();
    const begin = performance.now();
    await reflector.stop();
    server.faults.inject({ kind: 'hang' });
    start();
    await new Promise((resolve) => void setTimeout(resolve, 20));
    await reflector.stop();
    expect(performance.now() - begin).toBeLessThan(300);
    expect(reflector.health.connected).toBe(false);
  });
});

describe('a reflector of metadata alone', () => {
  const seen = z.object({
    kind: z.string().optional(),
    spec: z.unknown().optional(),
    metadata: z.object({ name: z.string(), annotations: z.record(z.string(), z.string()).optional() }),
  });
  /** The annotation, and whether the object came whole. */
  const shown = (object: unknown): string => {
    const { kind, spec, metadata } = seen.parse(object);
    expect(spec === undefined).toBe(kind === 'PartialObjectMetadata');
    return `${metadata.annotations?.['v']}${spec === undefined ? '' : ' whole'}`;
  };
  const startLight = (listWhole?: (page: readonly string[]) => boolean) => {
    for (const { metadata } of server.store.list('nodes')) {
      const spec = { unschedulable: true };
      server.store.patch('nodes', metadata.name, 'application/merge-patch+json', { spec });
    }
    start({}, shown, { metadataOnly: true, ...(listWhole && { listWhole }) });
  };

  it('lists and watches no more than that', async () => {
    startLight();
    await until(() => reflector.health.connected);
    put('n2', 'changed');
    server.store.delete('nodes', 'n3');
    await until(() => changes === 3);
    expect(content()).toBe('n1=first n2=changed n4=first n5=first n6=first n7=first');
  });

  it('takes whole objects from a server that knows no other', async () => {
    server.faults.wholeOnly = true;
    startLight();
    await until(() => reflector.health.connected);
    put('n2', 'changed');
    await until(() => changes === 2);
    expect(content()).toContain('n1=first whole n2=changed whole n3=first whole');
    expect(reflector.health.activity.faults).toEqual({});
  });

  it('lists from the page on whole that its consumer wants so, and watches as before', async () => {
    put('n5', 'lacking');
    startLight((page) => page.includes('lacking'));
    await until(() => reflector.health.connected);
    put('n6', 'changed');
    await until(() => changes === 2);
    expect(content()).toBe(
      'n1=first n2=first n3=first n4=first whole n5=lacking whole n6=changed n7=first whole',
    );
    expect(reflector.health).toMatchObject({ activity: { lists: 1, faults: {} } });
  });
});

describe('a watch that breaks', () => {
  it.each(['clean', 'reset'] as const)('off (%s) is taken up from where it was', async (end) => {
    await synced();
    await until(() => reflector.health.lastError === undefined);
    server.faults.dropWatches(watches, end);
    put('n2', 'meanwhile');
    await until(() => content().includes('n2=meanwhile'));
    await expectAlive();
    expect(reflector.health.activity.lists).toBe(1);
    expect(changes).toBe(3);
  });

  it('with all connections reset is taken up again', async () => {
    await synced();
    server.faults.resetConnections();
    put('n2', 'meanwhile');
    await until(() => content().includes('n2=meanwhile'));
    expect(faults('unreachable')).toBe(1);
    expect(reflector.health.activity.lists).toBe(1);
  });

  it('again and again at once is retried ever more slowly, and told once', async () => {
    await synced();
    await until(() => reflector.health.activity.watches === 1);
    const drop = setInterval(() => server.faults.dropWatches(), 1);
    await new Promise((resolve) => void setTimeout(resolve, 600));
    clearInterval(drop);
    expect(faults('short_watch')).toBeGreaterThan(2);
    expect(faults('short_watch')).toBeLessThan(20);
    expect(warnings()).toEqual(['the API server ended the watch at once']);
    await expectAlive();
    await until(() => reflector.health.lastError === undefined);
    expect(logged.some(({ msg }) => msg === 'watching again')).toBe(true);
  });

  it.each<[string, Fault, FaultKind, number]>([
    ['garbage', { kind: 'garbage' }, 'frame', 2],
    ['half a frame, then the end', { kind: 'truncate' }, 'frame', 2],
    ['half a frame, then a reset', { kind: 'truncate', end: 'reset' }, 'unreachable', 1],
  ])('with %s loses no event', async (_, fault, kind, relists) => {
    await synced();
    const injection = server.faults.inject(fault, { match: watches, times: 1 });
    put('n2', 'lost?');
    await until(() => content().includes('n2=lost?'));
    await expectAlive();
    expect(injection.hits).toBe(1);
    expect(faults(kind)).toBe(1);
    expect(reflector.health.activity.lists).toBe(relists);
    expect(fewest).toBe(7);
  });

  it('one byte at a time is no trouble', async () => {
    server.faults.inject({ kind: 'chunk', bytes: 1 });
    await synced({ pageDeadlineMs: 5000 });
    put('n2', 'ä€😀');
    await until(() => content().includes('n2=ä€😀'));
    expect(reflector.health.activity.faults).toEqual({});
  });

  it('duplicates cause no event, older versions are ignored', async () => {
    await synced();
    server.faults.inject({ kind: 'duplicate' }, { match: watches });
    server.faults.inject({ kind: 'stale' }, { match: watches });
    put('n2', 'second');
    put('n3', 'second');
    await until(() => content().includes('n3=second'));
    await new Promise((resolve) => void setTimeout(resolve, 50));
    expect(content()).toContain('n2=second n3=second');
    expect(changes).toBe(3);
    expect(reflector.health.activity.faults).toEqual({});
  });

  it('mute, on an open connection, is noticed and renewed', async () => {
    await synced({ idleMs: 150 });
    server.faults.inject({ kind: 'mute' }, { match: watches, times: 1 });
    put('n2', 'unheard');
    await until(() => content().includes('n2=unheard'));
    expect(faults('idle')).toBeGreaterThan(0);
    expect(reflector.health.activity.lists).toBe(1);
    expect(warnings()).toEqual([]);
  });

  it('that trickles bytes but never ends is over when its life is over', async () => {
    server.faults.inject({ kind: 'mute' }, { match: watches, times: 1 });
    await synced({ watchSecondsMin: 1, watchSecondsMax: 1, watchGraceMs: 50 });
    put('n2', 'unheard');
    await until(() => content().includes('n2=unheard'));
    expect(reflector.health.activity.watches).toBeGreaterThan(1);
  });
});

describe('a forgotten history', () => {
  it.each(['stream', 'status'] as const)(
    'told as %s leads to a list and its differences, never to a flush',
    async (as) => {
      await synced();
      put('n2', 'before');
      await until(() => content().includes('n2=before'));
      server.faults.inject({ kind: 'latency', ms: 100 }, { match: lists });
      server.faults.expireHistory(as);
      server.store.delete('nodes', 'n3');
      put('n4', 'after');
      server.faults.expireHistory(as);
      expect(reflector.items.size).toBe(7);
      await until(() => reflector.health.activity.lists === 2);
      expect(fewest).toBe(6);
      expect(content()).toBe('n1=first n2=before n4=after n5=first n6=first n7=first');
      expect(faults('gone')).toBeGreaterThan(0);
      await expectAlive();
    },
  );

  it('in which nothing changed causes no event', async () => {
    await synced();
    const items = new Map(reflector.items);
    server.faults.expireHistory('stream');
    await until(() => reflector.health.activity.lists === 2);
    expect(changes).toBe(1);
    for (const [uid, item] of items) expect(reflector.items.get(uid)).toBe(item);
  });

  it('in which a node was deleted and made again brings another one', async () => {
    await synced();
    const uid = (): string => [...reflector.items.values()].find(({ name }) => name === 'n2')!.uid;
    const before = uid();
    server.faults.inject({ kind: 'latency', ms: 50 }, { match: lists });
    server.faults.expireHistory('status');
    server.store.delete('nodes', 'n2');
    put('n2', 'reborn');
    server.faults.expireHistory('status');
    await until(() => content().includes('n2=reborn'));
    expect(uid()).not.toBe(before);
    expect(reflector.items.size).toBe(7);
    expect(fewest).toBe(7);
  });

  it('in the middle of a paged list begins the list again', async () => {
    server.faults.inject({ kind: 'latency', ms: 50 }, { match: lists });
    start();
    await new Promise((resolve) => void setTimeout(resolve, 80));
    put('n8', 'late');
    server.faults.expireHistory('status');
    await until(() => reflector.synced);
    expect(content()).toContain('n8=late');
    expect(faults('gone')).toBe(1);
  });
});

describe('an API server in trouble', () => {
  it('that is down at the start is asked until it is there', async () => {
    server.faults.connections = 'reset';
    start();
    await until(() => faults('unreachable') >= 3);
    expect(reflector.synced).toBe(false);
    expect(changes).toBe(0);
    expect(warnings()).toHaveLength(1);
    server.faults.connections = 'serve';
    await until(() => reflector.synced);
    expect(reflector.items.size).toBe(7);
  });

  it('that goes down, in a black hole, keeps our state and is found again', async () => {
    await synced({ idleMs: 150 });
    server.faults.connections = 'hang';
    server.faults.resetConnections();
    await until(() => faults('deadline') >= 1);
    expect(reflector.items.size).toBe(7);
    expect(reflector.health.connected).toBe(false);
    server.store.delete('nodes', 'n3');
    server.faults.connections = 'serve';
    await until(() => reflector.items.size === 6);
    expect(reflector.health.activity.lists).toBe(1);
  });

  it('is found again within a minute of its return, whatever we are waiting for, by the timing of production', () => {
    const { headerDeadlineMs, pageDeadlineMs, idleMs, backoffMaxMs } = DEFAULT_TIMING;
    // An attempt that it never answers, and the longest back-off after it.
    expect(Math.max(headerDeadlineMs, pageDeadlineMs) + backoffMaxMs).toBeLessThan(60_000);
    // A watch that it forgot while it was away, and the attempt after it.
    expect(idleMs + headerDeadlineMs).toBeLessThanOrEqual(60_000);
  });

  it.each([401, 403, 429, 500, 503] as const)('that answers %i is retried', async (code) => {
    await synced();
    server.faults.inject({ kind: 'refuse', code });
    server.faults.dropWatches();
    const kind = code < 404 ? 'auth' : 'status';
    await until(() => faults(kind) >= 3);
    expect(reflector.items.size).toBe(7);
    expect(warnings().at(-1)).toContain(`answered ${code}`);
    server.faults.clear();
    await expectAlive();
    expect(reflector.health.activity.lists).toBe(1);
  });

  it('gets the time that it asks for with Retry-After', async () => {
    server.faults.inject({ kind: 'refuse', code: 429, retryAfterSeconds: 1 }, { times: 1 });
    const begin = performance.now();
    await synced();
    expect(performance.now() - begin).toBeGreaterThan(1000);
    expect(faults('status')).toBe(1);
  });

  it('that no longer takes our token gets the new one from disk', async () => {
    await synced();
    server.tokens.delete(server.adminToken);
    server.tokens.set('rotated', 'admin');
    server.faults.resetConnections();
    await until(() => faults('auth') >= 1);
    await writeFile(path.join(directory, 'kubeconfig'), server.kubeconfig(server.url, 'rotated'));
    await expectAlive();
  });

  it('with a kubeconfig that vanished for a while is found again', async () => {
    await synced();
    await rm(path.join(directory, 'kubeconfig'));
    server.faults.inject({ kind: 'refuse', code: 401 }, { match: watches, times: 1 });
    server.faults.dropWatches();
    await until(() => faults('credentials') >= 1);
    expect(reflector.items.size).toBe(7);
    await writeFile(path.join(directory, 'kubeconfig'), server.kubeconfig());
    await expectAlive();
  });

  it.each<[string, Fault, FaultKind]>([
    ['hangs', { kind: 'hang' }, 'deadline'],
    ['sends garbage', { kind: 'garbage' }, 'frame'],
    ['is cut off', { kind: 'truncate', end: 'reset' }, 'unreachable'],
    ['ends early', { kind: 'truncate' }, 'frame'],
  ])('whose list %s is asked again, and we keep what we have', async (_, fault, kind) => {
    await synced();
    const injection = server.faults.inject(fault, { match: lists, times: 2 });
    server.faults.expireHistory();
    await until(() => injection.hits === 2);
    expect(reflector.items.size).toBe(7);
    await until(() => reflector.health.activity.lists === 2);
    expect(faults(kind)).toBe(2);
    await expectAlive();
    expect(fewest).toBe(7);
  });

  it('whose list never ends is given up in time', async () => {
    server.faults.inject({ kind: 'latency', ms: 150 }, { match: lists });
    start({ listDeadlineMs: 300 });
    await until(() => faults('deadline') >= 1);
    expect(reflector.synced).toBe(false);
    server.faults.clear();
    await until(() => reflector.synced);
  });

  it('restored from a backup, at an earlier version, is believed', async () => {
    await synced();
    const port = Number(new URL(server.url).port);
    await server.close();
    server = await ApiServer.start({ port });
    await writeFile(path.join(directory, 'kubeconfig'), server.kubeconfig());
    put('n1', 'restored');
    await until(() => content() === 'n1=restored');
    await expectAlive();
  });
});

describe('a consumer with a defect', () => {
  it('whose onChange throws does not stop the reflector', async () => {
    await synced();
    const after = new Reflector({
      client,
      path: '/api/v1/nodes',
      project,
      onChange: () => {
        throw new Error('defect');
      },
      log: pino({ level: 'silent' }),
      timing: quick,
    });
    after.start();
    await until(() => after.synced);
    put('n2', 'still');
    await until(() => [...after.items.values()].some(({ value }) => value === 'still'));
    await after.stop();
  });

  it('whose projection throws is told of it, and the state stays', async () => {
    let broken = false;
    start({}, (object) => {
      if (broken) throw new TypeError('defect');
      return project(object);
    });
    await until(() => reflector.health.connected);
    broken = true;
    put('n2', 'unreadable');
    await until(() => faults('frame') >= 1);
    expect(reflector.items.size).toBe(7);
    expect(warnings()[0]).toContain('an object could not be read: defect');
    broken = false;
    await until(() => content().includes('n2=unreadable'));
  });
});
