// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Policy } from '#netlink';
import { parseCidr } from '../net/ip.ts';
import { ipsecOf, type LeavingPackets } from './ipsec.ts';

const policy = (more: Partial<Policy> = {}): Policy => ({
  family: 4,
  direction: 'out',
  action: 'allow',
  src: '192.0.2.0/24',
  dst: '192.0.2.0/24',
  protocol: 0,
  srcPort: undefined,
  dstPort: undefined,
  ifindex: undefined,
  priority: 10,
  index: 1,
  mark: undefined,
  interfaceId: undefined,
  templates: 1,
  ...more,
});

const tunnel: LeavingPackets = {
  src: parseCidr('192.0.2.1/32'),
  dst: parseCidr('192.0.2.2/32'),
  ifindex: 2,
  udpPort: 8472,
};
const direct: LeavingPackets = {
  src: parseCidr('10.42.1.0/24'),
  dst: parseCidr('10.42.2.0/24'),
  ifindex: 2,
};

describe('IPsec concerns packets', () => {
  it.each<[string, Partial<Policy>]>([
    ['of two networks', {}],
    ['between two hosts', { src: '192.0.2.1/32', dst: '192.0.2.2/32' }],
    ['to anywhere', { src: '0.0.0.0/0', dst: '0.0.0.0/0' }],
    ['of a network whose base has host bits', { dst: '192.0.2.77/24' }],
    ['of UDP', { protocol: 17 }],
    ['to the port of VXLAN', { protocol: 17, dstPort: { value: 8472, mask: 0xffff } }],
    ['over the uplink', { ifindex: 2 }],
    ['that a policy drops', { templates: 0, action: 'block' }],
  ])('%s', (_, more) => {
    expect(ipsecOf([policy(more)])(tunnel)).toBe(true);
  });

  it.each<[string, Partial<Policy>]>([
    ['to elsewhere', { dst: '192.0.3.0/24' }],
    ['from elsewhere', { src: '192.0.2.2/32' }],
    ['of TCP', { protocol: 6 }],
    ['to another port', { protocol: 17, dstPort: { value: 4500, mask: 0xffff } }],
    ['from some ports only', { srcPort: { value: 1, mask: 1 } }],
    ['over another interface', { ifindex: 3 }],
    ['with a mark', { mark: { value: 1, mask: 0xff } }],
    ['of an xfrm interface', { interfaceId: 7 }],
    ['that pass as they are', { templates: 0 }],
    ['of the other family', { family: 6, src: '::/0', dst: '::/0' }],
  ])('but none %s', (_, more) => {
    expect(ipsecOf([policy(more)])(tunnel)).toBe(false);
  });

  it('as the policy says that the kernel prefers', () => {
    const pass = policy({ templates: 0, dst: '192.0.2.2/32', priority: 5 });
    expect(ipsecOf([policy(), pass])(tunnel)).toBe(false);
    expect(ipsecOf([policy({ priority: 4 }), pass])(tunnel)).toBe(true);
  });

  it('without a tunnel only if it concerns all of them', () => {
    const all = policy({ src: '10.42.0.0/16', dst: '10.42.0.0/16' });
    expect(ipsecOf([all])(direct)).toBe(true);
    expect(ipsecOf([{ ...all, dst: '10.42.2.7/32' }])(direct)).toBe(false);
    expect(ipsecOf([{ ...all, protocol: 17 }])(direct)).toBe(false);
  });
});
