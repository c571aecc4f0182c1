// SPDX-License-Identifier: Apache-2.0
/** The screen of `ripstop top`, as pure functions: a key changes the view, and traffic and view make lines. */
import { styleText } from 'node:util';
import { type Column, colored, renderTable } from './table.ts';
import { rateText } from './text.ts';
import type { Traffic, TrafficRow } from './traffic.ts';

export const SUBJECTS = ['peers', 'pods', 'services'] as const;
export type Subject = (typeof SUBJECTS)[number];

export const ORDERS = ['packets/s', 'bits/s', 'flows', 'fast %', 'name'] as const;
export type Order = (typeof ORDERS)[number];

/** What the person at the terminal has chosen. */
export interface View {
  readonly subject: Subject;
  readonly order: Order;
  /** Rows whose names contain it. */
  readonly filter: string;
  /** Whether keys go into the filter. */
  readonly isTyping: boolean;
  readonly isPaused: boolean;
  readonly showsHelp: boolean;
  /** The name of the row that the cursor is on. It stays on it when the order changes. */
  readonly selected: string | undefined;
}

export const firstView: View = {
  subject: 'peers',
  order: 'packets/s',
  filter: '',
  isTyping: false,
  isPaused: false,
  showsHelp: false,
  selected: undefined,
};

/** A key as node:readline names it. */
export interface Key {
  readonly name?: string | undefined;
  readonly sequence?: string | undefined;
  readonly ctrl?: boolean;
}

/** @param rows those that are shown: see {@link shownRows}. @returns the view after a key; undefined to quit. */
export function press(view: View, key: Key, rows: readonly TrafficRow[]): View | undefined {
  if (key.ctrl && key.name === 'c') return undefined;
  if (view.isTyping) return type(view, key);
  if (view.showsHelp) return key.name === 'q' ? undefined : { ...view, showsHelp: false };
  const next = <T>(all: readonly T[], one: T): T => all[(all.indexOf(one) + 1) % all.length]!;
  switch (key.sequence === ' ' ? 'space' : (key.name ?? key.sequence)) {
    case 'q':
      return undefined;
    case 'p':
      return { ...view, subject: 'peers' };
    case 'e':
      return { ...view, subject: 'pods' };
    case 'v':
      return { ...view, subject: 'services' };
    case 'tab':
      return { ...view, subject: next(SUBJECTS, view.subject) };
    case 's':
      return { ...view, order: next(ORDERS, view.order) };
    case '/':
      return { ...view, isTyping: true };
    case 'escape':
      return { ...view, filter: '' };
    case 'space':
      return { ...view, isPaused: !view.isPaused };
    case '?':
      return { ...view, showsHelp: true };
    case 'up':
    case 'k':
      return move(view, rows, -1);
    case 'down':
    case 'j':
      return move(view, rows, 1);
    case 'pageup':
      return move(view, rows, -10);
    case 'pagedown':
      return move(view, rows, 10);
    case 'home':
      return move(view, rows, -rows.length);
    case 'end':
      return move(view, rows, rows.length);
    default:
      return view;
  }
}

function type(view: View, { name, sequence = '', ctrl }: Key): View {
  if (name === 'return' || name === 'enter') return { ...view, isTyping: false };
  if (name === 'escape') return { ...view, isTyping: false, filter: '' };
  if (name === 'backspace') return { ...view, filter: view.filter.slice(0, -1) };
  const isText = !ctrl && /^[^\p{Cc}]+$/u.test(sequence);
  return isText ? { ...view, filter: view.filter + sequence } : view;
}

function move(view: View, rows: readonly TrafficRow[], by: number): View {
  const to = Math.min(rows.length - 1, Math.max(0, cursorOf(view, rows) + by));
  return { ...view, selected: rows[to]?.name };
}

function cursorOf({ selected }: View, rows: readonly TrafficRow[]): number {
  return Math.max(
    0,
    rows.findIndex(({ name }) => name === selected),
  );
}

/** The rows of the view, filtered and in order: the largest first, or by name. */
export function shownRows(traffic: Traffic | undefined, { subject, order, filter }: View): TrafficRow[] {
  const rows = (traffic?.[subject] ?? []).filter(({ name }) => name.includes(filter));
  const byName = (a: TrafficRow, b: TrafficRow): number =>
    a.name.localeCompare(b.name, undefined, { numeric: true });
  const value = {
    'packets/s': (row: TrafficRow) => row.packetsPerSecond,
    'bits/s': (row: TrafficRow) => row.bitsPerSecond,
    flows: (row: TrafficRow) => row.flows,
    'fast %': (row: TrafficRow) => row.fastPercent ?? -1,
    name: () => 0,
  }[order];
  return rows.sort((a, b) => value(b) - value(a) || byName(a, b));
}

/** What the screen says beside the rows. */
export interface Facts {
  readonly node: string | undefined;
  /** Local, `12:00:01`. */
  readonly time: string;
  /** How often the maps are read, in seconds. */
  readonly every: number;
}

export interface ScreenSize {
  readonly columns: number;
  readonly rows: number;
}

const colors = { fast: 'green', mixed: 'yellow', kernel: 'red', idle: undefined } as const;

const MARK = { selected: '>', other: ' ' };

function columnsOf(selected: string | undefined): Column<TrafficRow>[] {
  return [
    { title: ' ', value: ({ name }) => (name === selected ? MARK.selected : MARK.other) },
    { title: 'NAME', value: (row) => row.name },
    { title: 'PACKETS/S', align: 'right', value: (row) => rateText(row.packetsPerSecond) },
    { title: 'BITS/S', align: 'right', value: (row) => rateText(row.bitsPerSecond) },
    { title: 'FLOWS', align: 'right', value: (row) => row.flows },
    { title: 'FAST %', align: 'right', value: (row) => row.fastPercent?.toFixed(1) },
    { title: 'CLASS', value: (row) => row.class, color: (row) => colors[row.class] },
  ];
}

/** The screen, at most so many lines, none wider than the screen. @param traffic undefined before the second reading. */
export function screen(
  traffic: Traffic | undefined,
  view: View,
  facts: Facts,
  { columns, rows: height }: ScreenSize,
): string[] {
  const rows = shownRows(traffic, view);
  const cursor = cursorOf(view, rows);
  const said = traffic ? summary(traffic) : ['reading twice, to know rates'];
  const top = [titleLine(view, facts), ...(view.showsHelp ? [] : [...said, tabs(view)])];
  const bottom = [view.isTyping ? `filter: ${view.filter}_` : KEYS];
  const room = Math.max(1, height - top.length - bottom.length - 1);
  const first = Math.max(0, Math.min(cursor - Math.floor(room / 2), rows.length - room));
  const body = view.showsHelp
    ? HELP
    : renderTable(columnsOf(rows[cursor]?.name), rows.slice(first, first + room))
        .trimEnd()
        .split('\n');
  if (!view.showsHelp && rows.length === 0)
    body.push(`  no ${view.subject}${view.filter && ` named like "${view.filter}"`}`);
  const shown = body.slice(0, room + 1);
  const blank = Array.from({ length: Math.max(0, room + 1 - shown.length) }, () => '');
  return [...top, ...shown, ...blank, ...bottom].slice(0, height).map((line) => cut(line, columns));
}

function titleLine({ isPaused }: View, { node, time, every }: Facts): string {
  const state = isPaused ? colored('yellow', 'paused') : `every ${Number(every.toFixed(1))} s`;
  return `ripstop top${node === undefined ? '' : ` on ${node}`}  ${time}  ${state}`;
}

/** What all pods' packets did, and what runs of the programs cost where that is known. */
function summary({ packetsPerSecond: { fast, kernel, drop }, nsPerRun }: Traffic): string[] {
  const share = fast + kernel === 0 ? '-' : ((100 * fast) / (fast + kernel)).toFixed(1);
  const runs = Object.entries(nsPerRun).map(([name, ns]) => `${name} ${Math.round(ns)} ns`);
  return [
    `packets/s  fast ${rateText(fast)}  kernel ${rateText(kernel)}  dropped ${rateText(drop)}  fast % ${share}`,
    `a run of   ${runs.length > 0 ? runs.join('  ') : 'the programs: not counted (kernel.bpf_stats_enabled is 0)'}`,
  ];
}

function tabs({ subject, order, filter }: View): string {
  const names = SUBJECTS.map((one) => (one === subject ? `[${one}]` : ` ${one} `)).join('');
  const chosen = styleText('bold', names, { stream: process.stdout });
  return `${chosen}  by ${order}${filter === '' ? '' : `  only "${filter}"`}`;
}

const KEYS = 'q quit  Tab view  s order  / filter  space pause  ? help';

const HELP = [
  '',
  'p e v, Tab    peers, pods (endpoints), Services',
  'j k, arrows   move; also page up and down, home, end',
  's             the next order: packets/s, bits/s, flows, fast %, name',
  '/             show only names that contain a text; Enter ends it, Esc clears it',
  'space         pause, and go on',
  'q, Ctrl-C     quit',
  '',
  'FAST %  of the packets since the last reading, those of the fast path',
  'CLASS   fast: 95 % or more of them; kernel: 5 % or less; mixed: between; idle: none',
  '        A packet of the kernel path takes longer: `ripstop top --help` says more.',
  '',
  'any key goes back',
];

// eslint-disable-next-line no-control-regex
const STYLE = /(\u001B\[[\d;]*m)/;

/** The first `width` characters. Styles take no room, and end where they would. */
function cut(line: string, width: number): string {
  let left = width;
  return line
    .split(STYLE)
    .map((part) => {
      if (STYLE.test(part)) return part;
      const shown = Array.from(part).slice(0, left);
      left -= shown.length;
      return shown.join('');
    })
    .join('');
}
