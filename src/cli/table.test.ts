// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { renderTable, type Column } from './table.ts';

interface Peer {
  node: string;
  rate?: number;
}

const columns: Column<Peer>[] = [
  { title: 'NODE', value: (peer) => peer.node },
  { title: 'PACKETS/S', align: 'right', value: (peer) => peer.rate },
  { title: 'NOTE', value: (peer) => (peer.rate === undefined ? 'quiet' : '') },
];

describe('a table', () => {
  it('aligns its columns and has no trailing spaces', () => {
    const text = renderTable(columns, [
      { node: 'a', rate: 1_234_567_890 },
      { node: 'worker-12', rate: 5 },
      { node: 'idle' },
    ]);
    expect(text).toBe(
      [
        'NODE        PACKETS/S  NOTE',
        'a          1234567890  -',
        'worker-12           5  -',
        'idle                -  quiet',
        '',
      ].join('\n'),
    );
  });

  it('is only its titles without rows, and an empty line without columns', () => {
    expect(renderTable(columns, [])).toBe('NODE  PACKETS/S  NOTE\n');
    expect(renderTable([], [])).toBe('\n');
  });

  it('counts characters, not code units', () => {
    expect(renderTable(columns.slice(0, 2), [{ node: '🧵🧵', rate: 1 }])).toBe(
      'NODE  PACKETS/S\n🧵🧵            1\n',
    );
  });

  it('strips control characters from text', () => {
    const text = renderTable(columns.slice(0, 1), [
      { node: '\u001B[31mred\u001B[0m' },
      { node: 'two\r\nlines\u0007' },
    ]);
    expect(text).toBe('NODE\nred\ntwo lines\n');
  });

  it('shows zero as zero, and a missing or empty value as a dash', () => {
    expect(renderTable(columns, [{ node: '', rate: 0 }])).toContain('-             0');
  });
});
