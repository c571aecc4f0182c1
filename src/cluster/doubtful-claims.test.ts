// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { doubtfulClaims } from './doubtful-claims.ts';

/** Claims of nodes a, b, c, …, each as `10.42.1.0/24,fd00::/64`. */
function doubtful(...nodes: string[]): string {
  const claims = nodes.map((text, i) => ({
    uid: String.fromCharCode(97 + i),
    podCidrs: text,
  }));
  return [...doubtfulClaims(claims)].sort().join('');
}

describe('claims to podCIDRs', () => {
  it('of one size, each its own, are beyond doubt', () => {
    expect(doubtful('10.42.1.0/24', '10.42.2.0/24', '10.42.3.0/24')).toBe('');
    expect(doubtful('10.42.1.0/24,fd00:1::/64', 'fd00:2::/64,10.42.2.0/24', 'fd00:3::/64', '')).toBe('');
    expect(doubtful('10.42.1.0/24')).toBe('');
    expect(doubtful()).toBe('');
  });

  it('to the same block are in doubt, all of them', () => {
    expect(doubtful('10.42.1.0/24', '10.42.2.0/24', '10.42.1.0/24', '10.42.1.0/24')).toBe('acd');
    expect(doubtful('10.42.1.0/24,fd00:1::/64', '10.42.2.0/24,fd00:1::/64', '10.42.3.0/24')).toBe('ab');
  });

  it('to a block of another size than most are in doubt', () => {
    expect(doubtful('10.42.1.0/24', '10.42.2.0/24', '10.42.0.0/16')).toBe('c');
    expect(doubtful('10.42.1.0/24', '10.42.2.0/25', '10.42.3.0/24,fd00::/64')).toBe('b');
    expect(doubtful('10.42.1.0/24,fd00:1::/64', '10.42.2.0/24,fd00:2::/64', '10.42.3.0/24,fd00::/48')).toBe(
      'c',
    );
  });

  it('of which no size has the majority are all in doubt', () => {
    expect(doubtful('10.42.1.0/24', '10.42.0.0/16')).toBe('ab');
  });
});
