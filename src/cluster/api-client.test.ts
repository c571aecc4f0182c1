// SPDX-License-Identifier: Apache-2.0
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { errorText } from '../errors.ts';
import { ApiServer } from '../lab/apiserver/index.ts';
import { ApiClient, ApiError } from './api-client.ts';

let directory: string;
let server: ApiServer;
const clients: ApiClient[] = [];

beforeAll(async () => {
  directory = await mkdtemp(path.join(tmpdir(), 'ripstop-api-'));
  server = await ApiServer.start({
    tokens: { 'read-only': 'reader' },
    authorize: ({ user, verb }) => user === 'admin' || verb !== 'patch',
  });
  server.store.create('nodes', { metadata: { name: 'a' } });
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
  server.faults.clear();
  vi.unstubAllEnvs();
});

afterAll(async () => {
  await server.close();
  await rm(directory, { recursive: true });
});

async function file(name: string, text: string): Promise<string> {
  const full = path.join(directory, name);
  await mkdir(path.dirname(full), { recursive: true });
  await writeFile(full, text);
  return full;
}

async function open(kubeconfig: string): Promise<ApiClient> {
  const client = await ApiClient.open({ kubeconfig: await file('kubeconfig', kubeconfig) });
  clients.push(client);
  return client;
}

async function failure(work: Promise<unknown>): Promise<ApiError> {
  const error: unknown = await work.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(ApiError);
  expect(errorText(error)).not.toContain('\n');
  return error as ApiError;
}

/** A kubeconfig for a server at `url`, with more lines for its cluster and user. */
const kubeconfig = (url: string, user: string, cluster = ''): string => `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "${url}"${cluster}}}]
users: [{name: u, user: {${user}}}]
`;
const ca = (): string => `, certificate-authority-data: ${Buffer.from(server.caPem).toString('base64')}`;

describe('opening', () => {
  it.each([
    ['that is not there', undefined, 'ENOENT'],
    ['that is no YAML', ': : [', 'cannot read the kubeconfig'],
    ['that is empty', '', 'cannot read the kubeconfig'],
    ['without a current context', 'apiVersion: v1\nkind: Config\n', 'has no usable cluster'],
    ['with a server that is no URL', kubeconfig('here', 'token: x'), 'the server "here"'],
  ])('a kubeconfig %s names the file and what to do', async (_, text, message) => {
    const name = text === undefined ? path.join(directory, 'missing') : await file('broken', text);
    const error = await ApiClient.open({ kubeconfig: name }).catch((error: unknown) => errorText(error));
    expect(error).toContain(name);
    expect(error).toContain(message);
    expect(error).toMatch(/--kubeconfig/);
  });

  it('without a kubeconfig and outside a pod says that one is needed', async () => {
    vi.stubEnv('KUBERNETES_SERVICE_HOST', '');
    await expect(ApiClient.open()).rejects.toThrow(
      /no kubeconfig was given and this is no pod.*--kubeconfig/,
    );
  });

  it('inside a pod uses the service account, with the token as it is on disk now', async () => {
    const root = path.join(directory, 'pod');
    const account = 'pod/var/run/secrets/kubernetes.io/serviceaccount';
    await file(`${account}/ca.crt`, server.caPem);
    await file(`${account}/token`, 'expired\n');
    vi.stubEnv('KUBERNETES_SERVICE_HOST', '127.0.0.1');
    vi.stubEnv('KUBERNETES_SERVICE_PORT', new URL(server.url).port);
    const client = await ApiClient.open({ root });
    clients.push(client);
    expect(await failure(client.request('GET', '/api/v1/nodes'))).toMatchObject({ status: 401 });
    await file(`${account}/token`, `${server.adminToken}\n`);
    expect(await client.request('GET', '/api/v1/nodes/a')).toMatchObject({ metadata: { name: 'a' } });
  });
});

describe('credentials', () => {
  it('of a token', async () => {
    const client = await open(server.kubeconfig());
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });
  });

  it('of an exec plugin', async () => {
    const credential = JSON.stringify({
      apiVersion: 'client.authentication.k8s.io/v1',
      kind: 'ExecCredential',
      status: { token: server.adminToken },
    });
    const exec = (script: string) =>
      `exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, args: ["-c", ${JSON.stringify(script)}]}`;
    const client = await open(kubeconfig(server.url, exec(`echo '${credential}'`), ca()));
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });

    const broken = await open(kubeconfig(server.url, exec('echo no session >&2; exit 1'), ca()));
    const error = await failure(broken.request('GET', '/api/v1/nodes'));
    expect(error.reason).toBe('Credentials');
    expect(error.message).toMatch(/cannot read the credentials of .*kubeconfig: no session/);

    const hanging = await open(kubeconfig(server.url, exec('exec sleep 2'), ca()));
    expect(await failure(hanging.request('GET', '/api/v1/nodes', { deadlineMs: 200 }))).toMatchObject({
      reason: 'Deadline',
    });
  });

  it('of a token in a file that is replaced, which comes before a token of the kubeconfig', async () => {
    await file('tokens/current', `${server.adminToken}\n`);
    const user = 'token: not-this-one, tokenFile: tokens/current';
    const client = await open(kubeconfig(server.url, user, ca()));
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });

    server.tokens.set('rotated', 'admin');
    server.tokens.delete(server.adminToken);
    try {
      expect(await failure(client.request('GET', '/api/v1/nodes'))).toMatchObject({ status: 401 });
      await file('tokens/current', 'rotated\n');
      expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });
    } finally {
      server.tokens.set(server.adminToken, 'admin');
    }
  });

  it('of a client certificate that is replaced on disk', async () => {
    const use = async (user: string): Promise<void> => {
      const { certPem, keyPem } = await server.issueClient(user);
      await file('client.crt', certPem);
      await file('client.key', keyPem);
    };
    await use('nobody');
    await file('ca.crt', server.caPem);
    // Relative paths are meant from the kubeconfig's directory.
    const client = await open(
      kubeconfig(
        server.url,
        'client-certificate: client.crt, client-key: client.key',
        ', certificate-authority: ca.crt',
      ),
    );
    const body = { metadata: { annotations: { certified: 'true' } } };
    const contentType = 'application/merge-patch+json';
    const patch = () => client.request('PATCH', '/api/v1/nodes/a', { body, contentType });
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });
    expect((await failure(patch())).message).toContain('403: nodes "a" is forbidden: User "nobody" cannot');
    await use('admin');
    expect(await patch()).toMatchObject(body);
  });

  it('of a client certificate that another authority signed are refused', async () => {
    const other = await ApiServer.start();
    const { certPem, keyPem } = await other.issueClient('admin');
    await other.close();
    const data = (pem: string) => Buffer.from(pem).toString('base64');
    const user = `client-certificate-data: ${data(certPem)}, client-key-data: ${data(keyPem)}`;
    const client = await open(kubeconfig(server.url, user, ca()));
    expect(await failure(client.request('GET', '/api/v1/nodes'))).toMatchObject({ status: 401 });
  });

  it('go through a proxy when the cluster has one', async () => {
    const targets: string[] = [];
    const tunnels: Duplex[] = [];
    const proxy = http.createServer().on('connect', (request, socket) => {
      targets.push(request.url ?? '');
      const [host, port] = (request.url ?? '').split(':');
      const upstream = net.connect(Number(port), host, () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n');
        upstream.pipe(socket).pipe(upstream);
      });
      upstream.on('error', () => socket.destroy());
      socket.on('error', () => upstream.destroy());
      tunnels.push(socket);
    });
    await new Promise<void>((resolve) => void proxy.listen(0, '127.0.0.1', resolve));
    const proxyUrl = `, proxy-url: "http://127.0.0.1:${(proxy.address() as AddressInfo).port}"`;
    const client = await open(kubeconfig(server.url, `token: ${server.adminToken}`, ca() + proxyUrl));
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });
    expect(targets).toEqual([new URL(server.url).host]);
    const watch = await client.stream('/api/v1/nodes', { query: { watch: 1 } });
    for await (const chunk of watch) {
      expect(String(chunk)).toContain('"type":"ADDED"');
      break;
    }
    for (const tunnel of tunnels) tunnel.destroy();
    await new Promise((resolve) => void proxy.close(resolve));
    expect(await failure(client.request('GET', '/api/v1/nodes'))).toMatchObject({ reason: 'ECONNREFUSED' });
  });

  it('that the server refuses are named, with what to do', async () => {
    const wrong = await open(server.kubeconfig(server.url, 'wrong'));
    expect(await failure(wrong.request('GET', '/api/v1/nodes'))).toMatchObject({
      status: 401,
      reason: 'Unauthorized',
      message: expect.stringMatching(/401: .*credentials of .*kubeconfig are not \(or no longer\) valid/),
    });
    const reader = await open(server.kubeconfig(server.url, 'read-only'));
    const body = { metadata: { annotations: { a: 'b' } } };
    const contentType = 'application/strategic-merge-patch+json';
    expect(
      await failure(reader.request('PATCH', '/api/v1/nodes/a/status', { body, contentType })),
    ).toMatchObject({
      status: 403,
      reason: 'Forbidden',
      message: expect.stringContaining('ripstop needs nodes get, list, watch and nodes/status patch'),
    });
  });

  it('a server whose certificate is not of the given authority is not trusted', async () => {
    const other = await ApiServer.start();
    const stranger = `, certificate-authority-data: ${Buffer.from(other.caPem).toString('base64')}`;
    await other.close();
    const client = await open(kubeconfig(server.url, 'token: x', stranger));
    const error = await failure(client.request('GET', '/api/v1/nodes'));
    expect(error.message).toContain("check the kubeconfig's certificate authority");
  });
});

describe('requests', () => {
  it('keep their connection', async () => {
    const client = await open(server.kubeconfig());
    await client.request('GET', '/api/v1/nodes');
    const before = performance.now();
    for (let i = 0; i < 20; i++) await client.request('GET', '/api/v1/nodes/a');
    expect(performance.now() - before).toBeLessThan(1000);
  });

  it('go again on a new connection when the kept one was closed meanwhile', async () => {
    const client = await open(server.kubeconfig());
    await client.request('GET', '/api/v1/nodes');
    server.faults.resetConnections();
    expect(await client.request('GET', '/api/v1/nodes/a')).toMatchObject({ kind: 'Node' });
  });

  it('carry query and patch', async () => {
    const client = await open(server.kubeconfig());
    server.store.create('nodes', { metadata: { name: 'b' } });
    const query = { fieldSelector: 'metadata.name=b', limit: 5, continue: undefined };
    const list = (await client.request('GET', '/api/v1/nodes', { query })) as { items: unknown[] };
    expect(list.items).toHaveLength(1);
    const patched = await client.request('PATCH', '/api/v1/nodes/b/status', {
      body: { metadata: { annotations: { 'x/y': 'ä' } } },
      contentType: 'application/strategic-merge-patch+json',
    });
    expect(patched).toMatchObject({ metadata: { annotations: { 'x/y': 'ä' } } });
  });

  it('turn a Status into an error with its reason and Retry-After', async () => {
    const client = await open(server.kubeconfig());
    expect(await failure(client.request('GET', '/api/v1/nodes/ghost'))).toMatchObject({
      status: 404,
      reason: 'NotFound',
      message: expect.stringContaining(
        'GET /api/v1/nodes/ghost: the API server answered 404: nodes "ghost" not found',
      ),
    });
    server.faults.inject({ kind: 'refuse', code: 429, retryAfterSeconds: 7 }, { times: 1 });
    expect(await failure(client.request('GET', '/api/v1/nodes'))).toMatchObject({
      status: 429,
      retryAfterMs: 7000,
    });
  });

  it.each([
    ['reset', { kind: 'reset' }, 'ECONNRESET'],
    ['hang', { kind: 'hang' }, 'Deadline'],
    ['cut off', { kind: 'truncate', end: 'reset' }, 'ECONNRESET'],
    ['garbage', { kind: 'garbage' }, 'BadAnswer'],
  ] as const)('fail with a reason on %s', async (_, fault, reason) => {
    const client = await open(server.kubeconfig());
    server.faults.inject(fault);
    const error = await failure(client.request('GET', '/api/v1/nodes', { deadlineMs: 300 }));
    expect(error.reason).toBe(reason);
    expect(error.status).toBeUndefined();
    server.faults.clear();
    expect(await client.request('GET', '/api/v1/nodes')).toMatchObject({ kind: 'NodeList' });
  });

  it('to a port where nobody listens say so', async () => {
    const client = await open(kubeconfig('https://127.0.0.1:1', 'token: x'));
    const error = await failure(client.request('GET', '/api/v1/nodes'));
    expect(error.reason).toBe('ECONNREFUSED');
    expect(error.message).toMatch(
      /https:\/\/127.0.0.1:1 cannot be reached: .*ECONNREFUSED.*is the API server up/,
    );
  });

  it('keep the path of a server behind a prefix', async () => {
    const paths: string[] = [];
    const plain = http.createServer((request, response) => {
      paths.push(request.url ?? '');
      response.end('{}');
    });
    await new Promise<void>((resolve) => void plain.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(plain.address() as AddressInfo).port}/k8s/clusters/c-1/`;
    const client = await open(kubeconfig(url, 'token: x', ', insecure-skip-tls-verify: true'));
    await client.request('GET', '/api/v1/nodes', { query: { limit: 1 } });
    expect(paths).toEqual(['/k8s/clusters/c-1/api/v1/nodes?limit=1']);
    client.close();
    await new Promise((resolve) => void plain.close(resolve));
  });

  it('end when the caller aborts', async () => {
    const client = await open(server.kubeconfig());
    server.faults.inject({ kind: 'hang' });
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 50);
    expect(
      await failure(client.request('GET', '/api/v1/nodes', { signal: controller.signal })),
    ).toMatchObject({
      reason: 'Aborted',
    });
  });
});
