// SPDX-License-Identifier: Apache-2.0
/** The commands that only read: the pinned maps and links, and the agent's status. They change nothing. */
import type { Command } from 'commander';
import type { Counter } from '../dataplane/counters.ts';
import { addMapsCommand } from './maps-command.ts';
import { print, printRows } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import type { Column } from './table.ts';

export function addReaderCommands(program: Command): void {
  const reader = (name: string, description: string): Command =>
    addReaderFlags(program.command(name).description(description));

  reader(
    'status',
    'the agent, its API watch, attached programs, peers, endpoints, and packets by verdict',
  ).action(async (options: ReaderOptions) => {
    const { readStatus, renderStatus } = await import('./status.ts');
    const status = await readStatus(options.bpffs, options.runDir);
    await print(options.output, status, () => renderStatus(status));
  });

  reader('peers', 'the nodes that this one forwards to, from the BPF maps').action(
    async (options: ReaderOptions) => {
      const { askAgent } = await import('./ask-agent.ts');
      const { peerColumns, readPeers } = await import('./rows.ts');
      await printRows(options.output, readPeers(options.bpffs, await askAgent(options.runDir)), peerColumns);
    },
  );

  reader('endpoints', 'the pods of this node, from the BPF maps').action(async (options: ReaderOptions) => {
    const { endpointColumns, readEndpoints } = await import('./rows.ts');
    await printRows(options.output, await readEndpoints(options.bpffs, options.runDir), endpointColumns);
  });

  reader('flows', 'the flow table: which flows take the fast path, and how their packets leave').action(
    async (options: ReaderOptions) => {
      const { flowColumns, readFlows } = await import('./rows.ts');
      await printRows(options.output, await readFlows(options.bpffs, options.runDir), flowColumns);
    },
  );

  reader('stats', 'packets and bytes by hook, verdict and reason').action(async (options: ReaderOptions) => {
    const { openTables } = await import('../dataplane/tables.ts');
    const { readCounters } = await import('../dataplane/counters.ts');
    using tables = openTables(options.bpffs);
    const rows = readCounters(tables).filter(({ packets }) => packets > 0);
    await printRows(options.output, rows, counterColumns);
  });

  addMapsCommand(program);
}

const counterColumns: Column<Counter>[] = [
  { title: 'HOOK', value: (row) => row.hook },
  { title: 'VERDICT', value: (row) => row.verdict },
  { title: 'REASON', value: (row) => row.reason },
  { title: 'PACKETS', align: 'right', value: (row) => row.packets },
  { title: 'BYTES', align: 'right', value: (row) => row.bytes },
];
