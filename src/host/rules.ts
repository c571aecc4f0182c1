// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import type { Tunnel } from '../dataplane/desired.ts';
import { RipstopError } from '../errors.ts';
import type { Family } from '../net/ip.ts';
import { isSame, noFailures, type Target } from '../reconcile/target.ts';
import { applyNft, listNft, NFT_TABLE, type NftObject } from './nft.ts';
import { type PodNetwork, wordsOf } from './pod-network.ts';
import type { RunOptions } from './run.ts';
import { declarationOf, listedVteps, VTEP_SETS, type VxlanSenders } from './vtep-set.ts';

/*
 * flannel's rules, as one nftables table of our own. Nobody else's table is read or written, no lock is shared, and each
 * change is one transaction. Every rule carries a comment with a digest of its text, so a listing tells whether the
 * kernel still holds exactly what was rendered, however this nft version spells it.
 *
 * A rule that lets only known nodes in must never meet an empty set, so it comes in one transaction with all the elements
 * that are known. From then on vtep-set.ts keeps those.
 */

export interface RulesWanted {
  /** One entry per family, at most two. */
  networks: readonly (PodNetwork & VxlanSenders)[];
  /** Hide pods behind the node's address when they talk to the world (`--ip-masq`). */
  masquerade: boolean;
  /** The tunnels that only nodes may talk through; VXLAN of another VNI may come from anywhere. */
  tunnel?: Tunnel | undefined;
}

export interface Ruleset {
  /** What `nft -f` gets: one transaction that puts the table in place of whatever it was. */
  readonly text: string;
  /** Sets, chains and rules in order, as {@link readFingerprint} finds them in a listing. */
  readonly fingerprint: readonly string[];
}

interface Chain {
  name: string;
  type: 'filter' | 'nat';
  hook: string;
  /** Standard priorities of netfilter_ipv4.h: filter 0, srcnat 100. */
  priority: number;
  rules: Rule[];
}

interface Rule {
  match: string;
  verdict: string;
  why: string;
}

/** What tells our rules apart, at most 128 bytes. */
function commentOf({ match, verdict, why }: Rule): string {
  const digest = createHash('sha256').update(`${match} ${verdict}`).digest('hex').slice(0, 8);
  return `${why} [${digest}]`;
}

/**
 * Render the table. Pure: the same wanted rules and the same listing give the same text.
 * @param found a listing of the table that it replaces. The elements of its sets stay: whether one is to go is not known
 * here.
 */
export function renderRules(wanted: RulesWanted, found: readonly NftObject[] = []): Ruleset {
  const chains = [
    ...(wanted.tunnel ? [inputChain(wanted.networks, wanted.tunnel, found)] : []),
    forwardChain(wanted),
    ...(wanted.masquerade ? [postroutingChain(wanted)] : []),
  ];
  const senders = wanted.tunnel ? wanted.networks : [];
  const fingerprint = [
    ...senders.map(
      ({ network }) => `set ${VTEP_SETS[network.family].name} ${VTEP_SETS[network.family].type}`,
    ),
    ...chains.flatMap(({ name, type, hook, priority, rules }) => [
      `chain ${name} ${type} ${hook} ${priority} accept`,
      ...rules.map((rule) => `rule ${name} ${commentOf(rule)}`),
    ]),
  ];
  return {
    fingerprint,
    // Only for a table that must be written: it has an element for each peer.
    get text() {
      return renderTable(senders, chains, found);
    },
  };
}

function renderTable(
  senders: RulesWanted['networks'],
  chains: readonly Chain[],
  found: readonly NftObject[],
): string {
  const table = NFT_TABLE.join(' ');
  // Adding the table first lets the deletion succeed also when it was not there; nft applies all of it or nothing.
  const lines = [`add table ${table}`, `delete table ${table}`, `table ${table} {`];
  for (const { network, vteps } of senders) {
    const elements = [...new Map([...listedVteps(found, network.family), ...vteps()]).keys()];
    lines.push(`  set ${VTEP_SETS[network.family].name} {`, `    ${declarationOf(network.family)}`);
    if (elements.length > 0) lines.push(`    elements = { ${elements.join(', ')} }`);
    lines.push('  }');
  }
  for (const { name, type, hook, priority, rules } of chains) {
    lines.push(
      `  chain ${name} {`,
      `    type ${type} hook ${hook} priority ${priority}; policy accept;`,
      ...rules.map((rule) => `    ${rule.match} ${rule.verdict} comment "${commentOf(rule)}"`),
      '  }',
    );
  }
  return [...lines, '}', ''].join('\n');
}

/**
 * The VXLAN device's socket listens on every address of the node, those in the pod network too, and believes whoever finds
 * it: a pod could put packets with any source into others, and so could anyone on the underlay whose packets from_wire
 * leaves to the stack. Nodes talk VXLAN from underlay addresses only, and only nodes do.
 */
function inputChain(networks: RulesWanted['networks'], tunnel: Tunnel, found: readonly NftObject[]): Chain {
  return {
    name: 'input',
    type: 'filter',
    hook: 'input',
    priority: 0,
    rules: [
      ...networks.map(wordsOf).flatMap(({ ip, cluster }) =>
        // Each pod has a link-local IPv6 address too; no node publishes one of those.
        (ip === 'ip6' ? [cluster, 'fe80::/10'] : [cluster]).map((from) => ({
          match: `${ip} saddr ${from} udp dport ${tunnel.port}`,
          verdict: 'counter drop',
          why: 'a pod talks VXLAN',
        })),
      ),
      ...networks.flatMap(({ network: { family }, strangers }) => {
        const rules = strangerRules(family, tunnel);
        if (strangers !== 'as found') return [rules[strangers]];
        const comments = found.map(({ rule }) => rule?.comment);
        return Object.values(rules).filter((rule) => comments.includes(commentOf(rule)));
      }),
    ],
  };
}

/** Any connection state. */
const TRACKED = 'ct state invalid,established,related,new,untracked';

/**
 * What there may be about VXLAN from addresses that are no node's. The VNI stands behind UDP's header and VXLAN's flags.
 * IPv4 puts fragments together before this hook, but IPv6 behind it, where a rule sees nothing of a VXLAN header in a second
 * fragment: unless somebody asks for connection tracking, which has to do it first. So the rule does, whatever the state.
 */
function strangerRules(family: Family, { port, vni }: Tunnel): Record<'drop' | 'count', Rule> {
  const from = family === 4 ? 'ip saddr' : `${TRACKED} ip6 saddr`;
  const match = `udp dport ${port} @th,96,24 ${vni} ${from} != @${VTEP_SETS[family].name}`;
  return {
    drop: { match, verdict: 'counter drop', why: 'a stranger talks VXLAN' },
    count: { match, verdict: 'counter', why: 'VXLAN from strangers is let in: a peer is behind NAT' },
  };
}

function forwardChain({ networks }: RulesWanted): Chain {
  return {
    name: 'forward',
    type: 'filter',
    hook: 'forward',
    priority: 0,
    rules: networks.map(wordsOf).flatMap(({ ip, cluster }) => [
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
      ...networks.map(wordsOf).flatMap(({ ip, cluster, pods, multicast }) => [
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

/** What a listing of the table holds, in the form of {@link Ruleset}'s fingerprint, in the order of the listing. */
export function readFingerprint(listing: readonly NftObject[]): string[] {
  const rules = listing.flatMap(({ rule }) => (rule ? [rule] : []));
  return listing.flatMap(({ set, chain }) => {
    if (set) return [`set ${set.name} ${set.type}`];
    if (!chain) return [];
    return [
      `chain ${chain.name} ${chain.type} ${chain.hook} ${chain.prio} ${chain.policy}`,
      ...rules
        .filter((rule) => rule.chain === chain.name)
        .map((rule) => `rule ${chain.name} ${rule.comment ?? ''}`),
    ];
  });
}

/**
 * Make our table be exactly the wanted one, but for the elements of its sets; when it is already, nothing is written and its
 * counters go on.
 * @returns whether it was written.
 * @throws RipstopError with nft's reason, or when the kernel does not list what it accepted.
 */
export async function ensureRules(wanted: RulesWanted, options: RunOptions = {}): Promise<boolean> {
  // Without the sets' elements, of which there may be 15,000, and which are no part of the fingerprint.
  const bare = await listTable(options, ['--terse']);
  const { fingerprint } = renderRules(wanted, bare);
  const isThere = (listing: readonly NftObject[]): boolean =>
    readFingerprint(listing).join('\n') === fingerprint.join('\n');
  if (isThere(bare)) return false;
  const { text } = renderRules(wanted, await listTable(options));
  await applyNft([text], options);
  if (!isThere(await listTable(options, ['--terse']))) {
    throw new RipstopError(
      `nft accepted the table ${NFT_TABLE.join(' ')} but does not list it as written; see "nft list table ${NFT_TABLE.join(' ')}"`,
      { details: text },
    );
  }
  return true;
}

/** The key of {@link rulesTarget}: our table. */
export const RULES_KEY = NFT_TABLE.join(' ');

/** Our table. Its sets' elements are a target of their own, see vtep-set.ts. */
export function rulesTarget(): Target<RulesWanted> {
  return {
    name: 'rules',
    list: async () => new Map(),
    difference: async (desired) => {
      const bare = await listTable({}, ['--terse']);
      const isThere = (wanted: RulesWanted): boolean =>
        isSame(renderRules(wanted, bare).fingerprint, readFingerprint(bare));
      const upserts = new Map([...desired].filter(([, wanted]) => !isThere(wanted)));
      return { upserts, removals: new Map() };
    },
    upsert: async (entries) => {
      for (const wanted of entries.values()) await ensureRules(wanted);
      return noFailures;
    },
    remove: async () => noFailures,
  };
}

/** Remove our table; no error when it is not there. */
export async function removeRules(options: RunOptions = {}): Promise<void> {
  const table = NFT_TABLE.join(' ');
  await applyNft([`add table ${table}`, `delete table ${table}`], options);
}

/** What a rule has counted since the table was last written. */
export interface RuleCounter {
  chain: string;
  /** The rule's comment without its digest, e.g. `a stranger talks VXLAN`. */
  why: string;
  packets: number;
  bytes: number;
}

/** What the rules that count have counted, in their order; none without the table. */
export async function readRuleCounters(options: RunOptions = {}): Promise<RuleCounter[]> {
  return (await listTable(options)).flatMap(({ rule }) =>
    (rule?.expr ?? []).flatMap(({ counter }) =>
      counter
        ? [{ chain: rule!.chain, why: (rule!.comment ?? '').replace(/ \[\w+\]$/, ''), ...counter }]
        : [],
    ),
  );
}

/** What the kernel path forwarded from or to the cluster network since the table was last written; undefined without it. */
export async function readForwardCounters(
  options: RunOptions = {},
): Promise<{ packets: number; bytes: number } | undefined> {
  const counters = (await readRuleCounters(options)).filter(({ chain }) => chain === 'forward');
  if (counters.length === 0) return undefined;
  return {
    packets: counters.reduce((sum, { packets }) => sum + packets, 0),
    bytes: counters.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}

/**
 * Other people's forward chains that drop by default, e.g. `ip filter FORWARD` of Docker. An accept in our chain does not
 * overrule them (each base chain judges on its own), so the kernel path needs an accept there. Rules of iptables-legacy are
 * invisible to nft.
 */
export async function listForwardDrops(options: RunOptions = {}): Promise<string[]> {
  return (await listNft(['chains'], options)).flatMap(({ chain }) =>
    chain?.hook === 'forward' && chain.policy === 'drop'
      ? [`${chain.family} ${chain.table} ${chain.name}`]
      : [],
  );
}

function listTable(options: RunOptions, flags: readonly string[] = []): Promise<NftObject[]> {
  return listNft(['table', ...NFT_TABLE], options, flags);
}
