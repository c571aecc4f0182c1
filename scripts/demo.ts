#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * ripstop in half a minute: a cluster of three nodes out of network namespaces, its packets on the fast path, an agent
 * killed, a node added, and figures beside flannel's and the host's. Leaves nothing behind.
 *
 *   sudo npm run demo
 */
import { mkdirSync } from 'node:fs';
import { availableParallelism, constants } from 'node:os';
import { buildDir } from '../bench/arms.ts';
import { buildNetbench } from '../bench/netbench.ts';
import { errorText, RipstopError } from '../src/errors.ts';
import { labSteps, parseLabOptions } from '../src/lab/index.ts';
import {
  compare,
  joinNode,
  killAgent,
  pingAll,
  readWayCounters,
  showNodes,
  showPeers,
  showWay,
  stream,
} from './demo/sections.ts';
import { heading, milliseconds, step } from './demo/show.ts';
import { Stage } from './demo/stage.ts';

async function demo(stage: Stage): Promise<void> {
  const cpu = availableParallelism() > 1 ? 1 : 0;
  const section = (title: string): void => {
    stage.goOn();
    heading(title);
  };
  const options = parseLabOptions({ name: `demo-${process.pid}`, nodes: 3, pods: 2 });

  section('A cluster of three nodes with two pods each');
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

  section("node1's peers, read back from the BPF map that its agent filled");
  await showPeers(lab);

  const before = await readWayCounters(lab);
  section('Every pod pings every pod');
  await pingAll(lab);

  section('TCP from node to node');
  await stream(lab, program);

  section('Which way the packets went');
  showWay(before, await readWayCounters(lab));

  section('An agent dies; the packets do not care');
  await killAgent(lab, stage);

  section('A node joins');
  await joinNode(lab, stage);

  section('Host network, flannel and ripstop side by side');
  await compare(arms, cpu);
}

/** Ends the demo from outside, with the exit code that a shell expects of the signal. */
function interruption(): Promise<never> {
  return new Promise((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () =>
        reject(new RipstopError(`interrupted by ${signal}`, { exitCode: 128 + constants.signals[signal] })),
      );
    }
    process.stdout.on('error', () => reject(new RipstopError('nobody reads on')));
  });
}

const startedAt = performance.now();
const stage = new Stage();
let exitCode = 0;
try {
  await Promise.race([demo(stage), interruption()]);
} catch (error) {
  exitCode = error instanceof RipstopError ? error.exitCode : 1;
  console.error(`\ndemo: ${errorText(error)}`);
}
console.log('');
const left = await step('everything is taken down', () => stage.takeDown());
for (const line of left) console.error(`demo: ${line}`);
if (left.length > 0) exitCode ||= 1;
console.log(
  `\n${exitCode === 0 ? 'All as it should be' : 'Not as it should be'}, ${(milliseconds(startedAt) / 1000).toFixed(1)} s.`,
);
// After an interruption the demo itself is still waiting for programs that have gone.
process.exit(exitCode);
