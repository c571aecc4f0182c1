// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  addAddress,
  addClsact,
  addLink,
  addPolicy,
  addRoute,
  addRule,
  deleteAddress,
  deleteFdbEntry,
  deleteFilter,
  deleteLink,
  deleteNeighbour,
  deleteNexthop,
  deletePolicy,
  deleteProxy,
  deleteQdisc,
  deleteRoute,
  deleteRule,
  findConnection,
  getLink,
  inNetns,
  listAddresses,
  listFdb,
  listFilters,
  listLinks,
  listNeighbours,
  listNexthops,
  listPolicies,
  listQdiscs,
  listRoutes,
  listRules,
  listSetAddresses,
  lookUpIncoming,
  lookUpRoutes,
  removeLink,
  NetlinkError,
  NetlinkSocket,
  probeNetkit,
  replaceFdbEntry,
  replaceNeighbour,
  replaceNexthop,
  replaceProxy,
  replaceRoute,
  RT_TABLE,
  setLink,
  TC_H,
} from './index.ts';

const name = `netlink-${process.pid}-${randomBytes(3).toString('hex')}`;
const [netns, far] = [`/run/netns/${name}`, `/run/netns/${name}-far`];

function whyNot(): string | undefined {
  try {
    execFileSync('ip', ['netns', 'add', name], { stdio: 'pipe' });
    execFileSync('ip', ['netns', 'add', `${name}-far`], { stdio: 'pipe' });
    return undefined;
  } catch (error) {
    return `no network namespaces here: ${String(error).split('\n')[0]}`;
  }
}

const skip = whyNot();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

/** The parts of iproute2's JSON that are compared here. */
interface Row {
  ifname: string;
  ifindex: number;
  mtu: number;
  address?: string;
  flags: string[];
  link?: string;
  master?: string;
  inet6_addr_gen_mode?: string;
  operstate: string;
  linkinfo?: { info_kind?: string; info_data?: Record<string, unknown> };
  addr_info: {
    local: string;
    prefixlen: number;
    scope: string;
    secondary?: boolean;
    noprefixroute?: boolean;
    tentative?: boolean;
  }[];
  type: string;
  dst: string;
  dev: string;
  gateway?: string;
  via?: { host: string };
  scope?: string;
  metric?: number;
  prefsrc?: string;
  nhid?: number;
  metrics?: { mtu?: number }[];
  nexthops?: { gateway: string; dev: string }[];
  lladdr: string;
  state: string[];
}

/** What iproute2 reads of the same namespace. */
function ip(...args: string[]): Row[] {
  const text = execFileSync('ip', ['-n', name, '-json', '-details', ...args], { encoding: 'utf8' });
  return text.trim() === '' ? [] : JSON.parse(text);
}

const inside = (program: string, ...args: string[]): string =>
  execFileSync('nsenter', [`--net=${netns}`, '--', program, ...args], { encoding: 'utf8' });

describe(title('a netlink socket'), { skip: skip !== undefined }, () => {
  let socket: NetlinkSocket;
  const index = (link: string): number => getLink(socket, link)!.ifindex;

  beforeAll(() => {
    socket = NetlinkSocket.open('route', netns);
  });
  afterAll(() => {
    socket.close();
    execFileSync('ip', ['netns', 'del', name]);
    execFileSync('ip', ['netns', 'del', `${name}-far`]);
  });
  beforeEach(() => {
    for (const { name, ifindex } of listLinks(socket))
      if (name !== 'lo') socket.writeAll([deleteLink(ifindex)]);
    socket.write(
      setLink('lo', { up: true }),
      addLink({ name: 'eth0', kind: 'veth', peer: { name: 'wire' }, up: true }),
      setLink('wire', { up: true }),
    );
    socket.write(
      addAddress({ ifindex: index('eth0'), address: '192.168.9.1', length: 24 }),
      addAddress({ ifindex: index('eth0'), address: 'fd09::1', length: 64, nodad: true }),
    );
  });

  it('makes links of each kind, as ip shows them', () => {
    const mac = '0a:00:00:00:00:01';
    const there = openSync(far, 'r');
    socket.write(
      addLink({
        name: 'flannel.1',
        kind: 'vxlan',
        mtu: 1450,
        mac,
        vxlan: { vni: 77, port: 8472, local: '192.168.9.1', lower: index('eth0') },
      }),
      addLink({
        name: 'flannel-v6.1',
        kind: 'vxlan',
        vxlan: {
          vni: 77,
          port: 8472,
          local: 'fd09::1',
          lower: index('eth0'),
          zeroChecksum6: { tx: false, rx: true },
        },
      }),
      addLink({ name: 'cni0', kind: 'bridge', up: true, bridge: { stp: true } }),
      addLink({
        name: 'host',
        kind: 'veth',
        mtu: 1400,
        peer: { name: 'eth7', mtu: 1400, mac, netns: there },
      }),
    );
    closeSync(there);
    socket.write(
      setLink('host', { master: index('cni0'), up: true, addrGenMode: 'none', ipv4: { rpFilter: 1 } }),
      setLink(index('wire'), { name: 'cable', mtu: 1300 }),
    );
    const rows = new Map(ip('link', 'show').map((row) => [row.ifname, row]));
    expect(rows.get('flannel.1')).toMatchObject({
      mtu: 1450,
      address: mac,
      linkinfo: {
        info_kind: 'vxlan',
        info_data: {
          id: 77,
          local: '192.168.9.1',
          link: 'eth0',
          port: 8472,
          learning: false,
          udp_csum: true,
        },
      },
    });
    expect(rows.get('flannel-v6.1')?.linkinfo?.info_data).toMatchObject({
      local6: 'fd09::1',
      udp_zero_csum6_tx: false,
      udp_zero_csum6_rx: true,
    });
    expect(rows.get('cni0')?.linkinfo?.info_data).toMatchObject({ stp_state: 1 });
    expect(rows.get('host')).toMatchObject({ mtu: 1400, master: 'cni0', inet6_addr_gen_mode: 'none' });
    expect(rows.get('cable')).toMatchObject({ mtu: 1300 });
    expect(inNetns(netns, () => readFileSync('/proc/sys/net/ipv4/conf/host/rp_filter', 'utf8'))).toBe('1\n');
    using other = NetlinkSocket.open('route', far);
    expect(getLink(other, 'eth7')).toMatchObject({ kind: 'veth', mtu: 1400, mac, up: false });
  });

  it('says whether it has netkits without making one, and makes one with MAC addresses', (test) => {
    const before = listLinks(socket).length;
    let code = 'none';
    try {
      socket.write(probeNetkit());
    } catch (error) {
      code = (error as NetlinkError).code;
    }
    expect(['EINVAL', 'EOPNOTSUPP']).toContain(code);
    expect(listLinks(socket)).toHaveLength(before);
    if (code === 'EOPNOTSUPP') test.skip('this kernel has no netkit');
    const there = openSync(far, 'r');
    const [mac, peerMac] = ['02:00:00:00:00:0a', '02:00:00:00:00:0b'];
    const peer = { name: 'nk9', mtu: 1400, mac: peerMac, netns: there };
    socket.write(addLink({ name: 'nk8', kind: 'netkit', netkitMode: 'l2', mtu: 1400, mac, peer }));
    closeSync(there);
    expect(getLink(socket, 'nk8')).toMatchObject({ kind: 'netkit', mtu: 1400, mac });
    using other = NetlinkSocket.open('route', far);
    expect(getLink(other, 'nk9')).toMatchObject({ kind: 'netkit', mtu: 1400, mac: peerMac });
    socket.write(deleteLink('nk8'));
    expect(getLink(other, 'nk9')).toBeUndefined();
  });

  it('lists links with everything that ip says of them', () => {
    inside(
      'ip',
      'link',
      'add',
      'vx',
      'type',
      'vxlan',
      'id',
      '5',
      'group',
      '239.1.1.1',
      'dev',
      'eth0',
      'dstport',
      '4789',
    );
    inside('ip', 'link', 'add', 'geneve0', 'type', 'vxlan', 'external', 'dstport', '4790', 'gbp');
    inside('ip', 'link', 'add', 'bridge0', 'type', 'bridge', 'ageing_time', '2000');
    inside('ip', 'link', 'set', 'wire', 'master', 'bridge0');
    const links = new Map(listLinks(socket).map((link) => [link.name, link]));
    const rows = ip('link', 'show');
    expect([...links.keys()]).toEqual(rows.map((row) => row.ifname));
    const names = new Map([...links.values()].map((link) => [link.ifindex, link.name]));
    for (const row of rows) {
      const link = links.get(row.ifname)!;
      expect(link).toMatchObject({
        ifindex: row.ifindex,
        mtu: row.mtu,
        mac: row.address,
        up: row.flags.includes('UP'),
        running: row.flags.includes('LOWER_UP'),
        operState: row.operstate.toLowerCase(),
        loopback: row.flags.includes('LOOPBACK'),
        kind: row.linkinfo?.info_kind,
        addrGenMode: row.inet6_addr_gen_mode,
      });
      expect(link.master && names.get(link.master)).toBe(row.master);
      expect(link.parent && names.get(link.parent.ifindex)).toBe(row.link ?? undefined);
    }
    expect(links.get('vx')!.vxlan).toMatchObject({
      vni: 5,
      group: '239.1.1.1',
      lower: index('eth0'),
      learning: true,
      port: 4789,
    });
    expect(links.get('geneve0')!.vxlan).toMatchObject({
      external: true,
      gbp: true,
      lower: undefined,
      vni: 0,
    });
    expect(links.get('bridge0')!.bridge).toMatchObject({
      ageingTime: 2000,
      vlanFiltering: false,
      stp: false,
    });
    expect(getLink(socket, 'nobody')).toBeUndefined();
    expect(getLink(socket, 'vx')).toEqual(links.get('vx'));
  });

  it('removes links without holding up the thread, however many at once', async () => {
    const names = Array.from({ length: 20 }, (_, i) => `gone${i}`);
    for (const name of names)
      socket.write(addLink({ name, kind: 'veth', peer: { name: `${name}p` }, up: true }));
    let turns = 0;
    const turning = setInterval(() => turns++, 1);
    const removed = await Promise.all([...names, 'nobody'].map((name) => removeLink(name, netns)));
    clearInterval(turning);
    expect(removed).toEqual([...names.map(() => true), false]);
    expect(listLinks(socket).filter((link) => link.name.startsWith('gone'))).toEqual([]);
    expect(turns).toBeGreaterThan(0);
    await expect(removeLink('lo', netns)).rejects.toThrow(/delete link lo failed: .*EOPNOTSUPP/);
    // The name can be taken at once.
    socket.write(addLink({ name: 'gone0', kind: 'veth', peer: { name: 'gone0p' } }));
    expect(await removeLink(index('gone0'), netns)).toBe(true);
  });

  it('gives addresses and takes them', () => {
    const eth0 = index('eth0');
    socket.write(
      addAddress({ ifindex: eth0, address: '10.9.0.1', length: 32, noPrefixRoute: true }),
      addAddress({ ifindex: eth0, address: '192.168.9.7', length: 24 }),
      addAddress({ ifindex: eth0, address: '10.8.0.1', length: 32, peer: '10.8.0.2', scope: 'link' }),
      addAddress({ ifindex: eth0, address: 'fd09::7', length: 128, nodad: true, noPrefixRoute: true }),
    );
    const addresses = listAddresses(socket, { ifindex: eth0 });
    const rows = ip('address', 'show', 'dev', 'eth0')[0]!.addr_info;
    // ip shows both families of a link; the kernel lists all of one before the other.
    expect(addresses.map(({ address, length }) => `${address}/${length}`)).toEqual(
      rows.map((row) => `${row.local}/${row.prefixlen}`),
    );
    for (const [i, row] of rows.entries()) {
      expect(addresses[i]).toMatchObject({
        scope: row.scope,
        secondary: row.secondary ?? false,
        noPrefixRoute: row.noprefixroute ?? false,
        tentative: row.tentative ?? false,
      });
    }
    expect(addresses.find(({ address }) => address === '192.168.9.7')?.secondary).toBe(true);
    socket.write(deleteAddress({ ifindex: eth0, address: 'fd09::7', length: 128 }));
    expect(() => socket.write(deleteAddress({ ifindex: eth0, address: 'fd09::7', length: 128 }))).toThrow(
      /delete address fd09::7\/128 of link \d+ failed: .*EADDRNOTAVAIL/,
    );
    expect(listAddresses(socket, { family: 6, ifindex: eth0 }).map(({ address }) => address)).not.toContain(
      'fd09::7',
    );
  });

  it('makes routes of all shapes, and lists them as ip does', () => {
    const eth0 = index('eth0');
    const protocol = 82;
    socket.write(
      replaceNexthop({ id: 77, gateway: '192.168.9.3', ifindex: eth0, protocol }),
      replaceRoute({ dst: '10.42.0.0/24', type: 'unreachable', protocol }),
      replaceRoute({
        dst: '10.42.1.0/24',
        gateway: '192.168.9.2',
        ifindex: eth0,
        protocol,
        metric: 7,
        mtu: 1400,
      }),
      replaceRoute({ dst: '10.42.2.0/24', gateway: '10.42.2.0', ifindex: eth0, onlink: true, protocol }),
      replaceRoute({ dst: '10.42.3.4/32', ifindex: eth0, protocol, source: '192.168.9.1' }),
      replaceRoute({ dst: '10.42.4.0/24', nexthop: 77, protocol }),
      replaceRoute({ dst: '10.42.5.0/24', gateway: 'fd09::2', ifindex: eth0, protocol }),
      replaceRoute({ dst: 'fd42:1::/64', gateway: 'fd09::2', ifindex: eth0, protocol }),
      addRoute({ dst: '0.0.0.0/0', gateway: '192.168.9.254', ifindex: eth0 }),
      addRoute({ dst: '10.44.0.0/24', ifindex: eth0, table: 1000, protocol }),
    );
    inside(
      'ip',
      'route',
      'add',
      '10.43.0.0/24',
      'nexthop',
      'via',
      '192.168.9.2',
      'nexthop',
      'via',
      '192.168.9.3',
    );
    const listed = [...listRoutes(socket, { family: 4 }), ...listRoutes(socket, { family: 6 })];
    const rows = [...ip('-4', 'route', 'show'), ...ip('-6', 'route', 'show')];
    const key = (dst: string, ifindex: number | undefined): string =>
      `${dst.replace(/^(0\.0\.0\.0|::)\/0$/, 'default').replace(/\/32$/, '')} ${ifindex}`;
    const found = new Map(listed.map((route) => [key(route.dst, route.ifindex), route]));
    const indexes = new Map(listLinks(socket).map((link) => [link.name, link.ifindex]));
    expect(found.size).toBe(rows.length);
    for (const row of rows) {
      const route = found.get(key(row.dst, indexes.get(row.dev)));
      expect(route).toMatchObject({
        type: row.type,
        gateway: row.gateway ?? row.via?.host,
        ifindex: indexes.get(row.dev),
        onlink: row.flags.includes('onlink'),
        scope: row.scope ?? 'global',
        metric: row.metric ?? 0,
        source: row.prefsrc,
        nexthop: row.nhid,
        mtu: row.metrics?.[0]?.mtu,
      });
      const hops = row.nexthops?.map((hop: Record<string, string>) => [hop['gateway'], index(hop['dev']!)]);
      expect(route?.hops?.map((hop) => [hop.gateway, hop.ifindex])).toEqual(hops);
    }
    const own = listRoutes(socket, { family: 4, protocol }).map(({ dst }) => dst);
    expect(own).toEqual([
      '10.42.0.0/24',
      '10.42.1.0/24',
      '10.42.2.0/24',
      '10.42.3.4/32',
      '10.42.4.0/24',
      '10.42.5.0/24',
    ]);
    expect(listRoutes(socket, { family: 4, table: 1000 }).map(({ dst }) => dst)).toEqual(['10.44.0.0/24']);
    expect(listNexthops(socket)).toMatchObject([{ id: 77, gateway: '192.168.9.3', ifindex: eth0, protocol }]);
    socket.write(
      deleteRoute({ dst: '10.42.0.0/24', type: 'unreachable', protocol }),
      deleteRoute({ dst: '10.42.4.0/24', nexthop: 77, protocol }),
      deleteNexthop(77),
      deleteRoute({ dst: '10.42.2.0/24' }),
    );
    expect(listRoutes(socket, { family: 4, protocol })).toHaveLength(3);
    expect(listRoutes(socket, { family: 4, table: RT_TABLE.local, ifindex: eth0 })).not.toHaveLength(0);
  });

  it('looks up the way to each of many addresses, and says why there is none', () => {
    const eth0 = index('eth0');
    socket.write(replaceRoute({ dst: '0.0.0.0/0', gateway: '192.168.9.254', ifindex: eth0 }));
    const many = Array.from({ length: 1500 }, (_, i) => `192.168.9.${(i % 250) + 2}`);
    const ways = lookUpRoutes(socket, ['203.0.113.1', ...many, 'fd77::1', '192.168.9.1']);
    expect(ways).toHaveLength(1503);
    expect(ways[0]).toMatchObject({ type: 'unicast', gateway: '192.168.9.254', ifindex: eth0 });
    expect(ways.slice(1, 1501)).toMatchObject(many.map((dst) => ({ dst: `${dst}/32`, gateway: undefined })));
    expect(ways[1501]).toMatchObject({ code: 'ENETUNREACH' });
    expect(ways[1502]).toMatchObject({ type: 'local' });
  });

  it('tells what becomes of an incoming packet: by its rules, from its device, with its ports', () => {
    const eth0 = index('eth0');
    execFileSync('nsenter', [`--net=${netns}`, '--', 'sysctl', '-q', '-w', 'net.ipv4.ip_forward=1']);
    inside('ip', ...'route add 203.0.113.0/24 via 192.168.9.253 table 77'.split(' '));
    inside('ip', ...'rule add ipproto udp dport 53 table 77'.split(' '));
    const packet = { iif: eth0, src: '192.168.9.7', dst: '203.0.113.1', protocol: 17 };
    const toDns = lookUpIncoming(socket, { ...packet, ports: { src: 4711, dst: 53 } });
    expect(toDns).toMatchObject({ type: 'unicast', table: 77, gateway: '192.168.9.253', ifindex: eth0 });
    expect(lookUpIncoming(socket, { ...packet, ports: { src: 4711, dst: 54 } })).toMatchObject({
      code: expect.stringMatching(/UNREACH/) as unknown,
    });
    expect(lookUpIncoming(socket, { ...packet, dst: '192.168.9.1' })).toMatchObject({ type: 'local' });
    const overIpv6 = { iif: eth0, src: 'fd99::7', dst: 'fd99:1::1', protocol: 6, tos: 2 };
    inside('ip', ...`-6 route add fd99:1::/64 dev eth0 table 77`.split(' '));
    inside('ip', ...'-6 rule add to fd99:1::/64 table 77'.split(' '));
    expect(lookUpIncoming(socket, overIpv6)).toMatchObject({ type: 'unicast', table: 77, ifindex: eth0 });
    inside('ip', ...'-6 rule del to fd99:1::/64 table 77'.split(' '));
    expect(lookUpIncoming(socket, overIpv6)).not.toMatchObject({ table: 77 });
    inside('ip', ...'rule del ipproto udp dport 53 table 77'.split(' '));
  });

  it('tells of each of many writes why it failed, in the kernel’s words, and does the others', () => {
    const eth0 = index('eth0');
    const routes = Array.from({ length: 2000 }, (_, i) => ({
      dst: `10.50.${i >> 8}.${i & 255}/32`,
      // One in three has a gateway that nothing covers.
      gateway: i % 3 === 0 ? '172.31.0.1' : '192.168.9.2',
      ifindex: eth0,
      protocol: 82,
    }));
    const errors = socket.writeAll(routes.map(replaceRoute));
    expect(errors).toHaveLength(2000);
    for (const [i, error] of errors.entries()) {
      if (i % 3 !== 0) expect(error).toBeUndefined();
      else {
        expect(error?.message).toBe(
          `replace route ${routes[i]!.dst} failed: Nexthop has invalid gateway (ENETUNREACH)`,
        );
      }
    }
    expect(listRoutes(socket, { family: 4, protocol: 82 })).toHaveLength(1333);
    // All of them failing, more than the socket's buffer of answers takes at once.
    const removals = socket.writeAll(
      Array.from({ length: 3000 }, () => deleteRoute({ dst: '10.99.0.0/16' })),
    );
    expect(removals.every((error) => error?.code === 'ESRCH')).toBe(true);
    expect(socket.writeAll([])).toEqual([]);
  });

  it('stops a row of writes at the first that fails', () => {
    const steps = [
      setLink('eth0', { mtu: 1400 }),
      setLink('nobody', { mtu: 1300 }),
      setLink('eth0', { mtu: 1300 }),
    ];
    expect(() => socket.write(...steps)).toThrow('change link nobody failed: No such device (ENODEV)');
    expect(getLink(socket, 'eth0')?.mtu).toBe(1400);
  });

  it('keeps neighbours, proxies and FDB entries', () => {
    socket.write(
      addLink({
        name: 'flannel.1',
        kind: 'vxlan',
        up: true,
        vxlan: { vni: 1, port: 8472, local: '192.168.9.1', lower: index('eth0') },
      }),
    );
    const ifindex = index('flannel.1');
    const mac = '0a:00:00:00:00:01';
    const neighbours = Array.from({ length: 3000 }, (_, i) => ({
      ifindex,
      address: `10.42.${i >> 8}.${i & 255}`,
      mac,
    }));
    expect(socket.writeAll(neighbours.map(replaceNeighbour)).filter(Boolean)).toEqual([]);
    socket.write(
      replaceNeighbour({ ifindex, address: 'fd42::1', mac }),
      replaceNeighbour({ ifindex, address: '10.43.0.1', mac, state: 'reachable' }),
      replaceNeighbour({ ifindex: index('eth0'), address: '192.168.9.9', mac }),
      replaceProxy({ ifindex, address: '10.44.0.1', protocol: 82 }),
      replaceFdbEntry({ ifindex, mac, dst: '192.168.9.2' }),
      replaceFdbEntry({ ifindex, mac, dst: '192.168.9.3' }),
    );
    const listed = listNeighbours(socket, { ifindex });
    expect(listed.filter(({ state }) => state === 'permanent')).toHaveLength(3001);
    const rows = ip('neigh', 'show', 'dev', 'flannel.1');
    // ip leaves out those that need no resolution (NOARP), such as multicast addresses.
    const shown = listed.filter(({ state }) => state !== 'noarp');
    expect(new Set(shown.map((one) => `${one.address} ${one.mac} ${one.state}`))).toEqual(
      new Set(rows.map((row) => `${row.dst} ${row.lladdr} ${row.state[0]?.toLowerCase()}`)),
    );
    expect(listNeighbours(socket, { ifindex, proxy: true })).toMatchObject([
      { address: '10.44.0.1', proxy: true, protocol: 82 },
    ]);
    const fdb = JSON.parse(inside('bridge', '-json', 'fdb', 'show', 'dev', 'flannel.1')) as Record<
      string,
      unknown
    >[];
    expect(fdb).toMatchObject([{ mac, dst: '192.168.9.3', flags: ['self'], state: 'permanent' }]);
    expect(listFdb(socket, { ifindex })).toEqual([
      { kind: 'fdb', ifindex, mac, dst: '192.168.9.3', vlan: undefined, state: 'permanent', self: true },
    ]);
    socket.write(
      deleteNeighbour({ ifindex, address: 'fd42::1' }),
      deleteProxy({ ifindex, address: '10.44.0.1' }),
      deleteFdbEntry({ ifindex, mac }),
    );
    const gone = socket.writeAll([
      deleteNeighbour({ ifindex, address: 'fd42::1' }),
      deleteProxy({ ifindex, address: '10.44.0.1' }),
      deleteFdbEntry({ ifindex, mac }),
    ]);
    expect(gone.map((error) => error?.code)).toEqual(['ENOENT', 'ENOENT', 'ENOENT']);
  });

  it('makes an FDB entry with the bits that bridge gives it', () => {
    const vxlan = { vni: 1, port: 8472, local: '192.168.9.1', lower: index('eth0') };
    socket.write(addLink({ name: 'flannel.1', kind: 'vxlan', vxlan }));
    const raw = (): string => inside('bridge', '-details', 'fdb', 'show', 'dev', 'flannel.1');
    socket.write(
      replaceFdbEntry({ ifindex: index('flannel.1'), mac: '0a:00:00:00:00:01', dst: '192.168.9.2' }),
    );
    const ours = raw();
    socket.write(deleteFdbEntry({ ifindex: index('flannel.1'), mac: '0a:00:00:00:00:01' }));
    const args = [
      'fdb',
      'replace',
      '0a:00:00:00:00:01',
      'dev',
      'flannel.1',
      'dst',
      '192.168.9.2',
      'self',
      'permanent',
    ];
    inside('bridge', ...args);
    expect(ours).toBe(raw());
  });

  it('makes rules, and lists them in their order', () => {
    socket.write(
      addRule({
        family: 4,
        priority: 100,
        table: 100,
        src: '10.42.0.0/16',
        mark: { value: 0x10, mask: 0xf0 },
      }),
      addRule({
        family: 4,
        priority: 50,
        table: 1000,
        dst: '10.43.0.0/16',
        iif: 'eth0',
        not: true,
        protocol: 82,
      }),
      addRule({ family: 6, priority: 60, table: 100, oif: 'eth0' }),
    );
    const rules = listRules(socket, 4);
    expect(rules.map(({ priority, table }) => [priority, table])).toEqual([
      [0, 255],
      [50, 1000],
      [100, 100],
      [32766, 254],
      [32767, 253],
    ]);
    expect(rules[1]).toMatchObject({
      dst: '10.43.0.0/16',
      iif: 'eth0',
      not: true,
      protocol: 82,
      src: undefined,
    });
    expect(rules[2]).toMatchObject({
      src: '10.42.0.0/16',
      mark: { value: 0x10, mask: 0xf0 },
      action: 'table',
    });
    expect(listRules(socket, 6)[1]).toMatchObject({ family: 6, priority: 60, oif: 'eth0' });
    socket.write(
      deleteRule({ family: 4, priority: 100, table: 100 }),
      deleteRule({ family: 4, priority: 50, table: 1000, not: true, dst: '10.43.0.0/16' }),
      deleteRule({ family: 6, priority: 60, table: 100 }),
    );
    expect(ip('rule', 'show')).toHaveLength(3);
    expect(() => socket.write(deleteRule({ family: 4, priority: 100, table: 100 }))).toThrow(/ENOENT/);
  });

  it('lists and deletes qdiscs and filters', () => {
    const eth0 = index('eth0');
    socket.write(addClsact(eth0));
    expect(() => socket.write(addClsact(eth0))).toThrow(/add qdisc clsact to link \d+ failed: .*EEXIST/);
    const qdiscs = listQdiscs(socket, eth0);
    expect(qdiscs.map(({ kind }) => kind).toSorted()).toEqual(['clsact', 'noqueue']);
    expect(listQdiscs(socket).length).toBeGreaterThanOrEqual(3);
    inside('tc', ...'filter add dev eth0 ingress pref 7 protocol ip u32 match u32 0 0 flowid :1'.split(' '));
    const filters = listFilters(socket, eth0, TC_H.ingress);
    expect(filters[0]).toMatchObject({ priority: 7, protocol: 0x800, parent: TC_H.ingress, bpf: undefined });
    expect(listFilters(socket, eth0, TC_H.egress)).toEqual([]);
    socket.write(deleteFilter({ ...filters[0]!, handle: 0 }));
    expect(listFilters(socket, eth0, TC_H.ingress)).toEqual([]);
    socket.write(deleteQdisc(qdiscs.find(({ kind }) => kind === 'clsact')!));
    expect(listQdiscs(socket, eth0)).toHaveLength(1);
  });

  it('speaks to another namespace and leaves the thread in its own', () => {
    const before = readFileSync('/proc/thread-self/net/dev', 'utf8').split('\n').length;
    using other = NetlinkSocket.open('route', far);
    expect(listLinks(other).map((link) => link.name)).toContain('lo');
    expect(readFileSync('/proc/thread-self/net/dev', 'utf8').split('\n')).toHaveLength(before);
    expect(() => NetlinkSocket.open('route', '/run/netns/none')).toThrow(/ENOENT/);
    expect(() =>
      inNetns(far, () => {
        throw new Error('inside');
      }),
    ).toThrow('inside');
    expect(readFileSync('/proc/thread-self/net/dev', 'utf8').split('\n')).toHaveLength(before);
  });

  it('serves on after a reader of a listing has thrown', () => {
    const request = { type: 18, payload: new Uint8Array(16), what: () => 'list' };
    expect(() =>
      socket.dump(request, () => {
        throw new Error('cannot read');
      }),
    ).toThrow('cannot read');
    expect(() => socket.dump({ ...request, type: 9999, what: () => 'list nothing' }, () => 1)).toThrow(
      /list nothing failed: .*\(EOPNOTSUPP\)/,
    );
    expect(getLink(socket, 'lo')?.ifindex).toBe(1);
  });
});

describe(title('other netlink families'), { skip: skip !== undefined }, () => {
  const own = `${name}-families`;
  beforeAll(() => execFileSync('ip', ['netns', 'add', own]));
  afterAll(() => execFileSync('ip', ['netns', 'del', own]));
  const path = `/run/netns/${own}`;

  it('list the addresses of a set of nftables, and none without it', () => {
    using socket = NetlinkSocket.open('netfilter', path);
    const set = { family: 'inet', table: 't', name: 's' } as const;
    expect(listSetAddresses(socket, set, 4)).toEqual([]);
    const many = Array.from({ length: 3000 }, (_, i) => `10.0.${i >> 8}.${i & 255}`);
    const text = `add table inet t; add set inet t s { type ipv4_addr; size 4096; elements = { ${many.join(', ')} }; }`;
    execFileSync('nsenter', [`--net=${path}`, '--', 'nft', text]);
    expect(listSetAddresses(socket, set, 4).toSorted()).toEqual(many.toSorted());
    expect(listSetAddresses(socket, set, 6)).toEqual([]);
  });

  it('find a connection of conntrack by the tuple of either direction', ({ skip }) => {
    const there = (...argv: string[]) => execFileSync('nsenter', [`--net=${path}`, '--', ...argv]);
    execFileSync('ip', ['-n', own, 'link', 'set', 'lo', 'up']);
    there(
      'nft',
      'add table inet c; add chain inet c o { type filter hook output priority 0; ct state new; }',
    );
    if (!existsSync('/proc/sys/net/netfilter/nf_conntrack_max')) skip('the kernel has no conntrack');
    const script = `const s = require('node:dgram').createSocket('udp4');
      s.bind(4711, () => s.send('x', 9, '127.0.0.1', () => s.close()));`;
    there(process.execPath, '-e', script);
    using socket = NetlinkSocket.open('netfilter', path);
    const one = { protocol: 17, src: '127.0.0.1', dst: '127.0.0.1', srcPort: 4711, dstPort: 9 };
    const back = { ...one, srcPort: 9, dstPort: 4711 };
    const found = findConnection(socket, one);
    expect(found).toMatchObject({ original: one, reply: back, status: ['confirmed'], mark: 0 });
    expect(found).toEqual({ ...findConnection(socket, back), timeoutSeconds: found?.timeoutSeconds });
    expect(found?.timeoutSeconds).toBeGreaterThan(0);
    expect(findConnection(socket, { ...one, dstPort: 10 })).toBeUndefined();
  });

  it('keep IPsec policies, where the kernel has them', ({ skip }) => {
    using socket = NetlinkSocket.open('xfrm', path);
    const policy = { direction: 'out', src: '10.42.1.0/24', dst: '10.42.2.0/24' } as const;
    try {
      socket.write(addPolicy({ ...policy, priority: 5, mark: { value: 1, mask: 0xff } }));
    } catch (error) {
      if (error instanceof NetlinkError && error.code === 'EPROTONOSUPPORT') skip(error.message);
      throw error;
    }
    const ip6 =
      'xfrm policy add src fd00::/64 dst fd01::/64 proto udp dport 8472 dir in tmpl src fd00::1 dst fd01::1 proto esp mode tunnel';
    execFileSync('ip', ['-n', own, ...ip6.split(' ')]);
    expect(listPolicies(socket).toSorted((a, b) => a.family - b.family)).toMatchObject([
      {
        ...policy,
        family: 4,
        action: 'allow',
        priority: 5,
        templates: 0,
        mark: { value: 1, mask: 0xff },
        dstPort: undefined,
      },
      {
        direction: 'in',
        src: 'fd00::/64',
        dst: 'fd01::/64',
        family: 6,
        templates: 1,
        mark: undefined,
        protocol: 17,
        srcPort: undefined,
        dstPort: { value: 8472, mask: 0xffff },
      },
    ]);
    socket.write(deletePolicy({ ...policy, mark: { value: 1, mask: 0xff } }));
    expect(() => socket.write(deletePolicy(policy))).toThrow(/delete xfrm policy 10.42.1.0\/24 to .*ENOENT/);
    expect(listPolicies(socket)).toHaveLength(1);
  });
});
