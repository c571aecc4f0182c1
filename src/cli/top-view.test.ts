// SPDX-License-Identifier: Apache-2.0
import { stripVTControlCharacters } from 'node:util';
import { describe, expect, it } from 'vitest';
import { firstView, type Key, press, screen, shownRows, type View } from './top-view.ts';
import type { Traffic, TrafficRow } from './traffic.ts';

const row = (name: string, over: Partial<TrafficRow> = {}): TrafficRow => ({
  name,
  flows: 0,
  packetsPerSecond: 0,
  bitsPerSecond: 0,
  class: 'idle',
  ...over,
});

const traffic: Traffic = {
  seconds: 1,
  peers: [
    row('node2', {
      flows: 2,
      packetsPerSecond: 1500,
      bitsPerSecond: 12_345_678,
      fastPercent: 99.9,
      class: 'fast',
    }),
    row('node10', {
      flows: 9,
      packetsPerSecond: 20,
      bitsPerSecond: 99_000_000,
      fastPercent: 50,
      class: 'mixed',
    }),
    row('node3'),
  ],
  pods: [
    row('default/web-0', {
      flows: 4,
      packetsPerSecond: 7,
      bitsPerSecond: 700,
      fastPercent: 0,
      class: 'kernel',
    }),
  ],
  services: [],
  packetsPerSecond: { fast: 1500, kernel: 20.5, drop: 0 },
  nsPerRun: { from_pod: 97.4 },
};

const facts = { node: 'node1', time: '12:00:01', every: 1 };
const size = { columns: 80, rows: 12 };

/** The view after some keys: a word is a key's name, else each character is typed. */
function after(...keys: string[]): View | undefined {
  const named = new Set(['up', 'down', 'tab', 'return', 'escape', 'backspace', 'end', 'pagedown']);
  const all = keys.flatMap((key): Key[] =>
    named.has(key)
      ? [{ name: key, sequence: '' }]
      : Array.from(key, (one) => ({ name: /\w/.test(one) ? one : undefined, sequence: one })),
  );
  return all.reduce<View | undefined>(
    (view, key) => view && press(view, key, shownRows(traffic, view)),
    firstView,
  );
}

const shown = (view: View | undefined, of = size): string[] =>
  screen(traffic, view!, facts, of).map((line) => stripVTControlCharacters(line).trimEnd());

describe('the screen', () => {
  it('shows what all packets did, and the rows of the view, the largest first', () => {
    expect(shown(firstView)).toEqual([
      'ripstop top on node1  12:00:01  every 1 s',
      'packets/s  fast 1.5k  kernel 21  dropped 0  fast % 98.7',
      'a run of   from_pod 97 ns',
      '[peers] pods  services   by packets/s',
      '   NAME    PACKETS/S  BITS/S  FLOWS  FAST %  CLASS',
      '>  node2        1.5k   12.3M      2    99.9  fast',
      '   node10         20   99.0M      9    50.0  mixed',
      '   node3           0       0      0       -  idle',
      '',
      '',
      '',
      'q quit  Tab view  s order  / filter  space pause  ? help',
    ]);
  });

  it('says what is not known', () => {
    const lines = screen(undefined, firstView, { ...facts, node: undefined }, size);
    expect(lines[0]).toBe('ripstop top  12:00:01  every 1 s');
    expect(lines[1]).toBe('reading twice, to know rates');
    expect(shown({ ...firstView, subject: 'services' })[5]).toBe('  no services');
    const uncounted = screen({ ...traffic, nsPerRun: {} }, firstView, facts, size);
    expect(uncounted[2]).toContain('not counted (kernel.bpf_stats_enabled is 0)');
  });

  it.each([
    [80, 24],
    [40, 8],
    [10, 5],
    [3, 2],
  ])('fits a terminal of %i columns and %i rows', (columns, rows) => {
    for (const keys of [[], ['?'], ['/web'], ['s', 'down']]) {
      const lines = shown(after(...keys), { columns, rows });
      expect(lines.length).toBeLessThanOrEqual(rows);
      for (const line of lines) expect(line.length).toBeLessThanOrEqual(columns);
    }
  });

  it('scrolls so that the cursor is always on it', () => {
    const many = { ...traffic, peers: Array.from({ length: 100 }, (_, i) => row(`node${i}`)) };
    for (const i of [0, 5, 50, 94, 99]) {
      const lines = screen(many, { ...firstView, selected: `node${i}` }, facts, size);
      expect(lines).toHaveLength(size.rows);
      expect(lines.filter((line) => line.startsWith('>'))).toEqual([expect.stringContaining(`node${i} `)]);
    }
  });
});

describe('a key', () => {
  const namesIn = (view: View | undefined): string[] => shownRows(traffic, view!).map(({ name }) => name);

  it('changes the order', () => {
    expect(namesIn(after('s'))).toEqual(['node10', 'node2', 'node3']);
    expect(after('s')).toMatchObject({ order: 'bits/s' });
    expect(namesIn(after('ss'))).toEqual(['node10', 'node2', 'node3']);
    expect(namesIn(after('sss'))).toEqual(['node2', 'node10', 'node3']);
    expect(namesIn(after('ssss'))).toEqual(['node2', 'node3', 'node10']);
    expect(after('sssss')).toEqual(firstView);
  });

  it('changes the view', () => {
    expect(after('e')).toMatchObject({ subject: 'pods' });
    expect(after('v')).toMatchObject({ subject: 'services' });
    expect(after('v', 'p')).toMatchObject({ subject: 'peers' });
    expect(after('tab', 'tab', 'tab')).toEqual(firstView);
  });

  it('moves the cursor, which stays on its row when the order changes', () => {
    expect(after('j')?.selected).toBe('node10');
    expect(after('jjjj')?.selected).toBe('node3');
    expect(after('down', 'down', 'up')?.selected).toBe('node10');
    expect(after('end', 'k')?.selected).toBe('node10');
    expect(shown(after('j', 's'))[5]).toMatch(/^> {2}node10 /);
  });

  it('goes into the filter while that is typed', () => {
    expect(namesIn(after('/1q'))).toEqual([]);
    expect(shown(after('/1q')).at(-1)).toBe('filter: 1q_');
    const filtered = after('/1q', 'backspace', 'return');
    expect(filtered).toMatchObject({ filter: '1', isTyping: false });
    expect(namesIn(filtered)).toEqual(['node10']);
    expect(shown(filtered)[3]).toBe('[peers] pods  services   by packets/s  only "1"');
    expect(after('/1', 'escape')).toEqual(firstView);
    expect(after('/1', 'return', 'escape')).toEqual(firstView);
  });

  it('pauses, goes on, and shows help', () => {
    expect(shown(after(' '))[0]).toBe('ripstop top on node1  12:00:01  paused');
    expect(after('  ')).toEqual(firstView);
    expect(shown(after('?'), { columns: 80, rows: 15 }).join('\n')).toContain('CLASS   fast: 95 % or more');
    expect(after('?x')).toEqual(firstView);
  });

  it('quits', () => {
    expect(after('q')).toBeUndefined();
    expect(after('?q')).toBeUndefined();
    for (const view of [firstView, after('/x')!])
      expect(press(view, { name: 'c', ctrl: true }, [])).toBeUndefined();
  });
});
