// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it, vi } from 'vitest';
import { type Job, job, reconcile } from '../reconcile/reconcile.ts';
import { Reconciled } from '../reconcile/reconciled.ts';
import type { Target } from '../reconcile/target.ts';
import { formatCidr, parseCidr } from '../net/ip.ts';
import { listLinks } from './links.ts';
import { lookupNextHops } from './neighbours.ts';
import { testNetns, testNode, whyNoNetns, type TestNetns } from './netns.support.ts';
import { type PodRoute, podRouteTarget } from './pod-routes.ts';
import { ensureRules } from './rules.ts';
import { vxlanSenders } from './vtep-set.ts';
import { tryRun } from './run.ts';
import { ensureSysctls, nodeSysctls, readSysctl } from './sysctl.ts';
import { findUplink } from './uplink.ts';
import { encapBytes } from '../dataplane/desired.ts';
import { acceptsZeroChecksum, ensureVxlan, type VtepDevice } from './vtep-device.ts';
import { fdbTarget, neighbourTarget, peerEntries, peerRouteTarget, type VtepPeer } from './vxlan-target.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

const NETWORK = parseCidr('fd00:42::/56');
const DEVICE = 'flannel-v6.1';

/** A node of an IPv6 cluster with one pod, its kernel path made as the agent would. */
interface TestPath {
  node: TestNetns;
  pod: TestNetns;
  podIp: string;
  device: VtepDevice;
  /** As the other node sees this one. */
  asPeer: VtepPeer;
}

/** Make node 1 or 2 of a namespace with a bare `eth0`. */
async function testPath(node: TestNetns, pod: TestNetns, n: 1 | 2): Promise<TestPath> {
  const { options } = node;
  const podCidr = parseCidr(`fd00:42:0:${n}::/64`);
  const [podIp, gateway] = [`fd00:42:0:${n}::5`, `fd00:42:0:${n}::1`];
  await node.ip(`addr add fd09::${n}/64 dev eth0 nodad`, 'link set eth0 up');
  const request = { families: [6], nodeIps: { v6: `fd09::${n}` } } as const;
  const uplink = await findUplink(request, await listLinks(options), options);
  await ensureSysctls(nodeSysctls([6], [uplink.name, ...uplink.advertised]), options);
  const device: VtepDevice = {
    name: DEVICE,
    vni: 1,
    port: 8472,
    localIp: uplink.ips.v6!,
    uplink: uplink.name,
    mtu: uplink.mtu - encapBytes[6],
    mac: `02:42:00:00:06:0${n}`,
    address: `${podCidr.base}/128`,
  };
  await ensureVxlan(device, await listLinks(options), options);
  const networks = [{ network: NETWORK, podCidr, vtepIp: device.localIp, ...vxlanSenders([], false) }];
  const devices = { uplink: uplink.name, bridges: [] };
  await ensureRules({ networks, masquerade: true, tunnel: device, ...devices }, options);
  await node.ip(
    `link add vethA type veth peer name eth0 netns ${pod.path}`,
    'link set vethA addrgenmode none',
    `addr add ${gateway}/128 dev vethA nodad noprefixroute`,
    'addr add fe80::1/64 dev vethA nodad',
    'link set vethA up',
  );
  const atOnce = { path: 'net/ipv6/conf/eth0/accept_dad', value: '0', why: 'to have its link-local address' };
  await ensureSysctls([atOnce], pod.options);
  await pod.ip(
    `addr add ${podIp}/128 dev eth0 nodad`,
    'link set eth0 up',
    `route add ${gateway} dev eth0`,
    `route add default via ${gateway}`,
  );
  await podRouteTarget(options).upsert(
    new Map<string, PodRoute>([
      [formatCidr(podCidr), { unreachable: true }],
      [`${podIp}/128`, { dev: 'vethA' }],
    ]),
  );
  return {
    node,
    pod,
    podIp,
    device,
    asPeer: { podCidr, vtepMac: device.mac, vtepIp: device.localIp },
  };
}

function one<V>(target: Target<V>, entries: ReadonlyMap<string, V>): Job {
  return job(new Reconciled(target), { revision: '', entries: () => entries, complete: true });
}

/** One pass over a node's entries for its peer. @returns how many entries were written. */
async function connect({ node }: TestPath, { asPeer }: TestPath, directDev?: string): Promise<number> {
  const peer = directDev === undefined ? asPeer : { ...asPeer, directDev };
  const { neighbours, fdb, routes } = peerEntries([peer], () => DEVICE);
  const outcomes = await reconcile([
    one(neighbourTarget(node.options), neighbours),
    one(fdbTarget(node.options), fdb),
    one(peerRouteTarget(node.options), routes),
  ]);
  expect(outcomes.filter(({ failures }) => failures > 0)).toEqual([]);
  return outcomes.reduce((sum, { upserts, removals }) => sum + upserts + removals, 0);
}

/** Two nodes on one IPv6 underlay without IPv4. */
async function twoNodes(): Promise<AsyncDisposable & { one: TestPath; two: TestPath }> {
  await using made = new AsyncDisposableStack();
  const [node1, pod1, node2, pod2] = [
    made.use(await testNetns()),
    made.use(await testNetns()),
    made.use(await testNetns()),
    made.use(await testNetns()),
  ];
  await node1.ip(`link add eth0 type veth peer name eth0 netns ${node2.path}`);
  for (const node of [node1, node2]) {
    // The uplink is found by the Node's address or, failing that, by this route.
    await node.ip('link set eth0 up', 'route add default via fd09::fe dev eth0 onlink');
  }
  const one = await testPath(node1, pod1, 1);
  const two = await testPath(node2, pod2, 2);
  await connect(one, two);
  await connect(two, one);
  const all = made.move();
  return { one, two, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/** Whether the one pod gets an answer from the other to a packet of so many bytes; it is sent thrice at most. */
async function reaches(from: TestPath, to: string, bytes = 100): Promise<boolean> {
  const size = String(bytes - 48);
  const { code } = await tryRun(
    'ping',
    ['-6', '-c1', '-W1', '-w3', '-M', 'do', '-s', size, to],
    from.pod.options,
  );
  return code === 0;
}

async function counter({ node }: TestPath, name: string): Promise<number> {
  const text = await node.run('cat', '/proc/net/snmp6');
  return Number(new RegExp(`^${name}\\s+(\\d+)$`, 'm').exec(text)?.[1]);
}

/** The device as plain flannel creates it, or as one that sends no outer checksums. */
function foreignDevice({ device }: TestPath, flag = ''): string[] {
  const { localIp, uplink, port, mac, mtu, address } = device;
  return [
    `link del ${DEVICE}`,
    `link add ${DEVICE} mtu ${mtu} address ${mac} type vxlan id 1 local ${localIp} dev ${uplink} ` +
      `dstport ${port} nolearning ${flag}`,
    `addr add ${address} dev ${DEVICE} nodad`,
    `link set ${DEVICE} up`,
  ];
}

describe(title('flannel-v6.1 between two nodes'), { skip: skip !== undefined }, () => {
  it('carries the packets of pods, up to the MTU of the tunnel', async () => {
    await using cluster = await twoNodes();
    const { one, two } = cluster;
    expect(await reaches(one, two.podIp)).toBe(true);
    expect(await reaches(two, one.podIp)).toBe(true);
    expect(await reaches(one, two.podIp, 1430)).toBe(true);
    // The pod's interface has 1500; the node reports that the path has less.
    expect(await reaches(one, two.podIp, 1431)).toBe(false);
    const [learned] = JSON.parse(await one.pod.run('ip', '-json', 'route', 'get', two.podIp)) as {
      metrics?: { mtu: number }[];
    }[];
    expect(learned?.metrics).toMatchObject([{ mtu: 1430 }]);
    // No pod, no route: the packet neither loops nor leaves.
    const { stdout } = await tryRun('ping', ['-6', '-c1', '-W1', 'fd00:42:0:2::77'], one.pod.options);
    expect(stdout).toMatch(/From fd00:42:0:2::.* Destination unreachable: (No route|Address unreachable)/);
    for (const path of [one, two]) {
      const { options } = path.node;
      expect(await ensureVxlan(path.device, await listLinks(options), options)).toMatchObject({
        changes: [],
      });
    }
    expect([await connect(one, two), await connect(two, one)]).toEqual([0, 0]);
  });

  it('accepts packets without an outer checksum, which a plain flannel device refuses', async () => {
    await using cluster = await twoNodes();
    const { one, two } = cluster;
    await one.node.ip(...foreignDevice(one, 'udp6zerocsumtx'));
    await connect(one, two);
    expect(await reaches(one, two.podIp)).toBe(true);
    expect(await counter(two, 'Udp6InCsumErrors')).toBe(0);

    await two.node.ip(...foreignDevice(two));
    await connect(two, one);
    expect(await reaches(one, two.podIp)).toBe(false);
    expect(await counter(two, 'Udp6InErrors')).toBeGreaterThan(0);

    const { options } = two.node;
    const adopted = await ensureVxlan(two.device, await listLinks(options), options);
    expect(adopted.created).toBe(false);
    expect(acceptsZeroChecksum(adopted.link)).toBe(false);

    await two.node.ip('link del flannel-v6.1');
    const made = await ensureVxlan(two.device, await listLinks(options), options);
    expect(acceptsZeroChecksum(made.link)).toBe(true);
    expect(await connect(two, one)).toBe(3);
    expect(await reaches(one, two.podIp)).toBe(true);
  });

  it('sends checksums itself, so that plain flannel nodes accept what it sends', async () => {
    await using cluster = await twoNodes();
    const { one, two } = cluster;
    await two.node.ip(...foreignDevice(two));
    await connect(two, one);
    expect(await reaches(one, two.podIp)).toBe(true);
    expect(await reaches(two, one.podIp)).toBe(true);
  });

  it('is restored after it was down, when the kernel drops its IPv6 address and routes', async () => {
    await using cluster = await twoNodes();
    const { one, two } = cluster;
    const { options } = one.node;
    const { ifindex } = (await listLinks(options)).get(DEVICE)!;
    await one.node.ip(`link set ${DEVICE} down`);
    const { changes, link } = await ensureVxlan(one.device, await listLinks(options), options);
    expect(changes).toEqual([
      'flannel-v6.1: added address fd00:42:0:1::/128',
      'flannel-v6.1: was down, set up',
    ]);
    expect(link.ifindex).toBe(ifindex);
    expect(await connect(one, two)).toBe(2);
    expect(await reaches(one, two.podIp)).toBe(true);
  });

  it('is not used with DirectRouting between peers on the same L2, and used again after', async () => {
    await using cluster = await twoNodes();
    const { one, two } = cluster;
    const direct = async (from: TestPath, to: TestPath): Promise<string | undefined> => {
      const { vtepIp } = to.asPeer;
      const hops = await lookupNextHops([vtepIp], {}, from.node.options);
      const hop = hops.get(vtepIp);
      return hop && hop.gateway === undefined ? 'eth0' : undefined;
    };
    await connect(one, two, await direct(one, two));
    await connect(two, one, await direct(two, one));
    // Bare packets do not need the room of a tunnel.
    expect(await reaches(one, two.podIp, 1500)).toBe(true);
    // A router comes between them.
    for (const [path, other] of [
      [one, two],
      [two, one],
    ] as const) {
      await path.node.ip(`route add ${other.asPeer.vtepIp}/128 via fe80::99 dev eth0`);
      expect(await direct(path, other)).toBeUndefined();
      await path.node.ip(`route del ${other.asPeer.vtepIp}/128`);
      expect(await connect(path, other)).toBeGreaterThan(0);
    }
    expect(await reaches(one, two.podIp, 1430)).toBe(true);
    expect(await reaches(one, two.podIp, 1500)).toBe(false);
  });

  it('refuses VXLAN from pods, from their own addresses and from link-local ones', async () => {
    await using cluster = await twoNodes();
    const { one } = cluster;
    const send = `const [ip, scope] = process.argv.slice(1);
      const socket = require('node:dgram').createSocket('udp6');
      socket.send(Buffer.alloc(50), 8472, ip + (scope ?? ''), () => socket.close());`;
    await one.pod.run(process.execPath, '-e', send, 'fd09::1');
    await one.pod.run(process.execPath, '-e', send, 'fe80::1', '%eth0');
    await vi.waitFor(async () => {
      const listing = await one.node.run('nft', 'list', 'chain', 'inet', 'ripstop', 'vxlan-in');
      expect(listing).toMatch(/iifname "veth\*" counter packets 2 /);
    }, 2000);
  });
});

describe(title('IPv6 on a node'), { skip: skip !== undefined }, () => {
  it('is enabled on a VTEP device also where new devices have it off; advertisements there are ignored', async () => {
    await using node = await testNode();
    const conf = 'net/ipv6/conf';
    await ensureSysctls(
      [
        { path: `${conf}/default/disable_ipv6`, value: '1', why: 'a hardened node' },
        { path: `${conf}/default/accept_ra`, value: '2', why: 'a node that forwards and follows a router' },
      ],
      node.options,
    );
    const device: VtepDevice = {
      name: DEVICE,
      vni: 1,
      port: 8472,
      localIp: 'fd09::1',
      uplink: 'eth0',
      mtu: 1430,
      mac: '02:42:00:00:06:01',
      address: 'fd00:42:0:1::/128',
    };
    const { changes, link } = await ensureVxlan(device, await listLinks(node.options), node.options);
    expect(changes).toContain(`${conf}/${DEVICE}/disable_ipv6: 1 → 0`);
    expect(link).toMatchObject({
      up: true,
      mtu: 1430,
      vxlan: { local: 'fd09::1', zeroChecksum6: { tx: false, rx: true } },
      // And no link-local one.
      addresses: [{ family: 6, ip: 'fd00:42:0:1::', length: 128, scope: 'global', primary: true }],
    });
    expect(await readSysctl(`${conf}/${DEVICE}/accept_ra`, node.options)).toBe('0');
    expect((await ensureVxlan(device, await listLinks(node.options), node.options)).changes).toEqual([]);
  });

  it('has an uplink with a permanent address, and the MTU that the router advertises', async () => {
    await using node = await testNode();
    await node.ip(
      'addr add fd09::d/64 dev eth0 nodad preferred_lft 0',
      'addr add 2001:db8::7/128 dev eth0 nodad',
    );
    const find = async (): ReturnType<typeof findUplink> =>
      findUplink({ families: [4, 6] }, await listLinks(node.options), node.options);
    expect(await find()).toMatchObject({
      name: 'eth0',
      ips: { v4: '192.168.9.1', v6: 'fd09::1' },
      mtu: 1500,
    });
    await ensureSysctls([{ path: 'net/ipv6/conf/eth0/mtu', value: '1400', why: 'a router' }], node.options);
    expect((await find()).mtu).toBe(1400);
    await node.ip('addr del fd09::1/64 dev eth0', 'addr del 2001:db8::7/128 dev eth0');
    await expect(find()).rejects.toThrow(
      /^cannot choose the interface .*: eth0 has no permanent IPv6 address .*; give one an address of each family/,
    );
  });

  it('never uses an address that another host has', async () => {
    await using node = await testNode();
    await using other = await testNetns();
    await node.ip(`link set wire netns ${other.path}`);
    await other.ip('addr add fd09::77/64 dev wire nodad', 'link set wire up');
    await node.ip('addr del fd09::1/64 dev eth0', 'addr add fd09::77/64 dev eth0');
    await vi.waitFor(
      async () => expect(await node.run('ip', 'addr', 'show', 'dev', 'eth0')).toContain('dadfailed'),
      5000,
    );
    const links = await listLinks(node.options);
    expect(links.get('eth0')?.addresses.find(({ ip }) => ip === 'fd09::77')?.primary).toBe(false);
    await expect(findUplink({ families: [6], iface: ['eth0'] }, links, node.options)).rejects.toThrow(
      'eth0 has no permanent IPv6 address',
    );
  });

  it('keeps its default routes from router advertisements when it begins to forward', async () => {
    await using node = await testNode();
    await using router = await testNetns();
    await node.ip(
      `link set wire netns ${router.path}`,
      'route del default via fd09::fe',
      // Another network, with a router of its own and no part in the cluster.
      `link add mgmt type veth peer name mgmt netns ${router.path}`,
      'link set mgmt up',
    );
    await router.ip('link set wire up', 'link set mgmt up');
    const defaults = async (): Promise<string[]> => {
      const rows = JSON.parse(await node.run('ip', '-json', '-6', 'route', 'show', 'default')) as {
        dev?: string;
        protocol: string;
        nexthops?: { dev: string }[];
      }[];
      return rows.flatMap((row) => (row.nexthops ?? [row]).map(({ dev }) => `${dev} ${row.protocol}`)).sort();
    };
    await vi.waitFor(async () => {
      for (const dev of ['wire', 'mgmt']) await advertise(router, dev);
      expect(await defaults()).toEqual(['eth0 ra', 'mgmt ra']);
    }, 10_000);
    const links = await listLinks(node.options);
    const uplink = await findUplink({ families: [6], iface: ['eth0'] }, links, node.options);
    expect(uplink.advertised.toSorted()).toEqual(['eth0', 'mgmt']);
    const { changed } = await ensureSysctls(
      nodeSysctls([6], [uplink.name, ...uplink.advertised]),
      node.options,
    );
    expect(changed.at(-1)).toMatchObject({ path: 'net/ipv6/conf/all/forwarding', after: '1' });
    expect(await defaults()).toEqual(['eth0 ra', 'mgmt ra']);
    // It still accepts advertisements: one with a lifetime of zero removes the route.
    await advertise(router, 'mgmt', 0);
    await vi.waitFor(async () => expect(await defaults()).toEqual(['eth0 ra']), 2000);
  });
});

/** Send a router advertisement (RFC 4861, section 4.2) to all nodes on the link; the kernel fills in its checksum. */
async function advertise(router: TestNetns, dev: string, lifetimeSeconds = 600): Promise<void> {
  const script = `const koffi = require('koffi');
    const libc = koffi.load('libc.so.6');
    const socket = libc.func('int socket(int, int, int)');
    const setsockopt = libc.func('int setsockopt(int, int, int, const int *, uint32_t)');
    const sendto = libc.func('int64_t sendto(int, const uint8_t *, size_t, int, const uint8_t *, uint32_t)');
    const [ifindex, lifetime] = process.argv.slice(1).map(Number);
    const [AF_INET6, SOCK_RAW, ICMPV6, IPPROTO_IPV6, IPV6_MULTICAST_HOPS] = [10, 3, 58, 41, 18];
    const fd = socket(AF_INET6, SOCK_RAW, ICMPV6);
    setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, [255], 4);
    const advertisement = Buffer.alloc(16);
    advertisement[0] = 134;
    advertisement[4] = 64;
    advertisement.writeUInt16BE(lifetime, 6);
    const allNodes = Buffer.alloc(28);
    allNodes.writeUInt16LE(AF_INET6, 0);
    allNodes.set([0xff, 0x02], 8);
    allNodes[23] = 1;
    allNodes.writeUInt32LE(ifindex, 24);
    const sent = sendto(fd, advertisement, advertisement.length, 0, allNodes, allNodes.length);
    if (sent !== advertisement.length) process.exit(1);`;
  const { ifindex } = (await listLinks(router.options)).get(dev)!;
  await router.run(process.execPath, '-e', script, String(ifindex), String(lifetimeSeconds));
}
