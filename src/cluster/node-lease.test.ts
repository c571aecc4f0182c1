// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { annotationKeys } from './annotations.ts';
import { dualStack, flannelNode } from './nodes.support.ts';
import { type LeaseSettings, leaseSettings, parseNode } from './node-lease.ts';
import { parseNetConf } from './net-conf.ts';

const ipv4Only: LeaseSettings = {
  keys: annotationKeys(),
  backend: 'vxlan',
  vni: 1,
  network: parseCidr('10.42.0.0/16'),
};

describe("a flannel node's annotations", () => {
  it('make a peer with a half for each family', () => {
    expect(parseNode(flannelNode(7), dualStack)).toEqual({
      kind: 'peer',
      name: 'node-7',
      uid: 'uid-7',
      peer: {
        name: 'node-7',
        uid: 'uid-7',
        createdAt: Date.UTC(2026, 0, 1),
        v4: {
          name: 'node-7',
          vtepIp: '192.168.1.7',
          vtepMac: '0a:00:00:00:04:07',
          podCidr: parseCidr('10.42.7.0/24'),
          behindNat: false,
          zeroChecksum: false,
        },
        v6: {
          name: 'node-7',
          vtepIp: '2001:db8::7',
          vtepMac: '0a:00:00:00:06:07',
          podCidr: parseCidr('fd00:42:0:7::/64'),
          behindNat: false,
          zeroChecksum: false,
        },
      },
    });
  });

  it('are read only for the families that are on, so a half that is off may be anything', () => {
    const node = flannelNode(7, { 'backend-v6-data': 'rubbish' });
    expect(parseNode(node, ipv4Only)).toMatchObject({
      kind: 'peer',
      peer: { v4: { vtepIp: '192.168.1.7' } },
    });
    expect(parseNode(node, ipv4Only)).not.toHaveProperty('peer.v6');
  });

  it('are not all that the node may send from: its Node has other addresses, most of them of use', () => {
    const addresses = [
      ['InternalIP', '192.168.1.77'],
      ['InternalIP', '192.168.1.7'],
      ['ExternalIP', '2001:db8::77'],
      ['InternalIP', '127.0.0.1'],
      ['InternalIP', '10.42.7.9'],
      ['Hostname', 'node-7'],
    ].map(([type, address]) => ({ type, address }));
    expect(parseNode({ ...flannelNode(7), status: { addresses } }, dualStack)).toMatchObject({
      peer: { v4: { otherIps: ['192.168.1.77'] }, v6: { otherIps: ['2001:db8::77'] } },
    });
  });

  it('of an IPv4 node in a dual-stack cluster make a peer with one half', () => {
    const node = flannelNode(7, { 'backend-v6-data': null, 'public-ipv6': null });
    expect(parseNode(node, dualStack)).toMatchObject({ kind: 'peer', peer: { v4: {} } });
    expect(parseNode(node, dualStack)).not.toHaveProperty('peer.v6');
  });

  it('tell a node behind NAT', () => {
    const node = flannelNode(7, { 'public-ip-overwrite': '203.0.113.9', 'public-ip': '203.0.113.9' });
    expect(parseNode(node, dualStack)).toMatchObject({
      peer: { v4: { vtepIp: '203.0.113.9', behindNat: true }, v6: { behindNat: false } },
    });
  });

  it.each([
    ['true', true],
    ['yes', false],
    ['', false],
  ])('tell whether the peer accepts IPv6 packets without an outer checksum: %j', (value, zeroChecksum) => {
    const node = flannelNode(7, { [annotationKeys().zeroChecksum]: value });
    expect(parseNode(node, dualStack)).toMatchObject({
      peer: { v4: { zeroChecksum: false }, v6: { zeroChecksum } },
    });
  });

  it('of the time before VNI was published mean the cluster’s VNI', () => {
    const node = flannelNode(7, { 'backend-data': '{"VtepMAC":"0A:00:00:00:04:07"}' });
    expect(parseNode(node, dualStack)).toMatchObject({
      peer: { v4: { vtepMac: '0a:00:00:00:04:07' } },
    });
  });

  it('come under another prefix when flannel was told so', () => {
    const netConf = parseNetConf('{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}');
    const settings = leaseSettings(netConf, 'example.com/blue');
    const node = flannelNode(7);
    expect(parseNode(node, settings).kind).toBe('ignored');
    for (const [key, value] of Object.entries(node.metadata.annotations)) {
      node.metadata.annotations[key.replace('flannel.alpha.coreos.com/', 'example.com/blue-')] = value;
    }
    expect(parseNode(node, settings).kind).toBe('peer');
  });
});

describe('nodes that are no peers', () => {
  it.each([
    [
      'not flannel’s',
      { 'kube-subnet-manager': null },
      undefined,
      'no annotation flannel.alpha.coreos.com/kube-subnet-manager',
    ],
    ['disowned', { 'kube-subnet-manager': 'false' }, undefined, 'no annotation'],
    [
      'of another backend',
      { 'backend-type': 'host-gw', 'backend-data': 'null' },
      'other_backend',
      'backend-type "host-gw"',
    ],
    ['of no backend', { 'backend-type': null }, 'other_backend', 'no backend-type'],
  ])('%s', (_, changes, alarm, reason) => {
    const parsed = parseNode(flannelNode(7, changes), dualStack);
    expect(parsed).toMatchObject({ kind: 'ignored', reason: expect.stringContaining(reason) });
    expect('alarm' in parsed ? parsed.alarm : undefined).toBe(alarm);
  });

  it('without a podCIDR, yet', () => {
    const parsed = parseNode(flannelNode(7, {}, { podCIDRs: [] }), dualStack);
    expect(parsed).toMatchObject({ kind: 'ignored', reason: 'no podCIDR yet' });
  });
});

describe('hostile and broken Nodes', () => {
  const mac = (text: string) => ({ 'backend-data': JSON.stringify({ VNI: 1, VtepMAC: text }) });
  it.each<[string, Record<string, string | null>, string]>([
    ['no JSON', { 'backend-data': '{"VNI":1' }, 'no JSON'],
    ['a wrong type', { 'backend-data': '"vxlan"' }, 'not a JSON object'],
    ['an array', { 'backend-data': '[1]' }, 'not a JSON object'],
    ['deep nesting', { 'backend-data': '['.repeat(100_000) }, 'longer than 1024'],
    ['no MAC', { 'backend-data': '{"VNI":1}' }, 'VtepMAC is no MAC address'],
    ['a MAC of mixed form', mac('0a-00:00-00:04-07'), 'no MAC address'],
    ['a MAC of eight bytes', mac('0a:00:00:00:00:00:04:07'), 'no MAC address'],
    ['a MAC with an escape', mac('0a:00:00:00:04:07\n'), 'no MAC address'],
    ['a zero MAC', mac('00:00:00:00:00:00'), 'all zero'],
    ['a multicast MAC', mac('01:00:5e:00:00:01'), 'group address'],
    ['the broadcast MAC', mac('ff:ff:ff:ff:ff:ff'), 'group address'],
    ['another VNI', { 'backend-data': '{"VNI":2,"VtepMAC":"0a:00:00:00:04:07"}' }, 'VNI 2, but this cluster'],
    ['a fractional VNI', { 'backend-data': '{"VNI":1.5,"VtepMAC":"0a:00:00:00:04:07"}' }, 'VNI'],
    ['a VNI as text', { 'backend-data': '{"VNI":"1","VtepMAC":"0a:00:00:00:04:07"}' }, 'VNI'],
    ['a VNI too large', { 'backend-data': '{"VNI":16777216,"VtepMAC":"0a:00:00:00:04:07"}' }, 'VNI'],
    ['data without an address', { 'public-ip': null }, 'public-ip is missing'],
    ['an address without data', { 'backend-data': null }, 'backend-data is missing'],
    ['null data', { 'backend-data': 'null' }, 'backend-data is missing'],
    ['no address', { 'public-ip': 'localhost' }, 'is not an IPv4 address'],
    ['a shell command', { 'public-ip': '1.2.3.4; reboot' }, 'is not an IPv4 address'],
    ['an octal address', { 'public-ip': '0300.1.1.1' }, 'is not an IPv4 address'],
    ['an address of the other family', { 'public-ip': '2001:db8::7' }, 'is not an IPv4 address'],
    ['a loopback address', { 'public-ip': '127.0.0.1' }, 'is loopback'],
    ['a multicast address', { 'public-ip': '224.0.0.1' }, 'is multicast'],
    ['the broadcast address', { 'public-ip': '255.255.255.255' }, 'is broadcast'],
    ['the unspecified address', { 'public-ip': '0.0.0.0' }, 'is unspecified'],
    ['an address inside its own tunnel', { 'public-ip': '10.42.7.3' }, "lies in the node's own podCIDR"],
    ['IPv6: a broken half', { 'backend-v6-data': '{}' }, 'backend-v6-data'],
    ['IPv6: loopback', { 'public-ipv6': '::1' }, 'is loopback'],
    ['IPv6: unspecified', { 'public-ipv6': '::' }, 'is unspecified'],
    ['IPv6: multicast', { 'public-ipv6': 'ff02::1' }, 'is multicast'],
    ['IPv6: link-local', { 'public-ipv6': 'fe80::1' }, 'is linkLocal'],
    ['IPv6: with a scope', { 'public-ipv6': 'fe80::1%eth0' }, 'is not an IPv6 address'],
    ['IPv6: mapped IPv4', { 'public-ipv6': '::ffff:1.2.3.4' }, 'is not an IPv6 address'],
  ])('%s', (_, changes, reason) => {
    const parsed = parseNode(flannelNode(7, changes), dualStack);
    expect(parsed).toMatchObject({ kind: 'malformed', name: 'node-7', uid: 'uid-7' });
    expect(parsed).toHaveProperty('reason', expect.stringContaining(reason));
    expect((parsed as { reason: string }).reason.length).toBeLessThan(400);
  });

  it.each([
    ['{"vni":1,"vtepmac":"0A-00-00-00-04-07"}', '192.168.1.7'],
    ['{"VNI":null,"VtepMAC":"0a00.0000.0407"}', '::ffff:192.168.1.7'],
  ])('annotations that are not as flannel writes them, but that it reads: %s, %s', (data, publicIp) => {
    const node = flannelNode(7, { 'backend-data': data, 'public-ip': publicIp });
    expect(parseNode(node, dualStack)).toMatchObject({
      peer: { v4: { vtepMac: '0a:00:00:00:04:07', vtepIp: '192.168.1.7' } },
    });
  });

  it('podCIDRs with host bits are the blocks that flannel makes of them', () => {
    const parsed = parseNode(
      flannelNode(7, {}, { podCIDRs: ['10.42.7.1/24', 'fd00:42:0:7::1/64'] }),
      dualStack,
    );
    expect(parsed).toMatchObject({
      kind: 'peer',
      peer: { v4: { podCidr: { base: '10.42.7.0' } }, v6: { podCidr: { base: 'fd00:42:0:7::' } } },
    });
  });

  it.each([
    [['10.99.7.0/24'], 'podCIDR 10.99.7.0/24 is outside Network 10.42.0.0/16'],
    [['10.0.0.0/8'], 'outside Network'],
    [['0.0.0.0/0'], 'outside Network'],
    [['10.42.7.0/24', 'fd00:99::/64'], 'outside Network fd00:42::/56'],
    [['10.42.7.0'], 'not a CIDR'],
    [['10.42.7.0/24', '10.42.8.0/24'], 'two podCIDRs of one family'],
    [['x'.repeat(5000)], 'not a CIDR'],
  ])('podCIDRs %j', (podCIDRs, reason) => {
    const parsed = parseNode(flannelNode(7, {}, { podCIDRs }), dualStack);
    expect(parsed).toMatchObject({ kind: 'malformed', reason: expect.stringContaining(reason) });
  });

  it.each([
    ['null', null],
    ['text', 'node'],
    ['an empty object', {}],
    ['metadata of a wrong type', { metadata: 7 }],
    ['a numeric annotation', { metadata: { ...flannelNode(7).metadata, annotations: { a: 1 } } }],
    ['an impossible time', { metadata: { ...flannelNode(7).metadata, creationTimestamp: 'yesterday' } }],
    ['a name that is none', { metadata: { ...flannelNode(7).metadata, name: '../../etc' } }],
    ['podCIDRs of a wrong type', { ...flannelNode(7), spec: { podCIDRs: 'all' } }],
  ])('%s is malformed, never an exception', (_, node) => {
    expect(parseNode(node, dualStack)).toMatchObject({ kind: 'malformed' });
  });

  it('takes nothing from prototypes', () => {
    const node = flannelNode(7, { 'backend-data': '{"__proto__":{"VtepMAC":"0a:00:00:00:04:07"},"VNI":1}' });
    expect(parseNode(node, dualStack).kind).toBe('malformed');
  });

  it('a seeded storm of mutations never throws, and what passes is sane', () => {
    let seed = 20260801;
    const random = (n: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * n);
    };
    const text = JSON.stringify(flannelNode(7));
    for (let round = 0; round < 3000; round++) {
      const chars = text.split('');
      for (let i = random(3); i >= 0; i--) {
        chars[random(chars.length)] = String.fromCharCode(random(2) ? 32 + random(95) : 48 + random(10));
      }
      let node: unknown;
      try {
        node = JSON.parse(chars.join(''));
      } catch {
        continue;
      }
      const parsed = parseNode(node, dualStack);
      if (parsed.kind !== 'peer' || !parsed.peer.v4) continue;
      expect(parsed.peer.v4.podCidr.base).toMatch(/^10\.42\./);
      expect(parsed.peer.v4.vtepMac).toMatch(/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/);
    }
  });
});
