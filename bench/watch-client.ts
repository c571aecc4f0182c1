// SPDX-License-Identifier: Apache-2.0
/**
 * One node's view of a cluster's Nodes, as a process of its own: `node watch-client.ts KUBECONFIG ARM`, for watch.ts.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import {
  annotationKeys,
  ApiClient,
  KubeSubnetManager,
  type LeaseSettings,
  parseNode,
  Reflector,
} from '../src/cluster/index.ts';
import { parseCidr } from '../src/net/ip.ts';
import { CLUSTER_NETWORK } from './scale-nodes.ts';

/** Its cost so far. */
export interface Cost {
  readonly cpuMs: number;
  readonly rssBytes: number;
  readonly changes: number;
  readonly peers: number;
}

const [kubeconfig = '', arm] = process.argv.slice(2);
const settings: LeaseSettings = {
  keys: annotationKeys(),
  backend: 'vxlan',
  vni: 1,
  network: parseCidr(CLUSTER_NETWORK),
};
const log = pino({ level: 'warn' }, pino.destination(2));
const client = await ApiClient.open({ kubeconfig });
// Load modules first, since that is not part of watching.
await client.request('GET', '/version');

let changes = 0;
const count = (): void => void changes++;

function whole(): { synced(): boolean; peers(): number; start(): void } {
  const reflector = new Reflector({
    client,
    path: '/api/v1/nodes',
    project: (object) => parseNode(object, settings),
    onChange: count,
    log,
  });
  return {
    synced: () => reflector.synced && reflector.health.connected,
    peers: () =>
      reflector.items
        .values()
        .filter(({ value }) => value.kind === 'peer')
        .toArray().length,
    start: () => reflector.start(),
  };
}

function light(): ReturnType<typeof whole> {
  const manager = new KubeSubnetManager(client, 'of-no-node', settings, log);
  return {
    synced: () => manager.snapshot([]).synced && manager.health.connected,
    peers: () => manager.snapshot([]).nodes.length,
    start: () => manager.start(count),
  };
}

const source = arm === 'whole' ? whole() : light();

function cost(): Cost {
  const { user, system } = process.cpuUsage();
  return {
    cpuMs: (user + system) / 1000,
    rssBytes: process.memoryUsage.rss(),
    changes,
    peers: source.peers(),
  };
}

process.on('disconnect', () => process.exit());
process.on('message', () => process.send?.(cost()));
process.send?.(cost());
source.start();
while (!source.synced()) await sleep(10);
process.send?.(cost());
