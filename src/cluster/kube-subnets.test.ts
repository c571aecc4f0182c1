// SPDX-License-Identifier: Apache-2.0
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiServer, type RequestInfo } from '../lab/apiserver/index.ts';
import { ApiClient } from './api-client.ts';
import { dualStack, flannelNode } from './nodes.support.ts';
import { KubeSubnetManager } from './kube-subnets.ts';
import type { ClusterSnapshot } from './snapshot.ts';

const podCidrs = 'ripstop.io/pod-cidrs';
const OWN = 1;

/** As in production, only quicker. */
const quick = {
  pageSize: 20,
  healthyAfterMs: 100,
  backoffMinMs: 20,
  backoffMaxMs: 100,
  retryAfterMaxMs: 1000,
  deadlineMs: 500,
  settleMs: 5,
  recheckMs: 50,
  refusedMs: 100,
};

let server: ApiServer;
let directory: string;
let manager: KubeSubnetManager;
let changes: number;
/** What was asked of the server: `GET node-2`, or `list` and `watch` with what they want of Nodes. */
let asked: string[];

const note = (message: unknown): void => {
  const { request } = message as { request: IncomingMessage };
  const { pathname, searchParams } = new URL(request.url ?? '/', server.url);
  if (request.method !== 'GET') return;
  if (pathname !== '/api/v1/nodes') asked.push(`GET ${pathname.split('/').at(-1)}`);
  else {
    const what = searchParams.has('watch') ? 'watch' : 'list';
    const ofWhom = searchParams.get('fieldSelector')?.replace('metadata.name=', '') ?? 'all';
    const view = request.headers.accept?.startsWith('application/json;as=PartialObjectMetadata')
      ? 'metadata'
      : 'whole';
    asked.push(`${what} ${ofWhom} ${view}`);
  }
};

beforeEach(async () => {
  server = await ApiServer.start();
  directory = await mkdtemp(path.join(tmpdir(), 'ripstop-subnets-'));
  changes = 0;
  asked = [];
  subscribe('http.server.request.start', note);
  add(OWN);
});

afterEach(async () => {
  unsubscribe('http.server.request.start', note);
  await manager.stop();
  await server.close();
  await rm(directory, { recursive: true });
});

/** A node that ripstop runs on, or with `flannel` one that has not its annotation. */
function add(n: number, kind: 'ripstop' | 'flannel' = 'ripstop', podCIDRs?: string[]): void {
  const published = { [podCidrs]: `10.42.${n}.0/24,fd00:42:0:${n.toString(16)}::/64` };
  const { metadata, ...node } = flannelNode(
    n,
    kind === 'ripstop' ? published : {},
    podCIDRs ? { podCIDRs } : {},
  );
  const { name, annotations } = metadata;
  server.store.create('nodes', { ...node, metadata: { name, annotations } });
}

function annotate(n: number, annotations: Record<string, string | null>): void {
  const patch = { metadata: { annotations } };
  server.store.patch('nodes', `node-${n}`, 'application/merge-patch+json', patch, { subresource: 'status' });
}

function setPodCidrs(n: number, podCIDRs: string[]): void {
  const spec = { podCIDR: podCIDRs[0], podCIDRs };
  server.store.patch('nodes', `node-${n}`, 'application/merge-patch+json', { spec });
}

/** What a kubelet does every five minutes. */
function beat(n: number): void {
  const conditions = [
    { type: 'Ready', status: 'True', lastHeartbeatTime: new Date().toISOString() + Math.random() },
  ];
  server.store.patch(
    'nodes',
    `node-${n}`,
    'application/merge-patch+json',
    { status: { conditions } },
    { subresource: 'status' },
  );
}

async function start(): Promise<void> {
  const kubeconfig = path.join(directory, 'kubeconfig');
  await writeFile(kubeconfig, server.kubeconfig());
  const client = await ApiClient.open({ kubeconfig });
  manager = new KubeSubnetManager(client, `node-${OWN}`, dualStack, pino({ level: 'silent' }), quick);
  manager.start(() => changes++);
}

async function synced(): Promise<void> {
  await start();
  await until(() => seen().synced && manager.health.connected && seen().own !== undefined, 'in sync');
}

function seen(): ClusterSnapshot {
  return manager.snapshot([]);
}

/** The peers with their IPv4 podCIDRs, and the alarms, as the data plane gets them. */
function view(): { peers: string; alarms: string[] } {
  const { nodes, alarms } = seen();
  return {
    peers: nodes
      .map(({ name, v4 }) => `${name}=${v4?.podCidr.base}/${v4?.podCidr.length}`)
      .sort()
      .join(' '),
    alarms: alarms.map(({ node, kind, reason }) => `${node} ${kind} ${reason}`),
  };
}

async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 4000;
  while (!condition()) {
    if (performance.now() > end) {
      throw new Error(`not ${what}: ${JSON.stringify({ ...view(), asked, health: manager.health })}`);
    }
    await new Promise((resolve) => void setTimeout(resolve, 5));
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => void setTimeout(resolve, ms));
const ofNode =
  (n: number) =>
  ({ verb, name }: RequestInfo): boolean =>
    verb === 'get' && name === `node-${n}`;
const gets = (): string[] => asked.filter((request) => request.startsWith('GET'));

describe('a cluster of ripstop nodes', () => {
  it('is followed by its metadata alone, our own Node whole', async () => {
    for (const n of [2, 3]) add(n);
    await synced();
    expect(view()).toEqual({ peers: 'node-2=10.42.2.0/24 node-3=10.42.3.0/24', alarms: [] });
    expect(asked.toSorted()).toEqual([
      'list all metadata',
      'list node-1 whole',
      'watch all metadata',
      'watch node-1 whole',
    ]);
    expect(seen().own).toMatchObject({ name: 'node-1', podCidrs: [{ base: '10.42.1.0' }, {}] });
    add(4);
    server.store.delete('nodes', 'node-2');
    await until(() => view().peers === 'node-3=10.42.3.0/24 node-4=10.42.4.0/24', 'up to date');
    expect(gets()).toEqual([]);
  });

  it("does not disturb us with kubelets' heartbeats, ours neither", async () => {
    for (const n of [2, 3]) add(n);
    await synced();
    const [before, snapshot] = [changes, seen()];
    for (let i = 0; i < 50; i++) beat((i % 3) + 1);
    await pause(100);
    expect(changes).toBe(before);
    expect(seen().revision).toBe(snapshot.revision);
    annotate(2, { 'flannel.alpha.coreos.com/public-ip': '192.168.1.99' });
    await until(() => changes > before, 'told of it');
    expect(changes).toBe(before + 1);
    expect(seen().revision).toBe(snapshot.revision + 1);
    expect(seen().peersRevision).toBe(snapshot.peersRevision + 1);
  });

  it.each<[string, () => void]>([
    [
      'an annotation',
      () => annotate(OWN, { [podCidrs]: null, 'flannel.alpha.coreos.com/public-ip': '10.9.9.9' }),
    ],
    [
      'the condition',
      () => {
        const conditions = [{ type: 'NetworkUnavailable', status: 'True', reason: 'NoRouteCreated' }];
        const patch = { status: { conditions } };
        server.store.patch('nodes', 'node-1', 'application/strategic-merge-patch+json', patch, {
          subresource: 'status',
        });
      },
    ],
  ])(
    'tells at once when somebody changes %s of our own Node, so that it can be restored',
    async (_, change) => {
      await synced();
      const own = seen().own!;
      const lease = {
        v4: { publicIp: '192.168.1.1', vtepMac: '0a:00:00:00:04:01' },
        v6: { publicIp: '2001:db8::1', vtepMac: '0a:00:00:00:06:01' },
        flannelIsUp: true,
      };
      expect(await manager.publish(own, lease)).toBe(true);
      await until(() => seen().own?.flannelIsUp === true, 'published');
      expect(await manager.publish(seen().own!, lease)).toBe(false);
      const [before, { own: published, revision, peersRevision }] = [changes, seen()];
      change();
      await until(() => changes > before && seen().revision > revision, 'told of it');
      expect(seen().peersRevision).toBe(peersRevision);
      expect(await manager.publish(seen().own!, lease)).toBe(true);
      await until(() => JSON.stringify(seen().own) === JSON.stringify(published), 'restored');
    },
  );

  it('on a server that knows no metadata alone is followed all the same', async () => {
    server.faults.wholeOnly = true;
    add(2);
    add(3, 'flannel');
    add(4, 'flannel', []);
    await synced();
    expect(view()).toEqual({
      peers: 'node-2=10.42.2.0/24 node-3=10.42.3.0/24',
      alarms: ['node-4 no_lease skipped: no podCIDR yet'],
    });
    setPodCidrs(4, ['10.42.4.0/24']);
    await until(() => view().peers.includes('node-4=10.42.4.0/24'), 'up to date');
    expect(gets()).toEqual([]);
    // And once it is upgraded.
    server.faults.wholeOnly = false;
    const before = changes;
    server.faults.dropWatches();
    await until(() => asked.filter((request) => request === 'watch all metadata').length > 1, 'watching');
    for (const n of [2, 3, 4]) beat(n);
    await pause(100);
    expect(changes).toBe(before);
    expect(view().peers).toBe('node-2=10.42.2.0/24 node-3=10.42.3.0/24 node-4=10.42.4.0/24');
    expect(gets()).toEqual([]);
  });
});

describe('plain flannel nodes', () => {
  it('that are few are read whole, each once', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    add(20, 'flannel');
    await synced();
    expect(view()).toMatchObject({ peers: expect.stringContaining('node-20=10.42.20.0/24'), alarms: [] });
    expect(gets()).toEqual(['GET node-20']);
    for (let i = 0; i < 5; i++) beat(20);
    annotate(20, { 'flannel.alpha.coreos.com/public-ip': '192.168.1.220' });
    add(21, 'flannel');
    await until(() => view().peers.includes('node-21=10.42.21.0/24'), 'up to date');
    await pause(100);
    expect(gets()).toEqual(['GET node-20', 'GET node-21']);
    // Also not when all is listed anew.
    server.faults.expireHistory();
    beat(2);
    await until(() => asked.filter((request) => request === 'list all metadata').length === 3, 'listed');
    await pause(100);
    expect(gets()).toHaveLength(2);
    expect(view().peers.split(' ')).toHaveLength(20);
  });

  it('may send from the addresses of their Nodes, which are known whoever they say to be', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    add(20, 'flannel');
    const addresses = [{ type: 'InternalIP', address: '192.168.1.20' }];
    const patch = { status: { addresses } };
    server.store.patch('nodes', 'node-20', 'application/merge-patch+json', patch, { subresource: 'status' });
    await synced();
    const peer = () => seen().nodes.find(({ name }) => name === 'node-20')?.v4;
    expect(peer()).toEqual(expect.not.objectContaining({ otherIps: expect.anything() }));
    annotate(20, { 'flannel.alpha.coreos.com/public-ip': '192.168.1.220' });
    await until(() => peer()?.vtepIp === '192.168.1.220', 'up to date');
    expect(peer()?.otherIps).toEqual(['192.168.1.20']);
    expect(gets()).toEqual(['GET node-20']);
  });

  it('that are many are listed whole instead, once', async () => {
    for (let n = 2; n <= 50; n++) add(n, 'flannel');
    await synced();
    expect(view().peers.split(' ')).toHaveLength(49);
    expect(asked.filter((request) => request.startsWith('list all'))).toEqual([
      'list all metadata',
      'list all whole',
      'list all whole',
      'list all whole',
    ]);
    expect(asked).toContain('watch all metadata');
    server.faults.expireHistory();
    beat(2);
    await until(() => asked.filter((request) => request === 'list all metadata').length === 4, 'listed');
    await pause(100);
    expect(gets()).toEqual([]);
    expect(asked.filter((request) => request === 'list all whole')).toHaveLength(3);
    expect(view().peers.split(' ')).toHaveLength(49);
  });

  it('of which we were one ourselves are read without us: we are watched anyway', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    annotate(OWN, { [podCidrs]: null });
    await synced();
    annotate(OWN, { other: 'changed' });
    await pause(50);
    expect(gets()).toEqual([]);
    expect(asked).not.toContain('list all whole');
  });

  it('are read a few at a time', async () => {
    for (let n = 2; n <= 90; n++) add(n, n % 10 === 0 ? 'flannel' : 'ripstop');
    let most = 0;
    let open = 0;
    const answered = (message: unknown): void => {
      const { request } = message as { request: IncomingMessage };
      if (request.url?.startsWith('/api/v1/nodes/')) open--;
    };
    const begun = (message: unknown): void => {
      const { request } = message as { request: IncomingMessage };
      if (request.url?.startsWith('/api/v1/nodes/')) most = Math.max(most, ++open);
    };
    subscribe('http.server.request.start', begun);
    subscribe('http.server.response.finish', answered);
    server.faults.inject({ kind: 'latency', ms: 30 }, { match: ({ verb }) => verb === 'get' });
    await synced();
    unsubscribe('http.server.request.start', begun);
    unsubscribe('http.server.response.finish', answered);
    expect(gets()).toHaveLength(9);
    // Four, and a little more where the server has not noticed yet that it has answered.
    expect(most).toBeGreaterThan(2);
    expect(most).toBeLessThan(7);
    expect(view().peers.split(' ')).toHaveLength(89);
  });

  it('that become ripstop nodes, or back, cost nothing', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    add(20, 'flannel');
    await synced();
    const { peers } = view();
    const said = `10.42.20.0/24,fd00:42:0:14::/64`;
    annotate(20, { [podCidrs]: said });
    annotate(2, { [podCidrs]: null });
    await until(() => gets().includes('GET node-2'), 'read');
    await pause(100);
    expect(gets()).toEqual(['GET node-20', 'GET node-2']);
    expect(view()).toEqual({ peers, alarms: [] });
  });

  it('that get their podCIDR late are read again when they change', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    add(20, 'flannel', []);
    await synced();
    expect(view().alarms).toEqual(['node-20 no_lease skipped: no podCIDR yet']);
    await pause(200);
    expect(gets()).toEqual(['GET node-20']);
    setPodCidrs(20, ['10.42.20.0/24']);
    await until(() => view().peers.includes('node-20=10.42.20.0/24'), 'up to date');
    expect(view().alarms).toEqual([]);
    expect(gets()).toEqual(['GET node-20', 'GET node-20']);
  });

  it('of which nothing is wanted are not read', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    add(20, 'flannel');
    annotate(20, { 'flannel.alpha.coreos.com/kube-subnet-manager': null });
    add(21, 'flannel');
    annotate(21, { 'flannel.alpha.coreos.com/backend-type': 'host-gw' });
    await synced();
    expect(view().alarms).toMatchObject([expect.stringContaining('node-21 other_backend')]);
    expect(gets()).toEqual([]);
  });
});

describe('a plain flannel node that cannot be read', () => {
  beforeEach(() => {
    for (let n = 2; n <= 19; n++) add(n);
  });

  it('keeps us from being in sync, for it might look like one that is gone; the others are there', async () => {
    add(20, 'flannel');
    const failing = server.faults.inject({ kind: 'refuse', code: 500 }, { match: ofNode(20) });
    await start();
    await until(() => failing.hits >= 3, 'refused');
    expect(seen().synced).toBe(false);
    expect(view().peers.split(' ')).toHaveLength(18);
    expect(view().alarms).toEqual([
      expect.stringMatching(/^node-20 podcidr_unknown left out, .*its podCIDRs are not known: .* 500/),
    ]);
    expect(manager.health.lastError).toMatch(/GET .*node-20.* 500/);
    failing.remove();
    await until(() => seen().synced, 'in sync');
    expect(view()).toMatchObject({ peers: expect.stringContaining('node-20=10.42.20.0/24'), alarms: [] });
    expect(manager.health.lastError).toBeUndefined();
  });

  it.each(['hang', 'reset'] as const)('at once (%s) is tried until it can', async (kind) => {
    add(20, 'flannel');
    add(21, 'flannel');
    const failing = server.faults.inject({ kind }, { match: ofNode(20), times: 2 });
    await synced();
    expect(failing.hits).toBe(2);
    expect(view().peers.split(' ')).toHaveLength(20);
  });

  it('because we may not is told, and does not hold us up', async () => {
    add(20, 'flannel');
    const failing = server.faults.inject({ kind: 'refuse', code: 403 }, { match: ofNode(20) });
    await synced();
    expect(view().alarms).toEqual([expect.stringMatching(/^node-20 podcidr_unknown left out.* 403/)]);
    failing.remove();
    await until(() => view().peers.includes('node-20='), 'up to date');
  });

  it('and is deleted meanwhile does not hold us up', async () => {
    add(20, 'flannel');
    const failing = server.faults.inject({ kind: 'refuse', code: 503 }, { match: ofNode(20) });
    await start();
    await until(() => failing.hits >= 1, 'refused');
    server.store.delete('nodes', 'node-20');
    await until(() => seen().synced, 'in sync');
    expect(view().alarms).toEqual([]);
  });

  it('because it is gone, which the watch has not told yet, is no cause for alarm', async () => {
    add(20, 'flannel');
    server.faults.inject({ kind: 'mute' }, { match: ({ verb }) => verb === 'watch' });
    const slow = server.faults.inject({ kind: 'latency', ms: 200 }, { match: ofNode(20) });
    await start();
    await until(() => slow.hits === 1, 'asked');
    server.store.delete('nodes', 'node-20');
    await until(() => seen().synced, 'in sync');
    expect(view().peers).not.toContain('node-20');
    expect(view().alarms).toEqual([]);
  });

  it('keeps the lease that we know of it', async () => {
    add(20);
    await synced();
    expect(view().peers).toContain('node-20=10.42.20.0/24');
    const failing = server.faults.inject({ kind: 'refuse', code: 500 }, { match: ofNode(20) });
    annotate(20, { [podCidrs]: null });
    let held = true;
    await until(() => {
      held &&= view().peers.includes('node-20=10.42.20.0/24');
      return failing.hits >= 2;
    }, 'refused');
    expect(held).toBe(true);
    expect(view().alarms).toEqual([
      expect.stringMatching(/^node-20 podcidr_unknown quarantined with its last good lease/),
    ]);
    expect(seen().synced).toBe(true);
    failing.remove();
    await until(() => view().alarms.length === 0, 'well again');
    expect(view().peers).toContain('node-20=10.42.20.0/24');
  });
});

describe('an annotation of podCIDRs', () => {
  it.each(['10.42.99.0/24', 'rubbish', ''])(
    'that says %j where the spec is known is not believed',
    async (said) => {
      for (let n = 2; n <= 19; n++) add(n);
      add(20, 'flannel');
      await synced();
      annotate(20, { [podCidrs]: said });
      await until(() => view().alarms.length > 0, 'alarmed');
      expect(view().peers).toContain('node-20=10.42.20.0/24');
      expect(view().alarms).toEqual([
        `node-20 podcidr_mistaken ${podCidrs} is ${JSON.stringify(said)}, ` +
          'but its spec says 10.42.20.0/24,fd00:42:0:14::/64, which is believed',
      ]);
    },
  );

  it.each([
    ['no length behind the slash', '10.42.20.0/'],
    ['two of one family', '10.42.20.0/24,10.42.21.0/24'],
    ['no prefix length', '10.42.20.0'],
    ['10,000 characters', 'x'.repeat(10_000)],
  ])('that says %s is as good as none', async (_, said) => {
    for (let n = 2; n <= 20; n++) add(n);
    annotate(20, { [podCidrs]: said });
    await synced();
    expect(gets()).toEqual(['GET node-20']);
    expect(view().peers).toContain('node-20=10.42.20.0/24');
    expect(view().alarms).toHaveLength(1);
  });
});

describe('an annotation that claims what is not its own', () => {
  const two = '10.42.2.0/24,fd00:42:0:2::/64';
  const three = '10.42.3.0/24,fd00:42:0:3::/64';

  it.each([
    ['the podCIDRs of a younger node', three],
    ['the whole network', '10.42.0.0/16,fd00:42:0:2::/64'],
    ['half a podCIDR', '10.42.3.128/25,fd00:42:0:2::/64'],
  ])('is held against the spec: %s', async (_, said) => {
    for (let n = 2; n <= 19; n++) add(n);
    await synced();
    const { peers } = view();
    annotate(2, { [podCidrs]: said });
    let held = true;
    await until(() => {
      const seen = view();
      held &&= seen.peers === peers;
      return seen.alarms.length > 0;
    }, 'alarmed');
    expect(held).toBe(true);
    await pause(50);
    expect(view()).toEqual({
      peers,
      alarms: [
        `node-2 podcidr_mistaken ${podCidrs} is ${JSON.stringify(said)}, but its spec says ${two}, which is believed`,
      ],
    });
    expect(gets().toSorted()).toEqual(said === three ? ['GET node-2', 'GET node-3'] : ['GET node-2']);
  });

  it('is so from the start, before we are in sync', async () => {
    for (let n = 2; n <= 19; n++) add(n);
    annotate(2, { [podCidrs]: three });
    const failing = server.faults.inject({ kind: 'refuse', code: 500 }, { match: ofNode(2) });
    await start();
    await until(() => failing.hits >= 2, 'refused');
    expect(seen().synced).toBe(false);
    expect(view().peers).not.toContain('node-2=');
    failing.remove();
    await until(() => seen().synced, 'in sync');
    expect(view().peers).toMatch(/node-2=10\.42\.2\.0\/24 node-3=10\.42\.3\.0\/24/);
  });
});

describe('taking our lease back', () => {
  it('makes us a node that others ignore', async () => {
    await synced();
    await manager.withdraw();
    await until(() => seen().own?.annotations[podCidrs] === undefined, 'withdrawn');
    expect(seen().own?.annotations).toEqual({});
  });
});
