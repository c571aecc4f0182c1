// SPDX-License-Identifier: Apache-2.0
/** `ripstop top`: who sends how much, live. */
import { type Command, InvalidArgumentError } from 'commander';
import { examples, flag } from './options.ts';
import { addReaderFlags } from './reader.ts';
import type { TopOptions } from './top.ts';
import { intervalFlag } from './watch.ts';

export function addTopCommand(program: Command): void {
  addReaderFlags(program.command('top'))
    .description('peers, pods and Services by packets and bits a second, live on a whole screen')
    .addOption(intervalFlag())
    .addOption(flag('-n, --count <n>', 'end after n readings').argParser(parseCount))
    .addHelpText('after', NOTES)
    .action(async (options: TopOptions) => {
      const { top } = await import('./top.ts');
      await top(options);
    });
}

function parseCount(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Give a number, from 1 on.');
}

const NOTES = `
Keys: q quit; p, e, v or Tab peers, pods, Services; arrows or j, k move; s the next order; / filter; space pause; ? help.

Both directions count, and only packets between pods. The fast path's are what the flow table counts. The kernel path's
are counted where they leave it, so what it drops is not among them; nor is what it delivers to a pod whose packets
somebody shapes. Of a Service, the packets that begin a TCP connection are missing, and only rules of kube-proxy
give it a name.

CLASS tells which latency to expect, by the way of the packets since the last reading. It is not measured:
  fast    95 % or more took the fast path
  mixed   between
  kernel  5 % or less did. A packet of the kernel path passes routes, rules, conntrack and flannel's devices too
  idle    there were no packets
Above the table are the measured times of a run of each program, where the kernel counts them: while
/proc/sys/kernel/bpf_stats_enabled is 1. top does not switch that on, since it slows all programs down.

Reading 100,000 flows takes about 0.2 s of a CPU. Then readings come less often, so that they take a tenth of a CPU
at most. top only reads the maps; it changes nothing.
${examples([
  ['top', 'a screen'],
  ['top -o json', 'a line a second'],
  ['top -o json -n 1', 'the rates of one second'],
])}`;
