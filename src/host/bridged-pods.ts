// SPDX-License-Identifier: Apache-2.0
import { type FdbEntry, listFdb, listNeighbours, type Neighbour } from '#netlink';
import type { Link } from './links.ts';
import { openNetlink, type Where } from './netlink.ts';

/** A pod's address on a bridge, and where the kernel sends packets for it. */
export interface BridgedPod {
  readonly ip: string;
  readonly podMac: string;
  /** Indexes of the bridge and of its port, the host veth. */
  readonly bridge: number;
  readonly port: number;
}

/** Bridges of pods. */
export interface PodBridges {
  /** The indexes of the ports that lead to pods, known or not. */
  readonly ports: readonly number[];
  readonly pods: readonly BridgedPod[];
  /** What contradicts what the bridges know, in sentences: nothing is believed then. */
  readonly contradictions: readonly string[];
}

/** Something that concerns a bridge: a neighbour, an FDB entry or a port has come, gone or changed. */
export type BridgeEvent =
  | { readonly kind: 'neighbour'; readonly deleted: boolean; readonly neighbour: Neighbour }
  | { readonly kind: 'fdb'; readonly deleted: boolean; readonly entry: FdbEntry }
  | {
      readonly kind: 'port';
      readonly deleted: boolean;
      readonly ifindex: number;
      readonly master: number | undefined;
    };

/** A packet with this source address came out of a port: see `sightings` in bpf/maps.h. */
export interface Sighting {
  readonly ip: string;
  readonly mac: string;
  readonly port: number;
}

/**
 * Whether a link is a port that leads to a pod: a veth whose other end is in another network namespace. The programs can
 * redirect to no other.
 */
export function isPodPort({ kind, peer }: Pick<Link, 'kind' | 'peer'>): boolean {
  return kind === 'veth' && peer !== undefined && 'netnsId' in peer;
}

/**
 * The pods on bridges, where the kernel delivers to them: a neighbour entry says which MAC has an address, and the
 * bridge's FDB says behind which port that MAC is. Of a pod that talks only to pods beside it, the kernel knows no
 * address: there the pod's own packets tell, unless the kernel knows otherwise. What is known of a port stays known as
 * long as the port is there, as an attachment does: the kernel forgets a pod that is silent.
 */
export class BridgedPods {
  /** Address → MAC, as the kernel has it, and as the pod's packets have it. */
  readonly #neighbours = new Map<string, string>();
  readonly #sighted = new Map<string, string>();
  /** MAC → port. */
  readonly #behind = new Map<string, number>();
  /** Port → bridge. */
  #ports = new Map<number, number>();
  readonly #contradictions = new Map<string, string>();
  #bridges: readonly number[] = [];

  /** List what these bridges know. What was known of ports that are still there stays. */
  read(bridges: readonly Link[], links: ReadonlyMap<string, Link>, where: Where = {}): void {
    const byName = new Map(bridges.map(({ name, ifindex }) => [name, ifindex]));
    this.#bridges = [...byName.values()];
    this.#ports = new Map(
      links.values().flatMap((link) => {
        const bridge = byName.get(link.master ?? '');
        return bridge !== undefined && isPodPort(link) ? [[link.ifindex, bridge] as const] : [];
      }),
    );
    for (const [mac, port] of this.#behind) if (!this.#ports.has(port)) this.#behind.delete(mac);
    if (bridges.length === 0) return;
    using socket = openNetlink(where);
    for (const bridge of this.#bridges) {
      for (const neighbour of listNeighbours(socket, { ifindex: bridge }))
        this.note({ kind: 'neighbour', deleted: false, neighbour });
      for (const entry of listFdb(socket, { master: bridge }))
        this.note({ kind: 'fdb', deleted: false, entry });
    }
  }

  /** @returns whether a pod may have come, gone or moved. Most events only say that one is still there. */
  note(event: BridgeEvent): boolean {
    if (event.kind === 'neighbour') return this.#noteNeighbour(event.neighbour, event.deleted);
    if (event.kind === 'fdb') return this.#noteFdb(event.entry, event.deleted);
    const { ifindex, master } = event;
    if (event.deleted || master === undefined || !this.#bridges.includes(master))
      return this.#forgetPort(ifindex);
    if (this.#ports.has(ifindex)) return false;
    this.#ports.set(ifindex, master);
    return true;
  }

  /** @returns whether a pod has come, or something contradicts. */
  noteSighting({ ip, mac, port }: Sighting): boolean {
    const [neighbour, behind] = [this.#neighbours.get(ip), this.#behind.get(mac)];
    // A neighbour that is behind no port any more is an old one, for which the kernel has not asked since.
    const isOthers = neighbour !== undefined && neighbour !== mac && this.#behind.has(neighbour);
    if (isOthers || behind !== port) {
      const why = isOthers
        ? `the kernel has ${neighbour} for it`
        : `the bridge has that MAC behind port ${behind ?? 'none'}`;
      return update(this.#contradictions, ip, `${mac} behind port ${port} sends from ${ip}, and ${why}`);
    }
    this.#contradictions.delete(ip);
    return update(this.#sighted, ip, mac);
  }

  get bridges(): PodBridges {
    const ips = new Set([...this.#neighbours.keys(), ...this.#sighted.keys()]);
    const pods = [...ips].flatMap((ip) => {
      for (const mac of [this.#neighbours.get(ip), this.#sighted.get(ip)]) {
        const port = mac === undefined ? undefined : this.#behind.get(mac);
        const bridge = port === undefined ? undefined : this.#ports.get(port);
        if (bridge !== undefined) return [{ ip, podMac: mac!, bridge, port: port! }];
      }
      return [];
    });
    return { ports: [...this.#ports.keys()], pods, contradictions: [...this.#contradictions.values()] };
  }

  #noteNeighbour({ ifindex, address, mac, proxy, state }: Neighbour, deleted: boolean): boolean {
    // What the kernel forgets, or asks for in vain, may be a silent pod.
    if (deleted || proxy || mac === undefined || state === 'noarp' || !this.#bridges.includes(ifindex))
      return false;
    if (!update(this.#neighbours, address, mac)) return false;
    this.#contradictions.delete(address);
    return true;
  }

  #noteFdb({ ifindex, mac, master, self, state }: FdbEntry, deleted: boolean): boolean {
    // The bridge's own addresses and those of its ports are permanent.
    if (deleted || self || state === 'permanent' || master === undefined || !this.#bridges.includes(master))
      return false;
    return update(this.#behind, mac, ifindex);
  }

  #forgetPort(port: number): boolean {
    if (!this.#ports.delete(port)) return false;
    for (const [mac, behind] of this.#behind) {
      if (behind !== port) continue;
      this.#behind.delete(mac);
      for (const known of [this.#neighbours, this.#sighted])
        for (const [ip, its] of known) if (its === mac) known.delete(ip);
    }
    return true;
  }
}

/** @returns whether the map had another value. */
function update<V>(map: Map<string, V>, key: string, value: V): boolean {
  if (map.get(key) === value) return false;
  map.set(key, value);
  return true;
}
