// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import {
  chooseSubnet,
  type ClaimedLease,
  claimOf,
  formatLease,
  formatSubnetKey,
  parseLease,
  parseSubnetKey,
} from './etcd-leases.ts';
import { parseEtcdNetConf } from './etcd-net-conf.ts';
import { leaseSettings } from './node-lease.ts';

const DUAL =
  '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/56","Backend":{"Type":"vxlan","VNI":7}}';
const settings = leaseSettings(parseEtcdNetConf(DUAL, 'config'));
const value = (changes: Record<string, unknown> = {}): string =>
  JSON.stringify({
    PublicIP: '192.168.1.1',
    PublicIPv6: '2001:db8::1',
    BackendType: 'vxlan',
    BackendData: { VNI: 7, VtepMAC: '0A:00:00:00:04:01' },
    BackendV6Data: { VNI: 7, VtepMAC: '0a:00:00:00:06:01' },
    ...changes,
  });
const KEY = '10.42.1.0-24&fd00:42:0:1::-64';
const read = (key: string, text: string, lease = 5n) =>
  parseLease(key, { value: text, createRevision: 9, lease }, settings);

describe('a key', () => {
  it.each(['10.42.1.0-24', '10.42.1.64-26', KEY, '10.42.1.0-24&fd00::-64'])(
    '%s is read and written',
    (key) => {
      expect(formatSubnetKey(parseSubnetKey(key))).toBe(key);
    },
  );

  it.each([
    '',
    'x',
    '10.42.1.0',
    '10.42.1.0/24',
    '10.42.1.7-24',
    '10.42.1.0-33',
    '10.42.1-24',
    '10.42.1.0-24&',
    '10.42.1.0-24&10.0.0.0-24',
    '10.42.1.0-24&fd00::1-64',
    'fd00::-64',
    '10.42.1.0-24/x',
  ])('%j is none', (key) => {
    expect(() => parseSubnetKey(key)).toThrow();
    expect(read(key, value())).toMatchObject({ kind: 'malformed', alarm: 'malformed_lease' });
  });
});

describe('a lease', () => {
  it('of both families is a peer', () => {
    expect(read(KEY, value())).toEqual({
      name: KEY,
      uid: `${KEY}@9`,
      kind: 'peer',
      peer: {
        name: KEY,
        uid: `${KEY}@9`,
        createdAt: 9,
        v4: {
          name: KEY,
          vtepIp: '192.168.1.1',
          vtepMac: '0a:00:00:00:04:01',
          podCidr: parseCidr('10.42.1.0/24'),
          behindNat: false,
          zeroChecksum: false,
        },
        v6: {
          name: KEY,
          vtepIp: '2001:db8::1',
          vtepMac: '0a:00:00:00:06:01',
          podCidr: parseCidr('fd00:42:0:1::/64'),
          behindNat: false,
          zeroChecksum: false,
        },
      },
    });
  });

  it('is read as it is written', () => {
    const v4 = { publicIp: '192.168.1.1', vtepMac: '0a:00:00:00:04:01' };
    const text = formatLease({ v4 }, settings);
    expect(read('10.42.1.0-24', text)).toMatchObject({
      kind: 'peer',
      peer: { v4: { vtepIp: v4.publicIp, vtepMac: v4.vtepMac } },
    });
  });

  it.each([
    [KEY, value({ BackendType: 'host-gw' }), 5n, { kind: 'ignored', alarm: 'other_backend' }],
    [KEY, '{"PublicIP":"192.168.1.1"}', 5n, { kind: 'ignored', alarm: 'other_backend' }],
    [KEY, '{"PublicIP":"192.168.1.1","PublicIPv6":null}', 0n, { kind: 'ignored', reason: 'reserved' }],
    ['10.99.1.0-24', value(), 5n, { kind: 'malformed', alarm: 'podcidr_outside' }],
    ['10.42.1.0-24&fd01::-64', value(), 5n, { kind: 'malformed', alarm: 'podcidr_outside' }],
    [KEY, value({ PublicIP: '127.0.0.1' }), 5n, { kind: 'malformed' }],
    [KEY, value({ PublicIP: '10.42.1.9' }), 5n, { kind: 'malformed' }],
    [KEY, value({ PublicIP: 7 }), 5n, { kind: 'malformed' }],
    [KEY, value({ PublicIPv6: null }), 5n, { kind: 'malformed' }],
    [KEY, value({ BackendData: { VNI: 8, VtepMAC: '0a:00:00:00:04:01' } }), 5n, { kind: 'malformed' }],
    [KEY, value({ BackendData: { VNI: 7, VtepMAC: '' } }), 5n, { kind: 'malformed' }],
    [KEY, value({ BackendData: null }), 5n, { kind: 'malformed' }],
    [KEY, value({ BackendV6Data: 'x' }), 5n, { kind: 'malformed' }],
    [KEY, `${value()}${' '.repeat(5000)}`, 5n, { kind: 'malformed' }],
    [KEY, '\u0000', 5n, { kind: 'malformed' }],
  ])('%s with %s is no peer', (key, text, lease, expected) => {
    expect(read(key, text, lease)).toMatchObject(expected);
  });

  it('of an IPv4 only neighbour in a dual-stack cluster has one half', () => {
    const node = read('10.42.1.0-24', value());
    expect(node.kind === 'peer' && [node.peer.v4 !== undefined, node.peer.v6 !== undefined]).toEqual([
      true,
      false,
    ]);
  });
});

describe('the choice of a subnet', () => {
  const { subnets: v4Only } = parseEtcdNetConf(
    '{"Network":"10.42.0.0/21","Backend":{"Type":"vxlan"}}',
    'config',
  );
  let revision = 0;
  const lease = (key: string, ip: string, mac = '0a:00:00:00:04:99'): ClaimedLease =>
    claimOf(
      key,
      {
        key,
        value: value({ PublicIP: ip, BackendData: { VNI: 7, VtepMAC: mac } }),
        createRevision: ++revision,
        modRevision: revision,
        lease: 1n,
      },
      settings,
    );
  const chosen = (leases: ClaimedLease[], own: object = {}, at = 0): string => {
    const choice = chooseSubnet(leases, v4Only, { publicIp: '192.168.1.1', ...own }, () => at);
    return `${choice.kind} ${choice.kind === 'reuse' ? choice.lease.key : formatSubnetKey(choice.subnets)}`;
  };

  it('is ours, before the one of before, before any', () => {
    const ours = lease('10.42.3.0-24', '192.168.1.1');
    const other = lease('10.42.1.0-24', '192.168.1.2');
    const previous = { v4: parseCidr('10.42.5.0/24') };
    expect(chosen([other, ours], { previous })).toBe('reuse 10.42.3.0-24');
    expect(chosen([other], { previous })).toBe('create 10.42.5.0-24');
    expect(chosen([other])).toBe('create 10.42.2.0-24');
  });

  it('of two of ours is the one whose addresses our pods have, or the older', () => {
    const two = [lease('10.42.3.0-24', '192.168.1.1'), lease('10.42.2.0-24', '192.168.1.1')];
    expect(chosen(two)).toBe('reuse 10.42.3.0-24');
    expect(chosen(two, { previous: { v4: parseCidr('10.42.2.0/24') } })).toBe('reuse 10.42.2.0-24');
  });

  it.each(['10.42.0.0/24', '10.42.8.0/24', '10.42.5.0/25', '10.43.5.0/24'])(
    'is not the one of before when that does not fit: %s',
    (cidr) => {
      expect(chosen([], { previous: { v4: parseCidr(cidr) } }, 3)).toBe('create 10.42.4.0-24');
    },
  );

  it('overlaps nobody, however their subnets are cut, and wraps around', () => {
    const taken = [
      lease('10.42.4.0-22', '192.168.1.2'),
      lease('10.42.2.128-25', '192.168.1.3'),
      lease('10.42.3.7-32', '192.168.1.4'),
    ];
    for (let at = 0; at < 7; at++) expect(chosen(taken, {}, at)).toBe('create 10.42.1.0-24');
    expect(() => chosen([...taken, lease('10.42.1.0-30', '192.168.1.5')])).toThrow(
      /all subnets from 10\.42\.1\.0\/24 to 10\.42\.7\.0\/24 are taken/,
    );
  });

  it('may be any of the range', () => {
    const all = Array.from({ length: 7 }, (_, at) => chosen([], {}, at));
    expect(all).toEqual([1, 2, 3, 4, 5, 6, 7].map((n) => `create 10.42.${n}.0-24`));
  });

  it('is of both families where both are on', () => {
    const { subnets } = parseEtcdNetConf(DUAL, 'config');
    const other = lease('10.42.1.0-24&fd00:42:0:1::-64', '192.168.1.2');
    const own = { publicIp: '192.168.1.1' };
    expect(chooseSubnet([other], subnets, own, () => 0)).toMatchObject({
      kind: 'create',
      subnets: { v4: parseCidr('10.42.2.0/24'), v6: parseCidr('fd00:42:0:2::/64') },
    });
    // Ours from before dual stack fits no longer.
    expect(chooseSubnet([lease('10.42.3.0-24', '192.168.1.1')], subnets, own, () => 0).kind).toBe('create');
  });
});
