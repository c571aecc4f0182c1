// SPDX-License-Identifier: Apache-2.0
/**
 * NetworkPolicies by the real kube-network-policies, on kernels with nft_queue: in postrouting its rules accept what
 * belongs to an established connection, and queue the rest to the program, which accepts or drops it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandIn, tryRun } from '../../src/host/run.ts';
import { ApiServer, listenInNetns } from '../../src/lab/apiserver/index.ts';
import { kubeNetworkPolicies, whyNoQueue } from '../support/kube-network-policies.ts';
import { peerPath } from '../support/peer-programs.ts';
import { expectThat } from './story.ts';

/** Where the API server listens on each node. */
const API = { host: '127.0.0.1', port: 6443 };

interface NodeOfEngine {
  readonly name: string;
  readonly ip: string;
  readonly netns: string;
}

interface PodOfEngine {
  readonly name: string;
  readonly ip: string;
  readonly node: NodeOfEngine;
  readonly role: string;
}

/** Why there is no kube-network-policies here; undefined when there is. */
export async function whyNoEngine(): Promise<string | undefined> {
  if (!existsSync(peerPath('kube-network-policies'))) return 'there is no kube-network-policies here';
  return whyNoQueue();
}

/** kube-network-policies on each node, and an API server with the nodes' pods. */
export class PolicyEngine {
  readonly #api: ApiServer;
  readonly #nodes: readonly NodeOfEngine[];
  readonly #programs: readonly ChildProcess[];

  private constructor(api: ApiServer, nodes: readonly NodeOfEngine[], programs: readonly ChildProcess[]) {
    this.#api = api;
    this.#nodes = nodes;
    this.#programs = programs;
  }

  /** Resolves when each node has the rules of its program. */
  static async start(nodes: readonly NodeOfEngine[], pods: readonly PodOfEngine[]): Promise<PolicyEngine> {
    const api = await ApiServer.start();
    for (const { name, ip, node, role } of pods)
      api.store.create('pods', {
        metadata: { name, labels: { role } },
        spec: { nodeName: node.name },
        status: { phase: 'Running', hostIP: node.ip, podIP: ip, podIPs: [{ ip }] },
      });
    const access = { url: `https://${API.host}:${API.port}`, ca: api.caPem, token: api.adminToken };
    const programs: ChildProcess[] = [];
    for (const { name, netns } of nodes) {
      api.adoptListener(await listenInNetns(netns, API.host, API.port));
      const { argv, env } = kubeNetworkPolicies(peerPath('kube-network-policies'), name, access);
      const [program, ...args] = commandIn(netns, argv[0], argv.slice(1));
      programs.push(spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'], env }));
    }
    const engine = new PolicyEngine(api, nodes, programs);
    await engine.#have(true);
    return engine;
  }

  /** Wait until the nodes have its table, or have it no more. */
  async #have(wanted: boolean): Promise<void> {
    const table = ['list', 'table', 'inet', 'kube-network-policies'];
    for (const { name, netns } of this.#nodes) {
      const has = async (): Promise<boolean> => (await tryRun('nft', table, { netns })).code === 0;
      for (const deadline = performance.now() + 120_000; (await has()) !== wanted; await sleep(100))
        expectThat(
          performance.now() < deadline,
          `${name} has ${wanted ? 'no' : 'still a'} table of its engine`,
        );
    }
  }

  /** Let nothing in to pods with this role. */
  deny(name: string, role: string): void {
    // Not an empty list of rules: in JSON the program takes that for rules that allow everything.
    this.#create(name, role, {});
  }

  /** Let pods with a role in to those with another. */
  allow(name: string, from: string, to: string): void {
    const ingress = [{ from: [{ podSelector: { matchLabels: { role: from } } }] }];
    this.#create(name, to, { ingress });
  }

  #create(name: string, role: string, rules: { ingress?: readonly object[] }): void {
    const podSelector = { matchLabels: { role } };
    const spec = { podSelector, policyTypes: ['Ingress'], ...rules };
    this.#api.store.create('networkpolicies', { metadata: { name }, spec });
  }

  remove(name: string): void {
    this.#api.store.delete('networkpolicies', name);
  }

  /** End the programs, which take their rules with them, and the API server. */
  async stop(): Promise<void> {
    for (const program of this.#programs) {
      const ended = once(program, 'close');
      program.kill('SIGINT');
      await ended;
    }
    await this.#have(false);
    await this.#api.close();
  }
}
