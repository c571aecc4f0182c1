// SPDX-License-Identifier: Apache-2.0
import 'reflect-metadata';
import { type ChildProcess, spawn } from 'node:child_process';
import { webcrypto } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as x509 from '@peculiar/x509';
import { run } from '../host/run.ts';
import { issueCertificates } from '../lab/apiserver/certificates.ts';

/** The machine's etcd, or the one that scripts/setup.sh has unpacked. */
const program = [...(process.env['PATH'] ?? '').split(':'), join(import.meta.dirname, '../../build/etcd')]
  .map((dir) => join(dir, 'etcd'))
  .find((path) => existsSync(path));

/** Why tests with etcd cannot run here: the one line to say when skipping; undefined when they can. */
export function missingEtcd(): string | undefined {
  return program === undefined ? 'needs etcd (Debian: etcd-server)' : undefined;
}

export interface TestEtcdOptions {
  /** Also listen with TLS, for clients that show {@link TestEtcd.tls}. */
  readonly tls?: boolean;
  /** Run it in this network namespace (its path), where it listens on every address, port 2379. */
  readonly netns?: string;
  /** More flags. */
  readonly flags?: Readonly<Record<string, string>>;
}

/** A key as the JSON gateway shows it, which is the tests' own way to look past the client. */
export interface GatewayKey {
  readonly key: string;
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
  readonly lease: string;
}

/** A real etcd of one member with its data in memory; `await using` ends it and removes everything. */
export class TestEtcd implements AsyncDisposable {
  readonly dir: string;
  /** Without TLS; the gateway is there too. */
  readonly endpoint: string;
  readonly tlsEndpoint: string;
  /** The files for a client of `tlsEndpoint`; its certificate names the user `flannel`. */
  readonly tls: { readonly cafile: string; readonly certfile: string; readonly keyfile: string };
  readonly #argv: readonly string[];
  readonly #netns: string | undefined;
  #child: ChildProcess | undefined;
  /** After auth is on. */
  token: string | undefined;

  private constructor(dir: string, ports: readonly number[], { tls, netns, flags }: TestEtcdOptions) {
    const [clients, secure, peers] = ports;
    const host = netns === undefined ? '127.0.0.1' : '0.0.0.0';
    this.dir = dir;
    this.#netns = netns;
    this.endpoint = `http://127.0.0.1:${clients}`;
    this.tlsEndpoint = `https://127.0.0.1:${secure}`;
    const file = (name: string): string => join(dir, name);
    this.tls = { cafile: file('ca.pem'), certfile: file('client.pem'), keyfile: file('client.key') };
    const peer = `http://127.0.0.1:${peers}`;
    const urls = [`http://${host}:${clients}`, ...(tls ? [this.tlsEndpoint] : [])];
    const settings = {
      name: 'test',
      'data-dir': file('data'),
      'log-level': 'error',
      logger: 'zap',
      'listen-client-urls': urls.join(','),
      'advertise-client-urls': this.endpoint,
      'listen-peer-urls': peer,
      'initial-advertise-peer-urls': peer,
      'initial-cluster': `test=${peer}`,
      // Leases as short as the tests need: etcd grants none shorter than one and a half elections.
      'heartbeat-interval': '50',
      'election-timeout': '500',
      ...(tls && {
        'cert-file': file('server.pem'),
        'key-file': file('server.key'),
        'trusted-ca-file': file('client.pem'),
        'client-cert-auth': 'true',
      }),
      ...flags,
    };
    this.#argv = [
      ...(netns === undefined ? [] : ['nsenter', `--net=${netns}`, '--']),
      program!,
      ...Object.entries(settings).map(([flag, value]) => `--${flag}=${value}`),
    ];
  }

  static async start(options: TestEtcdOptions = {}): Promise<TestEtcd> {
    const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'ripstop-etcd-'));
    const ports = options.netns === undefined ? await freePorts(3) : [2379, 2381, 2380];
    const etcd = new TestEtcd(dir, ports, options);
    if (options.tls) await writeCertificates(dir);
    await etcd.up();
    return etcd;
  }

  /** Start it, or start it again with the data that it has; nothing happens when it runs. */
  async up(): Promise<void> {
    if (this.#child && this.#child.exitCode === null && this.#child.signalCode === null) return;
    const [program = '', ...argv] = this.#argv;
    const child = spawn(program, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    let errors = '';
    child.stderr.on('data', (text: Buffer) => (errors += text.toString()));
    const deadline = performance.now() + 20_000;
    for (;;) {
      if (await this.#healthy()) return;
      if (child.exitCode !== null || performance.now() > deadline)
        throw new Error(`etcd does not start: ${errors}`);
      await sleep(20);
    }
  }

  async #healthy(): Promise<boolean> {
    const answer = await this.ask('maintenance/status', {}).catch(() => undefined);
    return answer !== undefined;
  }

  /** Stop it; SIGSTOP makes it hang, SIGCONT go on. */
  async signal(signal: 'SIGTERM' | 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): Promise<void> {
    const child = this.#child!;
    child.kill(signal);
    if (signal.endsWith('STOP') || signal.endsWith('CONT')) return;
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }

  /** Ask the JSON gateway. */
  async ask(path: string, body: object): Promise<Record<string, unknown>> {
    const argv = ['-e', ASK, `${this.endpoint}/v3/${path}`, JSON.stringify(body), this.token ?? ''];
    const { ok, json } = JSON.parse(
      this.#netns === undefined
        ? await ask(argv[2]!, argv[3]!, argv[4]!)
        : await run(process.execPath, argv, { netns: this.#netns }),
    ) as { ok: boolean; json: Record<string, unknown> };
    if (!ok) throw new Error(`${path}: ${JSON.stringify(json)}`);
    return json;
  }

  /** @param lease left out: none, so the key never expires. */
  async put(key: string, value: string, lease?: string): Promise<void> {
    await this.ask('kv/put', { key: base64(key), value: base64(value), ...(lease && { lease }) });
  }

  /** All keys of a range. */
  async remove(key: string, rangeEnd?: string): Promise<void> {
    await this.ask('kv/deleterange', { key: base64(key), ...(rangeEnd && { range_end: base64(rangeEnd) }) });
  }

  /** All keys with this prefix, in order. */
  async list(prefix: string): Promise<GatewayKey[]> {
    const answer = await this.ask('kv/range', { key: base64(prefix), range_end: base64(`${prefix}\xff`) });
    const kvs = (answer['kvs'] ?? []) as Record<string, string>[];
    return kvs.map((kv) => ({
      key: text(kv['key']),
      value: text(kv['value']),
      createRevision: Number(kv['create_revision']),
      modRevision: Number(kv['mod_revision']),
      lease: kv['lease'] ?? '0',
    }));
  }

  async revision(): Promise<number> {
    const answer = await this.ask('kv/range', { key: base64('x') });
    return Number((answer['header'] as { revision: string }).revision);
  }

  /** Forget all history. */
  async compact(): Promise<void> {
    await this.ask('kv/compaction', { revision: await this.revision(), physical: true });
  }

  /** Turn auth on, with the users `root` (password `root`) and `flannel`, who may touch flannel's keys only. */
  async enableAuth(password: string): Promise<void> {
    for (const [name, secret] of [
      ['root', 'root'],
      ['flannel', password],
    ] as const) {
      await this.ask('auth/user/add', { name, password: secret });
      await this.ask('auth/role/add', { name });
      await this.ask('auth/user/grant', { user: name, role: name });
    }
    const perm = { permType: 'READWRITE', key: base64('/coreos.com/'), range_end: base64('/coreos.com0') };
    await this.ask('auth/role/grant', { name: 'flannel', perm });
    await this.ask('auth/enable', {});
    await this.login();
  }

  async login(): Promise<void> {
    this.token = undefined;
    this.token = (await this.ask('auth/authenticate', { name: 'root', password: 'root' }))['token'] as string;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child?.kill('SIGCONT');
    await this.signal('SIGKILL');
    rmSync(this.dir, { recursive: true, force: true });
  }
}

async function ask(url: string, body: string, token: string): Promise<string> {
  const headers: Record<string, string> = token === '' ? {} : { authorization: token };
  const response = await fetch(url, { method: 'POST', body, headers });
  return JSON.stringify({ ok: response.ok, json: await response.json() });
}

/** The same as a program, to be run inside a network namespace. */
const ASK = `${ask.toString()} ask(...process.argv.slice(1)).then(console.log);`;

/** A way to a server that can be closed, or swallow everything. */
export class Gate implements AsyncDisposable {
  readonly #to: string;
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #port = 0;

  private constructor(to: string) {
    this.#to = to;
  }

  static async to(url: string): Promise<Gate> {
    const gate = new Gate(url);
    await gate.open();
    return gate;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  async open(): Promise<void> {
    const { hostname, port } = new URL(this.#to);
    const server = createServer((near) => {
      const far = connect(Number(port), hostname);
      for (const [one, other] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#sockets.add(one);
        one.on('error', () => {});
        one.on('close', () => other.destroy());
        one.pipe(other);
      }
    });
    this.#server = server.listen(this.#port, '127.0.0.1');
    await once(server, 'listening');
    this.#port = (server.address() as AddressInfo).port;
  }

  /** What comes is taken, and goes nowhere. */
  swallow(): void {
    for (const socket of this.#sockets) {
      socket.unpipe();
      socket.resume();
    }
  }

  /** Connections break, and new ones are refused. */
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
    const server = this.#server;
    if (!server?.listening) return;
    server.close();
    await once(server, 'close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function base64(text: string): string {
  return Buffer.from(text, 'latin1').toString('base64');
}

function text(encoded: string | undefined): string {
  return Buffer.from(encoded ?? '', 'base64').toString();
}

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    return address.port;
  });
  await Promise.all(servers.map((server) => server.close() && once(server, 'close')));
  return ports;
}

async function writeCertificates(dir: string): Promise<void> {
  const server = await issueCertificates(['127.0.0.1']);
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const client = await x509.X509CertificateGenerator.createSelfSigned(
    {
      name: 'CN=flannel',
      keys,
      signingAlgorithm: algorithm,
      notBefore: new Date(Date.now() - 86_400_000),
      notAfter: new Date(Date.now() + 86_400_000),
      extensions: [new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth])],
    },
    webcrypto,
  );
  const key = x509.PemConverter.encode(
    await webcrypto.subtle.exportKey('pkcs8', keys.privateKey),
    'PRIVATE KEY',
  );
  const files = {
    'ca.pem': server.caPem,
    'server.pem': server.certPem,
    'server.key': server.keyPem,
    'client.pem': client.toString('pem'),
    'client.key': key,
  };
  for (const [name, pem] of Object.entries(files)) writeFileSync(join(dir, name), pem, { mode: 0o600 });
}
