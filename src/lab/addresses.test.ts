// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { cidrCovers, parseCidr } from '../net/ip.ts';
import { clusterNetwork, familiesOf, gatewayAddress, familyParts, nodeAddresses } from './addresses.ts';
import { MAX_NODES, parseLabOptions } from './options.ts';

const ipv4 = parseLabOptions({});
const dualStack = parseLabOptions({ ipv6: true });

describe('the addresses of a lab', () => {
  it('come in pairs if and only if it is dual-stack', () => {
    expect(nodeAddresses(ipv4, 2)).toEqual({ ip: '172.31.0.2', podCIDR: '10.42.1.0/24' });
    expect(nodeAddresses(dualStack, 2)).toEqual({
      ip: '172.31.0.2',
      podCIDR: '10.42.1.0/24',
      ip6: 'fd00:31::2',
      podCIDR6: 'fd00:42:0:2::/64',
    });
    for (const options of [ipv4, dualStack]) {
      expect(familyParts(nodeAddresses(options, 1)).map(({ family }) => family)).toEqual(familiesOf(options));
    }
  });

  it('are in the cluster networks up to the last node, and unique', () => {
    const nodes = Array.from({ length: MAX_NODES }, (_, i) =>
      familyParts(nodeAddresses(dualStack, i + 1)),
    ).flat();
    const outside = nodes.filter(
      ({ family, podCIDR }) => !cidrCovers(parseCidr(clusterNetwork(dualStack, family)), parseCidr(podCIDR)),
    );
    expect(outside).toEqual([]);
    expect(new Set(nodes.flatMap(({ ip, podCIDR }) => [ip, podCIDR])).size).toBe(4 * MAX_NODES);
  });

  it('of pods come from the network of --network', () => {
    expect(nodeAddresses(parseLabOptions({ network: '10.244.0.0/16' }), 3).podCIDR).toBe('10.244.2.0/24');
  });

  it('leave one for the underlay itself', () => {
    expect(gatewayAddress('172.31.0.0/16')).toBe('172.31.255.254');
    expect(gatewayAddress('192.168.4.0/22')).toBe('192.168.7.254');
    expect(gatewayAddress('fd00:31::/64')).toBe('fd00:31::fffe');
  });
});
