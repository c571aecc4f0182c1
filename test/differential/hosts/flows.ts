// SPDX-License-Identifier: Apache-2.0
/** Flows of real sockets, drawn from a seed: who asks whom, by which address, and what is said. */
import type { Family } from '../../../src/net/ip.ts';
import type { Random } from '../../support/random.ts';
import { families, type NodeName, nodeNames, NODES, OUTSIDE, type PodName, podNames, PODS } from '../plan.ts';

/** Where sockets are: in pods, on nodes, and on a host outside of the cluster. */
export type Place = PodName | NodeName | 'outside';
export const places: readonly Place[] = [...podNames, ...nodeNames, 'outside'];

/** The ports at which everybody serves, TCP and UDP. */
export const PORTS = [4711, 4712] as const;
export const SERVICE_PORT = 80;
/** A port of each node that some configurations lead to a pod. */
export const HOST_PORT = 4799;

/** The addresses of the Services. */
export const CLUSTER_IPS = {
  4: ['10.43.0.11', '10.43.0.12', '10.43.0.13'],
  6: ['fd00:43::11', 'fd00:43::12', 'fd00:43::13'],
} as const;
export const SERVICES = [0, 1, 2] as const;
export const nodePortOf = (service: number): number => 30_080 + service;

export interface Message {
  readonly bytes: number;
  /** The TTL that it is sent with, where the system's default is not wanted. UDP only. */
  readonly ttl?: number;
  /** Whether it may not be the first that is too large for a route. Then it is lost, or not: who sends has been told. */
  readonly mayBeLost?: boolean;
}

export interface Flow {
  /** Unique in a run. */
  readonly number: number;
  readonly protocol: 'tcp' | 'udp' | 'ping';
  readonly family: Family;
  readonly from: Place;
  /** Whom it asks, in words. */
  readonly to: string;
  readonly address: string;
  readonly port: number;
  /** The phases in which it talks: from the beginning on, or only after the configuration has changed. */
  readonly phases: readonly Phase[];
  /** What is said in each phase, all of which comes back. Of a ping all messages have the same size. */
  readonly messages: readonly Message[];
  /** Of TCP and ping: the TOS byte that packets are sent with. */
  readonly tos: number;
}

export const PHASES = [1, 2] as const;
export type Phase = (typeof PHASES)[number];

/** How much is said in a phase. */
const MESSAGES = 16;
/** Bytes of messages: small ones, some that do not fit a route of 1,300 bytes, and some of several packets. */
const SIZES = [16, 16, 16, 16, 100, 1240, 1350, 3000];
const TCP_SIZES = [...SIZES, 30_000];
const PING_SIZES = [56, 56, 56, 1240, 1370];
const NARROW = 1240;
/** An expedited one, and one that rules look for. */
export const DSCPS = [46, 10] as const;

/** Flows, with numbers from `first` on. @param isNarrow whether a route may be too narrow for large messages */
export function drawFlows(random: Random, first: number, count: number, isNarrow: boolean): Flow[] {
  return Array.from({ length: count }, (_, i) => {
    const family = random.pick(families);
    const from =
      random.below(8) === 0 ? random.pick<Place>([...nodeNames, 'outside']) : random.pick(podNames);
    const { isPingable, ...target } = drawTarget(random, family, from);
    const protocol = isPingable
      ? random.pick(['tcp', 'tcp', 'udp', 'udp', 'ping'] as const)
      : random.pick(['tcp', 'udp'] as const);
    return {
      number: first + i,
      protocol,
      family,
      from,
      ...target,
      phases: random.below(4) === 0 ? [2] : PHASES,
      // From the outside come larger packets than fit a pod's interface.
      messages: drawMessages(random, protocol, isNarrow || [from, target.to].includes('outside')),
      tos: protocol !== 'udp' && random.below(3) === 0 ? random.pick(DSCPS) << 2 : 0,
    };
  });
}

function drawTarget(random: Random, family: Family, from: Place) {
  const port = random.pick(PORTS);
  const node = random.pick(nodeNames);
  const service = random.pick(SERVICES);
  const nodePort = {
    to: `NodePort of Service ${service} at ${node}`,
    address: NODES[family][node],
    port: nodePortOf(service),
    isPingable: false,
  };
  const chance = random.below(20);
  if (from === 'outside' || chance < 1) return nodePort;
  if (chance < 2) return { ...nodePort, to: `port ${HOST_PORT} of ${node}`, port: HOST_PORT };
  if (chance < 3 && node !== from) return { to: node, address: NODES[family][node], port, isPingable: true };
  if (chance < 4 && !(from in NODES[4]))
    return { to: 'outside', address: OUTSIDE[family], port, isPingable: true };
  if (chance < 9) {
    const address = CLUSTER_IPS[family][service];
    return { to: `Service ${service}`, address, port: SERVICE_PORT, isPingable: false };
  }
  const pod = random.pick(podNames.filter((pod) => pod !== from));
  return { to: pod, address: PODS[family][pod], port, isPingable: true };
}

function drawMessages(random: Random, protocol: Flow['protocol'], isNarrow: boolean): Message[] {
  const repeat = (message: Message): Message[] => Array.from({ length: MESSAGES }, () => message);
  if (protocol === 'ping') {
    const ttl = random.below(3) === 0 ? { ttl: random.pick(TTLS) } : {};
    return repeat({ bytes: Math.min(random.pick(PING_SIZES), isNarrow ? NARROW : Infinity), ...ttl });
  }
  const sizes = protocol === 'tcp' ? TCP_SIZES : SIZES;
  const messages = repeat({ bytes: 16 }).map((): Message => {
    const bytes = random.pick(sizes);
    return isNarrow && protocol === 'udp' && bytes > NARROW ? { bytes, mayBeLost: true } : { bytes };
  });
  if (protocol === 'tcp' || random.below(3) > 0) return messages;
  // One among them is unlike the others.
  const odd = random.below(MESSAGES);
  return messages.map((message, i) => ({ ...message, ttl: i === odd ? random.pick(TTLS) : 64 }));
}

/** Rules look for less than 32, and for more than 100. */
const TTLS = [20, 128];
