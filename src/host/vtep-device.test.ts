// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Link } from './links.ts';
import { acceptsZeroChecksum, planVtep, type VtepDevice } from './vtep-device.ts';

const WANTED: VtepDevice = {
  name: 'flannel.1',
  vni: 1,
  port: 8472,
  localIp: '192.168.9.1',
  uplink: 'eth0',
  mtu: 1450,
  mac: '02:00:00:00:00:01',
  address: '10.42.1.0/32',
};

function link(name: string, more: Partial<Link> = {}): Link {
  return {
    name,
    ifindex: 2,
    mac: '02:00:00:00:00:01',
    mtu: 1500,
    up: true,
    running: true,
    kind: undefined,
    loopback: false,
    master: undefined,
    peer: undefined,
    vxlan: undefined,
    addresses: [],
    ...more,
  };
}

function vtep(more: Partial<Link['vxlan'] & object> = {}, name = 'flannel.1'): Link {
  return link(name, {
    kind: 'vxlan',
    mtu: 1450,
    vxlan: {
      vni: 1,
      port: 8472,
      local: '192.168.9.1',
      uplink: 'eth0',
      learning: false,
      zeroChecksum6: { tx: false, rx: false },
      extras: [],
      ...more,
    },
    addresses: [{ family: 4, ip: '10.42.1.0', length: 32, scope: 'global', primary: true }],
  });
}

const links = (...all: Link[]): Map<string, Link> => new Map(all.map((one) => [one.name, one]));

const WANTED_V6: VtepDevice = {
  ...WANTED,
  name: 'flannel-v6.1',
  localIp: 'fd09::1',
  mtu: 1430,
  address: 'fd00:42:0:1::/128',
};

function vtep6(more: Partial<Link['vxlan'] & object> = {}): Link {
  return {
    ...vtep({ local: 'fd09::1', zeroChecksum6: { tx: false, rx: true }, ...more }, 'flannel-v6.1'),
    mtu: 1430,
    addresses: [{ family: 6, ip: 'fd00:42:0:1::', length: 128, scope: 'global', primary: true }],
  };
}

describe('the plan for flannel.1', () => {
  it('is empty when the device is right', () => {
    expect(planVtep(WANTED, links(link('eth0'), vtep()))).toEqual({
      device: [],
      address: [],
      changes: [],
      created: false,
    });
  });

  it('makes it as flannel would', () => {
    const { device, address } = planVtep(WANTED, links(link('eth0')));
    expect([...device, ...address]).toEqual([
      'link add name flannel.1 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.168.9.1 dev eth0 dstport 8472 nolearning',
      'link set dev flannel.1 addrgenmode none',
      'addr add 10.42.1.0/32 dev flannel.1',
      'link set dev flannel.1 up',
    ]);
  });

  it.each([
    [{ vni: 2 }, 'VNI 2 → 1'],
    [{ port: 4789 }, 'port 4789 → 8472'],
    [{ local: '192.168.9.7' }, 'local address 192.168.9.7 → 192.168.9.1'],
    [{ local: undefined }, 'local address none → 192.168.9.1'],
    [{ uplink: 'eth1' }, 'uplink eth1 → eth0'],
    [{ learning: true }, 'it learns addresses from packets'],
    [{ extras: ['group'] }, 'it has group set'],
  ])('makes it anew when it has %j', (details, why) => {
    const plan = planVtep(WANTED, links(link('eth0'), vtep(details)));
    expect(plan.created).toBe(true);
    expect(plan.device[0]).toBe('link del dev flannel.1');
    expect(plan.changes[0]).toBe(`re-created flannel.1: ${why}`);
  });

  it('mends what can change in place', () => {
    const present = { ...vtep(), mtu: 1400, mac: '02:00:00:00:00:99', up: false };
    present.addresses = [
      { family: 4, ip: '10.42.7.0', length: 32, scope: 'global', primary: true },
      { family: 6, ip: 'fe80::1', length: 64, scope: 'link', primary: true },
    ];
    const plan = planVtep(WANTED, links(link('eth0'), present));
    expect(plan.created).toBe(false);
    expect([...plan.device, ...plan.address]).toEqual([
      'link set dev flannel.1 mtu 1450',
      'link set dev flannel.1 address 02:00:00:00:00:01',
      'addr del 10.42.7.0/32 dev flannel.1',
      'addr add 10.42.1.0/32 dev flannel.1',
      'link set dev flannel.1 up',
    ]);
  });

  it('names the device that holds the VNI already', () => {
    expect(() => planVtep(WANTED, links(link('eth0'), vtep({}, 'vxlan0')))).toThrow(
      'the device vxlan0 already uses VNI 1 on UDP port 8472',
    );
  });

  it('lets flannel-v6.1 share VNI and port', () => {
    const v6 = vtep({ local: 'fd09::1' }, 'flannel-v6.1');
    expect(planVtep(WANTED, links(link('eth0'), v6)).created).toBe(true);
  });

  it('refuses an MTU that the uplink cannot carry, in both underlays', () => {
    const eth0 = link('eth0', { mtu: 1480 });
    expect(() => planVtep(WANTED, links(eth0))).toThrow('eth0 carries 1480, less 50 for VXLAN leaves 1430');
    expect(() => planVtep({ ...WANTED, localIp: 'fd09::1' }, links(eth0))).toThrow('leaves 1410');
  });

  it('says when the uplink is gone', () => {
    expect(() => planVtep(WANTED, links())).toThrow('its uplink eth0 does not exist');
  });
});

describe('the plan for flannel-v6.1', () => {
  it('is empty when the device is right', () => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), vtep6()));
    expect(plan).toEqual({ device: [], address: [], changes: [], created: false });
  });

  it('makes it as flannel would, except that it accepts packets without an outer checksum', () => {
    const { device, address } = planVtep(WANTED_V6, links(link('eth0')));
    expect([...device, ...address]).toEqual([
      'link add name flannel-v6.1 mtu 1430 address 02:00:00:00:00:01 type vxlan id 1 local fd09::1 dev eth0 dstport 8472 nolearning udp6zerocsumrx',
      'link set dev flannel-v6.1 addrgenmode none',
      'addr add fd00:42:0:1::/128 dev flannel-v6.1 nodad',
      'link set dev flannel-v6.1 up',
    ]);
  });

  it.each([
    [{ zeroChecksum6: { tx: true, rx: true } }, 'it sends packets without an outer checksum'],
    [{ local: 'fd09::7' }, 'local address fd09::7 → fd09::1'],
  ])('makes it anew when it has %j', (details, why) => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), vtep6(details)));
    expect(plan.created).toBe(true);
    expect(plan.device[0]).toBe('link del dev flannel-v6.1');
    expect(plan.changes[0]).toBe(`re-created flannel-v6.1: ${why}`);
  });

  it('leaves one that flannel has made as it is, and says what it does not accept', () => {
    const flannels = vtep6({ zeroChecksum6: { tx: false, rx: false } });
    const plan = planVtep(WANTED_V6, links(link('eth0'), flannels));
    expect(plan).toEqual({ device: [], address: [], changes: [], created: false });
    expect([flannels, vtep6(), undefined].map(acceptsZeroChecksum)).toEqual([false, true, false]);
  });

  it('gives its address back after it was down, when the kernel takes IPv6 addresses away', () => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), { ...vtep6(), up: false, addresses: [] }));
    expect(plan.device).toEqual([]);
    expect(plan.address).toEqual([
      'addr add fd00:42:0:1::/128 dev flannel-v6.1 nodad',
      'link set dev flannel-v6.1 up',
    ]);
  });

  it('refuses an MTU with which the kernel would turn IPv6 off', () => {
    const eth0 = link('eth0', { mtu: 1349 });
    expect(() => planVtep({ ...WANTED_V6, mtu: 1279 }, links(eth0))).toThrow(
      'cannot give flannel-v6.1 an MTU of 1279: IPv6 needs 1280, and so an uplink of 1350; raise the MTU of eth0 or set EnableIPv6 to false',
    );
    expect(planVtep({ ...WANTED, mtu: 1279 }, links(eth0)).created).toBe(true);
  });
});
