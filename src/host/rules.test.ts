// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { readFingerprint, renderRules } from './rules.ts';

const V4 = { network: parseCidr('10.42.0.0/16'), podCidr: parseCidr('10.42.1.0/24') };
const V6 = { network: parseCidr('fd00::/48'), podCidr: parseCidr('fd00:0:0:1::/64') };

/** The rules of a chain without their comments. */
function rulesOf(text: string, chain: string): string[] {
  const body = new RegExp(`chain ${chain} \\{\\n(.*?)\\n  \\}`, 's').exec(text)?.[1] ?? '';
  return body
    .split('\n')
    .slice(1)
    .map((row) => row.trim().replace(/ comment ".*"$/, ''));
}

describe('the rendered table', () => {
  it("has flannel's rules in flannel's order", () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, vxlanPort: 8472 });
    expect(rulesOf(text, 'input')).toEqual(['ip saddr 10.42.0.0/16 udp dport 8472 counter drop']);
    expect(rulesOf(text, 'forward')).toEqual([
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
    const { text } = renderRules({ networks: [V4, V6], masquerade: true, vxlanPort: 8472 });
    expect(rulesOf(text, 'postrouting')).toHaveLength(11);
    expect(text).toContain('ip6 saddr fd00::/48 ip6 daddr != ff00::/8 masquerade fully-random');
    expect(rulesOf(text, 'forward').slice(2)).toEqual([
      'ip6 saddr fd00::/48 counter accept',
      'ip6 daddr fd00::/48 counter accept',
    ]);
    expect(rulesOf(text, 'input')).toEqual([
      'ip saddr 10.42.0.0/16 udp dport 8472 counter drop',
      'ip6 saddr fd00::/48 udp dport 8472 counter drop',
      'ip6 saddr fe80::/10 udp dport 8472 counter drop',
    ]);
  });

  it('translates nothing without --ip-masq', () => {
    const { text } = renderRules({ networks: [V4], masquerade: false, vxlanPort: 8472 });
    expect(text).not.toContain('postrouting');
  });

  it('replaces the table in one transaction', () => {
    const { text } = renderRules({ networks: [V4], masquerade: true, vxlanPort: 8472 });
    expect(text.split('\n').slice(0, 3)).toEqual([
      'add table inet ripstop',
      'delete table inet ripstop',
      'table inet ripstop {',
    ]);
  });

  it('changes its fingerprint with every address', () => {
    const other = { ...V4, podCidr: parseCidr('10.42.2.0/24') };
    expect(renderRules({ networks: [other], masquerade: true, vxlanPort: 8472 }).fingerprint).not.toEqual(
      renderRules({ networks: [V4], masquerade: true, vxlanPort: 8472 }).fingerprint,
    );
  });

  it('has comments that fit into the kernel (128 bytes)', () => {
    const { fingerprint } = renderRules({ networks: [V4, V6], masquerade: true, vxlanPort: 8472 });
    for (const row of fingerprint) expect(row.length).toBeLessThan(128);
  });
});

describe('a listing', () => {
  it('yields chains and rules in order, and a foreign rule among them shows', () => {
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
        { chain },
        { rule: { chain: 'forward', comment: 'ours [1]', expr: [] } },
        { rule: { chain: 'forward', expr: [] } },
      ]),
    ).toEqual(['chain forward filter forward 0 accept', 'rule forward ours [1]', 'rule forward ']);
  });
});
