// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { buildCni, compileShim } from '../../scripts/build-cni.ts';
import { CNI_PLUGINS } from '../lab/cni.ts';
import { ipJson } from '../lab/ip.ts';
import { listLinks } from '../host/links.ts';
import { podRouteTarget } from '../host/pod-routes.ts';
import { ROUTE_PROTOCOL } from '../host/routes.ts';
import { run, tryRun } from '../host/run.ts';
import { addressFamily, hostCidr } from '../net/ip.ts';
import { type Attachment, AttachmentStore } from './attachments.ts';
import { HostLocalStore, type Lease } from './host-local.ts';
import type { CniContext, CniFamily } from './ops.ts';
import { hostVethName } from './pod-network.ts';
import { encodeRequest, requestDecoder } from './protocol.ts';
import { type CniServer, type CniServerOptions, createCniServer } from './server.ts';
import type { CniResult } from './spec.ts';

/**
 * The plugin as a container runtime meets it: the real shim, the agent's real socket, and a node and pods that are
 * network namespaces.
 */

const missing = !process.getuid || process.getuid() !== 0 ? 'needs root' : lacksBridge();
if (missing) console.warn(`skipping the CNI system tests: ${missing}`);

/** With host-local it is what flannel's plugin calls. */
function lacksBridge(): string | undefined {
  return existsSync(`${CNI_PLUGINS}/bridge`)
    ? undefined
    : 'needs bridge (package containernetworking-plugins)';
}

const prefix = `ripstop-cni-${process.pid}`;
const gateway = '10.42.1.1';
const gateway6 = 'fd00:42:0:1::1';
const network = 'cbr0';
const ipv4: CniFamily = { podCidr: '10.42.1.0/24', clusterNetwork: '10.42.0.0/16', mtu: 1450 };
const ipv6: CniFamily = { podCidr: 'fd00:42:0:1::/64', clusterNetwork: 'fd00:42::/56', mtu: 1430 };

describe.skipIf(missing)('the CNI plugin', () => {
  let shim: string;
  let dir: string;
  let node: string;
  let store: AttachmentStore;
  let context: CniContext;
  let server: CniServer;
  /** What the agent was told to attach and detach, in order. */
  let told: string[];
  const pods = new Set<string>();

  beforeAll(async () => {
    shim = await buildCni();
  });

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), `${prefix}-`));
    node = await addNamespace('node');
    await run('sysctl', ['-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1'], { netns: node });
    told = [];
    store = new AttachmentStore(dir);
    context = {
      families: [ipv4],
      addresses: new HostLocalStore(`${dir}/leases`),
      store,
      attach: async (a) => {
        await podRouteTarget({ netns: node }).upsert(
          new Map(a.ips.map((ip) => [hostCidr(ip), { dev: a.hostIfname }])),
        );
        told.push(`attach ${a.containerId} ${a.ips.join(' ')}`);
      },
      detach: async (a) => void told.push(`detach ${a.containerId} ${a.ips.join(' ')}`),
      ready: () => ({ ok: true }),
      netns: node,
    };
    server = await startServer();
  });

  /** The agent's end of the socket, which logs into `log`. */
  function startServer(options: Partial<CniServerOptions> = {}): Promise<CniServer> {
    return createCniServer({
      socketPath: `${dir}/run/cni.sock`,
      deferredDir: `${dir}/deferred`,
      context: () => context,
      log: pino({ level: 'silent' }),
      ...options,
    });
  }

  const cleanUp = async (): Promise<void> => {
    for (const name of pods) await tryRun('ip', ['netns', 'del', name]);
    pods.clear();
  };
  afterEach(async () => {
    await server.close();
    await cleanUp();
    await rm(dir, { recursive: true });
  });
  afterAll(cleanUp);

  async function addNamespace(name: string): Promise<string> {
    pods.add(`${prefix}-${name}`);
    await run('ip', ['netns', 'add', `${prefix}-${name}`]);
    return `/run/netns/${prefix}-${name}`;
  }

  interface Answer {
    exitCode: number;
    output: Record<string, unknown>;
  }

  const done: Answer = { exitCode: 0, output: {} };

  /** Execute the shim as a runtime does. The container is also the name of its namespace. */
  async function cni(
    command: string,
    container: string,
    overrides: { env?: Record<string, string>; config?: object; stdin?: string; shim?: string } = {},
  ): Promise<Answer> {
    const { code, stdout } = await tryRun(overrides.shim ?? shim, [], {
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: container,
        CNI_IFNAME: 'eth0',
        CNI_NETNS: `/run/netns/${prefix}-${container}`,
        CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=${container}`,
        RIPSTOP_CNI_SOCKET: `${dir}/run/cni.sock`,
        RIPSTOP_CNI_DEFERRED: `${dir}/deferred`,
        RIPSTOP_CNI_LEASES: `${dir}/leases`,
        RIPSTOP_CNI_PATIENCE_MS: '0',
        ...overrides.env,
      },
      stdin:
        overrides.stdin ??
        JSON.stringify({ cniVersion: '1.1.0', name: network, type: 'ripstop', ...overrides.config }),
    });
    return { exitCode: code, output: stdout === '' ? {} : (JSON.parse(stdout) as Answer['output']) };
  }

  /** A pod that was added; the test fails if that fails. */
  async function addPod(container: string): Promise<CniResult> {
    await addNamespace(container);
    return add(container);
  }

  async function add(container: string): Promise<CniResult> {
    const { exitCode, output } = await cni('ADD', container);
    expect(output).not.toHaveProperty('msg');
    expect(exitCode).toBe(0);
    return output as unknown as CniResult;
  }

  const del = (container: string, env: Record<string, string> = {}): Promise<Answer> =>
    cni('DEL', container, { env });

  const ping = (container: string, address: string, ...options: string[]): Promise<string> =>
    run('ping', ['-c1', '-W2', ...options, address], { netns: `/run/netns/${prefix}-${container}` });

  /** As somebody else reads them. */
  const listLeases = (): Lease[] => new HostLocalStore(`${dir}/leases`).list(network);

  const leases = async (): Promise<string[]> =>
    listLeases()
      .map((lease) => lease.containerId)
      .sort();

  const leasedTo = async (container: string): Promise<string[]> =>
    listLeases()
      .filter(({ containerId }) => containerId === container)
      .map(({ ip }) => ip)
      .sort();

  /** The node holds nothing of any pod. */
  async function expectClean(): Promise<void> {
    const links = [...(await listLinks({ netns: node })).keys()].filter((name) => name.startsWith('veth'));
    const routes = [
      ...(await ipJson(['-4', 'route'], { netns: node })),
      ...(await ipJson(['-6', 'route'], { netns: node })),
    ];
    expect({ links, routes, leases: await leases(), attachments: await store.list() }).toEqual({
      links: [],
      routes: [],
      leases: [],
      attachments: [],
    });
  }

  describe('ADD', () => {
    it('connects pods to the node and to each other, over the kernel alone', async () => {
      const a = await addPod('a');
      const b = await addPod('b');
      const [ipA, ipB] = [a, b].map((result) => result.ips[0]!.address.replace('/32', ''));
      await ping('a', gateway);
      await ping('a', ipB!);
      await ping('b', ipA!);
      // The host speaks from the gateway's address, as it would from cni0.
      const [route] = await ipJson<{ prefsrc: string }>(['route', 'get', ipA!], { netns: node });
      expect(route!.prefsrc).toBe(gateway);
      await run('ping', ['-c1', '-W2', ipA!], { netns: node });
      // A whole packet passes, one byte more is refused at the source.
      await ping('a', ipB!, '-M', 'do', '-s', String(1450 - 28));
      await expect(ping('a', ipB!, '-M', 'do', '-s', String(1450 - 27))).rejects.toThrow('exit code 1');
    });

    it('makes exactly the links, addresses and routes of its design', async () => {
      const result = await addPod('a');
      const { hostIfname, hostMac, podMac, hostIfindex } = (await store.list())[0]!;
      const pod = `/run/netns/${prefix}-a`;
      expect(result).toEqual({
        cniVersion: '1.1.0',
        interfaces: [
          { name: hostIfname, mac: hostMac, sandbox: '' },
          { name: 'eth0', mac: podMac, sandbox: pod },
        ],
        ips: [{ interface: 1, address: '10.42.1.2/32', gateway }],
        routes: [
          { dst: '10.42.0.0/16', gw: gateway },
          { dst: '0.0.0.0/0', gw: gateway },
        ],
        dns: {},
      });
      expect(hostIfname).toMatch(/^veth[0-9a-f]{8}$/);

      const host = (await listLinks({ netns: node })).get(hostIfname)!;
      expect(host).toMatchObject({ ifindex: hostIfindex, mac: hostMac, mtu: 1450, up: true });
      // No link-local IPv6 address: nothing announces itself to the pod.
      expect(host.addresses.map(({ ip, length }) => `${ip}/${length}`)).toEqual([`${gateway}/32`]);
      const eth0 = (await listLinks({ netns: pod })).get('eth0')!;
      expect(eth0).toMatchObject({ mac: podMac, mtu: 1450, up: true });
      expect(eth0.addresses.filter(({ family }) => family === 4)).toMatchObject([
        { ip: '10.42.1.2', length: 32 },
      ]);

      expect(await ipJson(['-4', 'route'], { netns: node })).toMatchObject([
        { dst: '10.42.1.2', dev: hostIfname, scope: 'link', protocol: String(ROUTE_PROTOCOL) },
      ]);
      expect(await ipJson(['-4', 'route'], { netns: pod })).toMatchObject([
        { dst: 'default', gateway, dev: 'eth0' },
        { dst: '10.42.0.0/16', gateway, dev: 'eth0' },
        { dst: gateway, dev: 'eth0', scope: 'link' },
      ]);
    });

    it('tells the agent before it answers, and remembers which pod it was', async () => {
      await addPod('a');
      expect(told).toEqual(['attach a 10.42.1.2']);
      const [attachment] = await new AttachmentStore(dir).list();
      expect(attachment).toMatchObject({ containerId: 'a', podNamespace: 'default', podName: 'a', network });
    });

    it('gives the pod the addresses that the runtime asks for, or refuses and leaves nothing behind', async () => {
      for (const name of ['a', 'b']) await addNamespace(name);
      const mac = '02:11:22:33:44:55';
      const asked = { env: { CNI_ARGS: `IP=10.42.1.77;MAC=${mac};K8S_POD_NAME=Some_Sandbox 1` } };
      const { output } = await cni('ADD', 'a', asked);
      expect(output).toMatchObject({
        interfaces: [{}, { name: 'eth0', mac }],
        ips: [{ address: '10.42.1.77/32' }],
      });
      const eth0 = (await listLinks({ netns: `/run/netns/${prefix}-a` })).get('eth0')!;
      expect(eth0).toMatchObject({
        mac,
        addresses: expect.arrayContaining([{ ...eth0.addresses[0], ip: '10.42.1.77' }]),
      });
      await ping('a', gateway);
      const again = await cni('ADD', 'b', { config: { runtimeConfig: { ips: ['10.42.1.77/24'] } } });
      expect(again).toMatchObject({
        exitCode: 1,
        output: { code: 102, msg: expect.stringContaining('container "a"') },
      });
      const of = (subnet: string) => ({ config: { runtimeConfig: { ipRanges: [[{ subnet }]] } } });
      expect(await cni('ADD', 'b', of('10.99.0.0/24'))).toMatchObject({
        exitCode: 1,
        output: { code: 102, msg: expect.stringContaining('asks for an address of 10.99.0.0/24') },
      });
      expect(await leases()).toEqual(['a']);
      expect(await cni('ADD', 'b', of('10.42.1.0/24'))).toMatchObject({ exitCode: 0 });
      await del('b');
      await del('a');
      await expectClean();
    });

    it('a second time is an error that harms nothing', async () => {
      await addPod('a');
      const { exitCode, output } = await cni('ADD', 'a');
      expect(exitCode).toBe(1);
      expect(output).toMatchObject({
        code: 101,
        msg: expect.stringContaining('has an interface eth0 already'),
      });
      // Nor does it help to come with a fresh namespace.
      const other = await addNamespace('other');
      const again = await cni('ADD', 'a', { env: { CNI_NETNS: other } });
      expect(again.output).toMatchObject({
        code: 101,
        msg: expect.stringContaining('attached as eth0 already'),
      });
      expect(await leases()).toEqual(['a']);
      await ping('a', gateway);
      await del('a');
      await expectClean();
    });

    it('that fails midway leaves nothing behind, and works when tried again', async () => {
      await addNamespace('a');
      const working = context;
      const attach = async (): Promise<void> => {
        throw new Error('the verifier said no');
      };
      context = { ...working, attach };
      const { exitCode, output } = await cni('ADD', 'a');
      expect(exitCode).toBe(1);
      expect(output).toMatchObject({ cniVersion: '1.1.0', code: 100, msg: 'the verifier said no' });
      expect(told).toEqual(['detach a 10.42.1.2']);
      await expectClean();
      context = working;
      await add('a');
      await ping('a', gateway);
    });

    it('whose address cannot be set up leaves nothing behind either', async () => {
      const pod = await addNamespace('a');
      await run('ip', ['link', 'set', 'lo', 'up'], { netns: pod });
      await run('ip', ['route', 'add', 'default', 'dev', 'lo'], { netns: pod });
      const { output } = await cni('ADD', 'a');
      expect(output).toMatchObject({ code: 100, msg: expect.stringContaining('File exists') });
      expect(told).toEqual(['detach a 10.42.1.2']);
      await expectClean();
    });

    it('says so when all addresses are taken, and recovers after a DEL', async () => {
      context.families = [{ ...ipv4, podCidr: '10.42.1.0/29' }];
      for (const container of ['p2', 'p3', 'p4', 'p5', 'p6']) await addPod(container);
      await addNamespace('p7');
      const { output } = await cni('ADD', 'p7');
      expect(output).toMatchObject({
        code: 102,
        msg: expect.stringContaining('all addresses of 10.42.1.0/29 are taken'),
      });
      expect(await leases()).toHaveLength(5);
      await del('p4');
      expect((await add('p7')).ips[0]!.address).toBe('10.42.1.4/32');
    });

    it.each([
      ['does not exist', '/run/netns/no-such', 'does not exist'],
      ['is a file', '/etc/hostname', 'cannot enter CNI_NETNS'],
    ])('refuses a namespace that %s', async (_, path, message) => {
      const { output } = await cni('ADD', 'a', { env: { CNI_NETNS: path } });
      expect(output).toMatchObject({ code: 4, msg: expect.stringContaining(message) });
      await expectClean();
    });

    it("refuses the node's own namespace", async () => {
      const { output } = await cni('ADD', 'a', { env: { CNI_NETNS: node } });
      expect(output).toMatchObject({
        code: 4,
        msg: expect.stringContaining("the node's own network namespace"),
      });
      await expectClean();
    });
  });

  describe('DEL', () => {
    it('takes everything away, and succeeds again and again', async () => {
      await addPod('a');
      for (let i = 0; i < 3; i++) expect(await del('a')).toEqual({ exitCode: 0, output: {} });
      expect(told).toEqual(['attach a 10.42.1.2', 'detach a 10.42.1.2']);
      await expectClean();
    });

    it('succeeds for a container that was never there', async () => {
      expect(await del('unknown')).toEqual({ exitCode: 0, output: {} });
    });

    it('needs no namespace: neither its path nor the namespace itself', async () => {
      await addPod('a');
      await addPod('b');
      expect(await del('a', { CNI_NETNS: '' })).toEqual({ exitCode: 0, output: {} });
      await run('ip', ['netns', 'del', `${prefix}-b`]);
      expect(await del('b')).toEqual({ exitCode: 0, output: {} });
      await expectClean();
    });

    it('releases the address also when the agent cannot detach, and says that it could not', async () => {
      await addPod('a');
      context.detach = async () => {
        throw new Error('no such map');
      };
      expect((await del('a')).output).toMatchObject({ code: 100, msg: 'no such map' });
      await expectClean();
    });

    it('finds what an agent left that died in the middle of an ADD', async () => {
      await addPod('a');
      await store.remove({ containerId: 'a', ifname: 'eth0' });
      expect(await del('a')).toEqual({ exitCode: 0, output: {} });
      await expectClean();
    });
  });

  it.each(['0.3.1', '0.4.0', '1.0.0', '1.1.0'])(
    'a pod in version %s: all commands that it has, and code 1 for the others',
    async (cniVersion) => {
      const call = (command: string, config: object = {}): Promise<Answer> =>
        cni(command, 'a', { config: { cniVersion, ...config } });
      const has = (since: string): object =>
        cniVersion >= since ? done : { exitCode: 1, output: { cniVersion, code: 1 } };
      await addNamespace('a');
      const { exitCode, output: result } = await call('ADD');
      expect({ exitCode, result }).toMatchObject({ exitCode: 0, result: { cniVersion } });
      expect(await call('CHECK', { prevResult: result })).toMatchObject(has('0.4.0'));
      expect(await call('STATUS')).toMatchObject(has('1.1.0'));
      const valid = [{ containerID: 'a', ifname: 'eth0' }];
      expect(await call('GC', { 'cni.dev/valid-attachments': valid })).toMatchObject(has('1.1.0'));
      await ping('a', gateway);
      expect(await call('DEL', { prevResult: result })).toEqual(done);
      await expectClean();
    },
  );

  it('20 ADDs and DELs at once: every address is unique, and none is left over', async () => {
    const containers = Array.from({ length: 20 }, (_, i) => `c${i}`);
    for (const container of containers) await addNamespace(container);
    const results = await Promise.all(containers.map(add));
    const addresses = new Set(results.map((result) => result.ips[0]!.address));
    expect(addresses.size).toBe(20);
    expect(await store.list()).toHaveLength(20);
    await Promise.all(containers.flatMap((container) => [del(container), del(container)]));
    await expectClean();
  });

  it('ADD and DEL of one container wait for each other', async () => {
    await addNamespace('a');
    const entered = Promise.withResolvers<void>();
    const release = Promise.withResolvers<void>();
    context.attach = async (a: Attachment) => {
      entered.resolve();
      await release.promise;
      told.push(`attach ${a.containerId} ${a.ips.join(' ')}`);
    };
    const adding = cni('ADD', 'a');
    await entered.promise;
    const deleting = del('a');
    // Another container does not wait.
    expect(await del('b')).toEqual({ exitCode: 0, output: {} });
    release.resolve();
    expect((await adding).exitCode).toBe(0);
    expect((await deleting).exitCode).toBe(0);
    expect(told).toEqual(['attach a 10.42.1.2', 'detach a 10.42.1.2']);
    await expectClean();
  });

  describe('CHECK', () => {
    const check = (prevResult: object): Promise<Answer> => cni('CHECK', 'a', { config: { prevResult } });

    it('is content with a pod as ADD made it, and with what later plugins change', async () => {
      const result = await addPod('a');
      expect(await check(result)).toEqual({ exitCode: 0, output: {} });
      const pod = { netns: `/run/netns/${prefix}-a` };
      await run('ip', ['addr', 'add', '192.0.2.1/32', 'dev', 'eth0'], pod);
      await run('ip', ['link', 'set', 'eth0', 'mtu', '1400', 'address', '02:00:00:00:00:99'], pod);
      result.interfaces[1]!.mac = '02:00:00:00:00:99';
      expect(await check(result)).toEqual({ exitCode: 0, output: {} });
    });

    it.each([
      ['the veth is gone', ['link', 'del', 'dev'], 'the pod has no interface eth0'],
      ['the veth is down', ['link', 'set', 'down', 'dev'], 'is down'],
      ['the host route is gone', ['route', 'del', '10.42.1.2', 'dev'], 'the host has no route to 10.42.1.2'],
    ])('finds that %s; DEL then succeeds', async (_, command, message) => {
      const result = await addPod('a');
      await run('ip', [...command, hostVethName({ containerId: 'a', ifname: 'eth0' })], { netns: node });
      expect((await check(result)).output).toMatchObject({
        code: 103,
        msg: expect.stringContaining(message),
      });
      expect(await del('a')).toEqual({ exitCode: 0, output: {} });
      await expectClean();
    });

    it('finds that the address, the lease or the promise is lost', async () => {
      const result = await addPod('a');
      const pod = { netns: `/run/netns/${prefix}-a` };
      await run('ip', ['addr', 'flush', 'dev', 'eth0'], pod);
      await rm(`${dir}/leases/${network}/10.42.1.2`);
      const { output } = await check({ ...result, ips: [] });
      expect(output['msg']).toMatch(
        /the prevResult has no address 10\.42\.1\.2; .*has lost 10\.42\.1\.2; there is no lease/,
      );
    });

    it('does not know a container that was never added', async () => {
      await addNamespace('a');
      expect((await check({})).output).toMatchObject({ code: 3 });
    });
  });

  describe("a pod of flannel's, from before this node was ripstop's", () => {
    const host = () => ({ netns: node });
    const leases = (): string[] => listLeases().map(({ ip }) => ip);

    /** As flannel's plugin attaches it: bridge and host-local, with its own note of what it delegated. */
    async function addFlannels(container: string): Promise<CniResult> {
      await addNamespace(container);
      const { code, stdout } = await tryRun(`${CNI_PLUGINS}/bridge`, [], {
        ...host(),
        env: {
          PATH: process.env['PATH'] ?? '',
          CNI_COMMAND: 'ADD',
          CNI_CONTAINERID: container,
          CNI_IFNAME: 'eth0',
          CNI_NETNS: `/run/netns/${prefix}-${container}`,
          CNI_PATH: CNI_PLUGINS,
        },
        stdin: JSON.stringify({
          cniVersion: '1.0.0',
          name: network,
          type: 'bridge',
          bridge: 'cni0',
          isGateway: true,
          isDefaultGateway: true,
          ipam: {
            type: 'host-local',
            ranges: [[{ subnet: ipv4.podCidr }]],
            dataDir: `${dir}/leases`,
          },
        }),
      });
      expect({ code, stdout }).toMatchObject({ code: 0 });
      await mkdir(`${dir}/flannel`, { recursive: true });
      await writeFile(`${dir}/flannel/${container}`, '{}');
      return JSON.parse(stdout) as CniResult;
    }

    it('has an address that no other pod gets, and is taken away by our DEL, again and again', async () => {
      await addFlannels('old');
      const { ips } = await addPod('new');
      expect([leases().toSorted(), ips[0]!.address]).toEqual([['10.42.1.2', '10.42.1.3'], '10.42.1.3/32']);
      for (let i = 0; i < 3; i++) expect(await del('old')).toEqual({ exitCode: 0, output: {} });
      expect(leases()).toEqual(['10.42.1.3']);
      const links = await listLinks({ netns: `/run/netns/${prefix}-old` });
      expect([...links.keys()]).toEqual(['lo']);
      expect([...(await listLinks(host())).values()].filter(({ master }) => master)).toEqual([]);
      expect(await readdir(`${dir}/flannel`)).toEqual([]);
    });

    it('gives its address back without its namespace too', async () => {
      await addFlannels('old');
      await run('ip', ['netns', 'del', `${prefix}-old`]);
      expect(await del('old')).toEqual({ exitCode: 0, output: {} });
      expect(leases()).toEqual([]);
    });

    it("is never looked for in the node's own namespace", async () => {
      await run('ip', ['link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'wire'], host());
      expect(await del('old', { CNI_NETNS: node })).toEqual({ exitCode: 0, output: {} });
      expect((await listLinks(host())).has('eth0')).toBe(true);
    });

    it('passes CHECK as long as it has its interface and its address', async () => {
      const result = await addFlannels('old');
      const check = () => cni('CHECK', 'old', { config: { prevResult: result } });
      expect(await check()).toEqual({ exitCode: 0, output: {} });
      await run('ip', ['addr', 'flush', 'dev', 'eth0'], { netns: `/run/netns/${prefix}-old` });
      expect((await check()).output).toMatchObject({
        code: 103,
        msg: "the pod's eth0 has lost 10.42.1.2",
      });
    });
  });

  describe('GC', () => {
    const gc = (...valid: string[]): Promise<Answer> =>
      cni('GC', '', {
        config: { 'cni.dev/valid-attachments': valid.map((id) => ({ containerID: id, ifname: 'eth0' })) },
      });

    it('drops what the runtime does not know, leases without an attachment too, and spares the rest', async () => {
      for (const container of ['a', 'b', 'c']) await addPod(container);
      await store.remove({ containerId: 'c', ifname: 'eth0' });
      expect(await gc('a')).toEqual({ exitCode: 0, output: {} });
      expect(await leases()).toEqual(['a']);
      expect((await store.list()).map(({ containerId }) => containerId)).toEqual(['a']);
      await ping('a', gateway);
      await gc();
      await expectClean();
    });

    it('spares the attachments of other networks', async () => {
      await addPod('a');
      const config = { name: 'other', 'cni.dev/valid-attachments': [] };
      expect(await cni('GC', '', { config })).toEqual({ exitCode: 0, output: {} });
      await ping('a', gateway);
    });

    it('goes on past errors and then tells of them', async () => {
      for (const container of ['a', 'b']) await addPod(container);
      context.detach = async (a) => {
        if (a.containerId === 'a') throw new Error('no such map');
      };
      const { output } = await gc();
      expect(output).toMatchObject({
        code: 100,
        msg: expect.stringMatching(/^1 of 2 .*a\/eth0: no such map/),
      });
      await expectClean();
    });
  });

  describe('leases of pods that are gone', () => {
    /** The namespaces of this test's pods alone: others, of other tests, may have the same addresses. */
    const namespaces = async (...containers: string[]): Promise<string> => {
      const netnsDir = `${dir}/netns`;
      await mkdir(netnsDir);
      for (const container of containers) {
        await writeFile(`${netnsDir}/${container}`, '');
        await run('mount', ['--bind', `/run/netns/${prefix}-${container}`, `${netnsDir}/${container}`]);
      }
      return netnsDir;
    };
    afterEach(async () => {
      for (const name of await readdir(`${dir}/netns`).catch(() => []))
        await tryRun('umount', [`${dir}/netns/${name}`]);
    });
    /** Start another agent that sweeps often, and wait until it has done so a few times. */
    const sweep = async (netnsDir: string, minAgeMs = 0): Promise<string> => {
      const lines: string[] = [];
      await server.close();
      server = await startServer({
        log: pino({ level: 'info' }, { write: (line: string) => void lines.push(line) }),
        sweep: { everyMs: 50, minAgeMs, netnsDir },
      });
      await sleep(300);
      return lines.join('');
    };
    const lease = async (ip: string, container: string): Promise<void> => {
      await mkdir(`${dir}/leases/${network}`, { recursive: true });
      await writeFile(`${dir}/leases/${network}/${ip}`, `${container}\r\neth0`);
    };

    it('are released without GC; those of pods that are there stay, flannel’s too', async () => {
      await addPod('a');
      await addPod('gone');
      await run('ip', ['netns', 'del', `${prefix}-gone`]);
      // As bridge and host-local leave a pod.
      const old = await addNamespace('old');
      await run('ip', ['link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'wire'], { netns: old });
      await run('ip', ['addr', 'add', '10.42.1.99/24', 'dev', 'eth0'], { netns: old });
      await lease('10.42.1.99', 'old');
      // A runtime that was killed in the middle of an ADD, or lost its state.
      await lease('10.42.1.50', 'lost');
      const log = await sweep(await namespaces('a', 'old'));
      expect(await leases()).toEqual(['a', 'old']);
      expect((await store.list()).map(({ containerId }) => containerId)).toEqual(['a']);
      expect(log.match(/released the address of a pod that is gone/g)).toHaveLength(2);
      await ping('a', gateway);
    });

    it('stay while the pod may be starting', async () => {
      await lease('10.42.1.50', 'starting');
      await sweep(await namespaces(), 60_000);
      expect(await leases()).toEqual(['starting']);
    });

    it('stay where libcni notes a namespace that is there, or one that the agent cannot see', async () => {
      await mkdir(`${dir}/results`);
      const cache = (container: string, sandbox: string): Promise<void> =>
        writeFile(
          `${dir}/results/${network}-${container}-eth0`,
          JSON.stringify({ kind: 'cniCacheV1', result: { interfaces: [{ name: 'eth0', sandbox }] } }),
        );
      await addNamespace('there');
      const noted: [string, string][] = [
        ['there', `/var/run/netns/${prefix}-there`],
        ['unseen', '/proc/999999/ns/net'],
        ['gone', `/var/run/netns/${prefix}-gone`],
      ];
      for (const [i, [container, sandbox]] of noted.entries()) {
        await lease(`10.42.1.${50 + i}`, container);
        await cache(container, sandbox);
      }
      await sweep(await namespaces());
      expect(await leases()).toEqual(['there', 'unseen']);
    });

    it('stay when a namespace cannot be looked into; the log says it once', async () => {
      await lease('10.42.1.50', 'lost');
      const netnsDir = await namespaces();
      await writeFile(`${netnsDir}/none`, '');
      const log = await sweep(netnsDir);
      expect(await leases()).toEqual(['lost']);
      expect(log.match(/cannot find out which leases/g)).toHaveLength(1);
    });

    it('that are not of this node’s pods are none of its business', async () => {
      await mkdir(`${dir}/leases/podman`, { recursive: true });
      await writeFile(`${dir}/leases/podman/10.88.0.7`, 'other\r\neth0');
      await lease('10.42.1.50', 'reserved by hand');
      await sweep(await namespaces());
      expect(await readdir(`${dir}/leases/podman`)).toEqual(['10.88.0.7']);
      expect(await readdir(`${dir}/leases/${network}`)).toEqual(['10.42.1.50']);
    });
  });

  describe('IPv6', () => {
    const [v4, v6] = ['10.42.1.2', 'fd00:42:0:1::2'];
    const dualStack = (): void => void (context.families = [ipv4, ipv6]);
    const sysctl = (netns: string, ...settings: string[]): Promise<string> =>
      run('sysctl', ['-qw', ...settings], { netns });
    const podNetns = (container: string): string => `/run/netns/${prefix}-${container}`;

    /** A packet of `mtu` bytes reaches the address from the pod, one that is a byte longer does not leave it. */
    async function expectMtu(container: string, address: string, mtu: number): Promise<void> {
      const headers = addressFamily(address) === 6 ? 48 : 28;
      await ping(container, address, '-M', 'do', '-s', String(mtu - headers));
      await expect(ping(container, address, '-M', 'do', '-s', String(mtu - headers + 1))).rejects.toThrow(
        'exit code 1',
      );
    }

    it('beside IPv4: pods reach the node and each other over both, with the MTU of each', async () => {
      dualStack();
      await addPod('a');
      // At once: nobody waits for duplicate address detection.
      await ping('a', gateway6, '-W1');
      await addPod('b');
      await ping('a', 'fd00:42:0:1::3', '-W1');
      await ping('b', v6, '-W1');
      await run('ping', ['-c1', '-W1', v6], { netns: node });
      const [route] = await ipJson<{ prefsrc: string }>(['route', 'get', v6], { netns: node });
      expect(route!.prefsrc).toBe(gateway6);
      await expectMtu('a', 'fd00:42:0:1::3', 1430);
      await expectMtu('a', '10.42.1.3', 1450);
    });

    it("the gateway's address is on every veth, and stays when another pod goes", async () => {
      dualStack();
      for (const container of ['a', 'b', 'c']) await addPod(container);
      for (const container of ['a', 'b', 'c']) await ping(container, gateway6);
      await del('a');
      for (const container of ['b', 'c']) await ping(container, gateway6);
      await run('ping', ['-c1', '-W1', 'fd00:42:0:1::4'], { netns: node });
    });

    it('beside IPv4: makes exactly the addresses and routes of its design', async () => {
      dualStack();
      const result = await addPod('a');
      expect(result.ips).toEqual([
        { interface: 1, address: `${v4}/32`, gateway },
        { interface: 1, address: `${v6}/128`, gateway: gateway6 },
      ]);
      expect(result.routes).toEqual([
        { dst: '10.42.0.0/16', gw: gateway },
        { dst: '0.0.0.0/0', gw: gateway },
        { dst: 'fd00:42::/56', gw: gateway6, mtu: 1430 },
        { dst: '::/0', gw: gateway6, mtu: 1430 },
      ]);
      expect(told).toEqual([`attach a ${v4} ${v6}`]);
      expect(await leasedTo('a')).toEqual([v4, v6]);

      const [attachment] = await store.list();
      const { hostIfname, ips } = attachment!;
      expect(ips).toEqual([v4, v6]);
      const addresses = async (netns: string, ifname: string): Promise<string[]> => {
        const [row] = await ipJson<{ addr_info: { local: string; prefixlen: number; tentative?: true }[] }>(
          ['addr', 'show', 'dev', ifname],
          { netns },
        );
        return row!.addr_info.map(
          ({ local, prefixlen, tentative }) => `${local}/${prefixlen}${tentative ? ' tentative' : ''}`,
        );
      };
      expect(await addresses(node, hostIfname)).toEqual([`${gateway}/32`, `${gateway6}/128`, 'fe80::1/64']);
      // The kernel completes the link-local address in the background, so it may come just after the ADD.
      await expect
        .poll(() => addresses(podNetns('a'), 'eth0'))
        .toEqual([`${v4}/32`, `${v6}/128`, expect.stringMatching(/^fe80::[0-9a-f:]+\/64$/)]);
      expect((await listLinks({ netns: podNetns('a') })).get('eth0')!.mtu).toBe(1450);

      const routes = async (netns: string): Promise<object[]> => ipJson(['-6', 'route'], { netns });
      expect(await routes(node)).toMatchObject([
        { dst: v6, dev: hostIfname, protocol: String(ROUTE_PROTOCOL) },
        { dst: 'fe80::/64', dev: hostIfname },
      ]);
      expect(await routes(podNetns('a'))).toMatchObject([
        { dst: gateway6, dev: 'eth0' },
        { dst: 'fd00:42::/56', gateway: gateway6, dev: 'eth0', metrics: [{ mtu: 1430 }] },
        { dst: 'fe80::/64', dev: 'eth0' },
        { dst: 'default', gateway: gateway6, dev: 'eth0', metrics: [{ mtu: 1430 }] },
      ]);
    });

    it('neither end asks for routers, and the pod believes none', async () => {
      dualStack();
      await addPod('a');
      for (const netns of [node, podNetns('a')]) {
        const counters = await run('cat', ['/proc/net/snmp6'], { netns });
        expect(counters).toMatch(/^Icmp6OutRouterSolicits\s+0$/m);
      }
      const conf = '/proc/sys/net/ipv6/conf/eth0/accept_ra';
      expect(await run('cat', [conf], { netns: podNetns('a') })).toBe('0\n');
    });

    it('alone: a pod without IPv4, its interface with the MTU of IPv6', async () => {
      context.families = [ipv6];
      const a = await addPod('a');
      await addPod('b');
      expect(a.ips).toEqual([{ interface: 1, address: `${v6}/128`, gateway: gateway6 }]);
      expect(a.routes).toEqual([
        { dst: 'fd00:42::/56', gw: gateway6 },
        { dst: '::/0', gw: gateway6 },
      ]);
      const eth0 = (await listLinks({ netns: podNetns('a') })).get('eth0')!;
      expect(eth0.mtu).toBe(1430);
      expect(eth0.addresses.filter(({ family }) => family === 4)).toEqual([]);
      expect(await ipJson(['-4', 'route'], { netns: node })).toEqual([]);
      await ping('a', gateway6);
      await expectMtu('a', 'fd00:42:0:1::3', 1430);
      expect(await cni('CHECK', 'a', { config: { prevResult: a } })).toEqual({ exitCode: 0, output: {} });
      for (const container of ['a', 'b']) await del(container);
      await expectClean();
    });

    it('is turned on where the node or the runtime has it off for new devices', async () => {
      dualStack();
      await sysctl(node, 'net.ipv6.conf.default.disable_ipv6=1');
      await sysctl(await addNamespace('a'), 'net.ipv6.conf.all.disable_ipv6=1');
      await add('a');
      await ping('a', gateway6);
      await run('ip', ['link', 'set', 'lo', 'up'], { netns: podNetns('a') });
      await ping('a', '::1');
    });

    it('does not touch the pods of a cluster without it', async () => {
      await sysctl(await addNamespace('a'), 'net.ipv6.conf.all.disable_ipv6=1');
      await add('a');
      const { addresses } = (await listLinks({ netns: podNetns('a') })).get('eth0')!;
      expect(addresses.map(({ ip }) => ip)).toEqual([v4]);
    });

    it('follows a pod whose MAC address a later plugin changes', async () => {
      dualStack();
      await addPod('a');
      await addPod('b');
      await run('ip', ['link', 'set', 'eth0', 'address', '02:00:00:00:00:99'], { netns: podNetns('b') });
      await ping('a', 'fd00:42:0:1::3');
    });

    it.each([
      ['IPv4', [{ ...ipv4, podCidr: '10.42.1.0/30' }, ipv6], '10.42.1.0/30', 'fd00:42:0:1::3'],
      ['IPv6', [ipv4, { ...ipv6, podCidr: 'fd00:42:0:1::/126' }], 'fd00:42:0:1::/126', '10.42.1.4'],
    ])('an ADD for which there is no %s address left takes none of the other', async (_, families, block) => {
      context.families = families;
      const added = [];
      let refused: Answer;
      do {
        await addNamespace(`p${added.length}`);
        refused = await cni('ADD', `p${added.length}`);
        if (refused.exitCode === 0) added.push(`p${added.length}`);
      } while (refused.exitCode === 0 && added.length < 4);
      expect(refused.output).toMatchObject({
        code: 102,
        msg: expect.stringContaining(`all addresses of ${block} are taken`),
      });
      expect(added.length).toBeGreaterThan(0);
      expect(await leasedTo(`p${added.length}`)).toEqual([]);
      expect(await leases()).toEqual([...added, ...added].sort());
      await del('p0');
      await add(`p${added.length}`);
      expect(await leasedTo(`p${added.length}`)).toHaveLength(2);
    });

    it('an ADD that fails midway gives both addresses back', async () => {
      dualStack();
      await addNamespace('a');
      context.attach = async () => {
        throw new Error('the verifier said no');
      };
      expect((await cni('ADD', 'a')).output).toMatchObject({ code: 100 });
      expect(told).toEqual([`detach a ${v4} ${v6}`]);
      await expectClean();
    });

    it.each([
      [v4, v6],
      [v6, v4],
    ])(
      'CHECK finds that of both addresses %s is lost, on the host, in the pod and as a lease',
      async (lost, kept) => {
        dualStack();
        const result = await addPod('a');
        const check = async (): Promise<unknown> =>
          (await cni('CHECK', 'a', { config: { prevResult: result } })).output['msg'];
        expect(await check()).toBeUndefined();
        const family = `-${addressFamily(lost)}`;
        await run('ip', [family, 'route', 'del', hostCidr(lost)], { netns: node });
        await run('ip', ['addr', 'del', hostCidr(lost), 'dev', 'eth0'], { netns: podNetns('a') });
        await rm(`${dir}/leases/${network}/${lost}`);
        result.ips = result.ips.filter(({ address }) => address !== hostCidr(lost));
        const found = String(await check());
        expect(found.split('; ')).toEqual([
          `the prevResult has no address ${lost}`,
          expect.stringContaining(`the host has no route to ${lost} over veth`),
          `the pod's eth0 has lost ${lost}`,
          `there is no lease of ${lost} for it`,
        ]);
        expect(found).not.toContain(kept);
      },
    );

    it('DEL and GC give back both addresses, also when the attachment is lost or the cluster has changed', async () => {
      await addPod('old');
      dualStack();
      const old = (await store.list())[0]!;
      expect(old.ips).toEqual([v4]);
      for (const container of ['a', 'b', 'c']) await addPod(container);
      expect(await leases()).toEqual(['a', 'a', 'b', 'b', 'c', 'c', 'old']);
      await del('a');
      expect(await leases()).toEqual(['b', 'b', 'c', 'c', 'old']);
      await store.remove({ containerId: 'b', ifname: 'eth0' });
      const valid = [{ containerID: 'old', ifname: 'eth0' }];
      const config = { 'cni.dev/valid-attachments': valid };
      expect(await cni('GC', '', { config })).toEqual({ exitCode: 0, output: {} });
      expect(await leases()).toEqual(['old']);
      await ping('old', gateway);
      await del('old');
      await expectClean();
    });
  });

  describe('an agent that is not ready', () => {
    it('STATUS is 50 with the reason, ADD is 11, DEL works all the same', async () => {
      await addPod('a');
      expect(await cni('STATUS', '')).toEqual({ exitCode: 0, output: {} });
      context.ready = () => ({ ok: false, reason: 'the uplink eth9 is gone' });
      expect((await cni('STATUS', '')).output).toMatchObject({
        code: 50,
        msg: 'the ripstop agent is not ready: the uplink eth9 is gone',
      });
      expect((await cni('ADD', 'b')).output).toMatchObject({ code: 11 });
      expect(await del('a')).toEqual({ exitCode: 0, output: {} });
      await expectClean();
    });

    it('STATUS is 51 when pods that are there may be concerned', async () => {
      context.ready = () => ({ ok: false, reason: 'the uplink eth9 is gone', limited: true });
      expect((await cni('STATUS', '')).output).toMatchObject({
        code: 51,
        msg: 'the ripstop agent is not ready: the uplink eth9 is gone',
      });
    });

    it('without its podCIDR: ADD is 11, and pods of before can be looked at and taken away', async () => {
      const result = await addPod('a');
      await addPod('b');
      const reason = 'cannot read our own Node';
      context = { ...context, families: [], ready: () => ({ ok: false, reason }) };
      expect((await cni('STATUS', '')).output).toMatchObject({
        code: 50,
        msg: expect.stringContaining(reason),
      });
      expect((await cni('ADD', 'c')).output).toMatchObject({
        code: 11,
        msg: expect.stringContaining(reason),
      });
      expect(await cni('CHECK', 'a', { config: { prevResult: result } })).toEqual(done);
      expect(await del('a')).toEqual(done);
      expect(await cni('GC', '', { config: { 'cni.dev/valid-attachments': [] } })).toEqual(done);
      await expectClean();
    });
  });

  describe('an agent that is away', () => {
    it.each([
      ['ADD', 11],
      ['CHECK', 11],
      ['STATUS', 50],
    ])('%s is code %i, in the version of the configuration', async (command, code) => {
      await server.close();
      const { exitCode, output } = await cni(command, 'a', { config: { cniVersion: '0.4.0' } });
      expect(exitCode).toBe(1);
      expect(output).toEqual({
        cniVersion: '0.4.0',
        code,
        msg: expect.stringMatching(/gave no answer at .*cni\.sock: .*; see that the agent runs on this node/),
      });
    });

    it('STATUS waits for one that restarts, and for one that is not ready yet, but not for ever', async () => {
      const patient = { env: { RIPSTOP_CNI_PATIENCE_MS: '5000' } };
      await server.close();
      context.ready = () => ({ ok: false, reason: 'starting' });
      const asked = cni('STATUS', '', patient);
      await sleep(500);
      server = await startServer();
      await sleep(500);
      context.ready = () => ({ ok: true });
      expect(await asked).toEqual(done);

      context.ready = () => ({ ok: false, reason: 'the uplink eth9 is gone' });
      const startedAtMs = performance.now();
      const { output } = await cni('STATUS', '', { env: { RIPSTOP_CNI_PATIENCE_MS: '1000' } });
      expect(output).toMatchObject({ code: 50, msg: expect.stringContaining('the uplink eth9 is gone') });
      expect(performance.now() - startedAtMs).toBeGreaterThan(1000);
    });

    it('VERSION is answered by the shim', async () => {
      await server.close();
      expect(await cni('VERSION', '')).toEqual({
        exitCode: 0,
        output: { cniVersion: '1.1.0', supportedVersions: ['0.3.1', '0.4.0', '1.0.0', '1.1.0'] },
      });
    });

    it('takes up calls again where its predecessor was killed', async () => {
      await server.close();
      expect((await stat(`${dir}/run/cni.sock`)).isSocket()).toBe(true);
      server = await startServer();
      expect((await cni('STATUS', '')).exitCode).toBe(0);
    });

    it.each([
      [
        'dies before it answers',
        (close: () => void) => close(),
        'ended the connection before it had answered',
      ],
      ['never answers', () => {}, 'took too long to answer'],
      [
        'speaks something else',
        (_: () => void, write: (text: string) => void) => write('HTTP/1.1 400 Bad'),
        'one release',
      ],
    ])('that %s is told from one that refuses', async (_, behave, message) => {
      const impatient = `${dir}/ripstop-cni`;
      await compileShim(impatient, ['DEADLINE_MS=300']);
      const fake = createServer((socket) => {
        socket.on('error', () => {});
        socket.once('data', () =>
          behave(
            () => socket.destroy(),
            (text) => socket.write(text),
          ),
        );
      });
      await new Promise<void>((resolve) => fake.listen(`${dir}/fake.sock`, resolve));
      const { output } = await cni('ADD', 'a', {
        shim: impatient,
        env: { RIPSTOP_CNI_SOCKET: `${dir}/fake.sock` },
      });
      expect(output).toMatchObject({ code: 11, msg: expect.stringContaining(message) });
      fake.close();
    });
  });

  describe('DEL without an agent', () => {
    const waiting = async (): Promise<string[]> =>
      (await readdir(`${dir}/deferred`).catch(() => [])).filter((name) => name !== 'malformed').sort();

    it('is kept, with the address leased, and carried out by the next agent', async () => {
      for (const container of ['a', 'b', 'c']) await addPod(container);
      await server.close();
      for (const container of ['a', 'b']) {
        expect(await del(container)).toEqual(done);
        await run('ip', ['netns', 'del', `${prefix}-${container}`]);
      }
      expect(await waiting()).toEqual(['a:eth0', 'b:eth0']);
      expect(await leases()).toEqual(['a', 'b', 'c']);

      server = await startServer();
      await expect.poll(waiting).toEqual([]);
      expect(told.slice(3)).toEqual(['detach a 10.42.1.2', 'detach b 10.42.1.3']);
      expect(await leases()).toEqual(['c']);
      await ping('c', gateway);
      await del('c');
      await expectClean();
    });

    it('is for root only, and holds nothing but what the agent would have got', async () => {
      await addPod('a');
      await server.close();
      await cni('DEL', 'a', { env: { SECRET: 'x' }, stdin: '{"cniVersion":"1.0.0","name":"cbr0"}' });
      expect((await stat(`${dir}/deferred`)).mode & 0o777).toBe(0o700);
      expect((await stat(`${dir}/deferred/a:eth0`)).mode & 0o777).toBe(0o600);
      const request = requestDecoder().push(await readFile(`${dir}/deferred/a:eth0`))!;
      expect(Object.keys(request.env).sort()).toEqual([
        'CNI_ARGS',
        'CNI_COMMAND',
        'CNI_CONTAINERID',
        'CNI_IFNAME',
        'CNI_NETNS',
      ]);
      expect(Buffer.from(request.stdin).toString()).toBe('{"cniVersion":"1.0.0","name":"cbr0"}');
    });

    it('survives a reboot, after which only the leases are left', async () => {
      await addPod('a');
      await server.close();
      await run('ip', ['netns', 'del', `${prefix}-a`]);
      await rm(`${dir}/endpoints`, { recursive: true });
      expect(await del('a', { CNI_NETNS: '' })).toEqual(done);
      server = await startServer();
      await expect.poll(leases).toEqual([]);
      await expectClean();
    });

    it('is kept once, however often it comes', async () => {
      await addPod('a');
      await server.close();
      for (let i = 0; i < 3; i++) expect(await del('a')).toEqual(done);
      await Promise.all([del('a'), del('a'), del('a')]);
      expect(await waiting()).toEqual(['a:eth0']);
    });

    it('of a pod that found no agent, or is unknown, succeeds and leaves no trace', async () => {
      await addPod('a');
      await server.close();
      await addNamespace('b');
      expect((await cni('ADD', 'b')).output).toMatchObject({ code: 11 });
      expect(await del('b')).toEqual(done);
      // Names that begin like one that is there.
      for (const container of ['aa', 'A']) expect(await del(container)).toEqual(done);
      expect(await waiting()).toEqual([]);
      await rm(`${dir}/leases`, { recursive: true });
      expect(await del('a')).toEqual(done);
      expect(await waiting()).toEqual([]);
    });

    it("of a pod of flannel's, or with a lease of an old host-local, is kept too", async () => {
      await server.close();
      await mkdir(`${dir}/leases/other`, { recursive: true });
      await mkdir(`${dir}/leases/${network}`, { recursive: true });
      await writeFile(`${dir}/leases/${network}/10.42.1.9`, 'old');
      await writeFile(`${dir}/leases/other/fd00:42:0:1::9`, 'foreign\r\neth0');
      for (const container of ['old', 'foreign']) expect(await del(container)).toEqual(done);
      expect(await waiting()).toEqual(['foreign:eth0', 'old:eth0']);
    });

    it('whose agent dies before it has answered, or never answers, is kept', async () => {
      await addPod('a');
      await addPod('b');
      await server.close();
      const impatient = `${dir}/ripstop-cni`;
      await compileShim(impatient, ['DEADLINE_MS=300']);
      const sockets = new Set<Socket>();
      const fake = createServer((socket) => {
        sockets.add(socket.on('error', () => {}));
        // Dies in the middle of its answer.
        socket.once('data', (bytes) => bytes.includes('CNI_CONTAINERID=a') && socket.end('RSC1\0\0\0\0\0\0'));
      });
      await new Promise<void>((resolve) => fake.listen(`${dir}/fake.sock`, resolve));
      const env = { RIPSTOP_CNI_SOCKET: `${dir}/fake.sock` };
      for (const container of ['a', 'b'])
        expect(await cni('DEL', container, { shim: impatient, env })).toEqual(done);
      expect(await waiting()).toEqual(['a:eth0', 'b:eth0']);
      for (const socket of sockets) socket.destroy();
      fake.close();
      server = await startServer();
      await expect.poll(waiting).toEqual([]);
      await expectClean();
    });

    it('is carried out before an ADD of the same container: it does not take the new one away', async () => {
      await addPod('a');
      await server.close();
      await del('a');
      await run('ip', ['link', 'del', 'eth0'], { netns: `/run/netns/${prefix}-a` });
      server = await startServer();
      // As the next agent finds it that was there, but did not answer that DEL.
      await add('a');
      expect(await waiting()).toEqual([]);
      await ping('a', gateway);
      await del('a');
      await expectClean();
    });

    it('gives its address to an ADD that needs it, while the agent starts', async () => {
      context.families = [{ ...ipv4, podCidr: '10.42.1.0/29' }];
      for (const container of ['p2', 'p3', 'p4', 'p5', 'p6']) await addPod(container);
      await server.close();
      await del('p4');
      await addNamespace('p7');
      server = await startServer();
      expect((await add('p7')).ips[0]!.address).toBe('10.42.1.4/32');
    });

    it('that found none because one was just starting is carried out soon', async () => {
      await addPod('a');
      await server.close();
      server = await startServer({ deferredEveryMs: 200 });
      const elsewhere = { RIPSTOP_CNI_SOCKET: `${dir}/run/none.sock` };
      expect(await del('a', elsewhere)).toEqual(done);
      expect(await waiting()).toEqual(['a:eth0']);
      await expect.poll(waiting).toEqual([]);
      await expectClean();
    });

    it('does not follow the path of its namespace, which may be that of another pod by now', async () => {
      await addPod('a');
      await server.close();
      const other = await addNamespace('other');
      await run('ip', ['link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'wire'], { netns: other });
      await store.remove({ containerId: 'a', ifname: 'eth0' });
      await del('a', { CNI_NETNS: other });
      server = await startServer();
      await expect.poll(leases).toEqual([]);
      expect((await listLinks({ netns: other })).has('eth0')).toBe(true);
    });

    it('says why it could not be kept: a full disk, a directory that is none, names that are none', async () => {
      await addPod('a');
      await server.close();
      const full = `${dir}/full`;
      await mkdir(full);
      await run('mount', ['-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', full]);
      try {
        const { exitCode, output } = await cni('DEL', 'a', {
          env: { RIPSTOP_CNI_DEFERRED: full },
          stdin: '{"cniVersion":"1.1.0","name":"cbr0"}'.padEnd(8192),
        });
        expect(exitCode).toBe(1);
        expect(output).toEqual({
          cniVersion: '1.1.0',
          code: 11,
          msg: expect.stringMatching(
            /gave no answer at .*; and the DEL cannot be kept for it in .*full: No space left/,
          ),
        });
        expect(await readdir(full)).toEqual([]);
        const readOnly = await run('mount', ['-o', 'remount,ro', full]).then(() =>
          del('a', { RIPSTOP_CNI_DEFERRED: `${full}/new` }),
        );
        expect(readOnly.output).toMatchObject({
          code: 11,
          msg: expect.stringContaining('Read-only file system'),
        });
      } finally {
        await run('umount', [full]);
      }
      const none = await del('a', { RIPSTOP_CNI_DEFERRED: '/etc/hostname' });
      expect(none.output).toMatchObject({ code: 11, msg: expect.stringContaining('Not a directory') });
      for (const name of ['', '../a', '.a', 'a b', 'a:b', 'x'.repeat(201)])
        expect((await cni('DEL', name)).output).toMatchObject({ code: 4 });
      expect((await del('a', { CNI_IFNAME: '' })).output).toMatchObject({ code: 4 });
      expect(await del('a')).toEqual(done);
    });

    it('that cannot be read is set aside and told of once, and harms no other', async () => {
      const lines: string[] = [];
      const log = pino({ level: 'warn' }, { write: (line: string) => void lines.push(line) });
      for (const container of ['a', 'b', 'c', 'd']) await addPod(container);
      await server.close();
      for (const container of ['a', 'b', 'c', 'd']) await del(container);
      await truncate(`${dir}/deferred/a:eth0`, 20);
      await writeFile(`${dir}/deferred/b:eth0`, 'rubbish');
      await writeFile(
        `${dir}/deferred/c:eth0`,
        encodeRequest({ env: { CNI_COMMAND: 'GC' }, stdin: Buffer.from('{}') }),
      );
      server = await startServer({ log });
      await expect.poll(waiting).toEqual([]);
      expect((await readdir(`${dir}/deferred/malformed`)).sort()).toEqual(['a:eth0', 'b:eth0', 'c:eth0']);
      expect(await leases()).toEqual(['a', 'b', 'c']);
      const errors = lines.map((line) => (JSON.parse(line) as { error: string }).error);
      expect(errors.map((error) => error.replace(/.*valid DEL: /, ''))).toEqual([
        'it ends too early, after 20 bytes',
        expect.stringContaining('"RSC1"'),
        'its command is "GC"',
      ]);
      await server.close();
      server = await startServer({ log });
      await addPod('e');
      expect(errors).toHaveLength(lines.length);
    });

    it('that fails is tried again, and told of once', async () => {
      const lines: string[] = [];
      const log = pino({ level: 'warn' }, { write: (line: string) => void lines.push(line) });
      await addPod('a');
      await server.close();
      await del('a');
      context.detach = async () => {
        throw new Error('no such map');
      };
      server = await startServer({ log });
      await expect.poll(() => lines.length).toBe(1);
      expect(lines[0]).toContain('no such map');
      expect(await waiting()).toEqual(['a:eth0']);
      await addPod('b');
      expect(lines).toHaveLength(1);
      await server.close();
      server = await startServer({ log });
      await expect.poll(waiting).toEqual([]);
    });

    it('GC succeeds too, and is not kept: it would take away pods that are added after it', async () => {
      await addPod('a');
      await server.close();
      const config = { 'cni.dev/valid-attachments': [] };
      expect(await cni('GC', '', { config })).toEqual(done);
      server = await startServer();
      await ping('a', gateway);
      expect(await leases()).toEqual(['a']);
      expect(await cni('GC', '', { config })).toEqual(done);
      await expectClean();
    });
  });

  describe('the shim', () => {
    it.each([
      ['a nested version', '{"prevResult":{"cniVersion":"0.3.1"},"cniVersion":"0.4.0"}', '0.4.0'],
      [
        'a version inside a string',
        String.raw`{"a":"\"cniVersion\":\"0.3.1\"","cniVersion" : "1.1.0"}`,
        '1.1.0',
      ],
      ['a value that is the name', '{"a":"cniVersion","b":"0.3.1"}', '1.0.0'],
      ['a version that is no text', '{"cniVersion":1,"b":"0.3.1"}', '1.0.0'],
      ['a version with a quote', String.raw`{"cniVersion":"1\"0"}`, '1.0.0'],
      ['a version without end', '{"cniVersion":"1.1.0', '1.0.0'],
      ['a version that ends in a backslash', '{"cniVersion":"1.1.0\\', '1.0.0'],
      ['an endless version', `{"cniVersion":"${'1'.repeat(16)}"}`, '1.0.0'],
      ['no input', '', '1.0.0'],
    ])('is not misled by %s', async (_, stdin, version) => {
      expect((await cni('VERSION', '', { stdin })).output).toMatchObject({ cniVersion: version });
    });

    it('writes JSON whatever the path of the socket is', async () => {
      const path = '/tmp/"\\\t\u007fä';
      const { output } = await cni('ADD', 'a', { env: { RIPSTOP_CNI_SOCKET: path } });
      expect(output['msg']).toContain('/tmp/"\\\t\u007f\ufffd\ufffd:');
      const long = await cni('ADD', 'a', { env: { RIPSTOP_CNI_SOCKET: `/${'x'.repeat(200)}` } });
      expect(long.output).toMatchObject({
        code: 4,
        msg: expect.stringContaining('longer than the 107 bytes'),
      });
    });

    it('hands over a configuration of 1 MiB, and refuses one that is longer', async () => {
      const limit = 1024 * 1024;
      const start = '{"cniVersion":"1.1.0","name":"cbr0"}';
      expect((await cni('STATUS', '', { stdin: start.padEnd(limit) })).exitCode).toBe(0);
      const { output } = await cni('STATUS', '', { stdin: start.padEnd(limit + 1) });
      expect(output).toMatchObject({ code: 6, msg: expect.stringContaining('longer than 1048576 bytes') });
    });

    it('passes on the errors of the agent with their codes', async () => {
      const code = async (answer: Promise<Answer>): Promise<unknown> => (await answer).output['code'];
      expect(await code(cni('ADD', 'a', { config: { cniVersion: '0.2.0' } }))).toBe(1);
      expect(await code(cni('ADD', 'a', { config: { ipam: { type: 'dhcp' } } }))).toBe(2);
      expect(await code(cni('ADD', '../a'))).toBe(4);
      expect(await code(cni('ADD', 'a', { stdin: '{"cniVersion":"1.0.0"' }))).toBe(6);
      expect(await code(cni('ADD', 'a', { config: { name: '' } }))).toBe(7);
    });
  });

  describe('the socket', () => {
    it('is for root only', async () => {
      expect((await stat(`${dir}/run`)).mode & 0o777).toBe(0o700);
      expect((await stat(`${dir}/run/cni.sock`)).mode & 0o777).toBe(0o600);
      expect(await readdir(`${dir}/run`)).toEqual(['cni.sock']);
    });

    it('lets no peer dawdle, and no command take longer than the shim waits', async () => {
      const socketPath = `${dir}/run/hasty.sock`;
      const deadlines = { requestDeadlineMs: 100, answerDeadlineMs: 200 };
      const release = Promise.withResolvers<void>();
      context.attach = () => release.promise;
      const hasty = await startServer({ socketPath, ...deadlines });

      const socket = connect(socketPath);
      socket.write('RSC1');
      const pieces: Buffer[] = [];
      for await (const piece of socket) pieces.push(piece as Buffer);
      expect(Buffer.concat(pieces).toString()).toContain('did not arrive in time');

      await addNamespace('a');
      const env = { RIPSTOP_CNI_SOCKET: socketPath };
      expect((await cni('ADD', 'a', { env })).output).toMatchObject({
        code: 11,
        msg: expect.stringContaining('did not finish within 0.2 s'),
      });
      // The DEL that a runtime sends now waits for the ADD, and undoes it.
      const deleting = del('a', env);
      release.resolve();
      expect(await deleting).toEqual({ exitCode: 0, output: {} });
      await hasty.close();
      await expectClean();
    });

    it('answers garbage with an error and goes on', async () => {
      const socket = connect(`${dir}/run/cni.sock`);
      socket.end('GET / HTTP/1.1\r\n');
      const pieces: Buffer[] = [];
      for await (const piece of socket) pieces.push(piece as Buffer);
      expect(Buffer.concat(pieces).toString()).toContain('"code":5');
      expect((await cni('STATUS', '')).exitCode).toBe(0);
    });
  });
});
