// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from 'node:crypto';
import { callCni, type NodeState } from '../src/lab/index.ts';
import type { CniPlugin } from '../src/lab/cni.ts';
import { addNetns, deleteNetns } from '../src/lab/netns.ts';

/**
 * Add so many pods at once and delete them again. The namespaces exist before and after: only the plugin's calls are
 * timed, from the start of the first to the end of the last, with the start of their processes.
 */
export async function timedCni(
  plugin: CniPlugin,
  node: NodeState,
  count: number,
): Promise<{ readonly addMs: number; readonly delMs: number; readonly ids: readonly string[] }> {
  const containers = Array.from({ length: count }, () => {
    const id = randomBytes(32).toString('hex');
    return { id, netns: `${node.netns}-${id.slice(0, 8)}`, pod: id.slice(0, 8) };
  });
  const results = new Map<string, unknown>();
  await addNetns(...containers.map(({ netns }) => netns));
  const timed = async (call: (container: (typeof containers)[number]) => Promise<void>): Promise<number> => {
    const startedAt = performance.now();
    await Promise.all(containers.map(call));
    return performance.now() - startedAt;
  };
  try {
    const shared = { ...plugin, hostNetns: node.netns };
    const addMs = await timed(async (container) => {
      results.set(container.id, await callCni({ ...shared, command: 'ADD', container }));
    });
    const delMs = await timed(async (container) => {
      const config = { ...plugin.config, prevResult: results.get(container.id) };
      await callCni({ ...shared, config, command: 'DEL', container });
    });
    return { addMs, delMs, ids: containers.map(({ id }) => id) };
  } finally {
    await deleteNetns(...containers.map(({ netns }) => netns));
  }
}
