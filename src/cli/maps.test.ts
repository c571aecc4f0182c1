// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { layout } from '../dataplane/layout.gen.ts';
import { changesBetween, changeText, readingOf } from './map-watch.ts';
import { flagNames, Shown } from './map-values.ts';
import { inline, selectEntries } from './maps.ts';

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

  it('quotes what has spaces, and JSON has the value behind the text', () => {
    const value = { type: new Shown(0x0800, 'IPv4 (0x0800)'), mark: new Shown(1, '0x00000001') };
    expect(inline(value)).toBe('type="IPv4 (0x0800)" mark=0x00000001');
    expect(JSON.stringify(value)).toBe('{"type":2048,"mark":1}');
  });
});

describe('entries are found', () => {
  const tcp = new Shown(6, 'tcp');
  const flow = { key: { src: '10.42.0.2', dst: '10.42.1.2', dst_port: 80, protocol: tcp }, value: 1 };
  const other = { key: { src: '10.42.0.2', dst: '10.42.1.3', dst_port: 53, protocol: tcp }, value: 2 };
  const slot = { key: new Shown(1, '1 (10.42.1.0/24)'), value: 3 };
  const all = [flow, other, slot];

  it.each([
    ['by members', ['src=10.42.0.2', 'protocol=tcp'], [flow, other]],
    ['by a number behind a name', ['protocol=6', 'dst_port=80'], [flow]],
    ['by a slot', ['1'], [slot]],
    ['by what is in a slot', ['10.42.1.0/24'], [slot]],
    ['not by a part of an address', ['src=10.42.0'], []],
    ['not by a member that no key has', ['mark=0'], []],
  ])('%s', (_, terms, found) => {
    expect(selectEntries(all, terms)).toEqual(found);
  });
});

describe('between two readings', () => {
  const age = (ns: number, text: string) => ({ out: { src: '10.42.0.2' }, learned_ns: new Shown(ns, text) });

  it('an entry that only got older has not changed', () => {
    const [before, after] = [age(1e9, '1.0s ago'), age(1e9, '2.0s ago')].map((value) =>
      readingOf([{ key: 1, value }]),
    );
    expect(changesBetween(before!, after!)).toEqual([]);
  });

  it('entries come, go, and change member by member', () => {
    const before = readingOf([
      { key: 1, value: age(1e9, '5.0s ago') },
      { key: 2, value: 0 },
    ]);
    const after = readingOf([
      { key: 1, value: age(6e9, '0ms ago') },
      { key: 3, value: { flags: ['present'] } },
    ]);
    expect(changesBetween(before, after).map(changeText)).toEqual([
      '- 2  0',
      '~ 1  learned_ns: 5.0s ago → 0ms ago',
      '+ 3  flags=present',
    ]);
  });
});
