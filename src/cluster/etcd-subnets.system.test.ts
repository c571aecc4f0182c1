// SPDX-License-Identifier: Apache-2.0
/** Subnets from a real etcd: what other nodes see of us there, and what becomes of us when etcd or others misbehave. */
import { once } from 'node:events';
import { createServer as createHttp2Server, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { formatCidr } from '../net/ip.ts';
import { EtcdClient } from './etcd-client.ts';
import type { EtcdOptions } from './etcd-options.ts';
import { parseEtcdNetConf } from './etcd-net-conf.ts';
import { EtcdSubnetManager, type EtcdSubnetManagerOptions, waitForEtcdNetConf } from './etcd-subnets.ts';
import { Gate, missingEtcd, TestEtcd } from './etcd.support.ts';
import type { OwnLease } from './own-lease.ts';

const missing = missingEtcd();
if (missing) console.log(`skipped: ${missing}`);

const PREFIX = '/coreos.com/network';
const SUBNETS = `${PREFIX}/subnets/`;
const log = pino({ level: process.env['TEST_LOG'] ?? 'silent' });
const V4 = '{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}';
const DUAL =
  '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/56","Backend":{"Type":"vxlan","VNI":7}}';

interface Made {
  conf?: string;
  publicIp?: string;
  publicIpv6?: string;
  etcd?: Partial<EtcdOptions>;
  more?: Partial<EtcdSubnetManagerOptions>;
}

describe.skipIf(missing)('with a real etcd', () => {
  let etcd: TestEtcd;
  const made: EtcdSubnetManager[] = [];

  beforeAll(async () => {
    etcd = await TestEtcd.start({ tls: true, flags: { 'auth-token-ttl': '1' } });
  });
  afterEach(async () => {
    await Promise.all(made.splice(0).map((manager) => manager.stop()));
    await etcd.up();
    await etcd.remove('/', '0');
  });
  afterAll(async () => etcd?.[Symbol.asyncDispose]());

  function manager({ conf = V4, publicIp = '192.168.1.1', publicIpv6, etcd: where, more }: Made = {}) {
    const one = new EtcdSubnetManager({
      client: new EtcdClient({ endpoints: [etcd.endpoint], prefix: PREFIX, ...where }),
      prefix: PREFIX,
      nodeName: `node-${publicIp}`,
      netConf: parseEtcdNetConf(conf, 'config'),
      publicIps: async () => ({ v4: publicIp, ...(publicIpv6 && { v6: publicIpv6 }) }),
      log,
      ...more,
      timing: { progressMs: 200, idleMs: 1500, backoffMinMs: 50, backoffMaxMs: 500, ...more?.timing },
    });
    made.push(one);
    return one;
  }

  /** Acquire and follow, as the agent does. */
  async function running(options: Made = {}) {
    const one = manager(options);
    const own = await one.fetchOwn();
    one.start(() => {});
    await expect.poll(() => one.snapshot([]).synced && one.health.connected).toBe(true);
    const lease: OwnLease = {
      v4: { publicIp: options.publicIp ?? '192.168.1.1', vtepMac: own.vtepMac.v4! },
      flannelIsUp: true,
    };
    return { one, own, lease, subnet: formatCidr(own.podCidrs[0]!) };
  }

  const peersOf = (one: EtcdSubnetManager) =>
    one
      .snapshot([])
      .peers.map(({ podCidr }) => formatCidr(podCidr))
      .sort();
  const flannelValue = (n: number, ip = `192.168.9.${n}`) =>
    `{"PublicIP":"${ip}","PublicIPv6":null,"BackendType":"vxlan",` +
    `"BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:04:0${n}"}}`;

  test('a lease is written as flannel writes it, byte for byte, for 24 hours', async () => {
    const { one, own, lease, subnet } = await running();
    const [kv, ...others] = await etcd.list(SUBNETS);
    expect(others).toEqual([]);
    expect(kv!.key).toBe(SUBNETS + subnet.replace('/', '-'));
    expect(kv!.key).toMatch(/\/10\.42\.\d+\.0-24$/);
    const mac = own.vtepMac.v4!;
    expect(kv!.value).toBe(
      `{"PublicIP":"192.168.1.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"${mac}"}}`,
    );
    const ttl = await etcd.ask('lease/timetolive', { ID: kv!.lease });
    expect(ttl['grantedTTL']).toBe('86400');
    expect(await one.publish(own, lease)).toBe(false);
    expect(one.snapshot([])).toMatchObject({ own: { name: 'node-192.168.1.1' }, peers: [], alarms: [] });

    const moved = { ...lease, v4: { ...lease.v4!, publicIp: '192.168.1.77' } };
    expect(await one.publish(own, moved)).toBe(true);
    expect(await one.publish(own, moved)).toBe(false);
    const [after] = await etcd.list(SUBNETS);
    expect(after!.value).toContain('"PublicIP":"192.168.1.77"');
    expect(after!.lease).toBe(kv!.lease);
    expect(after!.createRevision).toBe(kv!.createRevision);

    await one.withdraw();
    expect(await etcd.list(SUBNETS)).toEqual([]);
  });

  test('dual stack, and host-gw which has no data', async () => {
    const { own } = await running({ conf: DUAL, publicIpv6: '2001:db8::1' });
    const [v4, v6] = own.podCidrs;
    const [kv] = await etcd.list(SUBNETS);
    expect(kv!.key).toBe(`${SUBNETS}${v4!.base}-24&${v6!.base}-64`);
    expect(v6!.base).toMatch(/^fd00:42:0:[1-9a-f][0-9a-f]?::$/);
    expect(kv!.value).toBe(
      `{"PublicIP":"192.168.1.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",` +
        `"BackendData":{"VNI":7,"VtepMAC":"${own.vtepMac.v4}"},` +
        `"BackendV6Data":{"VNI":7,"VtepMAC":"${own.vtepMac.v6}"}}`,
    );
    const plain = '{"Network":"10.43.0.0/16","Backend":{"Type":"host-gw"}}';
    await manager({ conf: plain, publicIp: '192.168.1.2' }).fetchOwn();
    const [, other] = await etcd.list(SUBNETS);
    expect(other!.value).toBe('{"PublicIP":"192.168.1.2","PublicIPv6":null,"BackendType":"host-gw"}');
  });

  test.each([
    ['IPv4', '{"Network":"10.42.0.0/19","Backend":{"Type":"vxlan"}}', undefined],
    [
      'dual stack',
      '{"Network":"10.42.0.0/19","EnableIPv6":true,"IPv6Network":"fd00:42::/59","Backend":{"Type":"vxlan"}}',
      '2001:db8::',
    ],
  ])(
    '30 nodes at once get 30 subnets of 31, the 32nd is told that all are taken: %s',
    async (_, conf, v6) => {
      const start = (n: number) =>
        manager({ conf, publicIp: `192.168.1.${n}`, ...(v6 && { publicIpv6: `${v6}${n}` }) }).fetchOwn();
      const owns = await Promise.all(Array.from({ length: 30 }, (_, i) => start(i + 1)));
      const subnets = owns.flatMap((own) => own.podCidrs.map(formatCidr));
      expect(new Set(subnets).size).toBe(v6 ? 60 : 30);
      expect(subnets).not.toContain('10.42.0.0/24');
      expect(await etcd.list(SUBNETS)).toHaveLength(30);
      await start(31);
      await expect(start(32)).rejects.toThrow(
        /all subnets from 10\.42\.1\.0\/24 to 10\.42\.31\.0\/24 are taken/,
      );
      // What lost a race is not left behind as a lease without a key.
      const { leases } = (await etcd.ask('lease/leases', {})) as { leases: { ID: string }[] };
      const held = new Set((await etcd.list(SUBNETS)).map(({ lease }) => lease));
      for (const { ID } of leases) {
        const { keys = [] } = (await etcd.ask('lease/timetolive', { ID, keys: true })) as { keys?: string[] };
        expect(keys.length === 1, `lease ${ID}`).toBe(held.has(ID));
      }
    },
  );

  test('a node keeps its subnet and MAC over a restart, and its subnet of before when the lease is gone', async () => {
    const { one, own, subnet } = await running();
    await one.stop();
    const again = await running();
    expect(again.own.vtepMac).toEqual(own.vtepMac);
    expect(again.subnet).toBe(subnet);
    expect(await etcd.list(SUBNETS)).toHaveLength(1);
    await again.one.stop();

    await etcd.remove('/', '0');
    const past = { podCidrs: { v4: own.podCidrs[0]! }, vtepMac: { v4: '0a:00:00:00:00:07' } };
    const third = await running({ more: { past: async () => past } });
    expect(third.subnet).toBe(subnet);
    expect(third.own.vtepMac.v4).toBe('0a:00:00:00:00:07');
    await third.one.stop();

    // A new address: the lease is known by the MAC that the device still has.
    const moved = await running({ publicIp: '192.168.1.200', more: { past: async () => past } });
    expect(moved.subnet).toBe(subnet);
    expect(await etcd.list(SUBNETS)).toMatchObject([{ value: expect.stringContaining('192.168.1.200') }]);
    await moved.one.stop();

    // Another node's by now: it is left alone.
    const stranger = { podCidrs: { v4: own.podCidrs[0]! }, vtepMac: { v4: '0a:00:00:00:00:08' } };
    const other = await running({ publicIp: '192.168.1.3', more: { past: async () => stranger } });
    expect(other.subnet).not.toBe(subnet);
  });

  test("a lease that does not fit the configuration any more is replaced; others' are left alone", async () => {
    await etcd.put(`${SUBNETS}10.99.1.0-24`, flannelValue(1, '192.168.1.1'));
    await etcd.put(`${SUBNETS}10.99.2.0-24`, flannelValue(2, '192.168.1.2'));
    const { subnet } = await running();
    const keys = (await etcd.list(SUBNETS)).map(({ key }) => key.slice(SUBNETS.length));
    expect(keys.sort()).toEqual([subnet.replace('/', '-'), '10.99.2.0-24'].sort());
  });

  test('reservations: ours is used and stays one, another is not taken', async () => {
    const conf = '{"Network":"10.42.0.0/22","Backend":{"Type":"vxlan"}}';
    await etcd.put(`${SUBNETS}10.42.1.0-24`, '{"PublicIP":"192.168.1.1","PublicIPv6":null}');
    await etcd.put(`${SUBNETS}10.42.2.0-24`, '{"PublicIP":"192.168.1.50","PublicIPv6":null}');
    await etcd.put(`${SUBNETS}10.42.3.0-25`, 'no JSON, but a subnet in use');
    const { one, own, subnet } = await running({ conf });
    expect(subnet).toBe('10.42.1.0/24');
    const [kv] = await etcd.list(SUBNETS);
    expect(kv).toMatchObject({ lease: '0', value: expect.stringContaining(own.vtepMac.v4!) });
    await expect(manager({ conf, publicIp: '192.168.1.2' }).fetchOwn()).rejects.toThrow(/all subnets/);
    await one.withdraw();
    const [left] = await etcd.list(SUBNETS);
    expect(left).toMatchObject({ lease: '0', value: '{"PublicIP":"192.168.1.1","PublicIPv6":null}' });
    const { alarms } = one.snapshot([]);
    expect(alarms.map(({ node }) => node)).toEqual(['10.42.3.0-25']);
  });

  test('neighbours come, change and go; a broken value keeps the last good one', async () => {
    const { one, own } = await running();
    const view = () => one.snapshot(own.podCidrs);
    const vteps = () => view().peers.map(({ vtepIp, vtepMac }) => `${vtepIp} ${vtepMac}`);
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    await expect.poll(vteps).toEqual(['192.168.9.1 0a:00:00:00:04:01']);
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(2));
    await expect.poll(vteps).toEqual(['192.168.9.2 0a:00:00:00:04:02']);
    for (const broken of [
      '',
      'x',
      '[]',
      '{"BackendType":"vxlan"}',
      `{"BackendType":"vxlan","PublicIP":"192.168.9.1"}`,
    ]) {
      await etcd.put(`${SUBNETS}10.42.250.0-24`, broken);
      await etcd.put(`${SUBNETS}nonsense`, broken);
      await expect.poll(() => view().alarms.map(({ node }) => node)).toContain('10.42.250.0-24');
    }
    expect(vteps()).toEqual(['192.168.9.2 0a:00:00:00:04:02']);
    expect(view().alarms.map(({ kind }) => kind)).toEqual(['malformed_lease', 'malformed_lease']);
    await etcd.remove(`${SUBNETS}10.42.250.0-24`);
    await expect.poll(vteps).toEqual([]);
  });

  test('compacted history: a new list, and nothing is flushed', async () => {
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    await etcd.put(`${SUBNETS}10.42.251.0-24`, flannelValue(2));
    await using gate = await Gate.to(etcd.endpoint);
    const views: string[] = [];
    const one = manager({ etcd: { endpoints: [gate.endpoint] } });
    await one.fetchOwn();
    one.start(() => views.push(peersOf(one).join(' ')));
    await expect.poll(() => one.health.connected).toBe(true);
    await gate.close();
    await expect.poll(() => one.health.connected).toBe(false);
    expect(peersOf(one)).toEqual(['10.42.250.0/24', '10.42.251.0/24']);
    // While we cannot see it, everything changes and its history is forgotten.
    await etcd.remove(`${SUBNETS}10.42.250.0-24`);
    await etcd.put(`${SUBNETS}10.42.252.0-24`, flannelValue(3));
    await etcd.compact();
    await gate.open();
    const after = ['10.42.251.0/24', '10.42.252.0/24'];
    await expect.poll(() => peersOf(one)).toEqual(after);
    await expect.poll(() => one.health.connected).toBe(true);
    expect(views.at(-1)).toBe(after.join(' '));
    for (const view of views) expect(view).toContain('10.42.251.0/24');
  });

  test('etcd is restarted: the watch goes on where it was, and tells nothing twice', async () => {
    let changes = 0;
    const one = manager();
    await one.fetchOwn();
    one.start(() => changes++);
    await expect.poll(() => one.health.connected).toBe(true);
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    await etcd.remove(`${SUBNETS}10.42.250.0-24`);
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(2));
    const macs = () => one.snapshot([]).peers.map(({ vtepMac }) => vtepMac);
    await expect.poll(macs).toContain('0a:00:00:00:04:02');
    const before = changes;
    await etcd.signal('SIGTERM');
    await expect.poll(() => one.health.connected).toBe(false);
    expect(one.health.lastError).toMatch(/etcd/);
    expect(peersOf(one)).toHaveLength(1);
    await etcd.up();
    await expect.poll(() => one.health.connected).toBe(true);
    // Longer than etcd takes to send what a new watch has missed.
    await sleep(500);
    expect(changes).toBe(before);
    await etcd.put(`${SUBNETS}10.42.251.0-24`, flannelValue(3));
    await expect.poll(() => peersOf(one)).toHaveLength(2);
  });

  test('a connection that swallows everything is found out, and another endpoint taken', async () => {
    await using gate = await Gate.to(etcd.endpoint);
    const said: string[] = [];
    const listening = pino({ level: 'warn' }, { write: (line: string) => void said.push(line) });
    const endpoints = [gate.endpoint, etcd.endpoint];
    const { one } = await running({ etcd: { endpoints }, more: { log: listening } });
    // Quiet is not dead: that is what the signs of life are for.
    await sleep(2500);
    expect(said).toEqual([]);
    gate.swallow();
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    await expect.poll(() => peersOf(one)).toHaveLength(1);
    expect(said.join('')).toMatch(/no sign of life for 1\.5 s/);
  });

  test('a member that answers but does not serve is left for one that does', async () => {
    const server = createHttp2Server();
    server.on('stream', (stream: ServerHttp2Stream) => {
      stream.respond(
        { ':status': 200, 'grpc-status': '14', 'grpc-message': 'no leader' },
        { endStream: true },
      );
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const leaderless = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const { one } = await running({ etcd: { endpoints: [leaderless, etcd.endpoint] } });
    expect(peersOf(one)).toEqual([]);
    server.close();
  });

  test('an etcd that hangs is left for one that answers', async () => {
    await using hanging = await TestEtcd.start();
    await hanging.signal('SIGSTOP');
    const startedAt = performance.now();
    const endpoints = ['http://127.0.0.1:9', hanging.endpoint, etcd.endpoint];
    const { one } = await running({ etcd: { endpoints } });
    expect(performance.now() - startedAt).toBeLessThan(15_000);
    await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    await expect.poll(() => peersOf(one)).toHaveLength(1);
  });

  test('another store in place of the first, which counts from 1 again, is told from it', async () => {
    await using first = await TestEtcd.start();
    await using second = await TestEtcd.start();
    await first.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
    for (let i = 0; i < 20; i++) await first.put('/noise', String(i));
    await second.put(`${SUBNETS}10.42.251.0-24`, flannelValue(2));
    const { one, own, lease } = await running({
      etcd: { endpoints: [first.endpoint, second.endpoint] },
    });
    await first[Symbol.asyncDispose]();
    await expect.poll(() => peersOf(one)).toEqual(['10.42.251.0/24']);
    // Our own subnet is taken again there.
    await expect.poll(() => one.publish(own, lease).catch(String)).toBe(false);
    expect(await second.list(SUBNETS)).toHaveLength(2);
  });

  test('a lease is renewed in time, and expires when nobody renews it', async () => {
    const { one } = await running({ more: { leaseSeconds: 1 } });
    const [kv] = await etcd.list(SUBNETS);
    await sleep(4000);
    const [later] = await etcd.list(SUBNETS);
    // Not written anew either: nobody is woken by it.
    expect(later).toEqual(kv);
    expect(one.snapshot([])).toMatchObject({ peers: [], alarms: [] });
    await one.stop();
    await expect.poll(() => etcd.list(SUBNETS)).toEqual([]);
  });

  test.each([
    ['deleted', async (key: string) => etcd.remove(key)],
    ['expired', async (key: string) => etcd.ask('lease/revoke', { ID: (await etcd.list(key))[0]!.lease })],
  ])('a lease that was %s behind our back is taken again, as it was', async (_, lose) => {
    const { one, own, lease } = await running();
    const [kv] = await etcd.list(SUBNETS);
    await lose(kv!.key);
    await expect.poll(() => etcd.list(SUBNETS)).toMatchObject([{ key: kv!.key, value: kv!.value }]);
    const [again] = await etcd.list(SUBNETS);
    expect(again!.createRevision).toBeGreaterThan(kv!.createRevision);
    expect(again!.lease).not.toBe('0');
    await expect.poll(() => one.publish(own, lease).catch(String)).toBe(false);
    await expect.poll(() => one.snapshot([])).toMatchObject({ peers: [], alarms: [] });
  });

  test('a lease that another node took meanwhile is not stolen back, but told of', async () => {
    const { one, own, lease } = await running();
    const [kv] = await etcd.list(SUBNETS);
    const half = kv!.key.replace(/24$/, '25');
    await etcd.put(half, flannelValue(5));
    await etcd.remove(kv!.key);
    const alarms = () => one.snapshot(own.podCidrs).alarms;
    await expect
      .poll(() =>
        alarms()
          .map(({ kind }) => kind)
          .sort(),
      )
      .toEqual(['podcidr_conflict', 'subnet_lost']);
    expect(one.health.lastError).toMatch(/went to 192\.168\.9\.5 .* drain this node/);
    await expect(one.publish(own, lease)).rejects.toThrow(/went to 192\.168\.9\.5/);
    expect(await etcd.list(SUBNETS)).toMatchObject([{ key: half, value: flannelValue(5) }]);
    // The operator gives it back.
    await etcd.remove(half);
    await expect.poll(() => etcd.list(SUBNETS)).toMatchObject([{ key: kv!.key, value: kv!.value }]);
    await expect.poll(alarms).toEqual([]);
  });

  test('TLS with a client certificate; without one etcd is out of reach', async () => {
    const { subnet } = await running({ etcd: { endpoints: [etcd.tlsEndpoint], ...etcd.tls } });
    expect(await etcd.list(SUBNETS)).toMatchObject([{ key: SUBNETS + subnet.replace('/', '-') }]);
    const { cafile, certfile, keyfile } = etcd.tls;
    await expect(manager({ etcd: { endpoints: [etcd.tlsEndpoint], cafile } }).fetchOwn()).rejects.toThrow(
      /etcd/,
    );
    const untrusted = { endpoints: [etcd.tlsEndpoint], certfile, keyfile };
    await expect(manager({ etcd: untrusted }).fetchOwn()).rejects.toThrow(/unable to verify|self.signed/);
  });

  test('the configuration is waited for, while it is missing and while it is wrong', async () => {
    const client = new EtcdClient({ endpoints: [etcd.endpoint], prefix: PREFIX });
    const said: string[] = [];
    const listening = pino({ level: 'warn' }, { write: (line: string) => void said.push(line) });
    const conf = waitForEtcdNetConf(client, PREFIX, listening, AbortSignal.timeout(20_000));
    await expect.poll(() => said.join('')).toMatch(/has no key \/coreos.com\/network\/config/);
    await etcd.put(
      `${PREFIX}/config`,
      '{"Network":"10.42.0.0/16","SubnetLen":17,"Backend":{"Type":"vxlan"}}',
    );
    await expect.poll(() => said.join('')).toMatch(/SubnetLen 17/);
    await etcd.put(`${PREFIX}/config`, V4);
    expect((await conf)?.subnets.v4).toEqual({ family: 4, length: 24, min: '10.42.1.0', max: '10.42.255.0' });
    await client.close();
  });

  describe('with users', () => {
    const user = { username: 'flannel', password: 'secret' };
    beforeAll(() => etcd.enableAuth(user.password));
    afterEach(() => etcd.login());
    afterAll(async () => {
      await etcd.ask('auth/disable', {});
      etcd.token = undefined;
    });

    test('a password opens it, again and again: tokens here last for a second', async () => {
      const { one, own, lease } = await running({ etcd: user });
      await sleep(2500);
      const moved = { ...lease, v4: { ...lease.v4!, publicIp: '192.168.1.77' } };
      expect(await one.publish(own, moved)).toBe(true);
      await etcd.login();
      await etcd.put(`${SUBNETS}10.42.250.0-24`, flannelValue(1));
      await expect.poll(() => peersOf(one)).toHaveLength(1);
      await etcd.signal('SIGTERM');
      await expect.poll(() => one.health.connected).toBe(false);
      await etcd.up();
      await etcd.login();
      await etcd.put(`${SUBNETS}10.42.251.0-24`, flannelValue(2));
      await expect.poll(() => peersOf(one)).toHaveLength(2);
    });

    test('a client certificate that names a user does as well', async () => {
      const { one } = await running({ etcd: { endpoints: [etcd.tlsEndpoint], ...etcd.tls } });
      expect(peersOf(one)).toEqual([]);
    });

    test('a wrong password, or none, is refused in plain words', async () => {
      const wrong = { ...user, password: 'wrong' };
      await expect(manager({ etcd: wrong }).fetchOwn()).rejects.toThrow(/authentication failed/);
      await expect(manager().fetchOwn()).rejects.toThrow(/user name is empty/);
    });
  });
});
