// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  addAddress,
  addClsact,
  addLink,
  addPolicy,
  addRoute,
  addRule,
  deleteLink,
  deleteRoute,
  deleteRule,
  getLink,
  type Group,
  NetlinkError,
  type NetlinkEvent,
  NetlinkSocket,
  replaceFdbEntry,
  replaceNeighbour,
  replaceNexthop,
  setLink,
  subscribe,
  type SubscribeOptions,
  type Subscription,
} from './index.ts';

const name = `netlink-${process.pid}-${randomBytes(3).toString('hex')}`;
const netns = `/run/netns/${name}`;

function whyNot(): string | undefined {
  try {
    execFileSync('ip', ['netns', 'add', name], { stdio: 'pipe' });
    return undefined;
  } catch (error) {
    return `no network namespaces here: ${String(error).split('\n')[0]}`;
  }
}

const skip = whyNot();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

describe(title('a subscription'), { skip: skip !== undefined }, () => {
  let socket: NetlinkSocket;
  let eth0: number;
  const subscriptions: Subscription[] = [];

  beforeAll(() => {
    socket = NetlinkSocket.open('route', netns);
    socket.write(
      addLink({ name: 'eth0', kind: 'veth', peer: { name: 'wire' }, up: true }),
      setLink('wire', { up: true }),
    );
    eth0 = getLink(socket, 'eth0')!.ifindex;
    socket.write(addAddress({ ifindex: eth0, address: '192.168.9.1', length: 24 }));
  });
  afterEach(() => {
    for (const subscription of subscriptions.splice(0)) subscription.close();
  });
  afterAll(() => {
    socket.close();
    execFileSync('ip', ['netns', 'del', name]);
  });

  /** What is heard, as it comes. */
  const listen = (groups: readonly Group[], options: SubscribeOptions = {}): NetlinkEvent[] => {
    const heard: NetlinkEvent[] = [];
    subscriptions.push(subscribe(groups, (events) => heard.push(...events), { netns, ...options }));
    return heard;
  };

  it('hears of links, addresses, routes, nexthops, neighbours, FDB entries, rules, qdiscs and settings', async () => {
    const heard = listen(['link', 'address', 'route', 'nexthop', 'neighbour', 'rule', 'tc', 'netconf']);
    socket.write(
      addLink({
        name: 'vx',
        kind: 'vxlan',
        up: true,
        vxlan: { vni: 5, port: 8472, local: '192.168.9.1', lower: eth0 },
      }),
    );
    const vx = getLink(socket, 'vx')!.ifindex;
    const mac = '0a:00:00:00:00:01';
    socket.write(
      addAddress({ ifindex: vx, address: '10.42.0.0', length: 32 }),
      replaceNeighbour({ ifindex: vx, address: '10.42.1.0', mac }),
      replaceFdbEntry({ ifindex: vx, mac, dst: '192.168.9.2' }),
      replaceNexthop({ id: 7, gateway: '10.42.1.0', ifindex: vx, onlink: true }),
      addRoute({ dst: '10.42.1.0/24', nexthop: 7, protocol: 82 }),
      addRule({ family: 4, priority: 9, table: 100 }),
      addClsact(vx),
      deleteRoute({ dst: '10.42.1.0/24', nexthop: 7 }),
      deleteRule({ family: 4, priority: 9, table: 100 }),
      deleteLink('vx'),
    );
    execFileSync('ip', ['netns', 'exec', name, 'sysctl', '-qw', 'net.ipv4.conf.eth0.rp_filter=2']);
    await expect.poll(() => heard.some(({ kind }) => kind === 'netconf')).toBe(true);
    await expect
      .poll(() => heard)
      .toEqual(
        expect.arrayContaining([
          expect.objectContaining({
            kind: 'link',
            deleted: false,
            link: expect.objectContaining({ name: 'vx', up: true }),
          }),
          expect.objectContaining({
            kind: 'address',
            address: expect.objectContaining({ address: '10.42.0.0', ifindex: vx }),
          }),
          expect.objectContaining({
            kind: 'neighbour',
            neighbour: expect.objectContaining({ address: '10.42.1.0', mac }),
          }),
          expect.objectContaining({
            kind: 'fdb',
            entry: expect.objectContaining({ mac, dst: '192.168.9.2', ifindex: vx }),
          }),
          expect.objectContaining({
            kind: 'nexthop',
            nexthop: expect.objectContaining({ id: 7, gateway: '10.42.1.0' }),
          }),
          expect.objectContaining({
            kind: 'route',
            deleted: false,
            route: expect.objectContaining({ dst: '10.42.1.0/24' }),
          }),
          expect.objectContaining({
            kind: 'route',
            deleted: true,
            route: expect.objectContaining({ dst: '10.42.1.0/24' }),
          }),
          expect.objectContaining({
            kind: 'rule',
            deleted: false,
            rule: expect.objectContaining({ priority: 9 }),
          }),
          expect.objectContaining({
            kind: 'rule',
            deleted: true,
            rule: expect.objectContaining({ priority: 9 }),
          }),
          expect.objectContaining({
            kind: 'qdisc',
            deleted: false,
            qdisc: expect.objectContaining({ kind: 'clsact' }),
          }),
          expect.objectContaining({
            kind: 'link',
            deleted: true,
            link: expect.objectContaining({ name: 'vx' }),
          }),
          expect.objectContaining({ kind: 'netconf', family: 4, ifindex: eth0, rpFilter: 2 }),
        ]),
      );
  });

  it('hears only of what it asked for, and of nothing once closed', async () => {
    const heard = listen(['rule']);
    const links = listen(['link']);
    socket.write(addRoute({ dst: '10.50.0.0/24', ifindex: eth0 }), setLink('eth0', { mtu: 1400 }));
    await expect.poll(() => links.length).toBeGreaterThan(0);
    expect(heard).toEqual([]);
    for (const subscription of subscriptions) subscription.close();
    const before = links.length;
    socket.write(setLink('eth0', { mtu: 1500 }));
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(links).toHaveLength(before);
  });

  it('says when events were lost, and goes on', async () => {
    const heard = listen(['route'], { receiveBytes: 4096 });
    // The event loop hears nothing of this until it is over, so the socket overflows.
    const routes = Array.from({ length: 1000 }, (_, i) => ({
      dst: `10.60.${i >> 8}.${i & 255}/32`,
      ifindex: eth0,
    }));
    expect(socket.writeAll(routes.map(addRoute)).filter(Boolean)).toEqual([]);
    await expect.poll(() => heard.some(({ kind }) => kind === 'lost')).toBe(true);
    expect(heard.length).toBeLessThan(1000);
    socket.write(addRoute({ dst: '10.61.0.0/24', ifindex: eth0 }));
    await expect.poll(() => heard.at(-1)).toMatchObject({ kind: 'route', route: { dst: '10.61.0.0/24' } });
  });

  it('holds the events of 15,000 entries written at once', async () => {
    const heard = listen(['neighbour']);
    const entries = Array.from({ length: 15_000 }, (_, i) => ({
      ifindex: eth0,
      address: `10.${70 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`,
      mac: '0a:00:00:00:00:01',
    }));
    expect(socket.writeAll(entries.map(replaceNeighbour)).filter(Boolean)).toEqual([]);
    await expect.poll(() => heard.length).toBeGreaterThanOrEqual(15_000);
    expect(heard.filter(({ kind }) => kind === 'lost')).toEqual([]);
  });

  it('tells of each object of nftables and of the commit behind it', async () => {
    const heard = listen(['nft']);
    const nft = (text: string): void => {
      execFileSync('ip', ['netns', 'exec', name, 'nft', text]);
    };
    nft(
      'add table inet t; add chain inet t c; add rule inet t c counter; add set inet t s { type ipv4_addr; }',
    );
    nft('add element inet t s { 10.0.0.1 }');
    nft('delete chain inet t c; delete table inet t');
    nft('add table ip other; delete table ip other');
    await expect.poll(() => heard.filter(({ kind }) => kind === 'nft-commit').length).toBe(4);
    const nameOf = (event: NetlinkEvent): string =>
      event.kind === 'nft'
        ? `${event.deleted ? 'delete' : 'new'} ${event.object} ${event.family} ${event.table} ${event.name}`
        : event.kind;
    const told = heard.map(nameOf);
    expect(told).toEqual(
      expect.arrayContaining([
        'new table inet t t',
        'new chain inet t c',
        'new rule inet t c',
        'new set inet t s',
        'new element inet t s',
        'delete rule inet t c',
        'delete chain inet t c',
        'delete set inet t s',
        'delete table inet t t',
        'delete table ip other other',
      ]),
    );
    expect(heard.find(({ kind }) => kind === 'nft-commit')).toMatchObject({ process: { name: 'nft' } });
  });

  it('hears of IPsec policies, where the kernel has them', async ({ skip }) => {
    let heard: NetlinkEvent[];
    try {
      heard = listen(['policy']);
    } catch (error) {
      if (error instanceof NetlinkError && error.code === 'EPROTONOSUPPORT') skip(error.message);
      throw error;
    }
    using xfrm = NetlinkSocket.open('xfrm', netns);
    xfrm.write(addPolicy({ direction: 'out', src: '10.42.1.0/24', dst: '10.42.2.0/24' }));
    execFileSync('ip', [
      '-n',
      name,
      ...'xfrm policy delete src 10.42.1.0/24 dst 10.42.2.0/24 dir out'.split(' '),
    ]);
    xfrm.write(addPolicy({ direction: 'in', src: '10.42.2.0/24', dst: '10.42.1.0/24' }));
    execFileSync('ip', ['-n', name, 'xfrm', 'policy', 'flush']);
    await expect
      .poll(() => heard)
      .toMatchObject([
        { kind: 'policy', deleted: false, policy: { direction: 'out', src: '10.42.1.0/24' } },
        { kind: 'policy', deleted: true, policy: { direction: 'out', src: '10.42.1.0/24' } },
        { kind: 'policy', deleted: false, policy: { direction: 'in' } },
        { kind: 'policy', deleted: true, policy: undefined },
      ]);
  });

  it('cannot be had of a namespace that is not there', () => {
    expect(() => listen(['link'], { netns: '/run/netns/none' })).toThrow(/ENOENT/);
  });
});
