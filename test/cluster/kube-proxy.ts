// SPDX-License-Identifier: Apache-2.0
/** What kube-proxy would set up on a node of a lab, in either of its modes. */
import { isIPv6 } from 'node:net';
import { run } from '../../src/host/run.ts';
import type { NodeState } from '../../src/lab/index.ts';
import type { Family } from '../../src/net/ip.ts';
import { inNetns } from './support.ts';

export const FAMILIES = [4, 6] as const;
export const PROXY_MODES = ['iptables', 'nftables'] as const;
export type ProxyMode = (typeof PROXY_MODES)[number];
const CLUSTER = { 4: '10.42.0.0/16', 6: 'fd00:42::/56' };

/** A Service of one backend, so that nothing is left to chance; for TCP and UDP. */
export interface Service {
  clusterIp: string;
  /** Of the Service and of its backend. */
  port: number;
  nodePort?: number;
  hostPort?: number;
  backend: string;
}

export const withPort = (address: string, port: number): string =>
  isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;

/** The rules of kube-proxy's iptables mode for TCP and UDP Services of one backend each, in iptables-restore's language. */
function iptablesRules(family: Family, services: readonly Service[]): string {
  const nat: string[] = [];
  const chains = [
    'KUBE-SERVICES',
    'KUBE-NODEPORTS',
    'KUBE-POSTROUTING',
    'KUBE-MARK-MASQ',
    'CNI-HOSTPORT-DNAT',
  ];
  for (const [i, { clusterIp, port, nodePort, hostPort, backend }] of services.entries()) {
    for (const protocol of ['tcp', 'udp']) {
      const id = `${protocol.toUpperCase()}${i}`;
      const match = `-p ${protocol} -m ${protocol}`;
      const dnat = `-j DNAT --to-destination ${withPort(backend, port)}`;
      chains.push(`KUBE-SVC-${id}`, `KUBE-EXT-${id}`, `KUBE-SEP-${id}`);
      nat.push(
        `-A KUBE-SERVICES -d ${clusterIp} ${match} --dport ${port} -j KUBE-SVC-${id}`,
        `-A KUBE-SVC-${id} ! -s ${CLUSTER[family]} -d ${clusterIp} ${match} --dport ${port} -j KUBE-MARK-MASQ`,
        `-A KUBE-SVC-${id} -j KUBE-SEP-${id}`,
        `-A KUBE-SEP-${id} -s ${backend} -j KUBE-MARK-MASQ`,
        `-A KUBE-SEP-${id} ${match} ${dnat}`,
      );
      if (nodePort !== undefined)
        nat.push(
          `-A KUBE-NODEPORTS ${match} --dport ${nodePort} -j KUBE-EXT-${id}`,
          `-A KUBE-EXT-${id} -j KUBE-MARK-MASQ`,
          `-A KUBE-EXT-${id} -j KUBE-SVC-${id}`,
        );
      if (hostPort !== undefined)
        nat.push(
          `-A CNI-HOSTPORT-DNAT -s ${backend} ${match} --dport ${hostPort} -j KUBE-MARK-MASQ`,
          `-A CNI-HOSTPORT-DNAT ${match} --dport ${hostPort} ${dnat}`,
        );
    }
  }
  return [
    '*nat',
    ...chains.map((chain) => `:${chain} - [0:0]`),
    '-A PREROUTING -j KUBE-SERVICES',
    '-A OUTPUT -j KUBE-SERVICES',
    '-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT',
    '-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT',
    '-A POSTROUTING -j KUBE-POSTROUTING',
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    '-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN',
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    '-A KUBE-POSTROUTING -j MASQUERADE --random-fully',
    ...nat,
    '-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    'COMMIT',
    '*filter',
    ':KUBE-FORWARD - [0:0]',
    '-A FORWARD -j KUBE-FORWARD',
    '-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP',
    '-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT',
    '-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
    'COMMIT',
    '',
  ].join('\n');
}

/** The same by kube-proxy's nftables mode: maps to chains, one table for each family. */
function nftablesRules(family: Family, services: readonly Service[]): string {
  const ip = family === 4 ? 'ip' : 'ip6';
  const all = services.flatMap((service, i) =>
    ['tcp', 'udp'].map((protocol) => ({ ...service, protocol, id: `${protocol}-${i}` })),
  );
  const elements = (entries: string[]) => (entries.length > 0 ? `elements = { ${entries.join(', ')} }` : '');
  const hostPorts = all.filter(({ hostPort }) => hostPort !== undefined);
  return `
    table ${ip} kube-proxy {
      ${all
        .map(
          ({ id, clusterIp, port, backend, protocol }) => `
      chain endpoint-${id} {
        ${ip} saddr ${backend} jump mark-for-masquerade
        meta l4proto ${protocol} dnat to ${withPort(backend, port)}
      }
      chain service-${id} {
        ${ip} daddr ${clusterIp} ${ip} saddr != ${CLUSTER[family]} jump mark-for-masquerade
        goto endpoint-${id}
      }
      chain external-${id} {
        jump mark-for-masquerade
        goto service-${id}
      }`,
        )
        .join('')}
      map service-ips {
        type ${family === 4 ? 'ipv4' : 'ipv6'}_addr . inet_proto . inet_service : verdict
        ${elements(all.map(({ id, clusterIp, port, protocol }) => `${clusterIp} . ${protocol} . ${port} : goto service-${id}`))}
      }
      map service-nodeports {
        type inet_proto . inet_service : verdict
        ${elements(
          all
            .filter(({ nodePort }) => nodePort !== undefined)
            .map(({ id, protocol, nodePort }) => `${protocol} . ${nodePort} : goto external-${id}`),
        )}
      }
      chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
      chain services {
        ${ip} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
        ${hostPorts
          .flatMap(({ protocol, port, hostPort, backend }) => [
            `fib daddr type local ${protocol} dport ${hostPort} ${ip} saddr ${backend} jump mark-for-masquerade`,
            `fib daddr type local ${protocol} dport ${hostPort} dnat to ${withPort(backend, port)}`,
          ])
          .join('\n')}
      }
      chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
      chain nat-output { type nat hook output priority -100; jump services; }
      chain nat-postrouting {
        type nat hook postrouting priority srcnat
        meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
      }
      chain filter-forward { type filter hook forward priority -110; ct state invalid drop; }
    }`;
}

/** kube-proxy as it starts in one mode, having been in the other. */
export async function startProxy(
  node: NodeState,
  mode: ProxyMode,
  servicesOf: (family: Family) => readonly Service[],
): Promise<void> {
  for (const family of FAMILIES) {
    const [ip, restore] = family === 4 ? ['ip', 'iptables-restore'] : ['ip6', 'ip6tables-restore'];
    const iptables =
      mode === 'iptables' ? iptablesRules(family, servicesOf(family)) : '*nat\nCOMMIT\n*filter\nCOMMIT\n';
    const nftables = mode === 'nftables' ? nftablesRules(family, servicesOf(family)) : '';
    await run(restore, [], { ...inNetns(node), stdin: iptables });
    await run('nft', ['-f', '-'], {
      ...inNetns(node),
      stdin: `table ${ip} kube-proxy\ndelete table ${ip} kube-proxy\n${nftables}`,
    });
  }
}
