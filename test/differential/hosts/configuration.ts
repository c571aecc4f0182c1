// SPDX-License-Identifier: Apache-2.0
/** Host configurations, drawn from a seed: what a node has beside flannel, and what changes while flows are under way. */
import type { KubeProxyMode, ServicePort } from '../../../src/lab/index.ts';
import { Random, seedOf } from '../../support/random.ts';
import { families, type PodName, podNames, PODS } from '../plan.ts';
import { CLUSTER_IPS, drawFlows, type Flow, nodePortOf, PORTS, SERVICE_PORT, SERVICES } from './flows.ts';
import { drawObstacle, type Obstacle } from './obstacles.ts';

/** The pod that serves each Service, if there is one. */
export type Backends = readonly (PodName | undefined)[];

export type Change =
  | { readonly what: 'added' | 'removed'; readonly obstacle: Obstacle }
  | { readonly what: 'services'; readonly backends: Backends };

export interface Configuration {
  readonly number: number;
  readonly kubeProxy: Exclude<KubeProxyMode, 'none'>;
  readonly backends: Backends;
  /** In the order in which they are added. */
  readonly obstacles: readonly Obstacle[];
  readonly change: Change;
  readonly flows: readonly Flow[];
}

export const FLOWS = 30;
const MOST_OBSTACLES = 6;
/** One in so many configurations begins without obstacles. */
export const PLAIN_EVERY = 4;

/** Configuration `number` of a seed: always the same. */
export function configurationOf(seed: number, number: number): Configuration {
  const random = new Random(seedOf(seed, number));
  const drawBackends = (): Backends =>
    SERVICES.map((service) => (service === 2 && random.below(2) === 0 ? undefined : random.pick(podNames)));
  const backends = drawBackends();
  const kubeProxy = random.pick(['iptables', 'nftables'] as const);
  const count = number % PLAIN_EVERY === 0 ? 0 : 1 + random.below(MOST_OBSTACLES);
  // Two with the same undoing are in each other's way.
  const drawn = Array.from({ length: count + 1 }, (_, id) => drawObstacle(random, id));
  const all = [...new Map(drawn.map((one) => [`${one.node} ${one.remove}`, one])).values()];
  const [added, ...obstacles] = all.toReversed() as [Obstacle, ...Obstacle[]];
  const choice = random.below(5);
  const change: Change =
    choice === 0
      ? { what: 'services', backends: drawBackends() }
      : choice < 3 && obstacles.length > 0
        ? { what: 'removed', obstacle: random.pick(obstacles) }
        : { what: 'added', obstacle: added };
  const isNarrow = all.some(({ add }) => add.includes('mtu'));
  const flows = drawFlows(random, FLOWS * number, FLOWS, isNarrow);
  return { number, kubeProxy, backends, obstacles, change, flows };
}

/** The Services' ports in both families and protocols, as kube-proxy knows them. */
export function servicePorts(backends: Backends): ServicePort[] {
  return SERVICES.flatMap((service) =>
    families.flatMap((family) =>
      (['tcp', 'udp'] as const).map((protocol) => {
        const backend = backends[service];
        return {
          service: `default/own${service}`,
          name: protocol,
          protocol,
          clusterIp: CLUSTER_IPS[family][service],
          port: SERVICE_PORT,
          nodePort: nodePortOf(service),
          endpoints: backend ? [{ ip: PODS[family][backend], port: PORTS[0] }] : [],
        };
      }),
    ),
  );
}
