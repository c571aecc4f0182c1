// SPDX-License-Identifier: Apache-2.0
/** The commands that only read: the pinned maps and links, and the agent's status. They change nothing. */
import type { Command } from 'commander';
import { addFlowsCommand } from './flows-command.ts';
import { addMapsCommand } from './maps-command.ts';
import { examples, FOUND } from './options.ts';
import { print, printRows } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import { addTopCommand } from './top-command.ts';
import { addWatchFlags, type WatchOptions } from './watch.ts';

export function addReaderCommands(program: Command): void {
  const reader = (name: string, description: string): Command =>
    addReaderFlags(program.command(name).description(description));

  reader('status', 'what needs a person, the agent, its API watch, attached programs, and packets by verdict')
    .addHelpText('after', STATUS_NOTES)
    .action(async (options: ReaderOptions) => {
      const { problemsOf, readStatus, renderStatus } = await import('./status.ts');
      const status = await readStatus(options.bpffs, options.runDir);
      await print(options.output, status, () => renderStatus(status));
      if (problemsOf(status).length > 0) process.exitCode = FOUND;
    });

  reader('peers', 'the nodes that this one forwards to, from the BPF maps')
    .addHelpText('after', PEER_EXAMPLES)
    .action(async (options: ReaderOptions) => {
      const { askAgent } = await import('./ask-agent.ts');
      const { peerColumns, readPeers } = await import('./rows.ts');
      const { bpffs, runDir, output } = options;
      const rows = readPeers(bpffs, await askAgent(runDir), output !== 'table');
      await printRows(output, rows, peerColumns);
    });

  reader('endpoints', 'the pods of this node, from the BPF maps')
    .addHelpText('after', ENDPOINT_EXAMPLES)
    .action(async (options: ReaderOptions) => {
      const { endpointColumns, readEndpoints } = await import('./rows.ts');
      const rows = await readEndpoints(options.bpffs, options.runDir, options.output !== 'table');
      await printRows(options.output, rows, endpointColumns);
    });

  addFlowsCommand(program);

  addWatchFlags(
    reader('stats', 'packets and bytes by hook, verdict and reason'),
    'show what moves, and how fast, until interrupted',
  )
    .addHelpText('after', STATS_EXAMPLES)
    .action(async (options: ReaderOptions & WatchOptions) => {
      const { counterColumns, readStats, watchStats } = await import('./stats.ts');
      if (!options.watch) await printRows(options.output, readStats(options.bpffs), counterColumns);
      else await watchStats(options.bpffs, options);
    });

  addTopCommand(program);
  addMapsCommand(program);
}

const STATUS_NOTES = `
What a person must look at comes first, and the exit code is 3 then. Packets are those between pods that this node has
carried; each counts once. The last minute is known while the agent runs.
${examples([
  ['status', 'one screen'],
  ["status -o jsonpath='{.fastPercent}'", 'the share of the fast path since the maps were made'],
])}`;

const PEER_EXAMPLES = examples([
  ['peers', 'each with the reason where the kernel path alone serves it'],
  ['peers -o wide', 'with flows, and the packets and bytes that these have sent by the fast path, both ways'],
  ["peers -o jsonpath='{[?(@.fastPath==false)].node}'", 'the names of those'],
]);

const ENDPOINT_EXAMPLES = examples([
  ['endpoints', 'each with the reason where the kernel path alone serves it'],
  [
    'endpoints -o wide',
    'also its kind of device, flows, and the packets and bytes that these have sent by the fast path',
  ],
  ['endpoints -o yaml', 'the same as YAML'],
]);

const STATS_EXAMPLES = examples([
  ['stats', 'since the maps were made'],
  ['stats --watch', 'each second, what has moved in it'],
]);
