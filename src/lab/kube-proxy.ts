// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { run } from '../host/run.ts';
import { addressFamily, cidrContains, type Family, parseCidr, withPort } from '../net/ip.ts';
import { clusterNetwork, familyParts, type FamilyPart, serviceNetwork } from './addresses.ts';
import { netnsPath, setSysctls } from './netns.ts';
import type { KubeProxyMode } from './options.ts';
import { type Lab, type NodeState, saveLab, type ServicePort } from './state.ts';

/*
 * The rules that kube-proxy of Kubernetes 1.36 writes (pkg/proxy/iptables and pkg/proxy/nftables there). The lab's
 * Services have no load balancers, external IPs, session affinity or policy Local, so rules for these are missing.
 * test/peers compares the rules with those of the real kube-proxy.
 */

/** The input for the rules of one family on one node. */
interface Proxied {
  readonly part: FamilyPart;
  readonly cluster: string;
  readonly dropInvalid: boolean;
  readonly services: readonly ServicePort[];
}

/**
 * Start kube-proxy on a node, or start it again in another mode, which first removes the rules of the previous mode.
 * The rules stay until this is called again; {@link setServices} changes the Services.
 */
export async function startKubeProxy(
  lab: Lab,
  node: NodeState,
  mode: KubeProxyMode,
  services: readonly ServicePort[] = [],
): Promise<void> {
  const netns = netnsPath(node.netns);
  const before = node.kubeProxy?.mode;
  for (const { family } of before === mode ? [] : familyParts(node)) {
    if (before === 'iptables') await removeIptables(family, netns);
    if (before === 'nftables') await run('nft', ['-f', '-'], { netns, stdin: deletedTable(family) });
  }
  delete node.kubeProxy;
  saveLab(lab);
  if (mode === 'none') return;
  // kube-proxy reads this only when it starts: if ripstop was there before it, it writes no rule that drops INVALID.
  const liberal = await run('sysctl', ['-n', 'net.netfilter.nf_conntrack_tcp_be_liberal'], { netns });
  node.kubeProxy = { mode, dropInvalid: liberal.trim() === '0' };
  saveLab(lab);
  await setSysctls(node.netns, {
    'netfilter.nf_conntrack_tcp_timeout_established': 24 * 3600,
    'netfilter.nf_conntrack_tcp_timeout_close_wait': 3600,
    // Makes NodePorts reachable on 127.0.0.1 too.
    ...(mode === 'iptables' && { 'ipv4.conf.all.route_localnet': 1 }),
  });
  await setServices(lab, node, services);
}

/** Replace the Services on a node where {@link startKubeProxy} has started kube-proxy. */
export async function setServices(
  lab: Lab,
  node: NodeState,
  services: readonly ServicePort[],
): Promise<void> {
  const { kubeProxy } = node;
  if (!kubeProxy) throw new Error(`${node.name} has no kube-proxy`);
  const netns = netnsPath(node.netns);
  for (const part of familyParts(node)) {
    const { family } = part;
    const proxied: Proxied = {
      part,
      cluster: clusterNetwork(lab.state.options, family),
      dropInvalid: kubeProxy.dropInvalid,
      services: services.filter(({ clusterIp }) => addressFamily(clusterIp) === family),
    };
    if (kubeProxy.mode === 'iptables') {
      const stdin = iptablesRules(proxied, await run(iptables(family, 'save'), [], { netns }));
      await run(iptables(family, 'restore'), ['--noflush'], { netns, stdin });
    } else {
      await run('nft', ['-f', '-'], { netns, stdin: deletedTable(family) + nftablesRules(proxied) });
    }
  }
  kubeProxy.services = services;
  saveLab(lab);
}

/** kube-proxy's name of a port, which its comments show and its names of chains are made from. */
function portName({ service, name }: ServicePort): string {
  return name === undefined ? service : `${service}:${name}`;
}

/** The first characters of a SHA-256 in base 32 (RFC 4648), as in kube-proxy's names of chains. */
function hashOf(text: string, length: number): string {
  const bits = Array.from(createHash('sha256').update(text).digest(), (byte) =>
    byte.toString(2).padStart(8, '0'),
  ).join('');
  return Array.from(
    { length },
    (_, i) => 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'[parseInt(bits.slice(5 * i, 5 * i + 5), 2)],
  ).join('');
}

// ---- iptables ----

const comment = (text: string): string => `-m comment --comment "${text}"`;
const NEW = '-m conntrack --ctstate NEW';
const MASQUERADED = '-m mark --mark 0x4000/0x4000';
const CANARY = 'KUBE-PROXY-CANARY';

/** Rules that are inserted at the head of their chains, in this order, as iptables-save prints them. */
const JUMPS: Readonly<Record<string, readonly string[]>> = {
  mangle: [],
  filter: [
    `INPUT ${NEW} ${comment('kubernetes externally-visible service portals')} -j KUBE-EXTERNAL-SERVICES`,
    `FORWARD ${NEW} ${comment('kubernetes externally-visible service portals')} -j KUBE-EXTERNAL-SERVICES`,
    `INPUT ${comment('kubernetes health check service ports')} -j KUBE-NODEPORTS`,
    `FORWARD ${NEW} ${comment('kubernetes service portals')} -j KUBE-SERVICES`,
    `OUTPUT ${NEW} ${comment('kubernetes service portals')} -j KUBE-SERVICES`,
    `FORWARD ${comment('kubernetes forwarding rules')} -j KUBE-FORWARD`,
    `INPUT ${NEW} ${comment('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL`,
    `OUTPUT ${NEW} ${comment('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL`,
    `FORWARD ${NEW} ${comment('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL`,
    // kubelet has the same two.
    'INPUT -j KUBE-FIREWALL',
    'OUTPUT -j KUBE-FIREWALL',
  ],
  nat: [
    `OUTPUT ${comment('kubernetes service portals')} -j KUBE-SERVICES`,
    `PREROUTING ${comment('kubernetes service portals')} -j KUBE-SERVICES`,
    `POSTROUTING ${comment('kubernetes postrouting rules')} -j KUBE-POSTROUTING`,
  ],
};

function iptables(family: Family, what: 'save' | 'restore'): string {
  return `${family === 4 ? 'iptables' : 'ip6tables'}-${what}`;
}

/** The input for `iptables-restore --noflush`. `saved` is the output of iptables-save. */
function iptablesRules(proxied: Proxied, saved: string): string {
  const rules = [...commonRules(proxied), ...proxied.services.flatMap((one) => serviceRules(proxied, one))];
  const nodePorts = 'kubernetes service nodeports; NOTE: this must be the last rule in this chain';
  const notLoopback = proxied.part.family === 6 ? '! -d ::1/128 ' : '';
  rules.push([
    'nat',
    'KUBE-SERVICES',
    `${comment(nodePorts)} -m addrtype --dst-type LOCAL ${notLoopback}-j KUBE-NODEPORTS`,
  ]);
  const has = new Set(saved.split('\n'));
  const of = (table: string) => rules.filter(([name]) => name === table);
  return Object.entries(JUMPS)
    .flatMap(([table, jumps]) => {
      const targets = [...jumps, ...of(table).map(([, , rule]) => rule)].flatMap(
        (rule) => targetOf(rule) ?? [],
      );
      const chains = new Set([CANARY, ...targets, ...of(table).map(([, chain]) => chain)]);
      // Chains of Services that no longer exist.
      const stale = chainsIn(saved, table).filter(
        (name) => /-(SVC|SEP|EXT)-/.test(name) && !chains.has(name),
      );
      return [
        `*${table}`,
        ...[...chains, ...stale].map((chain) => `:${chain} - [0:0]`),
        ...jumps.filter((jump) => !has.has(`-A ${jump}`)).map((jump) => `-I ${jump}`),
        ...of(table).map(([, chain, rule]) => `-A ${chain} ${rule}`),
        ...stale.map((chain) => `-X ${chain}`),
        'COMMIT',
        '',
      ];
    })
    .join('\n');
}

/** The kube-proxy chain that a rule jumps to. */
function targetOf(rule: string): string | undefined {
  return / -j (KUBE-\S+)$/.exec(rule)?.[1];
}

type Rule = [table: 'nat' | 'filter', chain: string, rule: string];

function commonRules({ part, dropInvalid }: Proxied): Rule[] {
  return [
    ['nat', 'KUBE-POSTROUTING', '-m mark ! --mark 0x4000/0x4000 -j RETURN'],
    ['nat', 'KUBE-POSTROUTING', '-j MARK --xor-mark 0x4000'],
    [
      'nat',
      'KUBE-POSTROUTING',
      `${comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully`,
    ],
    ['nat', 'KUBE-MARK-MASQ', '-j MARK --or-mark 0x4000'],
    ...(part.family === 4
      ? ([
          [
            'filter',
            'KUBE-FIREWALL',
            `${comment('block incoming localnet connections')} -d 127.0.0.0/8 ! -s 127.0.0.0/8 ` +
              '-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP',
          ],
        ] satisfies Rule[])
      : []),
    ...(dropInvalid
      ? ([['filter', 'KUBE-FORWARD', '-m conntrack --ctstate INVALID -j DROP']] satisfies Rule[])
      : []),
    ['filter', 'KUBE-FORWARD', `${comment('kubernetes forwarding rules')} ${MASQUERADED} -j ACCEPT`],
    [
      'filter',
      'KUBE-FORWARD',
      `${comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
    ],
  ];
}

function serviceRules({ cluster }: Proxied, service: ServicePort): Rule[] {
  const { protocol, clusterIp, port, nodePort, endpoints } = service;
  const name = portName(service);
  const match = `-p ${protocol} -m ${protocol}`;
  const toClusterIp = `${match} -d ${clusterIp} --dport ${port}`;
  if (endpoints.length === 0) {
    const none = comment(`${name} has no endpoints`);
    const local = `${none} -m addrtype --dst-type LOCAL ${match}`;
    return [
      ['filter', 'KUBE-SERVICES', `${none} ${toClusterIp} -j REJECT`],
      ...(nodePort === undefined
        ? []
        : ([
            ['filter', 'KUBE-EXTERNAL-SERVICES', `${local} --dport ${nodePort} -j REJECT`],
          ] satisfies Rule[])),
    ];
  }
  const svc = `KUBE-SVC-${hashOf(name + protocol, 16)}`;
  const ext = `KUBE-EXT-${hashOf(name + protocol, 16)}`;
  const atClusterIp = `${comment(`${name} cluster IP`)} ${toClusterIp}`;
  const masquerade = comment(`masquerade traffic for ${name} external destinations`);
  return [
    ['nat', 'KUBE-SERVICES', `${atClusterIp} -j ${svc}`],
    ['nat', svc, `${atClusterIp} ! -s ${cluster} -j KUBE-MARK-MASQ`],
    ...(nodePort === undefined
      ? []
      : ([
          ['nat', 'KUBE-NODEPORTS', `${comment(name)} ${match} --dport ${nodePort} -j ${ext}`],
          ['nat', ext, `${masquerade} -j KUBE-MARK-MASQ`],
          ['nat', ext, `-j ${svc}`],
        ] satisfies Rule[])),
    ...endpoints.flatMap(({ ip, port }, i): Rule[] => {
      const endpoint = withPort(ip, port);
      const sep = `KUBE-SEP-${hashOf(name + protocol + endpoint, 16)}`;
      const left = endpoints.length - i;
      const chance = left > 1 ? ` -m statistic --mode random --probability ${(1 / left).toFixed(10)}` : '';
      return [
        ['nat', svc, `${comment(`${name} -> ${endpoint}`)}${chance} -j ${sep}`],
        ['nat', sep, `${comment(name)} -s ${ip} -j KUBE-MARK-MASQ`],
        ['nat', sep, `${comment(name)} ${match} -j DNAT --to-destination ${endpoint}`],
      ];
    }),
  ];
}

/** One table's part of the output of iptables-save. */
function savedTable(saved: string, table: string): string {
  return saved.split(/^(?=\*)/m).find((text) => text.startsWith(`*${table}\n`)) ?? '';
}

function chainsIn(saved: string, table: string): string[] {
  return Array.from(savedTable(saved, table).matchAll(/^:(KUBE-\S+)/gm), ([, name]) => name!);
}

/** Remove the rules, like `kube-proxy --cleanup`. KUBE-FIREWALL stays, since kubelet uses it too. */
async function removeIptables(family: Family, netns: string): Promise<void> {
  const saved = await run(iptables(family, 'save'), [], { netns });
  const lines = Object.keys(JUMPS).flatMap((table) => {
    const chains = chainsIn(saved, table).filter((name) => name !== 'KUBE-FIREWALL');
    if (chains.length === 0) return [];
    const jumps = savedTable(saved, table)
      .split('\n')
      .filter((line) => /^-A [A-Z]+ /.test(line) && chains.includes(targetOf(line) ?? ''));
    return [
      `*${table}`,
      ...chains.map((chain) => `:${chain} - [0:0]`),
      ...jumps.map((jump) => jump.replace('-A', '-D')),
      ...chains.map((chain) => `-X ${chain}`),
      'COMMIT',
      '',
    ];
  });
  if (lines.length > 0)
    await run(iptables(family, 'restore'), ['--noflush'], { netns, stdin: lines.join('\n') });
}

// ---- nftables ----

/** Input for `nft -f` that deletes the family's table, if it exists. */
function deletedTable(family: Family): string {
  const table = `${family === 4 ? 'ip' : 'ip6'} kube-proxy`;
  return `table ${table}\ndelete table ${table}\n`;
}

/** Input for `nft -f` that creates the table. In this mode kube-proxy does not drop what conntrack calls INVALID. */
function nftablesRules({ part, cluster, services }: Proxied): string {
  const masquerade = 'mark set mark or 0x4000 comment "masquerade clusterIP traffic from outside cluster"';
  const ip = part.family === 4 ? 'ip' : 'ip6';
  const address = part.family === 4 ? 'ipv4_addr' : 'ipv6_addr';
  const served = services.filter(({ endpoints }) => endpoints.length > 0);
  const unserved = services.filter(({ endpoints }) => endpoints.length === 0);
  const local = parseCidr(part.podCIDR);
  const elements = (entries: readonly string[]): string =>
    entries.length > 0 ? `elements = { ${[...new Set(entries)].join(', ')} }` : '';
  const clusterIps = (some: readonly ServicePort[], verdict: (one: ServicePort) => string): string =>
    elements(some.map((one) => `${one.clusterIp} . ${one.protocol} . ${one.port} ${verdict(one)}`));
  const nodePorts = (some: readonly ServicePort[], verdict: (one: ServicePort) => string): string =>
    elements(
      some.flatMap((one) =>
        one.nodePort === undefined ? [] : `${one.protocol} . ${one.nodePort} ${verdict(one)}`,
      ),
    );
  const refused = (one: ServicePort): string => `comment "${portName(one)}" : goto reject-chain`;
  const hairpins = served.flatMap(({ protocol, endpoints }) =>
    endpoints
      .filter(({ ip }) => cidrContains(local, ip))
      .map(({ ip, port }) => `${ip} . ${ip} . ${protocol} . ${port}`),
  );
  const toService = `${ip} daddr . meta l4proto . th dport`;
  return `
    table ${ip} kube-proxy {
      comment "rules for kube-proxy"
      set cluster-ips {
        type ${address}; comment "Active ClusterIPs"
        ${elements(services.map(({ clusterIp }) => clusterIp))}
      }
      set nodeport-ips {
        type ${address}; comment "IPs that accept NodePort traffic"
        ${elements([part.ip])}
      }
      set hairpin-connections {
        type ${address} . ${address} . inet_proto . inet_service; comment "service hairpin connections"
        ${elements(hairpins)}
      }
      map no-endpoint-services {
        type ${address} . inet_proto . inet_service : verdict
        comment "vmap to drop or reject packets to services with no endpoints"
        ${clusterIps(unserved, refused)}
      }
      map no-endpoint-nodeports {
        type inet_proto . inet_service : verdict
        comment "vmap to drop or reject packets to service nodeports with no endpoints"
        ${nodePorts(unserved, refused)}
      }
      map firewall-ips {
        type ${address} . inet_proto . inet_service : verdict
        comment "destinations that are subject to LoadBalancerSourceRanges"
      }
      map service-ips {
        type ${address} . inet_proto . inet_service : verdict
        comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
        ${clusterIps(served, (one) => `: goto service-${nftablesName(one)}`)}
      }
      map service-nodeports {
        type inet_proto . inet_service : verdict
        comment "NodePort traffic"
        ${nodePorts(served, (one) => `: goto external-${nftablesName(one)}`)}
      }
      chain filter-prerouting-pre-dnat {
        type filter hook prerouting priority -110;
        ct state new jump firewall-check
      }
      chain filter-output-pre-dnat {
        type filter hook output priority -110;
        ct state new jump firewall-check
      }
      chain filter-input {
        type filter hook input priority 0;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
      }
      chain filter-forward {
        type filter hook forward priority 0;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
      }
      chain filter-output {
        type filter hook output priority 0;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
      }
      chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
      chain nat-output { type nat hook output priority -100; jump services; }
      chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
      chain masquerading {
        mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
        ct status dnat ${ip} saddr . ${ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
      }
      chain cluster-ips-check {
        ${ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
        ${ip} daddr { ${serviceNetwork(part.family)} } drop comment "Drop traffic to unallocated ClusterIPs"
      }
      chain reject-chain {
        comment "helper for @no-endpoint-services / @no-endpoint-nodeports"
        reject
      }
      chain service-endpoints-check { ${toService} vmap @no-endpoint-services; }
      chain nodeport-endpoints-check {
        ${ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
      }
      chain firewall-check { ${toService} vmap @firewall-ips; }
      chain services {
        ${ip} daddr @cluster-ips ${ip} saddr != ${cluster} ${masquerade}
        ${toService} vmap @service-ips
        ${ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
      }
      ${served.map((one) => nftablesChains(ip, one)).join('')}
    }`;
}

/** The chains of a Service that has endpoints. */
function nftablesChains(ip: string, service: ServicePort): string {
  const { protocol, nodePort, endpoints } = service;
  const name = nftablesName(service);
  const choices = endpoints.map(({ ip, port }, i) => `${i} : ${ip} . ${port}`);
  const choice = `numgen random mod ${endpoints.length} map { ${choices.join(', ')} }`;
  return `
      chain service-${name} {
        meta l4proto ${protocol} dnat ${ip} addr . port to ${choice}
      }
      ${
        nodePort === undefined
          ? ''
          : `chain external-${name} {
        mark set mark or 0x4000 comment "masquerade"
        goto service-${name}
      }`
      }`;
}

function nftablesName({ service, name = '', protocol }: ServicePort): string {
  const path = `${service}/${protocol}/${name}`;
  return `${hashOf(path, 8)}-${path}`;
}
