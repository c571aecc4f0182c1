// SPDX-License-Identifier: Apache-2.0
/** The output of the demo, for terminals and for files: headings, progress, and facts. */
import { styleText } from 'node:util';
import { showProgress } from '../../src/cli/progress.ts';
import { type Column, renderTable } from '../../src/cli/table.ts';
import type { Progress } from '../../src/lab/index.ts';
import { interruption, unlessInterrupted } from './interruption.ts';

const WIDTH = 78;
let sections = 0;

/** Begin a section. @throws the reason of an interruption, if there was one. */
export function heading(title: string): void {
  interruption.throwIfAborted();
  const text = ` ${++sections}  ${title} `;
  console.log(`\n${styleText('bold', `──${text}`)}${'─'.repeat(Math.max(2, WIDTH - 2 - text.length))}`);
}

export function say(text: string): void {
  console.log(`  ${text}`);
}

export function table<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): void {
  const [titles = '', ...lines] = renderTable(columns, rows).trimEnd().split('\n');
  say(styleText('dim', titles));
  lines.forEach(say);
}

/**
 * Show the progress of work that takes a while, under one title or several. An interruption ends the waiting, not the
 * work.
 */
export function step<T>(
  titles: string | readonly string[],
  work: (progress: Progress) => Promise<T>,
): Promise<T> {
  const list = typeof titles === 'string' ? [titles] : titles;
  return showProgress(list, (progress) => unlessInterrupted(work(progress)), console.log);
}

export function milliseconds(since: number): number {
  return Math.round(performance.now() - since);
}
