// SPDX-License-Identifier: Apache-2.0
import ipaddr from 'ipaddr.js';
import { describe, expect, it } from 'vitest';
import {
  addressAt,
  addressFamily,
  addressToBytes,
  bytesToAddress,
  cidrContains,
  cidrCovers,
  cidrsOverlap,
  formatCidr,
  hostCidr,
  intToIpv4,
  ipv4ToInt,
  parseCidr,
  parseMaskedCidr,
} from './ip.ts';
import { bytesToMac, macToBytes, normalizeMac, randomMac } from './mac.ts';

describe('addresses', () => {
  it('turn into host-order integers and back', () => {
    expect(ipv4ToInt('10.0.0.1')).toBe(0x0a000001);
    expect(ipv4ToInt('255.255.255.255')).toBe(0xffffffff);
    expect(intToIpv4(0xc0a80101)).toBe('192.168.1.1');
  });

  it('turn into network-order bytes and back, in both families', () => {
    expect([...addressToBytes('10.42.0.7')]).toEqual([10, 42, 0, 7]);
    expect(bytesToAddress(addressToBytes('fd00:0:0:0::1'))).toBe('fd00::1');
  });

  it.each(['', '10.0.0', '010.0.0.1', '0x0a.0.0.1', '10.0.0.256', 'fe80::1%eth0', '10.0.0.1 ', 'localhost'])(
    'refuse %j',
    (text) => expect(addressFamily(text)).toBeUndefined(),
  );

  it('read dotted quads as ipaddr.js does, right and wrong ones', () => {
    const parts = [
      '0',
      '1',
      '9',
      '10',
      '99',
      '100',
      '255',
      '256',
      '999',
      '00',
      '01',
      '',
      ' 1',
      '-1',
      '0x1',
      '1e1',
    ];
    let state = 1;
    const any = (): string => parts[(state = (state * 48_271) % 2_147_483_647) % parts.length]!;
    for (let i = 0; i < 5000; i++) {
      // Mostly four parts, with one in eight from the wrong end of the list.
      const text = Array.from({ length: i % 16 === 0 ? 3 + (i % 3) : 4 }, () =>
        i % 4 === 0 ? any() : parts[Number.parseInt(String(any().length * i), 10) % 7]!,
      ).join('.');
      const valid = ipaddr.IPv4.isValidFourPartDecimal(text);
      expect([text, addressFamily(text)]).toEqual([text, valid ? 4 : undefined]);
      if (valid) expect([...addressToBytes(text)]).toEqual(ipaddr.IPv4.parse(text).toByteArray());
    }
  });
});

describe('CIDR blocks', () => {
  it('parse to a canonical base', () => {
    expect(parseCidr('10.42.1.0/24')).toEqual({ family: 4, base: '10.42.1.0', length: 24 });
    expect(formatCidr(parseCidr('FD00:0:0:1:0::/64'))).toBe('fd00:0:0:1::/64');
  });

  it('name the block that was meant when host bits are set', () => {
    expect(() => parseCidr('10.42.1.5/24')).toThrow('did you mean 10.42.1.0/24');
  });

  it('lose their host bits where Go reads them too', () => {
    expect(formatCidr(parseMaskedCidr('10.42.1.5/24'))).toBe('10.42.1.0/24');
    expect(formatCidr(parseMaskedCidr('fd00:42::7/48'))).toBe('fd00:42::/48');
    expect(() => parseMaskedCidr('10.42.1.5')).toThrow('not a CIDR');
  });

  it.each(['10.42.0.0', '10.42.0.0/33', '10.42.0.0/-1', 'fd00::/129', 'x/8', '10.42.0.0/24 '])(
    'refuse %j',
    (text) => expect(() => parseCidr(text)).toThrow('not a CIDR'),
  );

  it('know what lies in them', () => {
    const network = parseCidr('10.42.0.0/16');
    expect(cidrContains(network, '10.42.255.255')).toBe(true);
    expect(cidrContains(network, '10.43.0.0')).toBe(false);
    expect(cidrContains(network, 'fd00::1')).toBe(false);
    expect(cidrContains(parseCidr('0.0.0.0/0'), '8.8.8.8')).toBe(true);
    expect(cidrCovers(network, parseCidr('10.42.9.0/24'))).toBe(true);
    expect(cidrCovers(parseCidr('10.42.9.0/24'), network)).toBe(false);
    expect(cidrsOverlap(parseCidr('10.42.9.0/24'), network)).toBe(true);
    expect(cidrsOverlap(parseCidr('10.42.9.0/24'), parseCidr('10.42.8.0/24'))).toBe(false);
  });

  it('can be of one address', () => {
    expect(hostCidr('10.42.1.5')).toBe('10.42.1.5/32');
    expect(hostCidr('fd00::5')).toBe('fd00::5/128');
  });

  it('count addresses across octets', () => {
    expect(addressAt(parseCidr('10.42.1.0/24'), 1)).toBe('10.42.1.1');
    expect(addressAt(parseCidr('10.42.0.0/16'), 256 * 3 + 5)).toBe('10.42.3.5');
    expect(addressAt(parseCidr('fd00::/64'), 0x10001)).toBe('fd00::1:1');
  });
});

describe('MAC addresses', () => {
  it('turn into bytes and back, lower case', () => {
    expect(bytesToMac(macToBytes('AA:bb:0c:00:01:fF'))).toBe('aa:bb:0c:00:01:ff');
    expect(normalizeMac('aa-bb-cc-dd-ee-ff')).toBeUndefined();
  });

  it('come unicast and locally administered when random', () => {
    expect(macToBytes(randomMac())[0]! & 3).toBe(2);
  });
});
