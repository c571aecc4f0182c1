// SPDX-License-Identifier: Apache-2.0
import { stripVTControlCharacters } from 'node:util';

export interface Column<Row> {
  title: string;
  /** Numbers read best on the right; text, the default, on the left. */
  align?: 'left' | 'right';
  /** What to show; undefined shows as `-`. */
  value: (row: Row) => string | number | undefined;
}

/** Text from outside (an annotation, a device's name) must not move the cursor or begin a new line. */
function cell(value: string | number | undefined): string {
  const text = stripVTControlCharacters(String(value ?? '-')).replaceAll(/\p{Cc}+/gu, ' ');
  return text === '' ? '-' : text;
}

/** The width in characters, not in UTF-16 units. */
function width(text: string): number {
  return Array.from(text).length;
}

/**
 * A table in plain text for people and for `awk`: titles, then a line for each row; columns are two spaces apart; no
 * lines are drawn, and there are no trailing spaces. It ends with a newline. Without rows it is only the titles.
 */
export function renderTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const lines = [
    columns.map((column) => cell(column.title)),
    ...rows.map((row) => columns.map((column) => cell(column.value(row)))),
  ];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => width(line[i] ?? ''))));
  const pad = (text: string, i: number) => {
    const space = ' '.repeat((widths[i] ?? 0) - width(text));
    return columns[i]?.align === 'right' ? space + text : text + space;
  };
  return lines.map((line) => `${line.map(pad).join('  ').trimEnd()}\n`).join('');
}
