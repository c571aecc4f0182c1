// SPDX-License-Identifier: Apache-2.0
import { stripVTControlCharacters, styleText } from 'node:util';

export interface Column<Row> {
  title: string;
  /** Numbers read best on the right; text, the default, on the left. */
  align?: 'left' | 'right';
  /** Only with `-o wide`. */
  wide?: true;
  /** What to show; undefined shows as `-`. */
  value: (row: Row) => string | number | undefined;
  /** On a terminal only. */
  color?: (row: Row) => Color | undefined;
}

export type Color = 'red' | 'yellow' | 'green';

/** Colours text if standard output is a terminal, and NO_COLOR does not forbid it. */
export function colored(color: Color | undefined, text: string): string {
  return color === undefined ? text : styleText(color, text, { stream: process.stdout });
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
export function renderTable<Row>(all: readonly Column<Row>[], rows: readonly Row[], isWide = false): string {
  const columns = all.filter(({ wide }) => isWide || !wide);
  const lines = [
    columns.map((column) => cell(column.title)),
    ...rows.map((row) => columns.map((column) => cell(column.value(row)))),
  ];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => width(line[i] ?? ''))));
  const pad = (text: string, i: number, row: Row | undefined) => {
    const space = ' '.repeat((widths[i] ?? 0) - width(text));
    const shown = row === undefined ? text : colored(columns[i]?.color?.(row), text);
    return columns[i]?.align === 'right' ? space + shown : shown + space;
  };
  return lines
    .map(
      (line, n) =>
        `${line
          .map((text, i) => pad(text, i, rows[n - 1]))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}
