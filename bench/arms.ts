// SPDX-License-Identifier: Apache-2.0
/** The data planes that are compared: a lab each, so that nothing of one is on another's way. */
import { join } from 'node:path';
import { installKubeProxyRules } from './kube-proxy-rules.ts';
import { type Datapath, labDown, labUp, netnsPath, parseLabOptions, type Wire } from '../src/lab/index.ts';
import {
  type ClientOptions,
  netbench,
  type NetbenchServer,
  type Results,
  startNetbenchServer,
} from './netbench.ts';

/** One data plane, up, with a server on its second node (or a pod there) and room for a client on its first. */
export interface Arm extends AsyncDisposable {
  readonly name: string;
  /** Run one test across the nodes. */
  run<Command extends keyof Results>(
    command: Command,
    options?: Omit<ClientOptions, 'host' | 'port'>,
  ): Promise<Results[Command]>;
}

export interface ArmOptions {
  readonly wire?: Wire;
  /** Pin the server here; the tests pin the client. */
  readonly serverCpu?: number;
  /** How many services' kube-proxy rules every node has, as a node of a cluster does; 0: none, and no conntrack either. */
  readonly services: number;
  /** Path of the netbench program. */
  readonly program: string;
}

/** Raise a lab of two nodes for a data plane. The name carries the process's id, so runs side by side do not collide. */
export async function raiseArm(datapath: Datapath, options: ArmOptions): Promise<Arm> {
  const name = `bench-${datapath}-${process.pid}`;
  const flags = { name, nodes: 2, pods: datapath === 'host' ? 0 : 1, datapath, wire: options.wire ?? 'gso' };
  try {
    const { nodes } = await labUp(parseLabOptions(flags));
    if (options.services > 0) {
      for (const { netns } of nodes) await installKubeProxyRules(netnsPath(netns), options.services);
    }
    const [from, to] = nodes.map((node) => node.pods[0] ?? node);
    const server: NetbenchServer = await startNetbenchServer(options.program, {
      netns: netnsPath(to!.netns),
      ...(options.serverCpu !== undefined && { cpu: options.serverCpu }),
    });
    return {
      name: datapath,
      run: (command, more = {}) =>
        netbench(
          options.program,
          command,
          { host: to!.ip, port: server.port, ...more },
          { netns: netnsPath(from!.netns) },
        ),
      [Symbol.asyncDispose]: async () => {
        await server[Symbol.asyncDispose]();
        await labDown(name);
      },
    };
  } catch (error) {
    await labDown(name);
    throw error;
  }
}

/** Where netbench is built to. */
export const buildDir = join(import.meta.dirname, '../build');
