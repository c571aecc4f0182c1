// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Link, LinkAddress } from './links.ts';
import { link } from './links.support.ts';
import { parseCidr } from '../net/ip.ts';
import { chooseUplink, type UplinkFacts, type UplinkRequest } from './uplink.ts';

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

function device(name: string, ifindex: number, addresses: LinkAddress[], more: Partial<Link> = {}): Link {
  return link(name, { ifindex, addresses, ...more });
}

const LINKS = [
  device('lo', 1, [address('127.0.0.1/8', { scope: 'host' }), address('10.255.0.1/32')], { loopback: true }),
  device('eth0', 2, [
    address('10.0.0.100/24', { primary: false }),
    address('10.0.0.5/24'),
    address('10.0.0.6/32'),
  ]),
  device(
    'eth1',
    3,
    [address('192.168.7.5/24'), address('fe80::1/64', { scope: 'link' }), address('fd07::5/64')],
    {
      mtu: 9000,
    },
  ),
  device('docker0', 4, [address('172.17.0.1/16')]),
  device('bare0', 5, []),
];
const FACTS: UplinkFacts = {
  links: new Map(LINKS.map((one) => [one.name, one])),
  defaultRoutes: [{ dev: 'eth0' }],
  ipv6Mtus: new Map(),
};

function choose(
  request: Partial<UplinkRequest>,
  facts: Partial<UplinkFacts> = {},
): ReturnType<typeof chooseUplink> {
  return chooseUplink({ families: [4], ...request }, { ...FACTS, ...facts });
}

describe('the uplink', () => {
  it('is the interface of the default route when nobody says otherwise', () => {
    expect(choose({})).toEqual({
      name: 'eth0',
      ifindex: 2,
      ips: { v4: '10.0.0.5' },
      mtu: 1500,
      advertised: [],
      explanation: 'eth0 (10.0.0.5): it carries the default route',
    });
  });

  it('is the interface of the Node’s InternalIP, with that address', () => {
    expect(choose({ nodeIps: { v4: '192.168.7.5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5' },
      mtu: 9000,
      explanation: "eth1 (192.168.7.5): it has the Node's InternalIP 192.168.7.5",
    });
    expect(choose({ nodeIps: { v4: '10.0.0.6' } })).toMatchObject({ name: 'eth0', ips: { v4: '10.0.0.6' } });
  });

  it('falls back to the default route, and says so, when no interface has the InternalIP (NAT)', () => {
    expect(choose({ nodeIps: { v4: '203.0.113.9' } }).explanation).toBe(
      "eth0 (10.0.0.5): it carries the default route; no interface has the Node's InternalIP 203.0.113.9",
    );
  });

  it.each<[string, Partial<Link>]>([
    ['lo', { loopback: true }],
    ['anycast', { kind: 'dummy' }],
    ['cni0', { kind: 'bridge' }],
    ['br-anycast', { kind: 'bridge' }],
  ])('is that of the default route, as with flannel, when %s has the InternalIP', (name, more) => {
    const nodeIps = { v4: '198.51.100.1' };
    const holder = device(name, 9, [address('198.51.100.1/32')], more);
    const links = new Map([holder, ...LINKS.slice(1)].map((one) => [one.name, one]));
    expect(choose({ nodeIps }, { links }).explanation).toBe(
      `eth0 (10.0.0.5): it carries the default route; ${name} has the Node's InternalIP 198.51.100.1`,
    );
    expect(() => choose({ nodeIps }, { links, defaultRoutes: [] })).toThrow(
      `${name} carries no tunnel, although it has the Node's InternalIP 198.51.100.1, ` +
        'and the node has no IPv4 default route to choose the interface by; choose with --iface among eth0 (10.0.0.5),',
    );
  });

  it.each<[string, Partial<Link>?]>([
    ['veth1a2b3c4d'],
    ['lan7'],
    ['cali0123456789a'],
    ['cni0', { kind: 'bridge' }],
    ['docker0', { kind: 'bridge' }],
    ['br-0123456789ab', { kind: 'bridge' }],
    ['mybridge', { kind: 'bridge' }],
    ['flannel.7'],
    ['vxlan.calico'],
    ['dummy0', { kind: 'dummy' }],
    ['nk0', { kind: 'netkit' }],
  ])('is nothing that was made for pods, whatever --iface-regex says: %s', (name, more = {}) => {
    const ip = name === 'lan7' ? '10.42.1.1' : '10.88.0.1';
    const pods = device(name, 3, [address(`${ip}/32`)], more);
    const port = device('vethport', 4, [], { kind: 'veth', master: 'mybridge' });
    const vpn = device('wg0', 9, [address('10.88.0.5/24')]);
    const links = new Map([pods, port, vpn].map((one) => [one.name, one]));
    const request = { podCidrs: [parseCidr('10.42.1.0/24')] };
    for (const pattern of [String.raw`^10\.`, '.*'])
      expect(choose({ ...request, ifaceRegex: [pattern] }, { links }).name).toBe('wg0');
    expect(() => choose({ ...request, ifaceRegex: [`^${name}$`] }, { links })).toThrow(
      'among wg0 (10.88.0.5)',
    );
    // By name the operator may have anything.
    expect(choose({ ...request, iface: [name] }, { links }).name).toBe(name);
  });

  it('may be a veth or a bridge, on a node that is a container, or whose bridge has a NIC', () => {
    const veth0 = device('veth0', 2, [address('10.0.0.7/24')], { kind: 'veth' });
    const br0 = device('br0', 3, [address('10.0.1.7/24')], { kind: 'bridge' });
    const ens1 = device('ens1', 4, [], { master: 'br0' });
    const tap = device('veth1', 5, [], { master: 'br0' });
    const links = new Map([veth0, br0, ens1, tap].map((one) => [one.name, one]));
    const defaultRoutes = [{ dev: 'veth0' }];
    expect(choose({ ifaceRegex: ['^10'] }, { links, defaultRoutes }).name).toBe('veth0');
    expect(choose({ ifaceRegex: ['^br'] }, { links, defaultRoutes }).name).toBe('br0');
  });

  it('is --iface by name or by address, before all else', () => {
    expect(choose({ iface: ['eth1'], nodeIps: { v4: '10.0.0.5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5' },
    });
    expect(choose({ iface: ['10.0.0.6'] })).toMatchObject({ name: 'eth0', ips: { v4: '10.0.0.6' } });
    expect(choose({ iface: ['eth0'], nodeIps: { v4: '10.0.0.6' } }).ips.v4).toBe('10.0.0.6');
  });

  it('matches --iface-regex against addresses, then names', () => {
    expect(choose({ ifaceRegex: [String.raw`^192\.168\.`] })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5' },
    });
    expect(choose({ ifaceRegex: ['(?i)TH1$'] }).name).toBe('eth1');
  });

  it.each([
    '^eth[[:digit:]]$',
    '^[[:alpha:]]+1$',
    '^(?P<kind>eth)1$',
    String.raw`\Aeth1\z`,
    String.raw`\Q192.168.7.5\E`,
    String.raw`^192\.168\.7\.\d$`,
    '^[^e].*[.]7[.]',
  ])('matches --iface-regex as Go reads it: %s', (pattern) => {
    const links = new Map(LINKS.filter(({ name }) => name === 'eth1').map((one) => [one.name, one]));
    expect(choose({ ifaceRegex: [pattern] }, { links }).name).toBe('eth1');
    expect(() =>
      choose({ ifaceRegex: [pattern.replace('7', '8').replace('eth', 'th').replace('1', '9')] }, { links }),
    ).toThrow('nothing matches');
  });

  it('is the first --iface that exists, else what --iface-regex matches, else what --iface-can-reach finds', () => {
    expect(choose({ iface: ['ens9', '10.9.9.9', 'eth1', 'eth0'] }).name).toBe('eth1');
    const reach = { dev: 'eth1', gateway: '192.168.7.1' };
    const rest = { iface: ['ens9'], ifaceCanReach: '1.1.1.1' };
    expect(choose({ ...rest, ifaceRegex: ['^ens', '^eth0'] }, { reach }).name).toBe('eth0');
    expect(choose({ ...rest, ifaceRegex: ['^ens'] }, { reach }).name).toBe('eth1');
    expect(() => choose({ ...rest, ifaceRegex: ['^ens'] })).toThrow(
      'there is no interface ens9 of --iface, nothing matches --iface-regex ^ens, ' +
        'no route leads to 1.1.1.1 of --iface-can-reach; choose',
    );
  });

  it('is the interface of the route to --iface-can-reach', () => {
    const reach = { dev: 'eth1', gateway: '192.168.7.1' };
    expect(choose({ ifaceCanReach: '1.1.1.1' }, { reach })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5' },
    });
  });

  it.each<[string, Partial<Link>]>([
    ['lan7', {}],
    ['lo', { loopback: true }],
    ['flannel.1', {}],
  ])('is not %s, although the route to --iface-can-reach leads there', (name, more) => {
    const holder = device(name, 9, [address('10.42.1.1/32')], more);
    const links = new Map([holder, ...LINKS].map((one) => [one.name, one]));
    const request = { ifaceCanReach: '10.42.1.2', podCidrs: [parseCidr('10.42.1.0/24')] };
    expect(() => choose(request, { links, reach: { dev: name, gateway: undefined } })).toThrow(
      `the route to 10.42.1.2 of --iface-can-reach leads to ${name}, and not to other nodes; choose`,
    );
  });

  it('has an address of the requested family', () => {
    expect(choose({ families: [6], iface: ['eth1'] }).ips).toEqual({ v6: 'fd07::5' });
  });

  it.each<[Partial<UplinkRequest>, string]>([
    [{ iface: ['ens9'] }, 'there is no interface ens9 of --iface'],
    [{ iface: ['10.9.9.9'] }, 'no interface has the address 10.9.9.9 of --iface'],
    [{ iface: ['bare0'] }, 'bare0 has no IPv4 address'],
    [{ ifaceRegex: ['^ens'] }, 'nothing matches --iface-regex ^ens'],
    [{ ifaceCanReach: '1.1.1.1' }, 'no route leads to 1.1.1.1'],
    [{ iface: ['lo'] }, 'lo is a loopback'],
  ])('names the candidates when %j cannot be met', (request, why) => {
    expect(() => choose(request)).toThrow(why);
    expect(() => choose(request)).toThrow('choose with --iface among eth0 (10.0.0.5), eth1 (192.168.7.5)');
  });

  it('is the interface of the public IP, whatever the InternalIP says', () => {
    expect(choose({ publicIps: { v4: '192.168.7.5' }, nodeIps: { v4: '10.0.0.5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5' },
      explanation: 'eth1 (192.168.7.5): it has the requested public IP 192.168.7.5',
    });
    // Of several addresses the requested one, although it is not a primary one.
    expect(choose({ publicIps: { v4: '10.0.0.100' } })).toMatchObject({
      name: 'eth0',
      ips: { v4: '10.0.0.100' },
    });
  });

  it('is the operator’s interface even where the public IP is on another, as on a loopback', () => {
    const publicIps = { v4: '10.255.0.1' };
    for (const request of [
      { iface: ['eth1'] },
      { iface: ['192.168.7.5'] },
      { ifaceRegex: ['^eth1'] },
    ] satisfies Partial<UplinkRequest>[]) {
      const { name, ips, explanation } = choose({ ...request, publicIps });
      expect({ name, ips }).toEqual({ name: 'eth1', ips: publicIps });
      expect(explanation).toMatch(/^eth1 \(10\.255\.0\.1\): .*; the public IP 10\.255\.0\.1 is on lo$/);
    }
    // Without a choice of theirs it is that of the default route.
    expect(choose({ publicIps })).toMatchObject({ name: 'eth0', ips: publicIps });
  });

  it('has the public IP, or the choice fails', () => {
    const why =
      "no interface has the public IP 203.0.113.9 that --public-ip or the Node's annotation node-public-ip asks for; " +
      "to publish an address that is not this node's own (NAT), annotate the Node with public-ip-overwrite";
    expect(() => choose({ publicIps: { v4: '203.0.113.9' } })).toThrow(why);
    expect(() => choose({ iface: ['eth1'], publicIps: { v4: '203.0.113.9' } })).toThrow(why);
    expect(choose({ publicIps: { v6: '2001:db8::1' } }).name).toBe('eth0'); // A family that is off.
  });

  it('says so when there is no default route to choose by', () => {
    expect(() => choose({}, { defaultRoutes: [] })).toThrow('no IPv4 default route');
  });

  it('refuses a malformed --iface-regex', () => {
    expect(() => choose({ ifaceRegex: ['('] })).toThrow('"(" is not a regular expression');
  });
});

describe('the uplink of a dual-stack node', () => {
  const temporary = { primary: false };
  const dual = (...more: LinkAddress[]): UplinkFacts => ({
    ipv6Mtus: new Map(),
    links: new Map(
      [
        device('eth0', 2, [
          address('10.0.0.5/24'),
          // As the kernel lists them: the newest first.
          address('2001:db8::f00/64', temporary),
          ...more,
          address('2001:db8::5/64'),
          address('fe80::5/64', { scope: 'link' }),
        ]),
        device('eth1', 3, [address('192.168.7.5/24'), address('fd07::5/64')]),
        device('eth2', 4, [address('192.168.8.5/24'), address('2001:db8:8::8/64', temporary)]),
      ].map((one) => [one.name, one]),
    ),
    defaultRoutes: [{ dev: 'eth0' }, { dev: 'eth1', protocol: 'ra' }, { dev: 'eth0', protocol: 'static' }],
  });
  const both = (request: Partial<UplinkRequest>, facts = dual()): ReturnType<typeof chooseUplink> =>
    chooseUplink({ families: [4, 6], ...request }, facts);

  it('is one interface, with a permanent address of each family', () => {
    expect(both({})).toEqual({
      name: 'eth0',
      ifindex: 2,
      ips: { v4: '10.0.0.5', v6: '2001:db8::5' },
      mtu: 1500,
      advertised: ['eth1'],
      explanation: 'eth0 (10.0.0.5, 2001:db8::5): it carries the default route',
    });
  });

  it('keeps its address when another is added, unless the Node says otherwise', () => {
    const facts = dual(address('2001:db8::99/128'));
    expect(both({}, facts).ips.v6).toBe('2001:db8::5');
    expect(both({ nodeIps: { v6: '2001:DB8::99' } }, facts)).toMatchObject({
      ips: { v4: '10.0.0.5', v6: '2001:db8::99' },
      explanation: "eth0 (10.0.0.5, 2001:db8::99): it has the Node's InternalIP 2001:db8::99",
    });
    expect(both({ nodeIps: { v6: '2001:db8::f00' } }, facts).ips.v6).toBe('2001:db8::5');
  });

  it("is the interface of the Node's IPv4 InternalIP, and the explanation says where the IPv6 one is", () => {
    expect(both({ nodeIps: { v4: '192.168.7.5', v6: '2001:db8::5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5', v6: 'fd07::5' },
      explanation:
        "eth1 (192.168.7.5, fd07::5): it has the Node's InternalIP 192.168.7.5; " +
        "eth0 has the Node's InternalIP 2001:db8::5",
    });
    // Behind NAT in IPv4, so only the IPv6 one is on an interface.
    expect(both({ nodeIps: { v4: '203.0.113.9', v6: 'fd07::5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5', v6: 'fd07::5' },
    });
  });

  it('has the public IPs of both families, and is where the IPv4 one is', () => {
    const eth1 = { name: 'eth1', ips: { v4: '192.168.7.5', v6: 'fd07::5' } };
    expect(both({ publicIps: { v6: 'FD07::5' } })).toMatchObject(eth1);
    expect(both({ publicIps: { v4: '192.168.7.5' } })).toMatchObject(eth1);
    expect(both({ publicIps: { v4: '192.168.7.5', v6: '2001:db8::5' } })).toMatchObject({
      name: 'eth1',
      ips: { v4: '192.168.7.5', v6: '2001:db8::5' },
      explanation:
        'eth1 (192.168.7.5, 2001:db8::5): it has the requested public IP 192.168.7.5; ' +
        'the public IP 2001:db8::5 is on eth0',
    });
    expect(() => both({ publicIps: { v6: 'fd99::1' } })).toThrow(
      "no interface has the public IP fd99::1 that --public-ipv6 or the Node's annotation node-public-ipv6 asks for",
    );
  });

  it('follows the flags in either family', () => {
    const eth1 = { name: 'eth1', ips: { v4: '192.168.7.5', v6: 'fd07::5' } };
    expect(both({ iface: ['fd07::5'] })).toMatchObject(eth1);
    expect(both({ ifaceRegex: ['^fd07:'] })).toMatchObject(eth1);
    const reach = { dev: 'eth1', gateway: 'fd07::1' };
    expect(both({ ifaceCanReach: '2001:db8:1::1' }, { ...dual(), reach })).toMatchObject(eth1);
    // The kernel would use the temporary address as its source, which is gone tomorrow.
    const privately = { dev: 'eth0', gateway: 'fe80::1' };
    expect(both({ ifaceCanReach: '2001:db8:1::1' }, { ...dual(), reach: privately }).ips.v6).toBe(
      '2001:db8::5',
    );
  });

  it('must have both families; the error names the interfaces that do', () => {
    for (const request of [{ iface: ['eth2'] }, { nodeIps: { v4: '192.168.8.5', v6: 'fd07::5' } }]) {
      expect(() => both(request)).toThrow('eth2 has no permanent IPv6 address (global, not temporary, ');
      expect(() => both(request)).toThrow(
        '; choose with --iface among eth0 (10.0.0.5, 2001:db8::5), eth1 (192.168.7.5, fd07::5)',
      );
    }
    expect(both({ families: [4], iface: ['eth2'] }).ips).toEqual({ v4: '192.168.8.5' });
    const v4Only = {
      links: new Map([['eth0', LINKS[1]!]]),
      defaultRoutes: FACTS.defaultRoutes,
      ipv6Mtus: FACTS.ipv6Mtus,
    };
    expect(() => both({}, v4Only)).toThrow(
      'give one an address of each family, which EnableIPv4 and EnableIPv6 ask for',
    );
  });
});
