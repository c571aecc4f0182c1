// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { NetConf, SubnetManager } from '../cluster/index.ts';
import { EtcdClient } from '../cluster/etcd-client.ts';
import type { EtcdOptions } from '../cluster/etcd-options.ts';
import { type EtcdPast, EtcdSubnetManager, waitForEtcdNetConf } from '../cluster/etcd-subnets.ts';
import { errorText } from '../errors.ts';
import { listLinks } from '../host/links.ts';
import { readSubnetEnv } from '../host/subnet-env.ts';
import { findUplink } from '../host/uplink.ts';
import { vtepDeviceName } from '../host/vtep-device.ts';
import { type Family, perFamily } from '../net/ip.ts';
import type { AgentOptions } from './options.ts';

/** The options that determine which lease is ours. */
export type EtcdNodeOptions = Pick<
  AgentOptions,
  'nodeName' | 'stateDir' | 'subnetFile' | 'iface' | 'ifaceRegex' | 'ifaceCanReach' | 'publicIp'
>;

/** The file with a copy of the network configuration, for times when etcd does not answer. */
export function etcdNetConfCopy(stateDir: string): string {
  return join(stateDir, 'etcd-net-conf.json');
}

/**
 * Read the network configuration and the subnets of a cluster without Kubernetes, which flannel keeps in etcd.
 * @returns undefined when the signal came before there was a configuration.
 * @throws RipstopError when the options are wrong.
 */
export async function openEtcd(
  options: EtcdNodeOptions,
  etcd: EtcdOptions,
  log: Logger,
  signal: AbortSignal,
): Promise<{ netConf: NetConf; subnets: SubnetManager } | undefined> {
  const client = new EtcdClient(etcd);
  const copy = etcdNetConfCopy(options.stateDir);
  const netConf = await waitForEtcdNetConf(client, etcd.prefix, log, signal, copy);
  if (!netConf) {
    await client.close();
    return undefined;
  }
  const families: Family[] = [
    ...(netConf.network ? [4 as const] : []),
    ...(netConf.ipv6Network ? [6 as const] : []),
  ];
  const subnets = new EtcdSubnetManager({
    client,
    prefix: etcd.prefix,
    nodeName: options.nodeName,
    netConf,
    log,
    publicIps: async () => {
      const { iface, ifaceRegex, ifaceCanReach, publicIp } = options;
      const request = { families, iface, ifaceRegex, ifaceCanReach, publicIps: publicIp };
      return (await findUplink(request, await listLinks())).ips;
    },
    past: () => pastOf(options, netConf, families, log),
  });
  return { netConf, subnets };
}

/** What a previous agent left on this machine. */
async function pastOf(
  { subnetFile }: EtcdNodeOptions,
  { backend }: NetConf,
  families: readonly Family[],
  log: Logger,
): Promise<EtcdPast> {
  const env = await readSubnetEnv(subnetFile).catch((error: unknown) => {
    const why = errorText(error);
    log.warn({ file: subnetFile, why }, 'cannot read which podCIDR this node had; the file is written anew');
    return undefined;
  });
  const links = await listLinks();
  const macOf = (family: Family): string | undefined =>
    backend.type === 'vxlan' && families.includes(family)
      ? links.get(vtepDeviceName(family, backend.vni))?.mac
      : undefined;
  return {
    podCidrs: perFamily((family) => env?.networks.find(({ podCidr }) => podCidr.family === family)?.podCidr),
    vtepMac: perFamily(macOf),
  };
}
