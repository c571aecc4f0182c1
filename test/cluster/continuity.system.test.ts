// SPDX-License-Identifier: Apache-2.0
/** Numbered messages of pods, plain and through a Service, near and far, lose nothing while ripstop itself changes. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { pinPaths } from '../../src/dataplane/tables.ts';
import {
  giveBack,
  type NodeState,
  restartAgent,
  startAgent,
  stopAgent,
  removePrograms,
} from '../../src/lab/index.ts';
import { missingRelease } from '../support/release.ts';
import { bpffsOf, carriedDuring, missingHere } from './support.ts';
import { useTalkingLab } from './talking-lab.ts';
import { Version } from './versions.ts';

describe.skipIf(missingHere('iptables-restore'))('numbered messages of pods lose nothing while', () => {
  const { cluster, during } = useTalkingLab('numbered');
  const eachNode = async (act: (node: NodeState) => Promise<unknown>): Promise<void> => {
    for (const node of cluster.nodes) await act(node);
  };

  it('the agents of both nodes are killed, and started again', async () => {
    await during(() => eachNode((node) => restartAgent(cluster.lab, node, 'SIGKILL')));
  });

  it('the programs are removed by hand, and an agent attaches them again', async () => {
    await during(() =>
      eachNode(async (node) => {
        await removePrograms(cluster.lab, node);
        await startAgent(cluster.lab, node);
      }),
    );
  });

  it('a node is uninstalled, and given back to flannel', async () => {
    await during(() => giveBack(cluster.lab, cluster.nodes[0]!));
  });
});

const missing = missingHere('iptables-restore', 'clang-19') ?? missingRelease();

describe.skipIf(missing)(`numbered messages of pods${missing ? ` (skipped: ${missing})` : ''}`, () => {
  const { cluster, during } = useTalkingLab('from01');

  /** Whether a node has pinned a map that only this version has. */
  const hasFlowTable = (node: NodeState): boolean =>
    existsSync(join(pinPaths(bpffsOf(cluster.lab, node)).maps, 'flows4'));

  it('lose nothing while both nodes are upgraded from ripstop 0.1.0, and are fast afterwards', async () => {
    using previous = await Version.previous();
    await previous.build();
    for (const node of cluster.nodes) await removePrograms(cluster.lab, node);
    process.env['RIPSTOP_LAB_COMMAND'] = previous.main;
    try {
      for (const node of cluster.nodes) await startAgent(cluster.lab, node);
    } finally {
      delete process.env['RIPSTOP_LAB_COMMAND'];
    }
    for (const node of cluster.nodes) expect(hasFlowTable(node)).toBe(false);
    await during(async () => {
      for (const node of cluster.nodes) {
        await stopAgent(cluster.lab, node);
        await startAgent(cluster.lab, node);
        await expect.poll(() => hasFlowTable(node), { timeout: 10_000 }).toBe(true);
      }
    });
    const carried = await carriedDuring(cluster.lab, cluster.nodes, () => during(async () => {}));
    for (const { fast, forwarded } of carried) expect(fast).toBeGreaterThan(10 * forwarded);
  });
});
