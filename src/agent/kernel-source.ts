// SPDX-License-Identifier: Apache-2.0
/** In boost mode without an API server: our subnet and our peers as flannel has entered them in this node. */
import type { Logger } from 'pino';
import {
  type ClusterSnapshot,
  type OwnNode,
  type PeerNode,
  Snapshots,
  type SourceHealth,
  type SubnetManager,
} from '../cluster/index.ts';
import { RipstopError } from '../errors.ts';
import { listLinks } from '../host/links.ts';
import { flannelDeviceIndex, type FlannelTunnel, listEnteredPeers } from '../host/running-flannel.ts';
import { readSubnetEnv } from '../host/subnet-env.ts';
import { LogOnce } from '../log-once.ts';
import { type Cidr, familyKey, formatCidr } from '../net/ip.ts';
import { subscribe, type Subscription } from '#netlink';
import type { AgentOptions } from './options.ts';

/** The options that say where flannel is. */
type Where = Pick<AgentOptions, 'nodeName' | 'subnetFile'>;

/** Events come in bursts: a peer is a route, a neighbour and an FDB entry. */
const SETTLE_MS = 20;

/** Our own node, as subnet.env has it. @throws RipstopError when there is none. */
export async function enteredOwn({ nodeName, subnetFile }: Where): Promise<OwnNode> {
  const env = await readSubnetEnv(subnetFile);
  if (!env) throw new RipstopError(`there is no ${subnetFile}; flannel writes it: see whether it runs`);
  return {
    name: nodeName,
    uid: nodeName,
    podCidrs: env.networks.map(({ podCidr }) => podCidr),
    annotations: {},
    vtepMac: {},
    nodePublicIp: {},
    internalIp: {},
    flannelIsUp: true,
  };
}

/** The peers that flannel has entered. Each has the address of its VTEP as its name, since the kernel knows no other. */
export async function enteredPeers(
  { subnetFile }: Where,
  tunnel: FlannelTunnel | undefined,
): Promise<PeerNode[]> {
  const env = await readSubnetEnv(subnetFile);
  if (!env || !tunnel) return [];
  const links = await listLinks();
  const uplink = links.get(tunnel.uplink)?.ifindex;
  return env.networks.flatMap(({ network }) =>
    listEnteredPeers(network, { device: flannelDeviceIndex(links, network.family, tunnel), uplink }).map(
      (peer) => ({
        name: peer.vtepIp,
        uid: formatCidr(peer.podCidr),
        createdAt: 0,
        [familyKey(network.family)]: { ...peer, name: peer.vtepIp, behindNat: false, zeroChecksum: false },
      }),
    ),
  );
}

/** Follows what flannel enters, by the kernel's events. */
export class KernelSubnetManager implements SubnetManager {
  readonly #where: Where;
  readonly #tunnel: FlannelTunnel | undefined;
  readonly #failure: LogOnce;
  readonly #snapshots: Snapshots;
  #own: OwnNode | undefined;
  #peers: readonly PeerNode[] = [];
  #synced = false;
  #subscription: Subscription | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(where: Where, tunnel: FlannelTunnel | undefined, log: Logger) {
    this.#where = where;
    this.#tunnel = tunnel;
    this.#failure = new LogOnce(log, "cannot read flannel's peers; the next change retries");
    this.#snapshots = new Snapshots(where.nodeName, () => ({
      synced: this.#synced,
      own: this.#own,
      nodes: this.#peers.map((peer) => ({ kind: 'peer', name: peer.name, uid: peer.uid, peer })),
    }));
  }

  get health(): SourceHealth {
    const { reason } = this.#failure;
    return { connected: true, ...(reason !== undefined && { lastError: reason }) };
  }

  snapshot(podCidrs: readonly Cidr[]): ClusterSnapshot {
    return this.#snapshots.get(podCidrs);
  }

  fetchOwn(): Promise<OwnNode> {
    return enteredOwn(this.#where);
  }

  start(onChange: () => void): void {
    const read = async (): Promise<void> => {
      try {
        this.#own = await enteredOwn(this.#where);
        this.#peers = await enteredPeers(this.#where, this.#tunnel);
        this.#synced = true;
        this.#failure.over();
      } catch (error) {
        this.#failure.met(error);
      }
      this.#snapshots.invalidate();
      onChange();
    };
    this.#subscription = subscribe(['route', 'neighbour'], (events) => {
      const concerns = events.some(({ kind }) => kind === 'route' || kind === 'fdb' || kind === 'lost');
      if (concerns) this.#timer ??= setTimeout(() => ((this.#timer = undefined), void read()), SETTLE_MS);
    });
    void read();
  }

  /** Nothing is published: flannel has done that. */
  async publish(): Promise<boolean> {
    return false;
  }

  reconnect(): void {}

  async withdraw(): Promise<void> {}

  async stop(): Promise<void> {
    this.#subscription?.close();
    clearTimeout(this.#timer);
  }
}
