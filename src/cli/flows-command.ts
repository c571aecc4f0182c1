// SPDX-License-Identifier: Apache-2.0
/** `ripstop flows`: the flow table. */
import type { Command } from 'commander';
import type { FlowChoice, FlowRow } from './flows.ts';
import { examples, flag } from './options.ts';
import { printRows } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import { addWatchFlags, type WatchOptions } from './watch.ts';

type FlowsOptions = ReaderOptions & WatchOptions & FlowChoice;

export function addFlowsCommand(program: Command): void {
  const flows = program
    .command('flows')
    .description('the flow table: which flows take the fast path, and how their packets leave')
    .addOption(flag('--pod <pod>', 'those of a pod: its name, namespace/name or address'))
    .addOption(flag('--peer <node>', "those with a node's pods: its name, podCIDR or VTEP address"))
    .addOption(
      flag(
        '--service <address>',
        'those through a service: its name, namespace/name, address, or address:port',
      ),
    )
    .addOption(flag('--all', 'those, too, that the kernel path alone has carried lately'))
    .addOption(
      flag('--sort <column>', 'the order of the rows')
        .choices(['age', 'packets', 'bytes', 'source', 'destination', 'from', 'to', 'state'])
        .default('age'),
    );
  addWatchFlags(addReaderFlags(flows), 'show flows as they come, change and go, until interrupted')
    .addHelpText('after', NOTES)
    .action(async (options: FlowsOptions) => {
      const { entryOf, flowColumns, FlowRates, readFlows } = await import('./flows.ts');
      const { askAgent } = await import('./ask-agent.ts');
      const { bpffs, runDir } = options;
      const read = async (): Promise<FlowRow[]> => readFlows(bpffs, runDir, await askAgent(runDir), options);
      if (!options.watch) return printRows(options.output, await read(), flowColumns);
      const { printChanges } = await import('./map-watch.ts');
      const rates = new FlowRates();
      await printChanges(options, async () => {
        const rows = await read();
        const ofRows = rates.of(rows, performance.now());
        return rows.map((row, i) => entryOf(row, ofRows[i]!));
      });
    });
}

const NOTES = `
A row is one direction of a conversation. STATE is what its next packet meets:
  valid        the fast path
  unsettled    the kernel path, while earlier packets may still be under way there
  expired      the kernel path, which renews what was learned: it is older than 5 seconds
  old epoch    the kernel path: rules, routes or policies have changed since it was learned
  not learned  the kernel path; only with --all: packets came in, and were not seen to leave unchanged
A packet of a valid flow takes the kernel path when it does not suit: \`ripstop stats\` counts by reason. A flow of an
idle connection expires and is learned again with its next packet.
PACKETS and BYTES are those of the fast path since the flow was first learned: of IP as it comes in, without a tunnel's
headers; a super-packet counts once. With --watch, a flow's rate is told when it has doubled or halved, from 10 packets
a second on. \`ripstop top\` adds flows up by peer, pod and Service.
${examples([
  ['flows', 'all of them, the youngest first'],
  ['flows --sort bytes', 'those that have sent the most first'],
  ['flows --pod default/web-0 -o wide', "a pod's"],
  ['flows --service kube-system/kube-dns', "a service's, before and after its translation"],
  ['flows --service 10.43.0.10:53 --sort source', 'the same by its address, in order'],
  ['flows --peer node2 --watch', 'what comes, changes and goes between this node and another'],
])}`;
