// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import type { NftObject } from './nft.ts';
import { readFingerprint, renderRules, type DesiredRules } from './rules.ts';
import { vxlanSenders } from './vtep-set.ts';

const NOBODY_YET = vxlanSenders([], false);
const V4 = {
  network: parseCidr('10.42.0.0/16'),
  podCidr: parseCidr('10.42.1.0/24'),
  vtepIp: '172.31.0.9',
  ...NOBODY_YET,
};
const V6 = {
  network: parseCidr('fd00::/48'),
  podCidr: parseCidr('fd00:0:0:1::/64'),
  vtepIp: 'fd00:31::9',
  ...NOBODY_YET,
};
const DEVICES = { uplink: 'eth0', bridges: [] };
const VXLAN = { tunnel: { port: 8472, vni: 1 }, ...DEVICES };
/** Matches any packet, and has connection tracking reassemble fragments. */
const STATES = 'ct state invalid,established,related,new,untracked';

/** The rules of a chain without their comments. */
function rulesOf(text: string, chain: string): string[] {
  const body = new RegExp(`chain ${chain} \\{\\n(.*?)\\n  \\}`, 's').exec(text)?.[1] ?? '';
  return body
    .split('\n')
    .map((row) => row.trim().replace(/ comment ".*"$/, ''))
    .filter((row) => !row.startsWith('type '));
}

describe('the rendered table', () => {
  it("has flannel's rules in flannel's order", () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, ...VXLAN });
    expect(rulesOf(text, 'forward').slice(-2)).toEqual([
      'ip saddr 10.42.0.0/16 counter accept',
      'ip daddr 10.42.0.0/16 counter accept',
    ]);
    expect(rulesOf(text, 'postrouting')).toEqual([
      'meta mark & 0x4000 == 0x4000 return',
      'ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return',
      'ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return',
      'ip saddr != 10.42.0.0/16 ip daddr 10.42.1.0/24 return',
      'ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random',
      'ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random',
    ]);
  });

  it('adds the same for IPv6 when there is a network of that family', () => {
    const { text } = renderRules({ networks: [V4, V6], masquerade: true, ...VXLAN });
    expect(rulesOf(text, 'postrouting')).toHaveLength(11);
    expect(text).toContain('ip6 saddr fd00::/48 ip6 daddr != ff00::/8 masquerade fully-random');
    expect(rulesOf(text, 'forward').slice(-2)).toEqual([
      'ip6 saddr fd00::/48 counter accept',
      'ip6 daddr fd00::/48 counter accept',
    ]);
  });

  it('keeps source ports with --ip-masq-fully-random-disable', () => {
    const random = renderRules({ networks: [V4, V6], masquerade: true, ...VXLAN });
    const kept = renderRules({ networks: [V4, V6], masquerade: true, keepPorts: true, ...VXLAN });
    expect(rulesOf(kept.text, 'postrouting')).toEqual(
      rulesOf(random.text, 'postrouting').map((rule) => rule.replace(' fully-random', '')),
    );
    expect(kept.fingerprint).not.toEqual(random.fingerprint);
  });

  it('translates nothing without --ip-masq', () => {
    const { text } = renderRules({ networks: [V4], masquerade: false, ...VXLAN });
    expect(text).not.toContain('postrouting');
  });

  it('replaces the table in one transaction', () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, ...VXLAN });
    expect(text.split('\n').slice(0, 3)).toEqual([
      'add table inet ripstop',
      'delete table inet ripstop',
      'table inet ripstop {',
    ]);
  });

  it('changes its fingerprint with every address', () => {
    const other = { ...V4, podCidr: parseCidr('10.42.2.0/24') };
    expect(renderRules({ networks: [other], masquerade: true, ...VXLAN }).fingerprint).not.toEqual(
      renderRules({ networks: [V4], masquerade: true, ...VXLAN }).fingerprint,
    );
  });

  it('has comments that fit into the kernel (128 bytes)', () => {
    const behindNat = vxlanSenders([{ vtepIp: '203.0.113.7', behindNat: true }], true);
    const networks = [V4, { ...V6, ...behindNat }];
    const { fingerprint } = renderRules({ networks, masquerade: true, ...VXLAN });
    for (const row of fingerprint) expect(row.length).toBeLessThan(128);
  });
});

describe('what keeps pods and peers to what is theirs', () => {
  it("drops a pod's packets unless its own host veth leads back to their source", () => {
    const { text } = renderRules({ networks: [V4, V6], masquerade: true, ...DEVICES });
    const other = 'fib saddr . iif oif missing counter drop';
    for (const chain of ['input', 'forward'])
      expect(rulesOf(text, chain)[0], chain).toBe('iifname "veth*" jump sources');
    expect(rulesOf(text, 'sources')).toEqual([
      `ip saddr 10.42.0.0/16 ${other}`,
      `ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 ${other}`,
      `ip6 saddr fd00::/48 ${other}`,
      `ip6 saddr != { fd00::/48, fe80::/10 } ip6 daddr fd00::/48 ${other}`,
    ]);
  });

  it('takes no uplink for a pod, whatever its name', () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, ...VXLAN, uplink: 'veth0' });
    expect(rulesOf(text, 'vxlan-in')[0]).toBe('iifname "veth*" iifname != "veth0" counter drop');
    expect(text.match(/iifname "veth\*"/g)).toEqual(
      text.match(/iifname "veth\*" (?=iifname != "veth0")/g)!.map((rule) => rule.trim()),
    );
  });

  it('accepts VXLAN at the VTEP address alone, not from pods, and not through a Service', () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, ...VXLAN, bridges: ['cni0'] });
    expect(rulesOf(text, 'input')).toEqual(['udp dport 8472 jump vxlan-in', 'iifname "veth*" jump sources']);
    expect(rulesOf(text, 'vxlan-in')).toEqual([
      'iifname "veth*" counter drop',
      'iifname "cni0" counter drop',
      'iifname "flannel.1" counter drop',
      '@th,96,24 1 ct status dnat counter drop',
      `@th,96,24 1 ${STATES} ip daddr != 172.31.0.9 counter drop`,
      'meta nfproto ipv4 meta priority set @nh,96,32',
    ]);
  });

  it('forwards no VXLAN of pods to nodes or the world, and nothing from a tunnel to the wire', () => {
    const { text } = renderRules({ networks: [V6], masquerade: true, ...VXLAN });
    const back = 'ct direction original ct original ip6 daddr != fd00:0:0:1::/64 counter drop';
    expect(rulesOf(text, 'vxlan-forward')).toEqual([
      `iifname "veth*" ${STATES} @th,96,24 1 ip6 daddr @vteps6 counter drop`,
      `iifname "veth*" ${STATES} @th,96,24 1 ip6 daddr != fd00::/48 counter drop`,
      '@th,96,24 1 ct status dnat ip6 daddr @vteps6 counter drop',
    ]);
    expect(rulesOf(text, 'forward').slice(0, -2)).toEqual([
      'udp dport 8472 jump vxlan-forward',
      'iifname "veth*" jump sources',
      `iifname "flannel-v6.1" oifname { "flannel-v6.1", "eth0" } ${back}`,
    ]);
  });

  it('needs no rules about VXLAN without tunnels', () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, ...DEVICES });
    expect(text).not.toContain('8472');
    expect(rulesOf(text, 'input')).toHaveLength(1);
    expect(rulesOf(text, 'forward')).toHaveLength(3);
  });
});

describe('VXLAN from strangers', () => {
  const peer = (vtepIp: string, behindNat = false) => ({ vtepIp, behindNat });
  const peers4 = [peer('172.31.0.1'), peer('172.31.0.2')];
  const peers6 = [peer('fd00:31::1')];
  const desired = (v4: typeof peers4, v6: typeof peers4, synced: boolean): DesiredRules => ({
    networks: [
      { ...V4, ...vxlanSenders(v4, synced) },
      { ...V6, ...vxlanSenders(v6, synced) },
    ],
    masquerade: false,
    ...VXLAN,
  });
  const judged = ({ text }: { text: string }): string[] =>
    rulesOf(text, 'vxlan-in').filter((rule) => rule.includes('saddr != @vteps'));
  const drops = [
    '@th,96,24 1 ip saddr != @vteps4 counter drop',
    `@th,96,24 1 ${STATES} ip6 saddr != @vteps6 counter drop`,
  ];
  /** The listing of a table as it was rendered, with these elements in its set. */
  const listing = (from: DesiredRules, ...elem: string[]): NftObject[] => [
    { set: { name: 'vteps4', type: 'ipv4_addr', elem } },
    ...renderRules(from)
      .fingerprint.filter((row) => row.startsWith('rule vxlan-in '))
      .map((row) => ({ rule: { chain: 'vxlan-in', comment: row.slice('rule vxlan-in '.length), expr: [] } })),
  ];

  it('is dropped as soon as all peers are known, and not before', () => {
    expect(judged(renderRules(desired(peers4, peers6, false)))).toEqual([]);
    expect(judged(renderRules(desired(peers4, peers6, true)))).toEqual(drops);
  });

  it('is none when it comes from another address of a Node', () => {
    const flannel = { vtepIp: '172.31.0.22', otherIps: ['172.31.0.2'], behindNat: false };
    const { text } = renderRules(desired([flannel], [], true));
    expect(text).toContain('elements = { 172.31.0.22, 172.31.0.2 }');
  });

  it('has all known peers in the sets from the first moment on', () => {
    const { text } = renderRules(desired(peers4, peers6, true));
    expect(text).toContain(
      'set vteps4 {\n    type ipv4_addr; size 49152;\n    elements = { 172.31.0.1, 172.31.0.2 }\n',
    );
    expect(text).toContain('set vteps6 {\n    type ipv6_addr; size 49152;\n    elements = { fd00:31::1 }\n');
    expect(renderRules(desired([], [], true)).text).not.toContain('elements');
  });

  it('is counted and left to from_vtep, in its family, when a peer is behind NAT', () => {
    const behindNat = [...peers4, peer('203.0.113.7', true)];
    for (const synced of [false, true]) {
      const rules = renderRules(desired(behindNat, peers6, synced));
      expect(judged(rules)).toEqual([drops[0]!.replace(' drop', ''), ...(synced ? [drops[1]!] : [])]);
      expect(rules.text).toContain('left to from_vtep: a peer is behind NAT');
    }
  });

  it('is still dropped, or left to from_vtep, when the agent restarts and does not know the peers yet', () => {
    const behindNat = [peer('203.0.113.7', true)];
    for (const before of [
      desired(peers4, peers6, true),
      desired(behindNat, peers6, true),
      desired([], [], false),
    ])
      expect(judged(renderRules(desired([], [], false), listing(before)))).toEqual(
        judged(renderRules(before)),
      );
  });

  it('is not derived from a rule that differs from ours', () => {
    const otherVni = { ...desired(peers4, peers6, true), tunnel: { port: 8472, vni: 7 } };
    expect(judged(renderRules(desired([], [], false), listing(otherVni)))).toEqual([]);
  });

  it('keeps the elements that exist when the table is written again', () => {
    const found = listing(desired(peers4, [], true), '172.31.0.2', '172.31.0.9');
    expect(renderRules(desired(peers4, [], true), found).text).toContain(
      'elements = { 172.31.0.2, 172.31.0.9, 172.31.0.1 }',
    );
  });
});

describe('a listing', () => {
  it('yields sets, chains and rules in order, and shows a rule that is not ours', () => {
    const chain = {
      family: 'inet',
      table: 'ripstop',
      name: 'forward',
      type: 'filter',
      hook: 'forward',
      prio: 0,
      policy: 'accept',
    };
    expect(
      readFingerprint([
        { set: { name: 'vteps4', type: 'ipv4_addr', elem: ['172.31.0.1'] } },
        { chain },
        { rule: { chain: 'forward', comment: 'ours [1]', expr: [] } },
        { rule: { chain: 'forward', expr: [] } },
      ]),
    ).toEqual([
      'set vteps4 ipv4_addr',
      'chain forward filter forward 0 accept',
      'rule forward ours [1]',
      'rule forward ',
    ]);
  });
});
