// SPDX-License-Identifier: Apache-2.0
/** One of the two labs, with a program at every place that serves and is the client of flows. */
import type { Mode } from '../../../src/agent/options.ts';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { run } from '../../../src/host/run.ts';
import {
  type Datapath,
  type Lab,
  labDown,
  labUp,
  netnsPath,
  type NodeState,
  openLab,
  parseLabOptions,
  setServices,
  startKubeProxy,
  underlayNetns,
} from '../../../src/lab/index.ts';
import { ipBatch, ipJson } from '../../../src/lab/ip.ts';
import { setSysctls } from '../../../src/lab/netns.ts';
import { type Packet, readPacket } from '../../support/capture.ts';
import { RawSocket } from '../../support/raw-socket.ts';
import { meetEveryone, netnsIn, unlimitedIcmp } from '../labs.ts';
import {
  families,
  type NodeName,
  nodeNames,
  nodeOf,
  NODES,
  OUTSIDE,
  podNames,
  PODS,
  TUNNEL_MTU,
} from '../plan.ts';
import { type Change, type Configuration, servicePorts } from './configuration.ts';
import { CLUSTER_IPS, type Place, places, PORTS } from './flows.ts';
import type { Obstacle } from './obstacles.ts';
import type { Order, Served, Talked } from './talker.child.ts';

const ETHER_BYTES = 14;
const TALKER = join(import.meta.dirname, 'talker.child.ts');

export interface Captured extends Packet {
  readonly at: Place;
  readonly bytes: number;
}

/** Nobody remembers the path MTU of another configuration. On a node it would concern the tunnel, and so all flows. */
const forgetting = (seconds: number): Record<string, number> => ({
  'ipv4.route.mtu_expires': seconds,
  'ipv6.route.mtu_expires': seconds,
});

export class HostLab implements AsyncDisposable {
  readonly name: string;
  readonly #lab: Lab;
  readonly #netnsOf: (place: Place) => string;
  readonly #inForce = new Set<Obstacle>();
  readonly #programs = new Map<Place, ChildProcess>();
  /** Sockets that receive what the places do. Those of nodes would receive tunnels. */
  readonly #captures = new Map<Place, RawSocket>();
  /** The names of host veths, by pod. */
  readonly #veths: Record<string, string> = {};

  private constructor(name: string) {
    this.name = name;
    this.#lab = openLab(name);
    const netnsOf = netnsIn(this.#lab);
    this.#netnsOf = (place) => (place === 'outside' ? underlayNetns(name) : netnsOf(place));
  }

  /** Bring a lab up, and programs in it. */
  static async open(name: string, datapath: Datapath, mode: Mode = 'cni'): Promise<HostLab> {
    try {
      await labUp(
        parseLabOptions({ name, datapath, mode, nodes: 2, pods: 2, ipv6: true, kubeProxy: 'iptables' }),
      );
      const lab = new HostLab(name);
      await lab.#equip();
      return lab;
    } catch (error) {
      await labDown(name);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const capture of this.#captures.values()) capture[Symbol.dispose]();
    for (const program of this.#programs.values()) program.disconnect();
    await labDown(this.name);
  }

  #in(place: Place): { netns: string } {
    return { netns: netnsPath(this.#netnsOf(place)) };
  }

  async #equip(): Promise<void> {
    for (const place of places)
      await setSysctls(this.#netnsOf(place), { ...unlimitedIcmp, ...forgetting(place in NODES[4] ? 0 : 1) });
    // ripstop has it so: what comes from where no route leads back to is dropped.
    for (const node of nodeNames)
      await setSysctls(this.#netnsOf(node), { 'ipv4.conf.flannel/1.rp_filter': 2 });
    for (const pod of podNames) {
      const [eth0] = await ipJson<{ link_index: number }>(['link', 'show', 'dev', 'eth0'], this.#in(pod));
      const links = await ipJson<{ ifindex: number; ifname: string }>(
        ['link', 'show'],
        this.#in(nodeOf(pod)),
      );
      this.#veths[pod] = links.find(({ ifindex }) => ifindex === eth0!.link_index)!.ifname;
    }
    await Promise.all(podNames.map((pod) => this.#limitPackets(pod)));
    await Promise.all(podNames.map((pod) => meetEveryone(this.#netnsOf(pod))));
    for (const place of places) {
      if (place in NODES[4]) continue;
      const device = place === 'outside' ? 'br0' : 'eth0';
      this.#captures.set(place, new RawSocket(netnsPath(this.#netnsOf(place)), device));
    }
    await Promise.all(places.map((place) => this.#startProgram(place)));
  }

  /** ripstop's pods know what fits the IPv6 tunnel. flannel's would learn it anew each time. */
  async #limitPackets(pod: (typeof podNames)[number]): Promise<void> {
    const routes = await ipJson<{ dst: string; gateway?: string }>(['-6', 'route', 'show'], this.#in(pod));
    const narrow = routes
      .filter(({ gateway }) => gateway !== undefined)
      .map(({ dst, gateway }) => `route change ${dst} via ${gateway!} dev eth0 mtu ${TUNNEL_MTU[6]}`);
    await ipBatch(narrow, this.#in(pod));
  }

  async #startProgram(place: Place): Promise<void> {
    const argv = [`--net=${netnsPath(this.#netnsOf(place))}`, '--', process.execPath, TALKER];
    const stdio = ['ignore', 'inherit', 'inherit', 'ipc'] as const;
    const program = spawn('nsenter', argv, { stdio: [...stdio] });
    this.#programs.set(place, program);
    await this.#order(place, { serve: addressesOf(place), ports: PORTS });
  }

  async #order<T>(place: Place, order: Order): Promise<T> {
    const program = this.#programs.get(place)!;
    const answered = once(program, 'message', { signal: AbortSignal.timeout(30_000) });
    program.send(order);
    const [{ answer, error }] = (await answered) as [{ answer: T; error?: string }];
    if (error !== undefined) throw new Error(`${place} of ${this.name}: ${error}`);
    return answer;
  }

  /** Run shell commands on a node. */
  async #configure(node: NodeName, commands: string): Promise<void> {
    const env = { ...process.env, ...this.#veths };
    await run('sh', ['-euc', commands], { ...this.#in(node), env });
  }

  /** Give the nodes a configuration. Nothing is left of flows before it. */
  async begin({ kubeProxy, backends, obstacles }: Configuration): Promise<void> {
    const beginOn = async (node: NodeState): Promise<void> => {
      // As if kube-proxy had been there before ripstop: later it would have no rule that drops INVALID.
      const liberal = 'netfilter.nf_conntrack_tcp_be_liberal';
      const before = await run('sysctl', ['-n', `net.${liberal}`], { netns: netnsPath(node.netns) });
      await setSysctls(node.netns, { [liberal]: 0 });
      await startKubeProxy(this.#lab, node, kubeProxy, servicePorts(backends));
      await setSysctls(node.netns, { [liberal]: before.trim() });
      for (const obstacle of obstacles) if (obstacle.node === node.name) await this.#add(obstacle);
    };
    await Promise.all(this.#lab.state.nodes.map(beginOn));
    await this.#forget();
  }

  async #forget(): Promise<void> {
    const commands = places.flatMap((place) => [
      ...(place in NODES[4] ? [run('conntrack', ['-F'], this.#in(place))] : []),
      ...families.map((family) => run('ip', [`-${family}`, 'route', 'flush', 'cache'], this.#in(place))),
    ]);
    await Promise.all(commands);
  }

  async change(change: Change): Promise<void> {
    if (change.what !== 'services')
      return change.what === 'added' ? this.#add(change.obstacle) : this.#remove(change.obstacle);
    for (const node of this.#lab.state.nodes) {
      await setServices(this.#lab, node, servicePorts(change.backends));
      // As kube-proxy does when an endpoint has gone.
      for (const address of families.flatMap((family) => CLUSTER_IPS[family]))
        await this.#configure(
          node.name as NodeName,
          `conntrack -D -p udp --orig-dst ${address} 2>&1 || true`,
        );
    }
  }

  async #add(obstacle: Obstacle): Promise<void> {
    await this.#configure(obstacle.node, obstacle.add);
    this.#inForce.add(obstacle);
  }

  async #remove(obstacle: Obstacle): Promise<void> {
    this.#inForce.delete(obstacle);
    await this.#configure(obstacle.node, obstacle.remove);
  }

  /** End all flows, and take all obstacles away. */
  async end(): Promise<void> {
    for (const place of places) await this.#order(place, 'close');
    for (const obstacle of this.#inForce) await this.#remove(obstacle);
  }

  /** Have flows talk, all at the same time. */
  async talk(order: Extract<Order, { talk: unknown }>): Promise<Talked[]> {
    const talked = places.map((place) =>
      this.#order<Talked[]>(place, { ...order, talk: order.talk.filter(({ flow }) => flow.from === place) }),
    );
    return (await Promise.all(talked)).flat();
  }

  /** What each place has served since the last call. */
  async served(): Promise<(Served & { by: Place })[]> {
    const all = places.map(async (by) =>
      (await this.#order<Served[]>(by, 'served')).map((one) => ({ ...one, by })),
    );
    return (await Promise.all(all)).flat();
  }

  /** The packets that pods and the outside have received since the last call. */
  captured(): Captured[] {
    return [...this.#captures].flatMap(([at, socket]) => {
      const packets: Captured[] = [];
      for (let received = socket.receive(); received; received = socket.receive()) {
        const packet = readPacket(received.frame, ETHER_BYTES);
        if (packet) packets.push({ ...packet, at, bytes: received.frame.length - ETHER_BYTES });
      }
      if (socket.lost() > 0)
        throw new Error(`packets at ${at} of ${this.name} came faster than they were read`);
      return packets;
    });
  }
}

function addressesOf(place: Place): string[] {
  if (place === 'outside') return families.map((family) => OUTSIDE[family]);
  return families.map((family) =>
    place in NODES[4] ? NODES[family][place as NodeName] : PODS[family][place as keyof (typeof PODS)[4]],
  );
}
