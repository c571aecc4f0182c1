// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Link, LinkAddress } from './links.ts';
import { chooseUplink, type UplinkFacts, type UplinkWish } from './uplink.ts';

function address(text: string, more: Partial<LinkAddress> = {}): LinkAddress {
  const [ip = '', length = ''] = text.split('/');
  return {
    family: ip.includes(':') ? 6 : 4,
    ip,
    length: Number(length),
    scope: 'global',
    primary: true,
    ...more,
  };
}

function link(name: string, ifindex: number, addresses: LinkAddress[], more: Partial<Link> = {}): Link {
  return {
    name,
    ifindex,
    mac: `02:00:00:00:00:0${ifindex}`,
    mtu: 1500,
    up: true,
    running: true,
    kind: undefined,
    loopback: false,
    master: undefined,
    peer: undefined,
    vxlan: undefined,
    addresses,
    ...more,
  };
}

const LINKS = [
  link('lo', 1, [address('127.0.0.1/8', { scope: 'host' }), address('10.255.0.1/32')], { loopback: true }),
  link('eth0', 2, [
    address('10.0.0.100/24', { primary: false }),
    address('10.0.0.5/24'),
    address('10.0.0.6/32'),
  ]),
  link(
    'eth1',
    3,
    [address('192.168.7.5/24'), address('fe80::1/64', { scope: 'link' }), address('fd07::5/64')],
    {
      mtu: 9000,
    },
  ),
  link('docker0', 4, [address('172.17.0.1/16')]),
  link('bare0', 5, []),
];
const FACTS: UplinkFacts = {
  links: new Map(LINKS.map((one) => [one.name, one])),
  defaultRoutes: [{ dev: 'eth0', gateway: '10.0.0.1' }],
};

function choose(
  wish: Partial<UplinkWish>,
  facts: Partial<UplinkFacts> = {},
): ReturnType<typeof chooseUplink> {
  return chooseUplink({ family: 4, ...wish }, { ...FACTS, ...facts });
}

describe('the uplink', () => {
  it('is the default route’s interface when nothing is said', () => {
    expect(choose({})).toEqual({
      name: 'eth0',
      ifindex: 2,
      ip: '10.0.0.5',
      mtu: 1500,
      mac: '02:00:00:00:00:02',
      gateway: '10.0.0.1',
      explanation: 'eth0 (10.0.0.5): it carries the default route',
    });
  });

  it('is the interface of the Node’s InternalIP, with that address', () => {
    expect(choose({ nodeIp: '192.168.7.5' })).toMatchObject({
      name: 'eth1',
      mtu: 9000,
      gateway: undefined,
      explanation: "eth1 (192.168.7.5): it has the Node's InternalIP 192.168.7.5",
    });
    expect(choose({ nodeIp: '10.0.0.6' })).toMatchObject({ name: 'eth0', ip: '10.0.0.6' });
  });

  it('falls back to the default route aloud when the InternalIP is elsewhere (NAT)', () => {
    expect(choose({ nodeIp: '203.0.113.9' }).explanation).toBe(
      "eth0 (10.0.0.5): it carries the default route; no interface has the Node's InternalIP 203.0.113.9",
    );
  });

  it('is --iface by name or by address, before all else', () => {
    expect(choose({ iface: 'eth1', nodeIp: '10.0.0.5' })).toMatchObject({ name: 'eth1', ip: '192.168.7.5' });
    expect(choose({ iface: '10.0.0.6' })).toMatchObject({ name: 'eth0', ip: '10.0.0.6' });
    expect(choose({ iface: 'eth0', nodeIp: '10.0.0.6' }).ip).toBe('10.0.0.6');
  });

  it('matches --iface-regex against addresses, then names', () => {
    expect(choose({ ifaceRegex: String.raw`^192\.168\.` })).toMatchObject({
      name: 'eth1',
      ip: '192.168.7.5',
    });
    expect(choose({ ifaceRegex: '^docker' }).name).toBe('docker0');
  });

  it('leads to --iface-can-reach', () => {
    const reach = { dev: 'eth1', ip: '192.168.7.1', onLink: false, source: '192.168.7.5' };
    expect(choose({ ifaceCanReach: '1.1.1.1' }, { reach })).toMatchObject({
      name: 'eth1',
      ip: '192.168.7.5',
    });
  });

  it('has an address of the asked family', () => {
    expect(choose({ family: 6, iface: 'eth1' }).ip).toBe('fd07::5');
  });

  it.each<[Partial<UplinkWish>, string]>([
    [{ iface: 'ens9' }, 'there is no interface ens9 (it is --iface ens9)'],
    [{ iface: '10.9.9.9' }, 'no interface has the address 10.9.9.9 of --iface'],
    [{ iface: 'bare0' }, 'bare0 has no IPv4 address'],
    [{ ifaceRegex: '^ens' }, 'nothing matches --iface-regex ^ens'],
    [{ ifaceCanReach: '1.1.1.1' }, 'no route leads to 1.1.1.1'],
    [{ nodeIp: '10.255.0.1' }, 'lo is a loopback'],
  ])('names the candidates when %j cannot be met', (wish, why) => {
    expect(() => choose(wish)).toThrow(why);
    expect(() => choose(wish)).toThrow(
      'choose with --iface among eth0 (10.0.0.5), eth1 (192.168.7.5), docker0 (172.17.0.1)',
    );
  });

  it('says so when there is no default route to choose by', () => {
    expect(() => choose({}, { defaultRoutes: [] })).toThrow('no IPv4 default route');
  });

  it('refuses a malformed --iface-regex', () => {
    expect(() => choose({ ifaceRegex: '(' })).toThrow('"(" is not a regular expression');
  });
});
