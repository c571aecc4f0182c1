// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { ipJson } from './ip.ts';
import { testNetns, testNode, whyNoNetns } from './netns.support.ts';
import { listFdb, listNeighbours, listRoutes, listSetElements, routesTo } from './netlink.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

describe(title('listings by netlink'), { skip: skip !== undefined }, () => {
  it('give the routes of one protocol and the main table, as ip shows them', async () => {
    await using node = await testNode();
    await node.ip(
      'route add 10.42.1.0/24 via 192.168.9.2 dev eth0 proto 82',
      'route add 10.42.2.0/24 via 10.42.2.0 dev eth0 onlink proto 82',
      'nexthop add id 77 via 192.168.9.3 dev eth0',
      'route add 10.42.4.0/24 nhid 77 proto 82',
      'route add 10.42.3.4/32 dev wire scope link proto 82',
      'route add unreachable 10.42.0.0/24 proto 82',
      'route add fd42:1::/64 via fd09::2 dev eth0 proto 82',
      'route add 10.43.0.0/24 via 192.168.9.2 proto static',
      'route add 10.44.0.0/24 via 192.168.9.2 proto 82 table 100',
    );
    const plain = {
      gateway: undefined,
      dev: undefined,
      onlink: false,
      nexthop: undefined,
    };
    expect(listRoutes(82, node.options)).toEqual([
      { ...plain, family: 4, type: 'unreachable', dst: '10.42.0.0/24' },
      { ...plain, family: 4, type: 'unicast', dst: '10.42.1.0/24', gateway: '192.168.9.2', dev: 'eth0' },
      {
        ...plain,
        family: 4,
        type: 'unicast',
        dst: '10.42.2.0/24',
        gateway: '10.42.2.0',
        dev: 'eth0',
        onlink: true,
      },
      { ...plain, family: 4, type: 'unicast', dst: '10.42.3.4/32', dev: 'wire' },
      {
        ...plain,
        family: 4,
        type: 'unicast',
        dst: '10.42.4.0/24',
        gateway: '192.168.9.3',
        dev: 'eth0',
        nexthop: 77,
      },
      { ...plain, family: 6, type: 'unicast', dst: 'fd42:1::/64', gateway: 'fd09::2', dev: 'eth0' },
    ]);
  });

  it('give the way to each address, in their order, and none where there is none', async () => {
    await using node = await testNode();
    // More than one message holds.
    const many = Array.from({ length: 150 }, (_, i) => `192.168.9.${i + 2}`);
    const ways = routesTo(['203.0.113.1', ...many, 'fd77::1', '192.168.9.1'], node.options);
    expect(ways[0]).toMatchObject({
      type: 'unicast',
      gateway: '192.168.9.254',
      dev: 'eth0',
    });
    expect(ways.slice(1, 151).map((way) => way?.dst)).toEqual(many.map((address) => `${address}/32`));
    expect(ways[151]).toMatchObject({ family: 6, type: 'unicast', gateway: 'fd09::fe' });
    expect(ways[152]).toMatchObject({ type: 'other', dev: 'lo' });
    await node.ip('route del default via 192.168.9.254');
    expect(routesTo(['203.0.113.1', '192.168.9.2'], node.options).map((way) => way?.dev)).toEqual([
      undefined,
      'eth0',
    ]);
  });

  it('give the permanent neighbours and FDB entries of one device', async () => {
    await using node = await testNode();
    await node.ip(
      'link add flannel.1 type vxlan id 1 local 192.168.9.1 dev eth0 dstport 8472 nolearning',
      'link set flannel.1 up',
      'neigh add 10.42.1.0 lladdr 0a:00:00:00:00:01 dev flannel.1 nud permanent',
      'neigh add fd42:1:: lladdr 0a:00:00:00:00:01 dev flannel.1 nud permanent',
      'neigh add 10.42.2.0 lladdr 0a:00:00:00:00:02 dev flannel.1 nud reachable',
      'neigh add proxy 10.42.3.0 dev flannel.1',
      'neigh add 192.168.9.9 lladdr 0a:00:00:00:00:09 dev eth0 nud permanent',
    );
    await node.run(
      'bridge',
      'fdb',
      'add',
      '0a:00:00:00:00:01',
      'dev',
      'flannel.1',
      'dst',
      '192.168.9.2',
      'self',
      'permanent',
    );
    await node.run(
      'bridge',
      'fdb',
      'add',
      '0a:00:00:00:00:02',
      'dev',
      'flannel.1',
      'dst',
      '192.168.9.3',
      'self',
      'dynamic',
    );
    expect(listNeighbours('flannel.1', node.options)).toEqual(
      new Map([
        ['10.42.1.0', '0a:00:00:00:00:01'],
        ['fd42:1::', '0a:00:00:00:00:01'],
      ]),
    );
    expect(listFdb('flannel.1', node.options)).toEqual(new Map([['0a:00:00:00:00:01', '192.168.9.2']]));
    expect(listNeighbours('flannel.2', node.options)).toEqual(new Map());
  });

  it('give the elements of a set of its family, and none without it', async () => {
    await using node = await testNetns();
    expect(listSetElements('t', 's', 4, node.options)).toEqual([]);
    const many = Array.from({ length: 3000 }, (_, i) => `10.0.${i >> 8}.${i & 255}`);
    await node.run(
      'nft',
      `add table inet t; add set inet t s { type ipv4_addr; size 4096; elements = { ${many.join(', ')} }; }`,
    );
    expect(listSetElements('t', 's', 4, node.options).toSorted()).toEqual(many.toSorted());
    expect(listSetElements('t', 's', 6, node.options)).toEqual([]);
  });

  it('lists another namespace and stays in its own', async () => {
    await using node = await testNode();
    const before = await ipJson<{ ifname: string }>(['link', 'show']);
    expect(listRoutes(3, node.options).map(({ dst }) => dst)).toEqual(['0.0.0.0/0', '::/0']);
    expect(await ipJson<{ ifname: string }>(['link', 'show'])).toEqual(before);
    expect(() => listRoutes(3, { netns: '/run/netns/none' })).toThrow(/ENOENT/);
  });
});
