// SPDX-License-Identifier: Apache-2.0
/** flanneld's flags for subnets from etcd, for every command that reads or writes our lease. */
import type { Command } from 'commander';
import { DEFAULT_ETCD_PREFIX, type EtcdOptions } from '../cluster/etcd-options.ts';
import { booleanFlag, flag } from './options.ts';

export interface EtcdFlags {
  /** The default is Kubernetes, unless there is --etcd-endpoints. */
  kubeSubnetMgr?: boolean;
  etcdEndpoints?: string[];
  etcdPrefix: string;
  etcdCafile?: string;
  etcdCertfile?: string;
  etcdKeyfile?: string;
  etcdUsername?: string;
  etcdPassword?: string;
}

/** flanneld's default endpoints, when `--kube-subnet-mgr=false` is given alone. */
const ENDPOINTS = ['http://127.0.0.1:4001', 'http://127.0.0.1:2379'];

export function addEtcdFlags(command: Command): Command {
  return command
    .addOption(
      booleanFlag(
        '--kube-subnet-mgr [bool]',
        'take subnets from Kubernetes, not from etcd (default: true without --etcd-endpoints)',
        'FLANNELD_KUBE_SUBNET_MGR',
      ).default(undefined),
    )
    .addOption(
      flag(
        '--etcd-endpoints <urls>',
        'take subnets and the network configuration from etcd at these URLs, separated by commas',
        'FLANNELD_ETCD_ENDPOINTS',
      ).argParser((text) => text.split(',').map((url) => url.trim())),
    )
    .addOption(
      flag('--etcd-prefix <key>', "the prefix of flannel's keys in etcd", 'FLANNELD_ETCD_PREFIX').default(
        DEFAULT_ETCD_PREFIX,
      ),
    )
    .addOption(flag('--etcd-cafile <file>', "the CA that signed etcd's certificate", 'FLANNELD_ETCD_CAFILE'))
    .addOption(flag('--etcd-certfile <file>', "the agent's client certificate", 'FLANNELD_ETCD_CERTFILE'))
    .addOption(flag('--etcd-keyfile <file>', 'the key of that certificate', 'FLANNELD_ETCD_KEYFILE'))
    .addOption(flag('--etcd-username <name>', "the agent's user in etcd", 'FLANNELD_ETCD_USERNAME'))
    .addOption(flag('--etcd-password <text>', "that user's password", 'FLANNELD_ETCD_PASSWORD'));
}

/** Join the flags for etcd into one option, `etcd`, which is set when subnets come from etcd. */
export function withEtcd<T extends EtcdFlags>(flags: T): Omit<T, keyof EtcdFlags> & { etcd?: EtcdOptions } {
  const {
    kubeSubnetMgr,
    etcdEndpoints,
    etcdPrefix: prefix,
    etcdCafile: cafile,
    etcdCertfile: certfile,
    etcdKeyfile: keyfile,
    etcdUsername: username,
    etcdPassword: password,
    ...others
  } = flags;
  if (kubeSubnetMgr ?? etcdEndpoints === undefined) return others;
  const etcd: EtcdOptions = {
    endpoints: etcdEndpoints ?? ENDPOINTS,
    prefix,
    ...(cafile !== undefined && { cafile }),
    ...(certfile !== undefined && { certfile }),
    ...(keyfile !== undefined && { keyfile }),
    ...(username !== undefined && { username }),
    ...(password !== undefined && { password }),
  };
  return { ...others, etcd };
}
