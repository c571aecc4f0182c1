// SPDX-License-Identifier: Apache-2.0
import { beforeEach, describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { dualStack, flannelNode, type TestNode } from './nodes.support.ts';
import { parseNode } from './node-lease.ts';
import { parseOwnNode } from './own-lease.ts';
import { type ClusterSnapshot, Snapshots } from './snapshot.ts';

const podCidrs = [parseCidr('10.42.1.0/24'), parseCidr('fd00:42:0:1::/64')];

let nodes: TestNode[];
let synced: boolean;
let own: TestNode | undefined;
let observed: number;
let snapshots: Snapshots;

/** What the snapshot is after a change that may have been none. */
function seen(): ClusterSnapshot {
  snapshots.invalidate();
  return snapshots.get(podCidrs);
}

beforeEach(() => {
  nodes = [1, 2, 3].map((n) => flannelNode(n));
  [synced, own, observed] = [true, flannelNode(1), 0];
  snapshots = new Snapshots('node-1', () => {
    observed++;
    return {
      synced,
      own: own && parseOwnNode(own, dualStack),
      nodes: nodes.map((node) => parseNode(node, dualStack)),
    };
  });
});

describe('a snapshot', () => {
  it('has a peer for each address family of each other node', () => {
    const { peers, nodes: byNode, alarms } = snapshots.get(podCidrs);
    expect(peers.map(({ name, podCidr }) => `${name} ${podCidr.base}`)).toEqual([
      'node-2 10.42.2.0',
      'node-2 fd00:42:0:2::',
      'node-3 10.42.3.0',
      'node-3 fd00:42:0:3::',
    ]);
    expect(byNode.map(({ uid }) => uid)).toEqual(['uid-2', 'uid-3']);
    expect(alarms).toEqual([]);
  });

  it('is made once, until something may have changed', () => {
    for (let i = 0; i < 10; i++) snapshots.get(podCidrs);
    expect(observed).toBe(1);
    snapshots.invalidate();
    for (let i = 0; i < 10; i++) snapshots.get(podCidrs);
    expect(observed).toBe(2);
  });

  it('keeps its revision as long as its content is the same', () => {
    const first = seen();
    nodes = nodes.map((node) => structuredClone(node));
    expect(seen().revision).toBe(first.revision);
  });

  it.each<[string, boolean, () => void]>([
    ['a new node', true, () => nodes.push(flannelNode(4))],
    ['a node that is gone', true, () => nodes.pop()],
    ['a changed IPv4 part', true, () => (nodes[1] = flannelNode(2, { 'public-ip': '192.168.9.9' }))],
    ['a changed IPv6 part', true, () => (nodes[1] = flannelNode(2, { 'public-ipv6': '2001:db8::9' }))],
    [
      'a lost IPv6 part',
      true,
      () => (nodes[1] = flannelNode(2, { 'backend-v6-data': null, 'public-ipv6': null })),
    ],
    ['a NAT', true, () => (nodes[1] = flannelNode(2, { 'public-ip-overwrite': '192.168.1.2' }))],
    ['a re-created node', true, () => (nodes[1] = flannelNode(2, {}, { uid: 'another' }))],
    ['an alarm', false, () => (nodes[1] = flannelNode(2, { 'backend-data': 'rubbish' }))],
    ['our own node', false, () => (own = flannelNode(1, { 'node-public-ip': '192.168.1.9' }))],
    ['the loss of our own node', false, () => (own = undefined)],
  ])('has a higher revision with %s', (_, ofPeers, change) => {
    const before = seen();
    change();
    const after = seen();
    expect(after.revision).toBe(before.revision + 1);
    expect(after.peersRevision - before.peersRevision).toBe(ofPeers ? 1 : 0);
    expect(seen().revision).toBe(after.revision);
  });

  it('never sends our podCIDRs away, whichever they are now', () => {
    const before = seen();
    const after = snapshots.get([parseCidr('10.42.2.0/24')]);
    expect(after.peersRevision).toBeGreaterThan(before.peersRevision);
    expect(after.peers.map(({ podCidr }) => podCidr.base)).not.toContain('10.42.2.0');
    expect(after.alarms).toMatchObject([{ node: 'node-2', kind: 'podcidr_conflict' }]);
  });
});

describe('last-known peers', () => {
  beforeEach(() => {
    const known = seen().nodes;
    synced = false;
    nodes = [];
    snapshots.useLastKnown(known);
  });

  it('stand in for all nodes until the first sync', () => {
    expect(seen()).toMatchObject({ synced: false, nodes: [{ name: 'node-2' }, { name: 'node-3' }] });
    nodes = [flannelNode(5)];
    expect(seen().nodes.map(({ name }) => name)).toEqual(['node-2', 'node-3']);
    synced = true;
    expect(seen()).toMatchObject({ synced: true, nodes: [{ name: 'node-5' }] });
  });

  it('are the last good leases of nodes that are broken since', () => {
    seen();
    nodes = [flannelNode(2, { 'backend-data': 'rubbish' })];
    synced = true;
    expect(seen()).toMatchObject({ nodes: [{ name: 'node-2' }], alarms: [{ kind: 'malformed_lease' }] });
  });
});
