// SPDX-License-Identifier: Apache-2.0
/** A lab whose agents take their subnets from etcd, and do not use its API server. */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { TestEtcd } from '../../src/cluster/etcd.support.ts';
import {
  gatewayAddress,
  type Lab,
  labDown,
  type LabOptions,
  labUp,
  netnsPath,
  openLab,
  underlayNetns,
} from '../../src/lab/index.ts';
import { underlayNetwork } from '../../src/lab/addresses.ts';

export const SUBNETS = '/coreos.com/network/subnets/';

/** Bring up a lab with an etcd that has this network configuration. @param options those of `labUp` */
export async function etcdLab(options: LabOptions, config: string): Promise<{ lab: Lab; etcd: TestEtcd }> {
  const netns = netnsPath(underlayNetns(options.name));
  const startEtcd = async (): Promise<TestEtcd> => {
    while (!existsSync(netns)) await sleep(50);
    const etcd = await TestEtcd.start({ netns });
    await etcd.put('/coreos.com/network/config', config);
    return etcd;
  };
  let etcd: TestEtcd | undefined;
  try {
    await withEtcd(options, async () => {
      const up = labUp(options);
      // The agents wait for etcd, and then for a configuration.
      etcd = (await Promise.race([up.then(() => undefined), startEtcd()])) ?? etcd;
      await up;
    });
    return { lab: openLab(options.name), etcd: etcd! };
  } catch (error) {
    await etcd?.[Symbol.asyncDispose]();
    await labDown(options.name);
    throw error;
  }
}

/** The URL of a lab's etcd for its nodes. */
export function etcdEndpoint(options: LabOptions): string {
  return `http://${gatewayAddress(underlayNetwork(options, 4))}:2379`;
}

/** Agents that start during this get the address of etcd from their environment, since the lab does not know it. */
export async function withEtcd(options: LabOptions, start: () => Promise<void>): Promise<void> {
  process.env['RIPSTOP_ETCD_ENDPOINTS'] = etcdEndpoint(options);
  try {
    await start();
  } finally {
    delete process.env['RIPSTOP_ETCD_ENDPOINTS'];
  }
}
