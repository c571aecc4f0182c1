// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { renderSubnetEnv } from '../src/host/subnet-env.ts';
import { type Lab, nodeDir, type NodeState, pluginOf } from '../src/lab/index.ts';
import { CNI_PLUGINS, type CniPlugin } from '../src/lab/cni.ts';
import { flanneldPlugin } from '../src/lab/flanneld.ts';
import { parseCidr } from '../src/net/ip.ts';
import { buildPrograms, missingForPrograms } from '../test/support/go-programs.ts';
import { peerPath, programs } from '../test/support/peer-programs.ts';

/** A plugin and the node on which it is called. */
export interface Arm {
  readonly node: NodeState;
  readonly plugin: CniPlugin;
}

/**
 * ripstop; flannel's chain (flannel calls bridge, which calls host-local); and the links of that chain, for the table of
 * steps. Without Go, `flannel` is bridge with host-local alone.
 */
export type ArmName = 'ripstop' | 'flannel' | 'bridge' | 'host-local';

export async function armsOf(
  lab: Lab,
  ours: NodeState,
  flannels: NodeState,
  say: (text: string) => void,
): Promise<Record<ArmName, Arm>> {
  const bridge = pluginOf(lab, flannels);
  const missing = await missingForPrograms([programs.flannel]);
  if (missing !== undefined) say(`compared with bridge and host-local alone: ${missing}`);
  else {
    await buildPrograms([programs.flannel], say);
    writeSubnetEnv(lab, flannels);
  }
  const { ipam, ...rest } = bridge.config as Record<string, object>;
  return {
    ripstop: { node: ours, plugin: pluginOf(lab, ours) },
    flannel: {
      node: flannels,
      plugin: missing === undefined ? flanneldPlugin(lab, flannels, peerPath('flannel')) : bridge,
    },
    bridge: { node: flannels, plugin: bridge },
    'host-local': {
      node: flannels,
      plugin: { ...bridge, plugin: join(CNI_PLUGINS, 'host-local'), config: { ...rest, ipam } },
    },
  };
}

/** What flanneld would have written. */
function writeSubnetEnv(lab: Lab, node: NodeState): void {
  const { mtu } = pluginOf(lab, node).config as { mtu: number };
  const networks = [{ network: parseCidr('10.42.0.0/16'), podCidr: parseCidr(node.podCIDR) }];
  writeFileSync(join(nodeDir(lab, node), 'subnet.env'), renderSubnetEnv({ networks, mtu, ipMasq: true }));
}

/** How long each step of the ADDs took in ripstop's agent, ms, by container. */
export function stepsOf(lab: Lab, node: NodeState): Map<string, Record<string, number>> {
  const lines = readFileSync(join(nodeDir(lab, node), 'agent.log'), 'utf8').split('\n');
  return new Map(
    lines
      .filter((line) => line.includes('"steps":'))
      .map((line) => JSON.parse(line) as { containerId: string; steps: Record<string, number> })
      .map(({ containerId, steps }) => [containerId, steps]),
  );
}
