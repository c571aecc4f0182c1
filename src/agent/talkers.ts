// SPDX-License-Identifier: Apache-2.0
import type { Peer } from '../cluster/index.ts';
import { type NodeSettings, peerKey, peerSlot } from '../dataplane/desired.ts';
import type { Carried, FlowSum } from '../dataplane/flow-sums.ts';
import type { FlowTable } from '../dataplane/flow-table.ts';
import type { Talker } from '../metrics/metrics.ts';
import type { NodeSnapshot } from './snapshot.ts';

const SILENT = { flows: 0, packets: 0, bytes: 0, kernelPackets: 0, kernelBytes: 0 };

type Name = readonly string[];

/** Finds the peers and pods that have talked, by the names that people know. */
export class Talkers {
  /** The names of peers by their keys in the maps: of a large cluster made only when the peers have changed. */
  #names: { readonly of: readonly Peer[]; readonly byKey: ReadonlyMap<string, Name> } | undefined;

  find(
    { sums, carried }: Pick<FlowTable, 'sums' | 'carried'>,
    settings: NodeSettings,
    peers: readonly Peer[],
    node: NodeSnapshot,
  ): { readonly peers: Talker[]; readonly pods: Talker[] } {
    return {
      peers: talkersNamed(sums.peers, carried.peers, () => this.#peerNames(settings, peers)),
      pods: talkersNamed(sums.endpoints, carried.endpoints, () => podNames(node)),
    };
  }

  #peerNames(settings: NodeSettings, peers: readonly Peer[]): ReadonlyMap<string, Name> {
    if (this.#names?.of === peers) return this.#names.byKey;
    const byKey = new Map(
      peers.map(({ name, podCidr }) => {
        const key = podCidr.family === 4 ? peerSlot(settings, podCidr) : peerKey(settings, podCidr);
        return [String(key), [name]];
      }),
    );
    this.#names = { of: peers, byKey };
    return byKey;
  }
}

/** By the ifindex of the host veth. Of pods on a bridge only the addresses are known. */
function podNames(node: NodeSnapshot): ReadonlyMap<number, Name> {
  return new Map([
    ...node.bridged.value.pods.map(({ ip, port }) => [port, ['', ip]] as const),
    ...node.pods.value.map(
      ({ podNamespace = '', podName, containerId, hostIfindex }) =>
        [hostIfindex, [podNamespace, podName ?? containerId]] as const,
    ),
  ]);
}

/** Those with any sum that are still there. A dual-stack node is two peers of one name. */
function talkersNamed<K>(
  sums: ReadonlyMap<K, FlowSum>,
  carried: ReadonlyMap<K, Carried>,
  names: () => ReadonlyMap<K, Name>,
): Talker[] {
  const keys = new Set([...sums.keys(), ...carried.keys()]);
  const talkers = new Map<string, Talker>();
  const byKey = keys.size > 0 ? names() : new Map<K, Name>();
  for (const key of keys) {
    const name = byKey.get(key);
    if (!name) continue;
    const [fast, kernel] = [sums.get(key), carried.get(key)];
    const known = talkers.get(name.join('/')) ?? { ...SILENT, name };
    talkers.set(name.join('/'), {
      name,
      flows: known.flows + (fast?.flows ?? 0),
      packets: known.packets + (fast?.packets ?? 0),
      bytes: known.bytes + (fast?.bytes ?? 0),
      kernelPackets: known.kernelPackets + (kernel?.packets ?? 0),
      kernelBytes: known.kernelBytes + (kernel?.bytes ?? 0),
    });
  }
  return [...talkers.values()];
}
