// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { bytesToMac } from '../net/mac.ts';
import { dualStack, flannelNode, type TestNode } from './nodes.support.ts';
import { parseNode } from './node-lease.ts';
import { type OwnSubnets, PeerTable, type PeerView } from './peer-table.ts';

const older = '2026-01-01T00:00:00Z';
const younger = '2026-02-01T00:00:00Z';

/** A cluster of Nodes under the eyes of a PeerTable. */
class Cluster {
  readonly table = new PeerTable();
  nodes: TestNode[];
  own: OwnSubnets | undefined;

  constructor(...nodes: TestNode[]) {
    this.nodes = nodes;
  }

  view(): PeerView {
    return this.table.update(
      this.nodes.map((node) => parseNode(node, dualStack)),
      this.own,
    );
  }

  /** `name → v4 subnet @ VTEP` for each peer, in name order. */
  peers(): string[] {
    return this.view()
      .nodes.map(({ name, v4 }) => `${name} ${v4?.podCidr.base}/${v4?.podCidr.length} @ ${v4?.vtepIp}`)
      .sort();
  }

  alarms(): string[] {
    return this.view().alarms.map(({ node, reason }) => `${node}: ${reason}`);
  }
}

describe('the peer table', () => {
  it('follows nodes that come, change and go', () => {
    const cluster = new Cluster(flannelNode(1), flannelNode(2));
    expect(cluster.peers()).toEqual([
      'node-1 10.42.1.0/24 @ 192.168.1.1',
      'node-2 10.42.2.0/24 @ 192.168.1.2',
    ]);
    cluster.nodes[1] = flannelNode(2, { 'public-ip': '192.168.9.9' });
    expect(cluster.peers()).toEqual([
      'node-1 10.42.1.0/24 @ 192.168.1.1',
      'node-2 10.42.2.0/24 @ 192.168.9.9',
    ]);
    cluster.nodes.pop();
    expect(cluster.peers()).toEqual(['node-1 10.42.1.0/24 @ 192.168.1.1']);
    expect(cluster.alarms()).toEqual([]);
  });

  it.each([
    ['its address', { 'public-ipv6': '2001:db8::99' }, { vtepIp: '2001:db8::99' }],
    [
      'its MAC',
      { 'backend-v6-data': '{"VNI":1,"VtepMAC":"0a:00:00:00:06:99"}' },
      { vtepMac: '0a:00:00:00:06:99' },
    ],
    ['its word on checksums', { 'ripstop.io/udp6-zero-checksum': 'true' }, { zeroChecksum: true }],
    ['a NAT before it', { 'public-ipv6-overwrite': '2001:db8::1' }, { behindNat: true }],
  ])('applies a change of the v6 half alone: %s', (_, changes, half) => {
    const cluster = new Cluster(flannelNode(1));
    const before = cluster.view().nodes[0]!;
    cluster.nodes = [flannelNode(1, changes)];
    const after = cluster.view().nodes[0]!;
    expect(after).toEqual({ ...before, v6: { ...before.v6, ...half } });
    cluster.nodes = [flannelNode(1)];
    expect(cluster.view().nodes[0]).toEqual(before);
  });

  it('lets a v6 half come and go while the v4 half stays', () => {
    const v4Only = flannelNode(1, { 'backend-v6-data': null, 'public-ipv6': null });
    const cluster = new Cluster(v4Only);
    const { v4, v6 } = cluster.view().nodes[0]!;
    expect(v6).toBeUndefined();
    cluster.nodes = [flannelNode(1)];
    expect(cluster.view().nodes[0]).toMatchObject({ v4, v6: { vtepIp: '2001:db8::1' } });
    cluster.nodes = [v4Only];
    expect(cluster.view().nodes[0]).toEqual(expect.not.objectContaining({ v6: expect.anything() }));
    expect(cluster.alarms()).toEqual([]);
  });

  it('quarantines a node with its last good lease, and lets it out when it is mended', () => {
    const cluster = new Cluster(flannelNode(1), flannelNode(2));
    const good = cluster.peers();
    cluster.nodes[1] = flannelNode(2, { 'backend-data': 'rubbish' });
    expect(cluster.peers()).toEqual(good);
    expect(cluster.peers()).toEqual(good);
    expect(cluster.alarms()).toEqual([
      'node-2: quarantined with its last good lease: flannel.alpha.coreos.com/backend-data "rubbish": no JSON',
    ]);
    cluster.nodes[1] = flannelNode(2, { 'public-ip': '192.168.9.9' });
    expect(cluster.peers()[1]).toBe('node-2 10.42.2.0/24 @ 192.168.9.9');
    expect(cluster.alarms()).toEqual([]);
  });

  it('leaves out a broken node that was never good, and only that one', () => {
    const cluster = new Cluster(flannelNode(1), flannelNode(2, { 'public-ip': '127.0.0.1' }));
    expect(cluster.peers()).toHaveLength(1);
    expect(cluster.alarms()[0]).toMatch(/^node-2: left out, it has no earlier good lease: .*loopback/);
  });

  it('forgets a last good lease with its node: one of the same name starts anew', () => {
    const cluster = new Cluster(flannelNode(1));
    cluster.peers();
    cluster.nodes = [flannelNode(1, { 'backend-data': 'rubbish' }, { uid: 'another' })];
    expect(cluster.peers()).toEqual([]);
  });

  it('withdraws a node whose kube-subnet-manager is removed, also after a quarantine', () => {
    const cluster = new Cluster(flannelNode(1));
    cluster.peers();
    cluster.nodes = [flannelNode(1, { 'kube-subnet-manager': null })];
    expect(cluster.peers()).toEqual([]);
    cluster.nodes = [flannelNode(1, { 'backend-data': 'rubbish' })];
    expect(cluster.peers()).toEqual([]);
  });

  it('warns of a peer with another backend', () => {
    const cluster = new Cluster(flannelNode(1, { 'backend-type': 'wireguard' }));
    expect(cluster.peers()).toEqual([]);
    expect(cluster.alarms()).toEqual([
      'node-1: skipped: backend-type "wireguard"; this node speaks to vxlan peers only',
    ]);
  });

  it('refuses a podCIDR outside the network', () => {
    const cluster = new Cluster(flannelNode(1), flannelNode(2, {}, { podCIDRs: ['192.168.0.0/16'] }));
    expect(cluster.peers()).toHaveLength(1);
    expect(cluster.alarms()[0]).toContain('podCIDR 192.168.0.0/16 is outside Network 10.42.0.0/16');
  });

  it('replaces a node by one of the same name and a new UID, MAC and IP, whichever is seen first', () => {
    const old = flannelNode(1, {}, { createdAt: older });
    const fresh = flannelNode(1, { 'public-ip': '192.168.7.7' }, { uid: 'new', createdAt: younger });
    for (const nodes of [[old, fresh], [fresh, old], [fresh]]) {
      const cluster = new Cluster(old);
      cluster.peers();
      cluster.nodes = nodes;
      expect(cluster.peers()).toEqual(['node-1 10.42.1.0/24 @ 192.168.7.7']);
      expect(cluster.alarms()).toEqual([]);
    }
  });
});

describe('two nodes that claim the same addresses', () => {
  const subnet = ['10.42.5.0/24', 'fd00:42:0:5::/64'];
  const first = flannelNode(1, {}, { createdAt: older, podCIDRs: subnet });
  const second = flannelNode(2, {}, { createdAt: younger, podCIDRs: subnet });

  it('the older one wins in whatever order they come, with an alarm for each lost half', () => {
    for (const cluster of [new Cluster(first, second), new Cluster(second, first)]) {
      expect(cluster.peers()).toEqual(['node-1 10.42.5.0/24 @ 192.168.1.1']);
      expect(cluster.alarms()).toEqual([
        'node-2: podCIDR 10.42.5.0/24 refused: it overlaps 10.42.5.0/24 of node-1',
        'node-2: podCIDR fd00:42:0:5::/64 refused: it overlaps fd00:42:0:5::/64 of node-1',
      ]);
    }
  });

  it('the UID decides between nodes of the same second', () => {
    const twin = flannelNode(2, {}, { createdAt: older, podCIDRs: subnet, uid: 'uid-0' });
    expect(new Cluster(first, twin).peers()).toEqual(['node-2 10.42.5.0/24 @ 192.168.1.2']);
  });

  it('the deletion of the loser leaves the winner; that of the winner lets the loser in', () => {
    const cluster = new Cluster(first, second);
    cluster.peers();
    cluster.nodes = [first];
    expect(cluster.peers()).toEqual(['node-1 10.42.5.0/24 @ 192.168.1.1']);
    cluster.nodes = [first, second];
    cluster.peers();
    cluster.nodes = [second];
    expect(cluster.peers()).toEqual(['node-2 10.42.5.0/24 @ 192.168.1.2']);
    expect(cluster.alarms()).toEqual([]);
  });

  it('the winner in quarantine is still the winner', () => {
    const cluster = new Cluster(first, second);
    cluster.peers();
    cluster.nodes[0] = flannelNode(1, { 'backend-data': '' }, { createdAt: older, podCIDRs: subnet });
    expect(cluster.peers()).toEqual(['node-1 10.42.5.0/24 @ 192.168.1.1']);
  });

  it.each([
    ['a wider prefix', '10.42.4.0/22'],
    ['a narrower prefix', '10.42.5.128/25'],
  ])('%s of the younger is refused too', (_, cidr) => {
    const overlapping = flannelNode(2, {}, { createdAt: younger, podCIDRs: [cidr] });
    const cluster = new Cluster(overlapping, first);
    expect(cluster.peers()).toEqual(['node-1 10.42.5.0/24 @ 192.168.1.1']);
    expect(cluster.alarms()).toEqual([`node-2: podCIDR ${cidr} refused: it overlaps 10.42.5.0/24 of node-1`]);
  });

  it('lose only the half in question', () => {
    const half = flannelNode(2, {}, { createdAt: younger, podCIDRs: ['10.42.5.0/24', 'fd00:42:0:2::/64'] });
    const peer = new Cluster(first, half).view().nodes.find(({ name }) => name === 'node-2');
    expect(peer?.v4).toBeUndefined();
    expect(peer?.v6?.podCidr.base).toBe('fd00:42:0:2::');
  });

  it('never win against our own node, which is not its own peer; the alarm is still about the younger one', () => {
    const cluster = new Cluster(first, second, flannelNode(3));
    cluster.own = { name: 'node-2', podCidrs: subnet.map(parseCidr) };
    expect(cluster.peers()).toEqual(['node-3 10.42.3.0/24 @ 192.168.1.3']);
    expect(cluster.alarms()[0]).toBe(
      'node-2: other nodes refuse podCIDR 10.42.5.0/24: it overlaps 10.42.5.0/24 of node-1',
    );
    cluster.own = { ...cluster.own, name: 'node-1' };
    expect(cluster.alarms()[0]).toBe(
      'node-2: podCIDR 10.42.5.0/24 refused: it overlaps 10.42.5.0/24 of node-1 (this node)',
    );
    // Before it has a lease of its own, nobody knows how old its claim is.
    cluster.nodes = [second, flannelNode(3)];
    expect(cluster.alarms()[0]).toMatch(/^node-2: .* of node-1 \(this node\)$/);
  });

  it.each([
    ['malformed_lease', flannelNode(2, { 'backend-data': 'rubbish' })],
    ['malformed_node', { ...flannelNode(2), metadata: { name: 'node-2', uid: 'uid-2' } } as TestNode],
    ['podcidr_outside', flannelNode(2, {}, { podCIDRs: ['192.168.0.0/24'] })],
    ['podcidr_conflict', flannelNode(2, {}, { createdAt: younger, podCIDRs: ['10.42.1.0/24'] })],
    ['other_backend', flannelNode(2, { 'backend-type': 'wireguard' })],
    ['no_lease', flannelNode(2, {}, { podCIDRs: [] })],
    ['vtep_shared', flannelNode(2, { 'public-ip': '192.168.1.1' })],
  ])('and everything else that is wrong has a name for machines: %s', (kind, node) => {
    const { alarms } = new Cluster(flannelNode(1), node).view();
    expect(alarms).toEqual([{ node: 'node-2', uid: 'uid-2', kind, reason: expect.any(String) }]);
  });

  it('agree with a plain comparison of all pairs, in 40 seeded clusters', () => {
    let seed = 7;
    const random = (n: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * n);
    };
    for (let round = 0; round < 40; round++) {
      const nodes = Array.from({ length: 30 }, (_, i) => {
        const length = 20 + random(6);
        const value = (random(2 ** 16) >>> (32 - length)) << (32 - length);
        const cidr = `10.42.${(value >> 8) & 255}.${value & 255}/${length}`;
        const createdAt = new Date(Date.UTC(2026, 0, 1) + random(20) * 1000).toISOString();
        return flannelNode(i + 1, {}, { podCIDRs: [cidr], createdAt });
      });
      const accepted: { from: number; to: number; name: string }[] = [];
      const byAge = nodes.toSorted(({ metadata: a }, { metadata: b }) =>
        a.creationTimestamp === b.creationTimestamp
          ? a.uid < b.uid
            ? -1
            : 1
          : a.creationTimestamp < b.creationTimestamp
            ? -1
            : 1,
      );
      for (const { metadata, spec } of byAge) {
        const [base, length] = spec.podCIDR!.split('/');
        const from = base!.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
        const to = from + 2 ** (32 - Number(length));
        if (accepted.every((other) => to <= other.from || other.to <= from)) {
          accepted.push({ from, to, name: metadata.name });
        }
      }
      const view = new Cluster(...nodes).view();
      expect(view.nodes.map(({ name }) => name)).toEqual(accepted.map(({ name }) => name));
      expect(view.alarms).toHaveLength(nodes.length - accepted.length);
    }
  });
});

describe('of two nodes with one VTEP', () => {
  const mac = (n: number) => `{"VNI":1,"VtepMAC":"0a:00:00:00:04:0${n}"}`;
  const thief = (changes: Record<string, string>) => flannelNode(2, changes, { createdAt: younger });

  it.each([
    ['address', { 'public-ip': '192.168.1.1' }, 'public IP 192.168.1.1'],
    ['MAC', { 'backend-data': mac(1) }, 'IPv4 VTEP MAC 0a:00:00:00:04:01'],
  ])('the older keeps the %s, and the younger loses that family', (_, changes, what) => {
    const cluster = new Cluster(thief(changes), flannelNode(1));
    const [first, second] = cluster.view().nodes;
    expect([first!.name, first!.v4?.vtepIp]).toEqual(['node-1', '192.168.1.1']);
    expect([second!.v4, second!.v6?.vtepIp]).toEqual([undefined, '2001:db8::2']);
    expect(cluster.alarms()).toEqual([`node-2: refused: ${what} is that of node-1`]);
    cluster.nodes.pop();
    expect(cluster.view().nodes[0]!.v4).toBeDefined();
    expect(cluster.alarms()).toEqual([]);
  });

  it('this node counts too: as the older it keeps its own, as the younger it has the alarm itself', () => {
    const cluster = new Cluster(flannelNode(1), thief({ 'backend-data': mac(1) }));
    cluster.own = { name: 'node-1', podCidrs: [parseCidr('10.42.1.0/24')] };
    expect(cluster.view().nodes[0]!.v4).toBeUndefined();
    expect(cluster.alarms()[0]).toMatch(/^node-2: refused: IPv4 VTEP MAC .* of node-1 \(this node\)$/);
    cluster.own = { name: 'node-2', podCidrs: [parseCidr('10.42.2.0/24')] };
    expect(cluster.peers()).toEqual(['node-1 10.42.1.0/24 @ 192.168.1.1']);
    expect(cluster.alarms()[0]).toMatch(/^node-2: other nodes refuse it: IPv4 VTEP MAC .* of node-1$/);
  });

  it('one that is refused for its podCIDR keeps nothing from others', () => {
    const refused = thief({ 'public-ip': '192.168.1.3' });
    refused.spec.podCIDRs = ['10.42.1.0/24'];
    expect(
      new Cluster(
        flannelNode(1),
        refused,
        flannelNode(3, {}, { createdAt: '2026-03-01T00:00:00Z' }),
      ).peers()[1],
    ).toBe('node-3 10.42.3.0/24 @ 192.168.1.3');
  });
});

it('15,000 nodes take a pass of well under a second', () => {
  const parsed = Array.from({ length: 15_000 }, (_, i) => {
    const podCIDRs = [`10.${64 + (i >> 8)}.${i & 255}.0/24`];
    const settings = {
      keys: dualStack.keys,
      backend: 'vxlan' as const,
      vni: 1,
      network: parseCidr('10.0.0.0/8'),
    };
    const node = flannelNode(
      1,
      { 'public-ip': `172.16.${i >> 8}.${i & 255}` },
      { podCIDRs, uid: `uid-${i}` },
    );
    node.metadata.name = `node-${i}`;
    node.metadata.annotations['flannel.alpha.coreos.com/backend-data'] =
      `{"VNI":1,"VtepMAC":"${bytesToMac(Uint8Array.of(10, 0, 0, 0, i >> 8, i & 255))}"}`;
    return parseNode(node, settings);
  });
  const table = new PeerTable();
  const start = performance.now();
  const view = table.update(parsed);
  expect(performance.now() - start).toBeLessThan(1000);
  expect(view.nodes).toHaveLength(15_000);
  expect(view.alarms).toEqual([]);
});
