// SPDX-License-Identifier: Apache-2.0
/** `ripstop stats`: the counters, and how fast they move. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Counter, readCounters } from '../dataplane/counters.ts';
import { openTables } from '../dataplane/tables.ts';
import { format } from './output.ts';
import { type Column, renderTable } from './table.ts';
import { bytesText } from './text.ts';

export const counterColumns: Column<Counter>[] = [
  { title: 'HOOK', value: (row) => row.hook },
  { title: 'VERDICT', value: (row) => row.verdict, color: ({ verdict }) => colors[verdict] },
  { title: 'REASON', value: (row) => row.reason },
  { title: 'PACKETS', align: 'right', value: (row) => row.packets },
  { title: 'BYTES', align: 'right', value: (row) => row.bytes },
];

const colors = { fast: 'green', kernel: 'yellow', drop: 'red' } as const;

/** The counters that are not zero. */
export function readStats(bpffs: string): Counter[] {
  using tables = openTables(bpffs);
  return readCounters(tables).filter(({ packets }) => packets > 0);
}

export interface Rate extends Counter {
  readonly packetsPerSecond: number;
  readonly bytesPerSecond: number;
}

export const rateColumns: Column<Rate>[] = [
  ...counterColumns.slice(0, 3).map((column): Column<Rate> => column),
  { title: 'PACKETS/S', align: 'right', value: (row) => rateText(row.packetsPerSecond) },
  { title: 'BYTES/S', align: 'right', value: (row) => bytesText(row.bytesPerSecond) },
  { title: 'PACKETS', align: 'right', value: (row) => row.packets },
  { title: 'BYTES', align: 'right', value: (row) => row.bytes },
];

/** What moved between two readings. Counters of new maps begin at zero again. */
export function ratesBetween(before: readonly Counter[], after: readonly Counter[], seconds: number): Rate[] {
  const nameOf = ({ hook, verdict, reason }: Counter): string => `${hook} ${verdict} ${reason}`;
  const known = new Map(before.map((counter) => [nameOf(counter), counter]));
  return after.flatMap((counter) => {
    const { packets, bytes } = known.get(nameOf(counter)) ?? { packets: 0, bytes: 0 };
    const isNew = packets > counter.packets;
    const moved = counter.packets - (isNew ? 0 : packets);
    if (moved === 0) return [];
    return [
      {
        ...counter,
        packetsPerSecond: moved / seconds,
        bytesPerSecond: (counter.bytes - (isNew ? 0 : bytes)) / seconds,
      },
    ];
  });
}

function rateText(rate: number): string {
  return rate < 10 ? rate.toFixed(1) : String(Math.round(rate));
}

/** Show the rates of each interval: on a terminal in place of the last one, else one table after the other. */
export async function watchStats(
  bpffs: string,
  { output, interval }: { readonly output: string; readonly interval: number },
): Promise<void> {
  let [before, beforeMs] = [readStats(bpffs), performance.now()];
  for (;;) {
    await sleep(interval * 1000);
    const [after, afterMs] = [readStats(bpffs), performance.now()];
    const rates = ratesBetween(before, after, (afterMs - beforeMs) / 1000);
    [before, beforeMs] = [after, afterMs];
    const time = new Date().toISOString();
    const text =
      output === 'json'
        ? `${JSON.stringify({ time, rates })}\n`
        : `${time}\n${await format(output, rates, (wide) => renderTable(rateColumns, rates, wide))}`;
    process.stdout.write(process.stdout.isTTY ? `${CLEAR}${text}` : text);
  }
}

/** Cursor to the top left, and clear the screen. */
const CLEAR = '\u001B[H\u001B[J';
