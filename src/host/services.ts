// SPDX-License-Identifier: Apache-2.0
/** Services by their names, as kube-proxy's rules on this node have them. */
import { withPort } from '../net/ip.ts';
import { tryRun } from './run.ts';

/** `-d 10.43.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80` */
const IPTABLES =
  /-d (?<address>\S+?)\/\d+ -p (?<protocol>\w+) .*--comment "(?<name>[^ ":]+)(?::\S+)? cluster IP" .*--dport (?<port>\d+)/g;
/** `10.43.0.10 . tcp . 80 : goto service-ULMVA6XW-shop/web/tcp/http` */
const NFTABLES =
  /(?<address>[\da-f.:]+) \. (?<protocol>\w+) \. (?<port>\d+) : goto "?service-\w+-(?<name>[^/"]+\/[^/"]+)\//g;

const sources: readonly (readonly [command: string, rules: RegExp])[] = [
  ['iptables-save -t nat', IPTABLES],
  ['ip6tables-save -t nat', IPTABLES],
  ['nft list map ip kube-proxy service-ips', NFTABLES],
  ['nft list map ip6 kube-proxy service-ips', NFTABLES],
];

/** A ClusterIP. */
export interface ClusterIp {
  /** Of the Service: namespace/name. */
  readonly service: string;
  readonly protocol: string;
  readonly address: string;
  readonly port: number;
}

/** The ClusterIPs of all Services; none where no rule has any. */
export async function listClusterIps(): Promise<ClusterIp[]> {
  const found = await Promise.all(
    sources.map(async ([command, rules]) => {
      const [program, ...args] = command.split(' ') as [string, ...string[]];
      // A program or a table that is not there has no rules.
      const { stdout } = await tryRun(program, args).catch(() => ({ stdout: '' }));
      return Array.from(stdout.matchAll(rules), ({ groups }) => groups!);
    }),
  );
  return found.flat().map(({ name, protocol, address, port }) => ({
    service: name!,
    protocol: protocol!,
    address: address!,
    port: Number(port),
  }));
}

/** The addresses, with ports, of the ClusterIPs of a Service, namespace/name; none where no rule has it. */
export async function findClusterIps(service: string): Promise<string[]> {
  const own = (await listClusterIps()).filter((one) => one.service === service);
  return [...new Set(own.map(({ address, port }) => withPort(address, port)))];
}
