// SPDX-License-Identifier: Apache-2.0
import { stripVTControlCharacters } from 'node:util';

export interface Column<Row> {
  title: string;
  /** Numbers read best on the right; text, the default, on the left. */
  align?: 'left' | 'right';
  /** What to show; undefined shows as `-`. */
  value: (row: Row) => string | number | undefined;
}

/** Foreign text (an annotation, a device's name) must not move the cursor or start a new line of the table. */
function cell(value: string | number | undefined): string {
  const text = stripVTControlCharacters(String(value ?? '-')).replaceAll(/\p{Cc}+/gu, ' ');
  return text === '' ? '-' : text;
}

/** Characters, not UTF-16 units. */
function width(text: string): number {
  return Array.from(text).length;
}

/**
 * A table in plain text: titles, then a line for each row, columns two spaces apart, no line drawn and no trailing
 * spaces, so that people read it and `awk` takes it apart. Ends with a newline; without rows only the titles remain.
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
