#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * ripstop in half a minute: a cluster of three nodes in network namespaces, packets on the fast path, an agent that is
 * killed, a node that is added, and figures beside flannel's and the host's. It leaves nothing behind.
 *
 *   sudo npm run demo
 */
import { mkdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { buildDir } from '../bench/arms.ts';
import { buildNetbench } from '../bench/netbench.ts';
import { showProgress } from '../src/cli/progress.ts';
import { errorText, RipstopError } from '../src/errors.ts';
import { labSteps, parseLabOptions } from '../src/lab/index.ts';
import { interruption } from './demo/interruption.ts';
import {
  compare,
  joinNode,
  killAgent,
  pingAll,
  readPathCounters,
  showNodes,
  showPeers,
  showPaths,
  stream,
} from './demo/sections.ts';
import { heading, milliseconds, step } from './demo/show.ts';
import { Stage } from './demo/stage.ts';

async function demo(stage: Stage): Promise<void> {
  const cpu = availableParallelism() > 1 ? 1 : 0;
  const options = parseLabOptions({ name: `demo-${process.pid}`, nodes: 3, pods: 2 });

  heading('A cluster of three nodes with two pods each');
  const comparison = 'labs to compare: host network, flannel, ripstop';
  const [lab, program, arms] = await step([...labSteps(options), comparison], async (progress) => {
    mkdirSync(buildDir, { recursive: true });
    const building = buildNetbench(buildDir);
    const raising = (['host', 'flannel', 'ripstop'] as const).map(async (datapath) =>
      stage.raiseArm(datapath, { program: await building, serverCpu: cpu, services: 100 }),
    );
    return Promise.all([stage.raiseLab(options, progress), building, Promise.all(raising)]);
  });
  showNodes(lab);

  heading("node1's peers, read back from the BPF map that its agent filled");
  await showPeers(lab);

  const before = await readPathCounters(lab);
  heading('Every pod pings every pod');
  await pingAll(lab);

  heading('TCP from node to node');
  await stream(lab, program);

  heading('Which way the packets went');
  showPaths(before, await readPathCounters(lab));

  heading('An agent dies; the packets do not care');
  await killAgent(lab, stage);

  heading('A node joins');
  await joinNode(lab, stage);

  heading('Host network, flannel and ripstop side by side');
  await compare(arms, cpu);
}

const startedAt = performance.now();
const stage = new Stage();
let exitCode = 0;
try {
  await demo(stage);
} catch (thrown) {
  // Ctrl-C also ends the programs that were running; their errors do not matter then.
  const error: unknown = interruption.aborted ? interruption.reason : thrown;
  exitCode = error instanceof RipstopError ? error.exitCode : 1;
  console.error(`\ndemo: ${errorText(error)}`);
}
console.log('');
const left = await showProgress(['everything is taken down'], () => stage.takeDown(), console.log);
for (const line of left) console.error(`demo: ${line}`);
if (left.length > 0) exitCode ||= 1;
console.log(
  `\n${exitCode === 0 ? 'All as it should be' : 'Not as it should be'}, ${(milliseconds(startedAt) / 1000).toFixed(1)} s.`,
);
// After an interruption, promises may still wait for programs that have ended.
process.exit(exitCode);
