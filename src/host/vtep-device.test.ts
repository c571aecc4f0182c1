// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Link } from './links.ts';
import { link } from './links.support.ts';
import { acceptsZeroChecksum, newVtepLink, planVtep, type VtepDevice, type VtepPlan } from './vtep-device.ts';

const DESIRED: VtepDevice = {
  name: 'flannel.1',
  vni: 1,
  port: 8472,
  localIp: '192.168.9.1',
  uplink: 'eth0',
  mtu: 1450,
  mac: '02:00:00:00:00:01',
  address: '10.42.1.0/32',
};

function vtep(more: Partial<Link['vxlan'] & object> = {}, name = 'flannel.1'): Link {
  return link(name, {
    kind: 'vxlan',
    mac: DESIRED.mac,
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
  ...DESIRED,
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

const NOTHING: VtepPlan = {
  created: false,
  replaces: false,
  set: {},
  addresses: { remove: [], add: undefined },
  bringUp: false,
  changes: [],
};

describe('the plan for flannel.1', () => {
  it('is empty when the device is right', () => {
    expect(planVtep(DESIRED, links(link('eth0'), vtep()))).toEqual(NOTHING);
  });

  it('creates it as flannel would', () => {
    expect(planVtep(DESIRED, links(link('eth0')))).toEqual({
      ...NOTHING,
      created: true,
      addresses: { remove: [], add: '10.42.1.0/32' },
      bringUp: true,
      changes: ['created flannel.1', 'flannel.1: added address 10.42.1.0/32'],
    });
    expect(newVtepLink(DESIRED, 7)).toEqual({
      name: 'flannel.1',
      kind: 'vxlan',
      mtu: 1450,
      mac: '02:00:00:00:00:01',
      vxlan: { vni: 1, port: 8472, local: '192.168.9.1', lower: 7, learning: false },
    });
  });

  it.each([
    [{ vni: 2 }, 'VNI 2 → 1'],
    [{ port: 4789 }, 'port 4789 → 8472'],
    [{ local: '192.168.9.7' }, 'local address 192.168.9.7 → 192.168.9.1'],
    [{ local: undefined }, 'local address none → 192.168.9.1'],
    [{ uplink: 'eth1' }, 'uplink eth1 → eth0'],
    [{ learning: true }, 'it learns addresses from packets'],
    [{ extras: ['group'] }, 'it has group set'],
  ])('creates it again when it has %j', (details, why) => {
    const plan = planVtep(DESIRED, links(link('eth0'), vtep(details)));
    expect(plan).toMatchObject({ created: true, replaces: true });
    expect(plan.changes[0]).toBe(`re-created flannel.1: ${why}`);
  });

  it('changes in place what can be changed', () => {
    const present = { ...vtep(), mtu: 1400, mac: '02:00:00:00:00:99', up: false };
    present.addresses = [
      { family: 4, ip: '10.42.7.0', length: 32, scope: 'global', primary: true },
      { family: 6, ip: 'fe80::1', length: 64, scope: 'link', primary: true },
    ];
    const plan = planVtep(DESIRED, links(link('eth0'), present));
    expect(plan).toEqual({
      ...NOTHING,
      set: { mtu: 1450, mac: '02:00:00:00:00:01' },
      addresses: { remove: ['10.42.7.0/32'], add: '10.42.1.0/32' },
      bringUp: true,
      changes: [
        'flannel.1: MTU 1400 → 1450',
        'flannel.1: MAC 02:00:00:00:00:99 → 02:00:00:00:00:01',
        'flannel.1: removed address 10.42.7.0/32',
        'flannel.1: added address 10.42.1.0/32',
        'flannel.1: was down, set up',
      ],
    });
  });

  it('names the device that holds the VNI already', () => {
    expect(() => planVtep(DESIRED, links(link('eth0'), vtep({}, 'vxlan0')))).toThrow(
      'vxlan0 already uses VNI 1 on UDP port 8472',
    );
  });

  it('lets flannel-v6.1 share VNI and port', () => {
    const v6 = vtep({ local: 'fd09::1' }, 'flannel-v6.1');
    expect(planVtep(DESIRED, links(link('eth0'), v6)).created).toBe(true);
  });

  it('refuses an MTU that the uplink cannot carry, in both underlays', () => {
    const eth0 = link('eth0', { mtu: 1480 });
    expect(() => planVtep(DESIRED, links(eth0))).toThrow(
      'eth0 has 1480, and less 50 for VXLAN that leaves 1430',
    );
    expect(() => planVtep({ ...DESIRED, localIp: 'fd09::1' }, links(eth0))).toThrow('leaves 1410');
  });

  it('says when the uplink is gone', () => {
    expect(() => planVtep(DESIRED, links())).toThrow('its uplink eth0 does not exist');
  });
});

describe('the plan for flannel-v6.1', () => {
  it('is empty when the device is right', () => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), vtep6()));
    expect(plan).toEqual(NOTHING);
  });

  it('creates it as flannel would, except that it accepts packets without an outer checksum', () => {
    const plan = planVtep(WANTED_V6, links(link('eth0')));
    expect(plan).toMatchObject({ created: true, addresses: { add: 'fd00:42:0:1::/128' } });
    expect(newVtepLink(WANTED_V6, 7).vxlan).toEqual({
      vni: 1,
      port: 8472,
      local: 'fd09::1',
      lower: 7,
      learning: false,
      zeroChecksum6: { tx: false, rx: true },
    });
  });

  it.each([
    [{ zeroChecksum6: { tx: true, rx: true } }, 'it sends packets without an outer checksum'],
    [{ local: 'fd09::7' }, 'local address fd09::7 → fd09::1'],
  ])('creates it again when it has %j', (details, why) => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), vtep6(details)));
    expect(plan).toMatchObject({ created: true, replaces: true });
    expect(plan.changes[0]).toBe(`re-created flannel-v6.1: ${why}`);
  });

  it('keeps one that flannel created, and says what it does not accept', () => {
    const flannels = vtep6({ zeroChecksum6: { tx: false, rx: false } });
    const plan = planVtep(WANTED_V6, links(link('eth0'), flannels));
    expect(plan).toEqual(NOTHING);
    expect([flannels, vtep6(), undefined].map(acceptsZeroChecksum)).toEqual([false, true, false]);
  });

  it('adds its address again after it was down, when the kernel removes IPv6 addresses', () => {
    const plan = planVtep(WANTED_V6, links(link('eth0'), { ...vtep6(), up: false, addresses: [] }));
    expect(plan).toMatchObject({
      created: false,
      set: {},
      addresses: { remove: [], add: 'fd00:42:0:1::/128' },
      bringUp: true,
    });
  });

  it('refuses an MTU with which the kernel would disable IPv6', () => {
    const eth0 = link('eth0', { mtu: 1349 });
    expect(() => planVtep({ ...WANTED_V6, mtu: 1279 }, links(eth0))).toThrow(
      'cannot give flannel-v6.1 an MTU of 1279: IPv6 needs 1280, and so an uplink of 1350; ' +
        'raise the MTU of eth0 or set EnableIPv6 to false',
    );
    expect(planVtep({ ...DESIRED, mtu: 1279 }, links(eth0)).created).toBe(true);
  });
});
