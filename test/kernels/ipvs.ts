// SPDX-License-Identifier: Apache-2.0
/**
 * kube-proxy in IPVS mode, as the node's network has it: the settings, the interface with the ClusterIPs, the sets, the
 * iptables rules and the virtual services of pkg/proxy/ipvs in Kubernetes 1.36. Without NodePorts and load balancers.
 */
import { writeFileSync } from 'node:fs';
import { inNetns } from '#netlink';
import { errorText } from '../../src/errors.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { ipBatch } from '../../src/lab/ip.ts';

/** Each with its option of ipvsadm, and its number for ipset: the machine has no /etc/protocols. */
const PROTOCOLS = [
  { flag: '-t', number: 6 },
  { flag: '-u', number: 17 },
] as const;

/** One port of a Service, for TCP and UDP. */
export interface IpvsService {
  readonly ip: string;
  readonly port: number;
}

export interface IpvsOptions {
  readonly netns: string;
  /** The cluster network: what comes from elsewhere is masqueraded. */
  readonly network: string;
}

/** Why there is no IPVS here; undefined when there is. */
export async function whyNoIpvs(netns: string): Promise<string | undefined> {
  try {
    for (const program of ['ipvsadm', 'ipset']) await run(program, ['-L', '-n'], { netns });
    return undefined;
  } catch (error) {
    return errorText(error);
  }
}

/** The settings that kube-proxy makes when it starts. */
const settings = {
  'vs/conntrack': 1,
  'vs/conn_reuse_mode': 0,
  'vs/expire_nodest_conn': 1,
  'vs/expire_quiescent_template': 1,
  ip_forward: 1,
};

export function setIpv4(netns: string, wanted: Readonly<Record<string, number>>): void {
  inNetns(netns, () => {
    for (const [name, value] of Object.entries(wanted))
      writeFileSync(`/proc/sys/net/ipv4/${name}`, `${value}`);
  });
}

/** Start kube-proxy with this Service, which has no endpoints yet. */
export async function startIpvs({ netns, network }: IpvsOptions, { ip, port }: IpvsService): Promise<void> {
  setIpv4(netns, settings);
  await ipBatch(['link add kube-ipvs0 type dummy', `address add ${ip}/32 dev kube-ipvs0`], { netns });
  const sets = [
    'create KUBE-CLUSTER-IP hash:ip,port',
    'create KUBE-LOOP-BACK hash:ip,port,ip',
    ...PROTOCOLS.map(({ number }) => `add KUBE-CLUSTER-IP ${ip},${number}:${port}`),
  ];
  await run('ipset', ['restore'], { netns, stdin: `${sets.join('\n')}\n` });
  await run('iptables-legacy-restore', ['--noflush'], { netns, stdin: rulesFor(network) });
  for (const { flag } of PROTOCOLS) await ipvsadm(netns, ['-A', flag, `${ip}:${port}`, '-s', 'rr']);
}

function rulesFor(network: string): string {
  return `*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -s ${network} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
COMMIT
`;
}

export function ipvsadm(netns: string, args: readonly string[]): Promise<string> {
  return run('ipvsadm', args, { netns });
}

/**
 * Give the Service another endpoint. As kube-proxy does, TCP connections to the previous one live on until they end,
 * and conntrack's UDP connections to it are deleted.
 */
export async function moveEndpoint(
  netns: string,
  service: IpvsService,
  from: string,
  to: string,
): Promise<void> {
  const at = `${service.ip}:${service.port}`;
  const endpoint = (ip: string) => [at, '-r', `${ip}:${service.port}`, '-m'];
  for (const { flag } of PROTOCOLS) {
    // It may be there still, while earlier connections to it live on.
    await tryRun('ipvsadm', ['-a', flag, ...endpoint(to)], { netns });
    await ipvsadm(netns, ['-e', flag, ...endpoint(to), '-w', '1']);
  }
  await ipvsadm(netns, ['-e', '-t', ...endpoint(from), '-w', '0']);
  await ipvsadm(netns, ['-d', '-u', ...endpoint(from).slice(0, -1)]);
  await tryRun('conntrack', ['-D', '-p', 'udp', '--orig-dst', service.ip, '--reply-src', from], { netns });
}
