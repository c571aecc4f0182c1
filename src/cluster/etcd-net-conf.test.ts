// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { type EtcdSubnets, parseEtcdNetConf } from './etcd-net-conf.ts';

function subnets(more: object): EtcdSubnets {
  const conf = { Network: '10.42.0.0/16', Backend: { Type: 'vxlan' }, ...more };
  return parseEtcdNetConf(JSON.stringify(conf), '/coreos.com/network/config in etcd').subnets;
}

const ipv6 = (IPv6Network: string, more: object = {}) => ({ EnableIPv6: true, IPv6Network, ...more });

describe('the subnets that nodes choose from', () => {
  it.each([
    // A /24 each where four fit, else a quarter; never the first.
    [{}, { length: 24, min: '10.42.1.0', max: '10.42.255.0' }],
    [{ Network: '10.42.8.0/22' }, { length: 24, min: '10.42.9.0', max: '10.42.11.0' }],
    [{ Network: '10.42.8.0/23' }, { length: 25, min: '10.42.8.128', max: '10.42.9.128' }],
    [{ Network: '10.42.8.0/28' }, { length: 30, min: '10.42.8.4', max: '10.42.8.12' }],
    [
      { Network: '10.0.0.0/8', SubnetLen: 0 },
      { length: 24, min: '10.0.1.0', max: '10.255.255.0' },
    ],
    [{ subnetlen: 26 }, { length: 26, min: '10.42.0.64', max: '10.42.255.192' }],
    [
      { SubnetMin: '10.42.10.0', SubnetMax: '10.42.20.0' },
      { length: 24, min: '10.42.10.0', max: '10.42.20.0' },
    ],
    [
      { SubnetMin: '10.42.0.0', SubnetMax: '' },
      { length: 24, min: '10.42.0.0', max: '10.42.255.0' },
    ],
  ])('IPv4: %j', (more, v4) => {
    expect(subnets(more)).toEqual({ v4: { family: 4, ...v4 } });
  });

  it.each([
    [ipv6('fd00:42::/48'), { length: 64, min: 'fd00:42:0:1::', max: 'fd00:42:0:ffff::' }],
    [ipv6('fd00:42::/64'), { length: 66, min: 'fd00:42:0:0:4000::', max: 'fd00:42:0:0:c000::' }],
    [ipv6('fd00:42::/124'), { length: 126, min: 'fd00:42::4', max: 'fd00:42::c' }],
    [
      ipv6('fd00:42::/56', { IPv6SubnetLen: 80, IPv6SubnetMin: 'FD00:42:0:0:7::' }),
      { length: 80, min: 'fd00:42:0:0:7::', max: 'fd00:42:0:ff:ffff::' },
    ],
  ])('IPv6: %j', (more, v6) => {
    expect(subnets(more).v6).toEqual({ family: 6, ...v6 });
  });

  it.each([
    [{ SubnetLen: 31 }, /SubnetLen 31 is no whole number from 18 to 30/],
    [{ SubnetLen: 17 }, /SubnetLen 17 is no whole number from 18 to 30/],
    [{ SubnetLen: '24' }, /SubnetLen "24"/],
    [{ Network: '10.42.0.0/29' }, /Network 10\.42\.0\.0\/29 is too small .* \/28/],
    [{ SubnetMin: '10.43.1.0' }, /SubnetMin "10\.43\.1\.0" is not in Network 10\.42\.0\.0\/16/],
    [
      { SubnetMin: '10.42.1.7' },
      /SubnetMin "10\.42\.1\.7" is not where a \/24 begins; did you mean 10\.42\.1\.0\?/,
    ],
    [{ SubnetMax: 'fd00::' }, /SubnetMax "fd00::" is not an IPv4 address/],
    [{ SubnetMax: 7 }, /SubnetMax 7 is not an IPv4 address/],
    [
      { SubnetMin: '10.42.9.0', SubnetMax: '10.42.8.0' },
      /SubnetMin 10\.42\.9\.0 is above SubnetMax 10\.42\.8\.0/,
    ],
    [{ EnableIPv4: false, ...ipv6('fd00:42::/56') }, /EnableIPv4 false is not possible with etcd/],
    [ipv6('fd00:42::/125'), /IPv6Network fd00:42::\/125 is too small .* \/124/],
    [ipv6('fd00:42::/56', { IPv6SubnetLen: 127 }), /IPv6SubnetLen 127 is no whole number from 58 to 126/],
    [ipv6('fd00:42::/56', { IPv6SubnetMin: 'fd00:43::' }), /IPv6SubnetMin "fd00:43::" is not in IPv6Network/],
    [
      ipv6('fd00:42::/56', { IPv6SubnetMax: 'fd00:42::1' }),
      /IPv6SubnetMax "fd00:42::1" is not where a \/64 begins/,
    ],
    // Every one of them at once, and where they are.
    [
      { SubnetMin: 'x', ...ipv6('fd00:42::/56', { IPv6SubnetMax: 'y' }) },
      /^\/coreos\.com\/network\/config in etcd: SubnetMin "x".*; IPv6SubnetMax "y"/,
    ],
    [{ Network: 'x' }, /Network/],
  ])('each mistake is named by its key: %j', (more, message) => {
    expect(() => subnets(more)).toThrow(message);
  });
});
