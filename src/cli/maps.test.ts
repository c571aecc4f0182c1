// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { layout } from '../dataplane/layout.gen.ts';
import { flagNames, inline } from './maps.ts';

describe('flags', () => {
  const { peer_flags } = layout.enums;

  it.each([
    [0, []],
    [1, ['present']],
    [3, ['present', 'behind_nat']],
  ])('of a peer: %i means %j', (value, names) => {
    expect(flagNames(peer_flags, value)).toEqual(names);
  });

  it('without a name are not shown', () => {
    expect(flagNames(peer_flags, 0x8000_0001)).toEqual(['present']);
  });
});

describe('a value on one line', () => {
  it('names its members, and puts nested ones in braces', () => {
    expect(inline({ ifindex: 4, header: { ip: { ttl: 64, src: '10.0.0.1' } }, mtu: 1450 })).toBe(
      'ifindex=4 header={ip={ttl=64 src=10.0.0.1}} mtu=1450',
    );
  });

  it('joins flags by commas, and shows a dash for none', () => {
    expect(inline({ flags: ['present', 'behind_nat'] })).toBe('flags=present,behind_nat');
    expect(inline({ flags: [] })).toBe('flags=-');
  });

  it('leaves plain values alone', () => {
    expect(inline(0)).toBe('0');
    expect(inline('10.42.1.0')).toBe('10.42.1.0');
    expect(inline(undefined)).toBe('undefined');
  });
});
