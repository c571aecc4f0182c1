// SPDX-License-Identifier: Apache-2.0
import {
  CoreV1Api,
  KubeConfig,
  PatchStrategy,
  setHeaderOptions,
  type V1Node,
  Watch,
} from '@kubernetes/client-node';
import { afterEach, describe, expect, it } from 'vitest';
import { ApiServer, type ApiServerOptions } from './server.ts';
import { type Body, TestClient } from './client.support.ts';

let server: ApiServer;
let client: TestClient;

async function start(options: ApiServerOptions = {}): Promise<void> {
  server = await ApiServer.start(options);
  client = new TestClient(server);
}

afterEach(async () => {
  client.close();
  await server.close();
});

const nodes = '/api/v1/nodes';
const addNodes = (...names: string[]): void => {
  for (const name of names) server.store.create('nodes', { metadata: { name } });
};
const touch = (name: string, value: string): Body =>
  server.store.patch('nodes', name, 'application/merge-patch+json', {
    metadata: { annotations: { value } },
  });
const names = (body: Body): (string | undefined)[] => (body.items ?? []).map(({ metadata }) => metadata.name);

describe('the user of a request', () => {
  it('is known by a bearer token; without one, or with an unknown one, the answer is 401', async () => {
    await start({ tokens: { secret: 'system:node:a' } });
    expect((await client.get(nodes, { token: 'secret' })).code).toBe(200);
    for (const token of [null, 'wrong']) {
      const { code, body } = await client.get(nodes, { token });
      expect({ code, body }).toMatchObject({
        code: 401,
        body: { kind: 'Status', status: 'Failure', reason: 'Unauthorized', code: 401 },
      });
    }
    server.tokens.delete('secret');
    expect((await client.get(nodes, { token: 'secret' })).code).toBe(401);
  });

  it('needs permission from authorize: a 403 says what was asked for', async () => {
    await start({ authorize: ({ verb, resource }) => resource !== 'nodes' || verb === 'list' });
    expect((await client.get(nodes)).code).toBe(200);
    const { code, body } = await client.patch(`${nodes}/a/status`, 'merge', {});
    expect({ code, body }).toMatchObject({ code: 403, body: { kind: 'Status', reason: 'Forbidden' } });
    expect(body.message).toContain('User "admin" cannot patch resource "nodes/status" at the cluster scope');
  });

  it('does not matter for health and version', async () => {
    await start();
    for (const path of ['/healthz', '/readyz', '/livez']) {
      expect(await client.get(path, { token: null })).toMatchObject({ code: 200, text: 'ok' });
    }
    expect((await client.get('/version', { token: null })).text).toContain('"gitVersion":"v1.');
  });

  it('must trust the CA', async () => {
    await start();
    await expect(fetch(`${server.url}/healthz`)).rejects.toThrow('fetch failed');
  });
});

describe('the paths', () => {
  it.each([
    '/',
    '/nope',
    '/api/v2/nodes',
    '/api/v1/widgets',
    '/apis/apps/v1/deployments',
    '/api/v1/nodes/a/b/c',
    '/api/v1/nodes/a/log',
    '/api/v1/namespaces/x/nodes',
    '/api/v1/pods/p',
    '/api/v1/nodes/',
  ])('that are unknown get a 404 Status: %s', async (path) => {
    await start();
    const { code, headers, body } = await client.get(path);
    expect({ code, body }).toMatchObject({ code: 404, body: { kind: 'Status', reason: 'NotFound' } });
    expect(headers['content-type']).toBe('application/json');
  });

  it('let kubectl find the nodes', async () => {
    await start();
    expect((await client.get('/api')).body).toMatchObject({ versions: ['v1'] });
    expect((await client.get('/apis')).text).toContain(
      '"preferredVersion":{"groupVersion":"discovery.k8s.io/v1"',
    );
    expect((await client.get('/api/v1')).text).toContain('"shortNames":["no"]');
    expect((await client.get('/apis/networking.k8s.io/v1')).text).toContain('"name":"networkpolicies"');
  });

  it('refuse methods, media types and bodies that do not fit', async () => {
    await start();
    addNodes('a');
    expect((await client.delete(nodes)).code).toBe(405);
    expect((await client.get(nodes, { accept: 'application/vnd.kubernetes.protobuf' })).code).toBe(406);
    expect((await client.request(nodes, { method: 'POST', body: '{}', type: 'text/plain' })).code).toBe(415);
    expect((await client.request(`${nodes}/a`, { method: 'PATCH', body: {} })).code).toBe(415);
    expect((await client.post(nodes, '{"metadata":')).code).toBe(400);
    expect((await client.post(nodes, '[]')).code).toBe(400);
    expect((await client.post(nodes, `"${'x'.repeat(4 << 20)}"`)).code).toBe(413);
    expect((await client.get('/api/v1/nodes/%zz')).code).toBe(400);
  });
});

describe('objects', () => {
  it('exist from POST to DELETE', async () => {
    await start();
    const created = await client.post(nodes, { metadata: { name: 'a' }, spec: { podCIDR: '10.42.0.0/24' } });
    expect(created).toMatchObject({
      code: 201,
      body: { kind: 'Node', apiVersion: 'v1', metadata: { name: 'a' } },
    });
    expect((await client.post(nodes, { metadata: { name: 'a' } })).body).toMatchObject({
      code: 409,
      reason: 'AlreadyExists',
    });
    const read = (await client.get(`${nodes}/a`)).body;
    expect(read).toEqual(created.body);
    const written = await client.put(`${nodes}/a`, { ...read, spec: { ...read.spec, unschedulable: true } });
    expect(written).toMatchObject({
      code: 200,
      body: { spec: { unschedulable: true } },
    });
    expect((await client.put(`${nodes}/a`, read)).body).toMatchObject({ code: 409, reason: 'Conflict' });
    expect((await client.put(`${nodes}/b`, read)).code).toBe(400);
    const gone = await client.delete(`${nodes}/a`);
    expect(gone.body).toMatchObject({
      kind: 'Status',
      status: 'Success',
      details: { name: 'a', kind: 'nodes' },
    });
    expect((await client.get(`${nodes}/a`)).code).toBe(404);
  });

  it('stay in their namespaces', async () => {
    await start();
    const one = '/api/v1/namespaces/one/pods';
    expect((await client.post('/api/v1/pods', { metadata: { name: 'p' } })).code).toBe(405);
    expect((await client.post(one, { metadata: { name: 'p', namespace: 'two' } })).code).toBe(400);
    expect(
      (await client.post(one, { metadata: { name: 'p' }, spec: { nodeName: 'a' } })).body.metadata,
    ).toMatchObject({
      namespace: 'one',
    });
    await client.post('/api/v1/namespaces/two/pods', { metadata: { name: 'q' }, spec: { nodeName: 'b' } });
    expect(names((await client.get('/api/v1/pods')).body)).toEqual(['p', 'q']);
    expect(names((await client.get(one)).body)).toEqual(['p']);
    expect(names((await client.get('/api/v1/pods?fieldSelector=spec.nodeName%3Db')).body)).toEqual(['q']);
    expect((await client.get(`${one}/p`)).code).toBe(200);
    expect((await client.get('/api/v1/namespaces/default')).body).toMatchObject({ kind: 'Namespace' });
  });

  it('are patched in three ways, with or without a resourceVersion', async () => {
    await start();
    addNodes('a');
    await client.patch(`${nodes}/a`, 'merge', { metadata: { labels: { x: '1' } } });
    await client.patch(`${nodes}/a`, 'json', [{ op: 'add', path: '/metadata/labels/y', value: '2' }]);
    const { body } = await client.patch(`${nodes}/a`, 'strategic-merge', {
      metadata: { labels: { x: null } },
    });
    expect(body.metadata.labels).toEqual({ y: '2' });
    const stale = { metadata: { resourceVersion: '1', labels: { z: '3' } } };
    expect((await client.patch(`${nodes}/a`, 'merge', stale)).body).toMatchObject({
      code: 409,
      reason: 'Conflict',
    });
    const test = [{ op: 'test', path: '/metadata/labels/y', value: 'no' }];
    expect((await client.patch(`${nodes}/a`, 'json', test)).body).toMatchObject({
      code: 422,
      reason: 'Invalid',
    });
    expect((await client.patch(`${nodes}/b`, 'merge', {})).code).toBe(404);
  });

  it('keep their podCIDR: 422 names the field', async () => {
    await start();
    addNodes('a');
    await client.patch(`${nodes}/a`, 'merge', { spec: { podCIDR: '10.42.1.0/24' } });
    const { code, body } = await client.patch(`${nodes}/a`, 'merge', { spec: { podCIDR: '10.42.2.0/24' } });
    expect({ code, body }).toMatchObject({
      code: 422,
      body: {
        reason: 'Invalid',
        details: { causes: [{ field: 'spec.podCIDRs', reason: 'FieldValueForbidden' }] },
      },
    });
  });

  it('are sent as metadata alone on request', async () => {
    await start({ bookmarkIntervalMs: 20 });
    const managedFields = [{ manager: 'kubelet', operation: 'Update' }];
    server.store.create('nodes', {
      metadata: { name: 'a', labels: { x: 'y' }, managedFields },
      spec: { podCIDR: '10.42.0.0/24' },
    });
    const accept = 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json';
    const { body } = await client.get(nodes, { accept });
    expect(body).toMatchObject({ kind: 'PartialObjectMetadataList', apiVersion: 'meta.k8s.io/v1' });
    expect(body.items?.[0]).toMatchObject({
      kind: 'PartialObjectMetadata',
      apiVersion: 'meta.k8s.io/v1',
      metadata: { labels: { x: 'y' }, managedFields },
    });
    expect(body.items?.[0]).not.toHaveProperty('spec');
    const single = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';
    const one = await client.get(`${nodes}/a`, { accept: single });
    expect(one.body.kind).toBe('PartialObjectMetadata');
    const table = 'application/json;as=Table;v=v1;g=meta.k8s.io,application/json';
    expect((await client.get(`${nodes}/a`, { accept: table })).body.kind).toBe('Node');
    const watch = await client.watch('allowWatchBookmarks=true', { accept: `${single},application/json` });
    const partial = { kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1' };
    expect(await watch.next()).toMatchObject({
      type: 'ADDED',
      object: { ...partial, metadata: { name: 'a' } },
    });
    const bookmark = await watch.next();
    expect(bookmark).toMatchObject({ type: 'BOOKMARK', object: partial });
    server.store.delete('nodes', 'a');
    const events = [await watch.next(), await watch.next(), await watch.next()];
    expect(events.find(({ type }) => type === 'DELETED')?.object).toMatchObject(partial);
  });

  it.each([
    ['a list of metadata for one object', '/a', 'as=PartialObjectMetadataList;g=meta.k8s.io;v=v1', 406],
    ['the metadata of one object for a list', '', 'as=PartialObjectMetadata;g=meta.k8s.io;v=v1', 406],
    ['metadata of an unknown group', '', 'as=PartialObjectMetadataList;g=example.com;v=v1', 406],
    ['metadata of an unknown version', '', 'as=PartialObjectMetadataList;g=meta.k8s.io;v=v9', 406],
    [
      'that, or whatever there is',
      '',
      'as=PartialObjectMetadataList;g=example.com;v=v1,application/json',
      200,
    ],
  ])('asked for as %s: %s with %s is answered %i', async (_, path, as, code) => {
    await start();
    addNodes('a');
    const answer = await client.get(nodes + path, { accept: `application/json;${as}` });
    expect(answer.code).toBe(code);
    expect(answer.body.kind).toBe(code === 200 ? 'NodeList' : 'Status');
  });
});

describe('a list', () => {
  it('comes in pages of one snapshot, unaffected by writes between them', async () => {
    await start();
    addNodes('a', 'b', 'c', 'd', 'e');
    const first = (await client.get(`${nodes}?limit=2`)).body;
    expect(names(first)).toEqual(['a', 'b']);
    expect(first.metadata.remainingItemCount).toBe(3);
    expect(first.items?.[0]).not.toHaveProperty('kind');
    server.store.delete('nodes', 'c');
    addNodes('bb');
    const second = (await client.get(`${nodes}?limit=2&continue=${first.metadata.continue}`)).body;
    expect(names(second)).toEqual(['c', 'd']);
    expect(second.metadata.resourceVersion).toBe(first.metadata.resourceVersion);
    const third = (await client.get(`${nodes}?limit=2&continue=${second.metadata.continue}`)).body;
    expect(names(third)).toEqual(['e']);
    expect(third.metadata).not.toHaveProperty('continue');
    expect(names((await client.get(nodes)).body)).toEqual(['a', 'b', 'bb', 'd', 'e']);
  });

  it('ends with 410 when its snapshot is forgotten', async () => {
    await start({ historySize: 3 });
    addNodes('a', 'b', 'c');
    const { metadata } = (await client.get(`${nodes}?limit=1`)).body;
    addNodes('d', 'e', 'f', 'g');
    const { code, body } = await client.get(`${nodes}?limit=1&continue=${metadata.continue}`);
    expect({ code, body }).toMatchObject({ code: 410, body: { reason: 'Expired' } });
    expect((await client.get(`${nodes}?continue=rubbish`)).code).toBe(400);
  });
});

describe('a watch', () => {
  it('begins with the existing objects, and then follows changes', async () => {
    await start();
    addNodes('a');
    const watch = await client.watch();
    addNodes('b');
    touch('a', '1');
    server.store.delete('nodes', 'b');
    expect(await watch.take(4)).toEqual(['ADDED a', 'ADDED b', 'MODIFIED a', 'DELETED b']);
  });

  it('from a resourceVersion replays only the events after it', async () => {
    await start();
    addNodes('a', 'b');
    const { resourceVersion } = (await client.get(nodes)).body.metadata;
    server.store.create('pods', { metadata: { name: 'p' } });
    touch('b', '1');
    const deleted = server.store.delete('nodes', 'a');
    addNodes('a');
    const watch = await client.watch(`resourceVersion=${resourceVersion}`);
    expect(await watch.take(1)).toEqual(['MODIFIED b']);
    const { type, object } = await watch.next();
    expect({ type, object }).toEqual({ type: 'DELETED', object: deleted });
    expect(Number(object.metadata.resourceVersion)).toBeGreaterThan(Number(resourceVersion));
    const added = await watch.next();
    expect(added.object.metadata.uid).not.toBe(object.metadata.uid);
  });

  it('from a forgotten resourceVersion gets 410 in the stream, or as the answer', async () => {
    await start({ historySize: 2 });
    addNodes('a', 'b', 'c', 'd');
    const inStream = await client.watch('resourceVersion=1');
    expect(await inStream.next()).toMatchObject({ type: 'ERROR', object: { code: 410, reason: 'Expired' } });
    expect(await inStream.ended).toBe('end');
    server.faults.goneAs = 'status';
    const { code, body } = await client.get(`${nodes}?watch=1&resourceVersion=1`);
    expect({ code, body }).toMatchObject({ code: 410, body: { kind: 'Status', reason: 'Expired' } });
  });

  it('from a future or malformed resourceVersion is refused', async () => {
    await start();
    expect((await client.get(`${nodes}?watch=1&resourceVersion=99999`)).code).toBe(504);
    expect((await client.get(`${nodes}?watch=1&resourceVersion=x`)).code).toBe(400);
  });

  it('gets bookmarks when it allows them, and ends after timeoutSeconds with one', async () => {
    await start({ bookmarkIntervalMs: 50 });
    const { resourceVersion } = (await client.get(nodes)).body.metadata;
    const quiet = await client.watch(`resourceVersion=${resourceVersion}&timeoutSeconds=1`);
    const watch = await client.watch(
      `resourceVersion=${resourceVersion}&timeoutSeconds=1&allowWatchBookmarks=true`,
    );
    const began = performance.now();
    server.store.create('pods', { metadata: { name: 'p' } });
    expect(await watch.next()).toMatchObject({
      type: 'BOOKMARK',
      object: { kind: 'Node', metadata: { resourceVersion: String(Number(resourceVersion) + 1) } },
    });
    expect(await watch.ended).toBe('end');
    expect(performance.now() - began).toBeGreaterThan(800);
    expect(await quiet.ended).toBe('end');
    expect(await quiet.line()).toBeUndefined();
  });

  it('with sendInitialEvents marks the end of the initial state', async () => {
    await start();
    addNodes('a');
    const watch = await client.watch(
      'sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true',
    );
    expect((await watch.next()).type).toBe('ADDED');
    expect((await watch.next()).object.metadata.annotations).toEqual({ 'k8s.io/initial-events-end': 'true' });
  });

  it('with a selector sees objects come into it and leave it', async () => {
    await start();
    addNodes('a', 'b');
    const label = (name: string, pool: string | null): void =>
      void server.store.patch('nodes', name, 'application/merge-patch+json', {
        metadata: { labels: { pool } },
      });
    const watch = await client.watch('labelSelector=pool%3Dx');
    const one = await client.watch('fieldSelector=metadata.name%3Db');
    label('a', 'x');
    touch('b', '1');
    touch('a', '1');
    label('a', null);
    expect(await watch.take(3)).toEqual(['ADDED a', 'MODIFIED a', 'DELETED a']);
    expect(await one.take(2)).toEqual(['ADDED b', 'MODIFIED b']);
  });

  it('stays quick with 15,000 nodes and many watchers', async () => {
    await start();
    const annotations = {
      'flannel.alpha.coreos.com/backend-data': '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}',
    };
    const count = 15_000;
    const began = performance.now();
    for (let i = 0; i < count; i++) {
      const podCIDR = `10.${i >> 8}.${i & 255}.0/24`;
      server.store.create('nodes', { metadata: { name: `node-${i}`, annotations }, spec: { podCIDR } });
    }
    const created = performance.now();
    let listed = 0;
    let next: string | undefined = '';
    let resourceVersion = '';
    while (next !== undefined) {
      const { body } = await client.get(`${nodes}?limit=500&continue=${next}`);
      listed += body.items?.length ?? 0;
      next = body.metadata.continue;
      resourceVersion = body.metadata.resourceVersion;
    }
    expect(listed).toBe(count);
    const paged = performance.now();
    const watches = await Promise.all(
      Array.from({ length: 20 }, () => client.watch(`resourceVersion=${resourceVersion}`)),
    );
    for (let i = 0; i < 500; i++) touch(`node-${i}`, '1');
    const last = await Promise.all(watches.map(async (watch) => (await watch.take(500)).at(-1)));
    expect(last).toEqual(watches.map(() => 'MODIFIED node-499'));
    const watched = performance.now();
    // This is many times what it takes; quadratic work would exceed it.
    expect({
      createUnder5s: created - began < 5000,
      listUnder10s: paged - created < 10_000,
      watchUnder10s: watched - paged < 10_000,
    }).toEqual({ createUnder5s: true, listUnder10s: true, watchUnder10s: true });
  }, 30_000);
});

describe('@kubernetes/client-node', () => {
  const connect = (): { config: KubeConfig; api: CoreV1Api } => {
    const config = new KubeConfig();
    config.loadFromString(server.kubeconfig());
    return { config, api: config.makeApiClient(CoreV1Api) };
  };

  it('lists, patches as flannel does, and reads errors', async () => {
    await start();
    addNodes('a', 'b', 'c');
    const { api } = connect();
    const page = await api.listNode({ limit: 2 });
    expect(page.items.map(({ metadata }) => metadata?.name)).toEqual(['a', 'b']);
    const annotations = { 'flannel.alpha.coreos.com/public-ip': '192.0.2.1' };
    const conditions = [{ type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' }];
    const node = await api.patchNodeStatus(
      { name: 'a', body: { metadata: { annotations }, status: { conditions } } },
      setHeaderOptions('Content-Type', PatchStrategy.StrategicMergePatch),
    );
    expect(node.metadata?.annotations).toEqual(annotations);
    expect(node.metadata?.creationTimestamp).toBeInstanceOf(Date);
    expect(node.status?.conditions?.[0]?.reason).toBe('FlannelIsUp');
    await expect(api.readNode({ name: 'x' })).rejects.toMatchObject({ code: 404 });
    await api.deleteNode({ name: 'a' });
    expect((await api.listNode()).items).toHaveLength(2);
  });

  it('watches', async () => {
    await start();
    addNodes('a');
    const { config } = connect();
    const seen: string[] = [];
    const third = new Promise<void>((resolve) => {
      void new Watch(config)
        .watch(
          nodes,
          { timeoutSeconds: 5 },
          (type: string, node: V1Node) => {
            seen.push(`${type} ${node.metadata?.name}`);
            if (seen.length === 3) resolve();
          },
          () => resolve(),
        )
        .then(() => {
          touch('a', '1');
          server.store.delete('nodes', 'a');
        });
    });
    await third;
    expect(seen).toEqual(['ADDED a', 'MODIFIED a', 'DELETED a']);
  });
});

describe('a server', () => {
  it('uses the names that its caller gives, in certificate and kubeconfig', async () => {
    await start({ sans: ['192.0.2.7', 'kubernetes.default'] });
    const config = new KubeConfig();
    config.loadFromString(server.kubeconfig('https://192.0.2.7:6443', 'other'));
    expect(config.getCurrentCluster()?.server).toBe('https://192.0.2.7:6443');
    expect(config.getCurrentUser()?.token).toBe('other');
  });

  it('says why it cannot start', async () => {
    await start();
    const port = Number(new URL(server.url).port);
    await expect(ApiServer.start({ port })).rejects.toThrow(`cannot listen on 127.0.0.1 port ${port}`);
  });

  it('closes at once, even with open connections', async () => {
    await start();
    const watch = await client.watch();
    await server.close();
    expect(await watch.ended).toBe('ECONNRESET');
    await expect(client.get(nodes)).rejects.toThrow('ECONNREFUSED');
  });
});
