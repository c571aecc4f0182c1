// SPDX-License-Identifier: Apache-2.0
/** What differs between two readings of a map, entry by entry and member by member. */
import { inline, type MapEntry } from './maps.ts';
import { hasMembers } from './map-values.ts';
import { repeatedly } from './watch.ts';

/** One member that differs, by its path; `''` is the whole value. */
export interface MemberChange {
  readonly member: string;
  readonly from: unknown;
  readonly to: unknown;
}

export type EntryChange =
  | { readonly change: 'added' | 'removed'; readonly key: unknown; readonly value: unknown }
  | { readonly change: 'changed'; readonly key: unknown; readonly members: readonly MemberChange[] };

/** The entries by the text of their keys. */
export type Reading = ReadonlyMap<string, MapEntry>;

export function readingOf(entries: readonly MapEntry[]): Reading {
  return new Map(entries.map((entry) => [JSON.stringify(entry.key), entry]));
}

export function changesBetween(before: Reading, after: Reading): EntryChange[] {
  const changes: EntryChange[] = [];
  for (const [text, { key, value }] of before)
    if (!after.has(text)) changes.push({ change: 'removed', key, value });
  for (const [text, { key, value }] of after) {
    const known = before.get(text);
    if (!known) changes.push({ change: 'added', key, value });
    else {
      const members = memberChanges(known.value, value);
      if (members.length > 0) changes.push({ change: 'changed', key, members });
    }
  }
  return changes;
}

/** A line for each change, as it happens; in JSON an object each. Without an end. */
export async function printChanges(
  { output, interval }: { readonly output: string; readonly interval: number },
  read: () => Promise<readonly MapEntry[]>,
): Promise<void> {
  let before = readingOf(await read());
  await repeatedly(interval, async () => {
    const after = readingOf(await read());
    for (const change of changesBetween(before, after)) {
      const time = new Date().toISOString();
      const text = output === 'json' ? JSON.stringify({ time, ...change }) : `${time} ${changeText(change)}`;
      process.stdout.write(`${text}\n`);
    }
    before = after;
  });
}

/** Values are compared as JSON has them: ages in text pass by themselves. */
export function memberChanges(from: unknown, to: unknown, path = ''): MemberChange[] {
  if (JSON.stringify(from) === JSON.stringify(to)) return [];
  if (!hasMembers(from) || !hasMembers(to)) return [{ member: path, from, to }];
  const names = new Set([...Object.keys(from), ...Object.keys(to)]);
  return [...names].flatMap((name) =>
    memberChanges(from[name], to[name], path === '' ? name : `${path}.${name}`),
  );
}

const signs = { added: '+', changed: '~', removed: '-' } as const;

/** `+ key value`, `- key value`, or `~ key member: from → to`. */
export function changeText(one: EntryChange): string {
  const { change, key } = one;
  const what =
    one.change === 'changed'
      ? one.members
          .map(
            ({ member, from, to }) => `${member === '' ? '' : `${member}: `}${inline(from)} → ${inline(to)}`,
          )
          .join(', ')
      : inline(one.value);
  return `${signs[change]} ${inline(key)}  ${what}`;
}
