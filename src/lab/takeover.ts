// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { run } from '../host/run.ts';
import { syncFlannel } from './flannel-peers.ts';
import { netnsPath } from './netns.ts';
import { removeBpffs, ripstopCommand, setUpRipstop, stopAgent } from './ripstop.ts';
import { type Lab, type NodeState, saveLab } from './state.ts';

/**
 * Let ripstop take over a flannel node while its pods run, as if flanneld had been stopped and an agent in mode `cni`
 * started. Resolves when the agent can serve pods. New pods are attached by ripstop's plugin.
 */
export async function takeOver(lab: Lab, node: NodeState): Promise<void> {
  requireFlannel(node, 'taken over');
  node.datapath = 'ripstop';
  saveLab(lab);
  await setUpRipstop(lab, node);
}

/**
 * Boost a flannel node while its pods run: start an agent in mode `boost` beside flannel. Resolves when it is ready.
 */
export async function boost(lab: Lab, node: NodeState): Promise<void> {
  requireFlannel(node, 'boosted');
  node.boosted = true;
  node.datapath = 'ripstop';
  saveLab(lab);
  await setUpRipstop(lab, node);
}

/**
 * Leave a boosted node to flannel alone: stop the agent, and run `ripstop uninstall`.
 * @returns the output of the command
 * @throws RipstopError when it fails.
 */
export async function unboost(lab: Lab, node: NodeState): Promise<string> {
  const printed = await uninstall(lab, node);
  delete node.boosted;
  node.datapath = 'flannel';
  saveLab(lab);
  return printed;
}

/**
 * Give a node back to flannel: stop the agent, and run `ripstop uninstall --restore-flannel`. New pods are attached by
 * flannel's plugin, and the node follows its peers as a flannel node.
 * @returns the output of the command
 * @throws RipstopError when it fails.
 */
export async function giveBack(lab: Lab, node: NodeState): Promise<string> {
  const printed = await uninstall(lab, node, '--restore-flannel');
  node.datapath = 'flannel';
  saveLab(lab);
  await syncFlannel(lab);
  return printed;
}

function requireFlannel({ name, datapath }: NodeState, what: string): void {
  if (datapath === 'flannel') return;
  throw new RipstopError(`${name} has the ${datapath} datapath; only flannel is ${what}`);
}

async function uninstall(lab: Lab, node: NodeState, ...flags: readonly string[]): Promise<string> {
  await stopAgent(lab, node);
  const [program, ...args] = ripstopCommand(lab, node, 'uninstall');
  const printed = await run(program, [...args, ...flags], { netns: netnsPath(node.netns) });
  await removeBpffs(lab, node);
  return printed;
}
