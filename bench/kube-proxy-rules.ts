// SPDX-License-Identifier: Apache-2.0
import { run } from '../src/host/run.ts';

/**
 * A node of a real cluster has kube-proxy's rules, and with them connection tracking, in its network namespace: what the
 * host network costs there includes them. These are the rules of kube-proxy's iptables mode for `services` services with
 * two endpoints each, as `iptables-restore` reads them. No traffic of a benchmark is for one of these services.
 */
export function kubeProxyRules(services: number): string {
  const chain = (kind: string, i: number, endpoint?: number): string =>
    `KUBE-${kind}-${String(i).padStart(4, '0')}${endpoint === undefined ? '' : `E${endpoint}`}`;
  const each = <T>(make: (i: number) => T): T[] => Array.from({ length: services }, (_, i) => make(i));
  const address = (i: number): string => `10.43.${1 + (i >> 8)}.${i & 255}`;
  const backend = (i: number, endpoint: number): string => `10.42.${200 + endpoint}.${1 + (i % 250)}`;
  const nat = [
    '*nat',
    ':KUBE-SERVICES - [0:0]',
    ':KUBE-NODEPORTS - [0:0]',
    ':KUBE-POSTROUTING - [0:0]',
    ':KUBE-MARK-MASQ - [0:0]',
    ...each((i) =>
      [chain('SVC', i), chain('SEP', i, 0), chain('SEP', i, 1)].map((name) => `:${name} - [0:0]`),
    ).flat(),
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    '-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN',
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    '-A KUBE-POSTROUTING -j MASQUERADE --random-fully',
    ...each((i) => [
      `-A KUBE-SERVICES -d ${address(i)}/32 -p tcp -m tcp --dport 80 -j ${chain('SVC', i)}`,
      `-A ${chain('SVC', i)} ! -s 10.42.0.0/16 -d ${address(i)}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ`,
      `-A ${chain('SVC', i)} -m statistic --mode random --probability 0.5 -j ${chain('SEP', i, 0)}`,
      `-A ${chain('SVC', i)} -j ${chain('SEP', i, 1)}`,
      ...[0, 1].flatMap((endpoint) => [
        `-A ${chain('SEP', i, endpoint)} -s ${backend(i, endpoint)}/32 -j KUBE-MARK-MASQ`,
        `-A ${chain('SEP', i, endpoint)} -p tcp -m tcp -j DNAT --to-destination ${backend(i, endpoint)}:8080`,
      ]),
    ]).flat(),
    '-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    'COMMIT',
  ];
  const filter = [
    '*filter',
    ':KUBE-FORWARD - [0:0]',
    ':KUBE-FIREWALL - [0:0]',
    ':KUBE-PROXY-FIREWALL - [0:0]',
    '-I INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL',
    '-I INPUT -j KUBE-FIREWALL',
    '-I FORWARD -j KUBE-FORWARD',
    '-I FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL',
    '-I OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL',
    '-I OUTPUT -j KUBE-FIREWALL',
    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP',
    '-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP',
    '-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT',
    '-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
    'COMMIT',
  ];
  return `${[...nat, ...filter].join('\n')}\n`;
}

/** Put the rules into a network namespace (a path), beside those that are there. */
export async function installKubeProxyRules(netns: string, services: number): Promise<void> {
  await run('iptables-restore', ['--noflush'], { netns, stdin: kubeProxyRules(services) });
}
