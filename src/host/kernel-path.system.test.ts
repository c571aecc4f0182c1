// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { allDone, diff, type Failures, noFailures, type Target } from '../reconcile/target.ts';
import { intToIpv4, ipv4ToInt, parseCidr } from '../net/ip.ts';
import { listLinks, readLink } from './links.ts';
import { testNode, whyNoNetns, type TestNetns } from './netns.support.ts';
import { podRouteTarget } from './pod-routes.ts';
import { ensureVxlan, type VtepDevice } from './vtep-device.ts';
import {
  fdbKey,
  fdbTarget,
  neighbourTarget,
  peerEntries,
  peerRouteTarget,
  type VtepPeer,
} from './vxlan-target.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

const FLANNEL_1: VtepDevice = {
  name: 'flannel.1',
  vni: 1,
  port: 8472,
  localIp: '192.168.9.1',
  uplink: 'eth0',
  mtu: 1450,
  mac: '02:42:00:00:00:01',
  address: '10.42.1.0/32',
};

const PEER_2: VtepPeer = {
  podCidr: parseCidr('10.42.2.0/24'),
  vtepMac: '02:42:00:00:00:02',
  vtepIp: '192.168.9.2',
};
const PEER_3: VtepPeer = {
  podCidr: parseCidr('10.42.3.0/24'),
  vtepMac: '02:42:00:00:00:03',
  vtepIp: '192.168.9.3',
};

/** The n-th of many peers, from 10.42.2.0 on. */
function manyPeers(count: number): VtepPeer[] {
  return Array.from({ length: count }, (_, i) => ({
    podCidr: parseCidr(`${intToIpv4(ipv4ToInt('10.64.0.0') + i * 256)}/24`),
    vtepMac: `02:42:01:00:${(i >> 8).toString(16).padStart(2, '0')}:${(i & 255).toString(16).padStart(2, '0')}`,
    vtepIp: intToIpv4(ipv4ToInt('172.16.0.1') + i),
  }));
}

/** One pass of the loop over the three targets. @returns how many entries it wrote. */
async function reconcile(node: TestNetns, peers: VtepPeer[], device = 'flannel.1'): Promise<number> {
  const entries = peerEntries(peers, () => device);
  const steps = [
    await plan(neighbourTarget(node.options), entries.neighbours),
    await plan(fdbTarget(node.options), entries.fdb),
    await plan(peerRouteTarget(node.options), entries.routes),
  ];
  for (const step of steps) allDone(await step.upsert());
  for (const step of steps.toReversed()) allDone(await step.remove());
  return steps.reduce((sum, step) => sum + step.writes, 0);
}

async function plan<V>(
  target: Target<V>,
  desired: Map<string, V>,
): Promise<{ upsert: () => Promise<Failures>; remove: () => Promise<Failures>; writes: number }> {
  const { upserts, removals } = diff(desired, await target.list());
  return {
    upsert: () => target.upsert(upserts),
    remove: () => target.remove(removals),
    writes: upserts.size + removals.size,
  };
}

/** What iproute2 shows: routes, permanent neighbours and FDB of flannel.1. */
async function listing(node: TestNetns, device = 'flannel.1'): Promise<string[]> {
  const texts = [
    (await node.run('ip', '-4', 'route', 'show', 'proto', '82')).replaceAll(/nhid \d+ /g, ''),
    await node.run('ip', 'neigh', 'show', 'dev', device, 'nud', 'permanent'),
    await node.run('bridge', 'fdb', 'show', 'dev', device),
  ];
  return texts.flatMap((text) =>
    text
      .split('\n')
      .map((row) => row.trim())
      .filter((row) => row !== '')
      .sort(),
  );
}

const TWO_PEERS = [
  '10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink',
  '10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink',
  '10.42.2.0 lladdr 02:42:00:00:00:02 PERMANENT',
  '10.42.3.0 lladdr 02:42:00:00:00:03 PERMANENT',
  '02:42:00:00:00:02 dst 192.168.9.2 self permanent',
  '02:42:00:00:00:03 dst 192.168.9.3 self permanent',
];

describe(title('flannel.1'), { skip: skip !== undefined }, () => {
  it('is created as flannel creates it, and a second pass changes nothing', async () => {
    await using node = await testNode();
    const first = await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    expect(first.created).toBe(true);
    expect(first.link).toMatchObject({
      name: 'flannel.1',
      mac: '02:42:00:00:00:01',
      mtu: 1450,
      up: true,
      kind: 'vxlan',
      vxlan: { vni: 1, port: 8472, local: '192.168.9.1', uplink: 'eth0', learning: false, extras: [] },
      // No link-local IPv6 address beside it.
      addresses: [{ family: 4, ip: '10.42.1.0', length: 32, scope: 'global', primary: true }],
    });
    const second = await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    expect(second).toMatchObject({ changes: [], created: false, link: { ifindex: first.link.ifindex } });
  });

  it("adopts flannel's own device with its MAC", async () => {
    await using node = await testNode();
    await node.ip(
      'link add flannel.1 mtu 1450 address 02:42:00:00:00:01 ' +
        'type vxlan id 1 local 192.168.9.1 dev eth0 dstport 8472 nolearning',
      'link set flannel.1 addrgenmode none',
      'addr add 10.42.1.0/32 dev flannel.1',
      'link set flannel.1 up',
    );
    expect(await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options)).toMatchObject({
      changes: ['net/ipv4/conf/flannel.1/rp_filter: 0 → 2'],
      created: false,
    });
  });

  it('keeps its ifindex when only MAC, MTU or address changed; its neighbours are written again', async () => {
    await using node = await testNode();
    const { link } = await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await reconcile(node, [PEER_2, PEER_3]);
    await node.ip(
      'link set flannel.1 address 02:00:00:00:00:99 mtu 1400',
      'addr add 10.42.7.0/32 dev flannel.1',
    );
    const mended = await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    expect(mended.changes).toEqual([
      'flannel.1: MTU 1400 → 1450',
      'flannel.1: MAC 02:00:00:00:00:99 → 02:42:00:00:00:01',
      'flannel.1: removed address 10.42.7.0/32',
    ]);
    expect(mended.link.ifindex).toBe(link.ifindex);
    expect(await reconcile(node, [PEER_2, PEER_3])).toBe(2);
    expect(await listing(node)).toEqual(TWO_PEERS);
  });

  it('is created again when another program made it wrong, and peers are written again', async () => {
    await using node = await testNode();
    await node.ip('link add flannel.1 type vxlan id 1 group 239.1.1.1 dev eth0 dstport 4789');
    const { created, changes } = await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    expect(created).toBe(true);
    expect(changes[0]).toContain('port 4789 → 8472');
    expect(await reconcile(node, [PEER_2, PEER_3])).toBe(6);
    expect(await listing(node)).toEqual(TWO_PEERS);
  });

  it('exists beside flannel-v6.1 on an IPv6 underlay, with peers of its own', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    const v6: VtepDevice = {
      ...FLANNEL_1,
      name: 'flannel-v6.1',
      localIp: 'fd09::1',
      mtu: 1430,
      mac: '02:42:00:00:06:01',
      address: 'fd00:0:0:1::/128',
    };
    expect((await ensureVxlan(v6, await listLinks(node.options), node.options)).created).toBe(true);
    expect((await ensureVxlan(v6, await listLinks(node.options), node.options)).changes).toEqual([]);
    const peer: VtepPeer = {
      podCidr: parseCidr('fd00:0:0:2::/64'),
      vtepMac: '02:42:00:00:06:02',
      vtepIp: 'fd09::2',
    };
    expect(await reconcile(node, [peer], 'flannel-v6.1')).toBe(3);
    expect(await reconcile(node, [peer], 'flannel-v6.1')).toBe(0);
    expect(await node.run('ip', '-6', 'route', 'get', 'fd00:0:0:2::7')).toContain(
      'via fd00:0:0:2:: dev flannel-v6.1',
    );
    expect(await listing(node, 'flannel-v6.1')).toContain('02:42:00:00:06:02 dst fd09::2 self permanent');
    const moved = { ...peer, vtepMac: '02:42:00:00:06:03', vtepIp: 'fd09::3' };
    expect(await reconcile(node, [moved], 'flannel-v6.1')).toBe(3);
    expect(await reconcile(node, [], 'flannel-v6.1')).toBe(3);
    expect(await listing(node, 'flannel-v6.1')).toEqual([]);
  });

  it('reports what the kernel refuses', async () => {
    await using node = await testNode();
    await node.ip('link set eth0 mtu 1400');
    await expect(ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options)).rejects.toThrow(
      'eth0 has 1400, and less 50',
    );
    await expect(
      ensureVxlan({ ...FLANNEL_1, uplink: 'eth7' }, await listLinks(node.options), node.options),
    ).rejects.toThrow('its uplink eth7 does not exist');
    await expect(readLink('flannel.1', node.options)).rejects.toThrow('there is no network device flannel.1');
  });
});

describe(title('peers on the kernel path'), { skip: skip !== undefined }, () => {
  it('are added, changed and removed, each with its three entries; a second pass writes nothing', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    expect(await reconcile(node, [PEER_2, PEER_3])).toBe(6);
    expect(await listing(node)).toEqual(TWO_PEERS);
    expect(await reconcile(node, [PEER_3, PEER_2])).toBe(0);

    // Node 3 moves to another address; node 2 is re-created with another MAC.
    const moved = { ...PEER_3, vtepIp: '192.168.9.33' };
    const reborn = { ...PEER_2, vtepMac: '02:42:00:00:00:22' };
    await reconcile(node, [reborn, moved]);
    expect(await listing(node)).toEqual([
      '10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink',
      '10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink',
      '10.42.2.0 lladdr 02:42:00:00:00:22 PERMANENT',
      '10.42.3.0 lladdr 02:42:00:00:00:03 PERMANENT',
      '02:42:00:00:00:03 dst 192.168.9.33 self permanent',
      '02:42:00:00:00:22 dst 192.168.9.2 self permanent',
    ]);

    await reconcile(node, []);
    expect(await listing(node)).toEqual([]);
  });

  it('are all written again after flannel.1 was deleted', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await reconcile(node, [PEER_2, PEER_3]);
    await node.ip('link del flannel.1');
    expect((await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options)).created).toBe(true);
    expect(await reconcile(node, [PEER_2, PEER_3])).toBe(6);
    expect(await listing(node)).toEqual(TWO_PEERS);
  });

  it('move from the tunnel to DirectRouting and back', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await reconcile(node, [PEER_2]);
    await reconcile(node, [{ ...PEER_2, directDev: 'eth0' }]);
    expect(await listing(node)).toEqual(['10.42.2.0/24 via 192.168.9.2 dev eth0']);
    await reconcile(node, [PEER_2, PEER_3]);
    expect(await listing(node)).toEqual(TWO_PEERS);
  });

  it('keep the MTU that somebody has given to a direct route', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    const direct = { ...PEER_2, directDev: 'eth0' };
    await reconcile(node, [direct]);
    await node.ip('route change 10.42.2.0/24 via 192.168.9.2 dev eth0 mtu 1400');
    for (let pass = 0; pass < 2; pass++) {
      await reconcile(node, [direct]);
      expect(await listing(node)).toEqual(['10.42.2.0/24 via 192.168.9.2 dev eth0 mtu 1400']);
    }
  });

  it("leave other programs' routes alone, and take over those that flannel left", async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await node.ip(
      'route add 10.99.0.0/16 via 192.168.9.77 proto static',
      'route add 10.42.2.0/24 via 192.168.9.88 metric 500 proto bird',
      'route add unreachable 10.98.0.0/16',
      'route add 10.42.2.0/24 via 192.168.9.66 table 100',
      'route add 10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink',
    );
    const foreign = async (): Promise<string> =>
      (await node.run('ip', 'route', 'show', 'table', 'all')).replaceAll(/^.*proto (82|kernel).*\n/gm, '');
    const before = await foreign();
    await reconcile(node, [PEER_2, PEER_3]);
    expect(await listing(node)).toEqual(TWO_PEERS);
    await reconcile(node, []);
    // flannel's route became ours and went with the peer; the others are as they were.
    expect(await foreign()).toBe(before.replace('10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink \n', ''));
  });

  it('lose entries that are not desired, such as one that floods', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await node.run('bridge', 'fdb', 'append', '00:00:00:00:00:00', 'dev', 'flannel.1', 'dst', '192.168.9.8');
    await node.run('bridge', 'fdb', 'append', '00:00:00:00:00:00', 'dev', 'flannel.1', 'dst', '192.168.9.9');
    await reconcile(node, [PEER_2, PEER_3]);
    expect(await listing(node)).toEqual(TWO_PEERS);
  });

  it('can be removed twice, and removing what never existed is no error', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await reconcile(node, [PEER_2, PEER_3]);
    const { neighbours, fdb, routes } = peerEntries([PEER_2], () => 'flannel.1');
    for (let pass = 0; pass < 2; pass++) {
      expect(await peerRouteTarget(node.options).remove(routes)).toEqual(noFailures);
      expect(await fdbTarget(node.options).remove(fdb)).toEqual(noFailures);
      expect(await neighbourTarget(node.options).remove(neighbours)).toEqual(noFailures);
    }
    expect(await listing(node)).toEqual(TWO_PEERS.filter((row) => row.includes('3')));
  });

  it('that the kernel refuses do not keep others from being written, and are reported', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    // A gateway of our own address is invalid.
    const bad: VtepPeer = { ...PEER_2, podCidr: parseCidr('10.42.1.0/24') };
    const { routes } = peerEntries([bad, PEER_3], () => 'flannel.1');
    expect(await peerRouteTarget(node.options).upsert(routes)).toEqual(
      new Map([['10.42.1.0/24', 'replace nexthop 170524928 failed: Nexthop has invalid gateway (EINVAL)']]),
    );
    expect([...(await peerRouteTarget(node.options).list()).keys()]).toEqual(['10.42.3.0/24']);
  });

  it('with invalid values are reported, and the valid ones are written', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    const values = new Map([
      [fdbKey('flannel.1', '02:42:00:00:00:05'), '192.168.9.5\nlink del flannel.1'],
      [fdbKey('flannel.1', '02:42:00:00:00:06'), '192.168.9.6'],
      [fdbKey('flannel.2', '02:42:00:00:00:07'), '192.168.9.7'],
    ]);
    const failures = await fdbTarget(node.options).upsert(values);
    expect([...failures]).toEqual([
      ['flannel.1 02:42:00:00:00:05', expect.stringContaining('is not an IP address')],
      ['flannel.2 02:42:00:00:00:07', 'there is no network device flannel.2; see "ip link"'],
    ]);
    expect(await fdbTarget(node.options).list()).toEqual(
      new Map([['flannel.1 02:42:00:00:00:06', '192.168.9.6']]),
    );
  });

  it('are replaced when a podCIDR moves to another node', async () => {
    await using node = await testNode();
    await node.ip('link set eth0 up');
    for (const [dst, via] of [
      ['10.42.2.0/24', '192.168.9.2'],
      ['fd42:2::/64', 'fd09::2'],
    ] as const) {
      const peer = new Map([[dst, { via, dev: 'eth0', onlink: false }]]);
      const own = new Map([[dst, { unreachable: true } as const]]);
      const [peers, pods] = [peerRouteTarget(node.options), podRouteTarget(node.options)];
      await peers.upsert(peer);
      await pods.upsert(own);
      expect(await peers.remove(peer)).toEqual(noFailures);
      expect(await pods.list()).toEqual(own);
      await peers.upsert(peer);
      expect(await pods.remove(own)).toEqual(noFailures);
      expect(await peers.list()).toEqual(peer);
      await peers.remove(peer);
    }
  });

  it('are written by the thousand in moments', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    const peers = manyPeers(2000);
    const startedAt = performance.now();
    expect(await reconcile(node, peers)).toBe(6000);
    expect(await reconcile(node, peers)).toBe(0);
    expect(await reconcile(node, peers.slice(1000))).toBe(3000);
    expect(performance.now() - startedAt).toBeLessThan(5000);
    expect(await listing(node)).toHaveLength(3000);
  });
});

describe(title('routes to local pods'), { skip: skip !== undefined }, () => {
  it('lead to the veth, in both families; the rest of the podCIDR is unreachable', async () => {
    await using node = await testNode();
    await node.ip('link add vethA type veth peer name podA', 'link set vethA up', 'link set podA up');
    const target = podRouteTarget(node.options);
    const desired = new Map<string, { dev: string } | { unreachable: true }>([
      ['10.42.1.0/24', { unreachable: true }],
      ['10.42.1.5/32', { dev: 'vethA' }],
      ['fd00:0:0:1::/64', { unreachable: true }],
      ['fd00:0:0:1::5/128', { dev: 'vethA' }],
    ]);
    await target.upsert(desired);
    expect(diff(desired, await target.list())).toEqual({ upserts: new Map(), removals: new Map() });
    expect(await node.run('ip', '-4', 'route', 'show', 'proto', '82')).toBe(
      'unreachable 10.42.1.0/24 \n10.42.1.5 dev vethA scope link \n',
    );
    await expect(node.run('ip', 'route', 'get', '10.42.1.6')).rejects.toThrow('No route to host');
    expect(await node.run('ip', 'route', 'get', '10.42.1.5')).toContain('dev vethA');

    await target.remove(desired);
    await target.remove(desired);
    expect(await target.list()).toEqual(new Map());
  });

  it('do not interfere with routes to peers', async () => {
    await using node = await testNode();
    await ensureVxlan(FLANNEL_1, await listLinks(node.options), node.options);
    await reconcile(node, [PEER_2]);
    await podRouteTarget(node.options).upsert(new Map([['10.42.1.5/32', { dev: 'eth0' }]]));
    expect([...(await peerRouteTarget(node.options).list()).keys()]).toEqual(['10.42.2.0/24']);
    expect([...(await podRouteTarget(node.options).list()).keys()]).toEqual(['10.42.1.5/32']);
  });
});
