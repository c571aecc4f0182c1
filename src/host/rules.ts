// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { RipstopError } from '../errors.ts';
import { formatCidr } from '../net/ip.ts';
import type { PodNetwork } from './pod-network.ts';
import { run, tryRun, type RunOptions } from './run.ts';

/*
 * flannel's rules, as one nftables table of our own. Nobody else's table is read or written, no lock is shared, and each
 * change is one transaction. Every rule carries a comment with a digest of its text, so a listing tells whether the
 * kernel still holds exactly what was rendered, however this nft version spells it.
 */

/** The one table: family and name. */
export const NFT_TABLE = ['inet', 'ripstop'] as const;

export interface RulesWanted {
  /** One entry per family, at most two. */
  networks: readonly PodNetwork[];
  /** Hide pods behind the node's address when they talk to the world (`--ip-masq`). */
  masquerade: boolean;
  /** VXLAN's UDP port, which only nodes may talk to. */
  vxlanPort: number;
}

export interface Ruleset {
  /** What `nft -f` gets: one transaction that puts the table in place of whatever it was. */
  text: string;
  /** Chains and rules in order, as {@link readFingerprint} finds them in a listing. */
  fingerprint: string[];
}

interface Chain {
  name: string;
  type: 'filter' | 'nat';
  hook: string;
  /** Standard priorities of netfilter_ipv4.h: filter 0, srcnat 100. */
  priority: number;
  rules: { match: string; verdict: string; why: string }[];
}

/** Render the table. Pure: the same wish gives the same text. */
export function renderRules(wanted: RulesWanted): Ruleset {
  const chains = [
    inputChain(wanted),
    forwardChain(wanted),
    ...(wanted.masquerade ? [postroutingChain(wanted)] : []),
  ];
  const fingerprint: string[] = [];
  const table = NFT_TABLE.join(' ');
  // Adding the table first lets the deletion succeed also when it was not there; nft applies all of it or nothing.
  const lines = [`add table ${table}`, `delete table ${table}`, `table ${table} {`];
  for (const { name, type, hook, priority, rules } of chains) {
    fingerprint.push(`chain ${name} ${type} ${hook} ${priority} accept`);
    lines.push(`  chain ${name} {`);
    lines.push(`    type ${type} hook ${hook} priority ${priority}; policy accept;`);
    for (const { match, verdict, why } of rules) {
      const digest = createHash('sha256').update(`${match} ${verdict}`).digest('hex').slice(0, 8);
      const comment = `${why} [${digest}]`;
      fingerprint.push(`rule ${name} ${comment}`);
      lines.push(`    ${match} ${verdict} comment "${comment}"`);
    }
    lines.push('  }');
  }
  return { text: [...lines, '}', ''].join('\n'), fingerprint };
}

/**
 * The VXLAN device's socket listens on every address of the node, those in the pod network too, and believes whoever finds
 * it: a pod could put packets with any source into others. Nodes talk VXLAN from underlay addresses only.
 */
function inputChain({ networks, vxlanPort }: RulesWanted): Chain {
  return {
    name: 'input',
    type: 'filter',
    hook: 'input',
    priority: 0,
    rules: names(networks).flatMap(({ ip, cluster }) =>
      // Each pod has a link-local IPv6 address too; no node publishes one of those.
      (ip === 'ip6' ? [cluster, 'fe80::/10'] : [cluster]).map((from) => ({
        match: `${ip} saddr ${from} udp dport ${vxlanPort}`,
        verdict: 'counter drop',
        why: 'a pod talks VXLAN',
      })),
    ),
  };
}

function forwardChain({ networks }: RulesWanted): Chain {
  return {
    name: 'forward',
    type: 'filter',
    hook: 'forward',
    priority: 0,
    rules: names(networks).flatMap(({ ip, cluster }) => [
      { match: `${ip} saddr ${cluster}`, verdict: 'counter accept', why: 'from the cluster network' },
      { match: `${ip} daddr ${cluster}`, verdict: 'counter accept', why: 'to the cluster network' },
    ]),
  };
}

function postroutingChain({ networks }: RulesWanted): Chain {
  const masquerade = 'masquerade fully-random';
  return {
    name: 'postrouting',
    type: 'nat',
    hook: 'postrouting',
    priority: 100,
    rules: [
      { match: 'meta mark & 0x4000 == 0x4000', verdict: 'return', why: 'kube-proxy masquerades this' },
      ...names(networks).flatMap(({ ip, cluster, pods, multicast }) => [
        { match: `${ip} saddr ${pods} ${ip} daddr ${cluster}`, verdict: 'return', why: 'own pod to pod' },
        { match: `${ip} saddr ${cluster} ${ip} daddr ${pods}`, verdict: 'return', why: 'pod to own pod' },
        {
          match: `${ip} saddr != ${cluster} ${ip} daddr ${pods}`,
          verdict: 'return',
          why: 'world to own pod',
        },
        {
          match: `${ip} saddr ${cluster} ${ip} daddr != ${multicast}`,
          verdict: masquerade,
          why: 'pod to world',
        },
        {
          match: `${ip} saddr != ${cluster} ${ip} daddr ${cluster}`,
          verdict: masquerade,
          why: 'world to remote pod',
        },
      ]),
    ],
  };
}

function names(
  networks: readonly PodNetwork[],
): { ip: string; cluster: string; pods: string; multicast: string }[] {
  return networks.map(({ network, podCidr }) => ({
    ip: network.family === 4 ? 'ip' : 'ip6',
    cluster: formatCidr(network),
    pods: formatCidr(podCidr),
    multicast: network.family === 4 ? '224.0.0.0/4' : 'ff00::/8',
  }));
}

/** The part of `nft -j` that is read here. */
interface NftObject {
  chain?: {
    family: string;
    table: string;
    name: string;
    type?: string;
    hook?: string;
    prio?: number;
    policy?: string;
  };
  rule?: { chain: string; comment?: string; expr: { counter?: { packets: number; bytes: number } }[] };
}

/** What a listing of the table holds, in the form of {@link Ruleset}'s fingerprint; chains in the order of the listing. */
export function readFingerprint(listing: readonly NftObject[]): string[] {
  const rules = listing.flatMap(({ rule }) => (rule ? [rule] : []));
  return listing.flatMap(({ chain }) =>
    chain
      ? [
          `chain ${chain.name} ${chain.type} ${chain.hook} ${chain.prio} ${chain.policy}`,
          ...rules
            .filter((rule) => rule.chain === chain.name)
            .map((rule) => `rule ${chain.name} ${rule.comment ?? ''}`),
        ]
      : [],
  );
}

/**
 * Make our table be exactly the wanted one; when it is already, nothing is written and its counters go on.
 * @returns whether it was written.
 * @throws RipstopError with nft's reason, or when the kernel does not list what it accepted.
 */
export async function ensureRules(wanted: RulesWanted, options: RunOptions = {}): Promise<boolean> {
  const { text, fingerprint } = renderRules(wanted);
  const isThere = async (): Promise<boolean> =>
    readFingerprint(await listTable(options)).join('\n') === fingerprint.join('\n');
  if (await isThere()) return false;
  await run('nft', ['-f', '-'], { ...options, stdin: text });
  if (!(await isThere())) {
    throw new RipstopError(
      `nft accepted the table ${NFT_TABLE.join(' ')} but does not list it as written; see "nft list table ${NFT_TABLE.join(' ')}"`,
      { details: text },
    );
  }
  return true;
}

/** Remove our table; no error when it is not there. */
export async function removeRules(options: RunOptions = {}): Promise<void> {
  const table = NFT_TABLE.join(' ');
  await run('nft', ['-f', '-'], { ...options, stdin: `add table ${table}\ndelete table ${table}\n` });
}

/** What the kernel path forwarded from or to the cluster network since the table was last written; undefined without it. */
export async function readForwardCounters(
  options: RunOptions = {},
): Promise<{ packets: number; bytes: number } | undefined> {
  const listing = await listTable(options);
  if (!listing.some(({ chain }) => chain?.name === 'forward')) return undefined;
  const total = { packets: 0, bytes: 0 };
  for (const { rule } of listing) {
    for (const { counter } of rule?.chain === 'forward' ? rule.expr : []) {
      total.packets += counter?.packets ?? 0;
      total.bytes += counter?.bytes ?? 0;
    }
  }
  return total;
}

/**
 * Other people's forward chains that drop by default, e.g. `ip filter FORWARD` of Docker. An accept in our chain does not
 * overrule them (each base chain judges on its own), so the kernel path needs an accept there. Rules of iptables-legacy are
 * invisible to nft.
 */
export async function listForwardDrops(options: RunOptions = {}): Promise<string[]> {
  const chains = parseListing(await run('nft', ['-j', 'list', 'chains'], options));
  return chains.flatMap(({ chain }) =>
    chain?.hook === 'forward' && chain.policy === 'drop'
      ? [`${chain.family} ${chain.table} ${chain.name}`]
      : [],
  );
}

async function listTable(options: RunOptions): Promise<NftObject[]> {
  const { code, stdout, stderr } = await tryRun('nft', ['-j', 'list', 'table', ...NFT_TABLE], options);
  if (code === 0) return parseListing(stdout);
  if (stderr.includes('No such file or directory')) return [];
  throw new RipstopError(
    `cannot list the nft table ${NFT_TABLE.join(' ')}: ${stderr.trim().split('\n')[0] ?? `exit code ${code}`}`,
    { details: stderr },
  );
}

function parseListing(text: string): NftObject[] {
  return (JSON.parse(text) as { nftables: NftObject[] }).nftables;
}
