// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ApiServer } from '../lab/apiserver/index.ts';
import { parseCidr } from '../net/ip.ts';
import { ApiClient } from './api-client.ts';
import { dualStack, flannelNode } from './nodes.support.ts';
import { parseNetConf } from './net-conf.ts';
import { parseNode } from './node-lease.ts';
import {
  fetchOwnNode,
  formatBackendData,
  leasePatch,
  ownPodCidrs,
  parseOwnNode,
  publishLease,
  withdrawLease,
} from './own-lease.ts';

const prefix = 'flannel.alpha.coreos.com/';
const v4 = { publicIp: '192.168.1.7', vtepMac: '0a:00:00:00:04:07' };
const v6 = { publicIp: '2001:db8::7', vtepMac: '0a:00:00:00:06:07' };
const bare = Object.fromEntries(
  ['kube-subnet-manager', 'backend-type', 'backend-data', 'public-ip', 'backend-v6-data', 'public-ipv6'].map(
    (key) => [key, null],
  ),
);
const zeroChecksum = 'ripstop.io/udp6-zero-checksum';
const podCidrs = 'ripstop.io/pod-cidrs';
const ofNode7 = '10.42.7.0/24,fd00:42:0:7::/64';
/** Our own Node as we left it. */
const own = (changes: Record<string, string | null> = {}, podCIDRs?: string[]) =>
  parseOwnNode(
    flannelNode(7, { [zeroChecksum]: 'true', [podCidrs]: ofNode7, ...changes }, podCIDRs ? { podCIDRs } : {}),
    dualStack,
  );

describe('our own lease', () => {
  it("has backend data in flannel's own spelling", () => {
    expect(formatBackendData(1, 'aa:bb:cc:dd:ee:ff')).toBe('{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}');
  });

  it('is published whole on a bare node, with the condition once the data plane forwards', () => {
    const now = new Date('2026-08-01T10:00:00.500Z');
    const node = own({ ...bare, [zeroChecksum]: null, [podCidrs]: null });
    expect(leasePatch(node, { v4, v6, flannelIsUp: true }, dualStack, now)).toEqual({
      metadata: {
        annotations: {
          [`${prefix}backend-type`]: 'vxlan',
          [`${prefix}backend-data`]: '{"VNI":1,"VtepMAC":"0a:00:00:00:04:07"}',
          [`${prefix}public-ip`]: '192.168.1.7',
          [`${prefix}backend-v6-data`]: '{"VNI":1,"VtepMAC":"0a:00:00:00:06:07"}',
          [`${prefix}public-ipv6`]: '2001:db8::7',
          [zeroChecksum]: 'true',
          [podCidrs]: ofNode7,
          [`${prefix}kube-subnet-manager`]: 'true',
        },
      },
      status: {
        conditions: [
          {
            type: 'NetworkUnavailable',
            status: 'False',
            reason: 'FlannelIsUp',
            message: 'ripstop forwards for this node',
            lastTransitionTime: '2026-08-01T10:00:00Z',
            lastHeartbeatTime: '2026-08-01T10:00:00Z',
          },
        ],
      },
    });
  });

  it('is not published again when the node shows it already', () => {
    expect(leasePatch(own(), { v4, v6, flannelIsUp: false }, dualStack)).toBeUndefined();
  });

  it('is published by its differences: another MAC, an address that moved', () => {
    const changed = leasePatch(
      own(),
      {
        v4: { ...v4, vtepMac: '0a:00:00:00:04:99' },
        v6: { ...v6, publicIp: '2001:db8::8' },
        flannelIsUp: false,
      },
      dualStack,
    );
    expect(changed).toEqual({
      metadata: {
        annotations: {
          [`${prefix}backend-data`]: '{"VNI":1,"VtepMAC":"0a:00:00:00:04:99"}',
          [`${prefix}public-ipv6`]: '2001:db8::8',
        },
      },
    });
  });

  it('takes back the half of a family that was turned off', () => {
    expect(leasePatch(own(), { v4, flannelIsUp: false }, dualStack)).toEqual({
      metadata: {
        annotations: {
          [`${prefix}backend-v6-data`]: null,
          [`${prefix}public-ipv6`]: null,
          [zeroChecksum]: null,
        },
      },
    });
  });

  it.each([
    [
      'another MAC',
      { vtepMac: '0a:00:00:00:06:99' },
      'backend-v6-data',
      '{"VNI":1,"VtepMAC":"0a:00:00:00:06:99"}',
    ],
    ['another address', { publicIp: '2001:db8::8' }, 'public-ipv6', '2001:db8::8'],
  ])('is published when of its IPv6 half alone something changes: %s', (_, change, key, value) => {
    expect(leasePatch(own(), { v4, v6: { ...v6, ...change }, flannelIsUp: false }, dualStack)).toEqual({
      metadata: { annotations: { [prefix + key]: value } },
    });
  });

  it('says what a plain flannel that ran here before did not: that checksums of zero are accepted', () => {
    const node = own({ [zeroChecksum]: null });
    expect(leasePatch(node, { v4, v6, flannelIsUp: false }, dualStack)).toEqual({
      metadata: { annotations: { [zeroChecksum]: 'true' } },
    });
    expect(leasePatch(node, { v4, flannelIsUp: false }, dualStack)?.metadata?.annotations).not.toHaveProperty(
      [zeroChecksum],
    );
  });

  it.each([
    ['nothing', null, undefined, ofNode7],
    ['what another spec says', '10.42.9.0/24', undefined, ofNode7],
    ['their order turned round', 'fd00:42:0:7::/64,10.42.7.0/24', undefined, ofNode7],
    ['one, but there is none in the spec', '10.42.7.0/24', [], null],
  ])('says which podCIDRs the spec has, where the annotation says %s', (_, said, podCIDRs, written) => {
    const node = own({ [podCidrs]: said }, podCIDRs);
    expect(leasePatch(node, { v4, v6, flannelIsUp: false }, dualStack)).toEqual({
      metadata: { annotations: { [podCidrs]: written } },
    });
  });

  it('of a cluster with IPv6 only has that half alone', () => {
    const node = own({ ...bare, [zeroChecksum]: null, [podCidrs]: null });
    const written = leasePatch(node, { v6, flannelIsUp: false }, dualStack)?.metadata?.annotations;
    expect(Object.keys(written ?? {})).toEqual(
      ['backend-type', 'backend-v6-data', 'public-ipv6']
        .map((key) => prefix + key)
        .concat(zeroChecksum, podCidrs, `${prefix}kube-subnet-manager`),
    );
  });

  it('publishes the address that the user wants others to dial, and refuses one that is none', () => {
    const patch = (overwrite: string) =>
      leasePatch(own({ 'public-ip-overwrite': overwrite }), { v4, v6, flannelIsUp: false }, dualStack);
    expect(patch('203.0.113.9')?.metadata?.annotations).toEqual({ [`${prefix}public-ip`]: '203.0.113.9' });
    expect(() => patch('nat.example.com')).toThrow(
      'public-ip-overwrite "nat.example.com" is not an IPv4 address',
    );
  });

  it('keeps the MAC published before a restart; a broken one is replaced', () => {
    expect(own().vtepMac).toEqual({ v4: v4.vtepMac, v6: v6.vtepMac });
    expect(own({ 'backend-data': 'rubbish' }).vtepMac).toEqual({ v6: v6.vtepMac });
  });

  it("reads the user's node-public-ip", () => {
    expect(own({ 'node-public-ip': '192.168.2.7' }).nodePublicIp).toEqual({ v4: '192.168.2.7' });
    expect(() => own({ 'node-public-ip': 'eth0' })).toThrow('node-public-ip "eth0" is not an IPv4 address');
  });
});

describe('our podCIDR', () => {
  const netConf = parseNetConf('{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}');
  const dual = parseNetConf(
    '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/56","Backend":{"Type":"vxlan"}}',
  );

  const v6Only = parseNetConf(
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/56","Backend":{"Type":"vxlan"}}',
  );

  it('comes from the spec, for the families that are on', () => {
    expect(ownPodCidrs(own(), netConf)).toEqual({ v4: parseCidr('10.42.7.0/24') });
    expect(ownPodCidrs(own(), dual)).toEqual({
      v4: parseCidr('10.42.7.0/24'),
      v6: parseCidr('fd00:42:0:7::/64'),
    });
    expect(ownPodCidrs(own(), v6Only)).toEqual({ v6: parseCidr('fd00:42:0:7::/64') });
  });

  it('comes from podCIDR alone where podCIDRs is missing', () => {
    const node = flannelNode(7);
    delete node.spec.podCIDRs;
    expect(ownPodCidrs(parseOwnNode(node, dualStack), netConf).v4?.base).toBe('10.42.7.0');
  });

  it('is asked for from whoever has to assign it', () => {
    expect(() => ownPodCidrs(own({}, []), netConf)).toThrow(
      'node node-7 has no podCIDR: kube-controller-manager assigns it when it runs with ' +
        '--allocate-node-cidrs=true --cluster-cidr=10.42.0.0/16',
    );
    expect(() => ownPodCidrs(own({}, []), dual)).toThrow(
      'node node-7 has no IPv4 podCIDR: kube-controller-manager assigns it when it runs with ' +
        '--allocate-node-cidrs=true --cluster-cidr=10.42.0.0/16,fd00:42::/56',
    );
    expect(() => ownPodCidrs(own({}, ['10.42.7.0/24']), dual)).toThrow(
      /^node node-7 has no IPv6 podCIDR: .*=10\.42\.0\.0\/16,fd00:42::\/56 .*; it already has 10\.42\.7\.0\/24, .*Node/,
    );
    expect(() => ownPodCidrs(own({}, ['10.42.7.0/24']), v6Only)).toThrow('has no IPv6 podCIDR');
  });

  it('must lie in the network of net-conf.json', () => {
    expect(() => ownPodCidrs(own({}, ['10.244.7.0/24']), netConf)).toThrow(
      'podCIDR 10.244.7.0/24, which is outside the network 10.42.0.0/16 of net-conf.json',
    );
    expect(() => ownPodCidrs(own({}, ['10.42.7.0/24', 'fd00:99::/64']), dual)).toThrow(
      'podCIDR fd00:99::/64, which is outside the network fd00:42::/56 of net-conf.json',
    );
  });
});

describe('publishing to an API server', () => {
  let server: ApiServer;
  let client: ApiClient;
  let directory: string;

  beforeAll(async () => {
    server = await ApiServer.start();
    directory = await mkdtemp(path.join(tmpdir(), 'ripstop-cluster-'));
    const kubeconfig = path.join(directory, 'kubeconfig');
    await writeFile(kubeconfig, server.kubeconfig());
    client = await ApiClient.open({ kubeconfig });
  });

  afterAll(async () => {
    client.close();
    await server.close();
    await rm(directory, { recursive: true });
  });

  it('makes a bare node a peer to others, once, and leaves other conditions alone', async () => {
    server.store.create('nodes', {
      ...flannelNode(7, bare),
      metadata: { name: 'node-7', annotations: { other: 'kept' } },
      status: {
        conditions: [
          { type: 'Ready', status: 'True', reason: 'KubeletReady' },
          { type: 'NetworkUnavailable', status: 'True', reason: 'NoRouteCreated' },
        ],
      },
    });
    const lease = { v4, v6, flannelIsUp: true };
    const before = await fetchOwnNode(client, 'node-7', dualStack);
    expect(await publishLease(client, before, lease, dualStack)).toBe(true);
    const after = await fetchOwnNode(client, 'node-7', dualStack);
    expect(after.flannelIsUp).toBe(true);
    const { revision } = server.store;
    expect(await publishLease(client, after, lease, dualStack)).toBe(false);
    expect(server.store.revision).toBe(revision);

    const node = server.store.get('nodes', 'node-7');
    expect(node?.metadata.annotations?.['other']).toBe('kept');
    expect(node?.status?.['conditions']).toMatchObject([
      { type: 'Ready', status: 'True' },
      { type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' },
    ]);
    expect(parseNode(node, dualStack)).toMatchObject({
      kind: 'peer',
      peer: {
        v4: { vtepIp: v4.publicIp, vtepMac: v4.vtepMac },
        v6: { vtepIp: v6.publicIp, zeroChecksum: true },
      },
    });

    const moved = { ...lease, v6: { ...v6, publicIp: '2001:db8::99' } };
    expect(await publishLease(client, after, moved, dualStack)).toBe(true);
    const last = server.store.get('nodes', 'node-7');
    expect(parseNode(last, dualStack)).toMatchObject({
      kind: 'peer',
      peer: { v4: { vtepIp: v4.publicIp, vtepMac: v4.vtepMac }, v6: { vtepIp: '2001:db8::99' } },
    });
    expect(last?.metadata.annotations?.['other']).toBe('kept');

    await withdrawLease(client, await fetchOwnNode(client, 'node-7', dualStack), dualStack);
    expect(server.store.get('nodes', 'node-7')?.metadata.annotations).toEqual({ other: 'kept' });
  });

  it('of a node that is not there says so', async () => {
    await expect(fetchOwnNode(client, 'ghost', dualStack)).rejects.toThrow(
      /404.*there is no node named ghost.*--node-name/,
    );
  });
});
