// SPDX-License-Identifier: Apache-2.0
/** The commands that only read: the pinned maps and links, and the agent's status. They change nothing. */
import type { Command } from 'commander';
import type { Counter } from '../dataplane/counters.ts';
import { bpffsFlag, flag, outputFlag, runDirFlag } from './options.ts';
import { type Column, renderTable } from './table.ts';

interface ReaderOptions {
  readonly bpffs: string;
  readonly runDir: string;
  readonly output: 'table' | 'json';
}

export function addReaderCommands(program: Command): void {
  const reader = (name: string, description: string): Command =>
    program
      .command(name)
      .description(description)
      .addOption(bpffsFlag())
      .addOption(runDirFlag())
      .addOption(outputFlag());

  reader(
    'status',
    'the agent, its API watch, attached programs, peers, endpoints, and packets by verdict',
  ).action(async (options: ReaderOptions) => {
    const { readStatus, renderStatus } = await import('./status.ts');
    const status = await readStatus(options.bpffs, options.runDir);
    print(options, status, () => renderStatus(status));
  });

  reader('peers', 'the nodes that this one forwards to, from the BPF maps').action(
    async (options: ReaderOptions) => {
      const { askAgent } = await import('./ask-agent.ts');
      const { peerColumns, readPeers } = await import('./rows.ts');
      list(options, readPeers(options.bpffs, await askAgent(options.runDir)), peerColumns);
    },
  );

  reader('endpoints', 'the pods of this node, from the BPF maps').action(async (options: ReaderOptions) => {
    const { endpointColumns, readEndpoints } = await import('./rows.ts');
    list(options, await readEndpoints(options.bpffs, options.runDir), endpointColumns);
  });

  reader('flows', 'the flow table: which flows take the fast path, and how their packets leave').action(
    async (options: ReaderOptions) => {
      const { flowColumns, readFlows } = await import('./rows.ts');
      list(options, await readFlows(options.bpffs, options.runDir), flowColumns);
    },
  );

  reader('stats', 'packets and bytes by hook, verdict and reason').action(async (options: ReaderOptions) => {
    const { openTables } = await import('../dataplane/tables.ts');
    const { readCounters } = await import('../dataplane/counters.ts');
    using tables = openTables(options.bpffs);
    const rows = readCounters(tables).filter(({ packets }) => packets > 0);
    list(options, rows, counterColumns);
  });

  reader('maps', 'the BPF maps; with NAME, one map entry by entry')
    .argument('[name]', 'a map')
    .addOption(flag('--raw', 'keys and values as bytes'))
    .action(async (name: string | undefined, options: ReaderOptions & { raw?: boolean }) => {
      const { dumpMap, entryColumns, listMaps, mapColumns } = await import('./maps.ts');
      if (name === undefined) list(options, listMaps(options.bpffs), mapColumns);
      else list(options, dumpMap(options.bpffs, name, options.raw ?? false), entryColumns);
    });
}

const counterColumns: Column<Counter>[] = [
  { title: 'HOOK', value: (row) => row.hook },
  { title: 'VERDICT', value: (row) => row.verdict },
  { title: 'REASON', value: (row) => row.reason },
  { title: 'PACKETS', align: 'right', value: (row) => row.packets },
  { title: 'BYTES', align: 'right', value: (row) => row.bytes },
];

function list<Row>(options: ReaderOptions, rows: readonly Row[], columns: readonly Column<Row>[]): void {
  print(options, rows, () => renderTable(columns, rows));
}

function print(options: ReaderOptions, value: unknown, table: () => string): void {
  process.stdout.write(options.output === 'json' ? `${JSON.stringify(value, undefined, 2)}\n` : table());
}
