// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import type { Tunnel } from '../dataplane/desired.ts';
import { RipstopError } from '../errors.ts';
import type { Family } from '../net/ip.ts';
import { isSame, noFailures, type Target } from '../reconcile/target.ts';
import { applyNft, listNft, NFT_TABLE, type NftObject } from './nft.ts';
import { type PodNetwork, wordsOf } from './pod-network.ts';
import type { RunOptions } from './run.ts';
import { vtepDeviceName } from './vtep-device.ts';
import { declarationOf, listedVteps, VTEP_SETS, type VxlanSenders } from './vtep-set.ts';

/*
 * flannel's rules, as one nftables table of our own. We neither read nor write other programs' tables, share no lock
 * with them, and each change is one transaction. Every rule has a comment with a digest of its text. So a listing shows
 * whether the kernel has exactly what was rendered, however this version of nft spells it.
 *
 * A rule that admits only known nodes must never use an empty set, so it is written in one transaction with all known
 * elements. From then on vtep-set.ts maintains the elements.
 */

/** The key of {@link rulesTarget}: our table. */
export const RULES_KEY = NFT_TABLE.join(' ');

/** What the rules depend on. */
export interface DesiredRules {
  /** One entry per family, at most two. */
  networks: readonly DesiredNetwork[];
  /** Masquerade pods when they talk to addresses outside the cluster network (`--ip-masq`). */
  masquerade: boolean;
  /** Masqueraded connections keep their source ports where these are free (`--ip-masq-fully-random-disable`). */
  keepPorts?: boolean;
  /** The tunnels that only nodes may use; VXLAN of another VNI is admitted from any address. */
  tunnel?: Tunnel | undefined;
  /** The device that carries the tunnels. */
  uplink: string;
  /** Bridges of pods that flannel's plugin attached. */
  bridges: readonly string[];
}

/** One address family. */
export interface DesiredNetwork extends PodNetwork, VxlanSenders {
  /** This node's VTEP address, to which alone its peers send. */
  vtepIp: string;
}

export interface Ruleset {
  /** The input of `nft -f`: one transaction that replaces the table. */
  readonly text: string;
  /** Sets, chains and rules in order, as {@link readFingerprint} finds them in a listing. */
  readonly fingerprint: readonly string[];
}

/*
 * The kernel's hooks call these chains for every packet, also of the node's own traffic. So a chain with a hook has one
 * short rule that leads the few packets which concern it to a chain without.
 */
interface Chain {
  name: string;
  /** Standard priorities of netfilter_ipv4.h: filter 0, srcnat 100. Without a hook it is jumped to. */
  hook?: { type: 'filter' | 'nat'; at: string; priority: number };
  rules: Rule[];
}

interface Rule {
  match: string;
  verdict: string;
  why: string;
}

/** A comment that identifies the rule, at most 128 bytes. */
function commentOf({ match, verdict, why }: Rule): string {
  const digest = createHash('sha256').update(`${match} ${verdict}`).digest('hex').slice(0, 8);
  return `${why} [${digest}]`;
}

/**
 * Render the table. Pure.
 * @param found a listing of the table that this one replaces. All elements of its sets are kept: vtep-set.ts removes
 * those that must go.
 */
export function renderRules(desired: DesiredRules, found: readonly NftObject[] = []): Ruleset {
  const chains = [
    sourcesChain(desired),
    ...inputChains(desired, found),
    ...forwardChains(desired),
    ...(desired.masquerade ? [postroutingChain(desired)] : []),
  ];
  const senders = desired.tunnel ? desired.networks : [];
  const fingerprint = [
    ...senders.map(
      ({ network }) => `set ${VTEP_SETS[network.family].name} ${VTEP_SETS[network.family].type}`,
    ),
    ...chains.flatMap(({ name, hook, rules }) => [
      hook ? `chain ${name} ${hook.type} ${hook.at} ${hook.priority} accept` : `chain ${name}`,
      ...rules.map((rule) => `rule ${name} ${commentOf(rule)}`),
    ]),
  ];
  return {
    fingerprint,
    // Rendered only when the table must be written, since it has an element for each peer.
    get text() {
      return renderTable(senders, chains, found);
    },
  };
}

function renderTable(
  senders: DesiredRules['networks'],
  chains: readonly Chain[],
  found: readonly NftObject[],
): string {
  // The table is added first so that the deletion succeeds also when there was none.
  const lines = [`add table ${RULES_KEY}`, `delete table ${RULES_KEY}`, `table ${RULES_KEY} {`];
  for (const { network, vteps } of senders) {
    const elements = [...new Map([...listedVteps(found, network.family), ...vteps()]).keys()];
    lines.push(`  set ${VTEP_SETS[network.family].name} {`, `    ${declarationOf(network.family)}`);
    if (elements.length > 0) lines.push(`    elements = { ${elements.join(', ')} }`);
    lines.push('  }');
  }
  for (const { name, hook, rules } of chains) {
    lines.push(
      `  chain ${name} {`,
      ...(hook ? [`    type ${hook.type} hook ${hook.at} priority ${hook.priority}; policy accept;`] : []),
      ...rules.map((rule) => `    ${rule.match} ${rule.verdict} comment "${commentOf(rule)}"`),
      '  }',
    );
  }
  return [...lines, '}', ''].join('\n');
}

/** Matches what comes from a host veth of a pod: ripstop's CNI plugin names them so. An uplink may be called so, too. */
function fromPods(uplink: string): string {
  return uplink.startsWith('veth') ? `iifname "veth*" iifname != "${uplink}"` : 'iifname "veth*"';
}

function from(device: string): string {
  return `iifname "${device}"`;
}

/**
 * A pod's source address must be one to which this node's routes lead through the pod's own host veth. from_pod drops all
 * others; this is for what it does not see: packets before it is attached, or with several tags. Only addresses of the
 * cluster network are judged, so that veths of others stay as they are. The hooks for input and forwarding see all that
 * could reach anybody; one for prerouting would be called for each packet once more.
 */
function sourcesChain({ networks }: DesiredRules): Chain {
  const why = 'a pod sends from an address that is not its own';
  const verdict = 'counter drop';
  return {
    name: 'sources',
    rules: networks.map(wordsOf).flatMap(({ ip, cluster }) => {
      // A link-local source, as in neighbour discovery, has no route where the host veth has no such address.
      const others = ip === 'ip6' ? `{ ${cluster}, fe80::/10 }` : cluster;
      return [`${ip} saddr ${cluster}`, `${ip} saddr != ${others} ${ip} daddr ${cluster}`].map((match) => ({
        match: `${match} fib saddr . iif oif missing`,
        verdict,
        why,
      }));
    }),
  };
}

function jumpOfPods({ uplink }: DesiredRules): Rule {
  return { match: fromPods(uplink), verdict: 'jump sources', why: 'from a pod' };
}

/** What is for this node. */
function inputChains(desired: DesiredRules, found: readonly NftObject[]): Chain[] {
  const { tunnel } = desired;
  const arriving = tunnel ? [vxlanInChain(desired, tunnel, found)] : [];
  const rules = [...(tunnel ? arriving.map((chain) => jumpOfVxlan(tunnel, chain)) : []), jumpOfPods(desired)];
  return [...arriving, { name: 'input', hook: { type: 'filter', at: 'input', priority: 0 }, rules }];
}

/**
 * The socket of the VXLAN device listens on every address of the node, those in the cluster network too, and accepts
 * packets from any sender. Without these rules a pod could send other pods packets with forged sources, and so could a
 * host on the underlay whose packets from_wire leaves to the kernel path. Only nodes send VXLAN, and only to our VTEP
 * address; which of them sent it, from_vtep learns from the priority.
 */
function vxlanInChain(
  { networks, uplink, bridges }: DesiredRules,
  tunnel: Tunnel,
  found: readonly NftObject[],
): Chain {
  const comments = found.map(({ rule }) => rule?.comment);
  const verdict = 'counter drop';
  const vteps = networks.map(({ network }) => vtepDeviceName(network.family, tunnel.vni));
  return {
    name: 'vxlan-in',
    rules: [
      ...[fromPods(uplink), ...[...bridges, ...vteps].map(from)].map((match) => ({
        match,
        verdict,
        why: 'a pod talks VXLAN',
      })),
      { match: `${ofVni(tunnel)} ct status dnat`, verdict, why: 'VXLAN through a Service' },
      ...networks.flatMap(({ network: { family }, vtepIp, strangers }) => {
        const ip = family === 4 ? 'ip' : 'ip6';
        const others = strangerRules(family, tunnel);
        return [
          {
            match: `${ofVni(tunnel)} ${TRACKED} ${ip} daddr != ${vtepIp}`,
            verdict,
            why: 'VXLAN to another address than the VTEP',
          },
          ...(strangers === 'as found'
            ? Object.values(others).filter((rule) => comments.includes(commentOf(rule)))
            : [others[strangers]]),
          {
            match: `meta nfproto ipv${family}`,
            // The last 32 bits of the source address.
            verdict: `meta priority set @nh,${family === 4 ? 96 : 160},32`,
            why: 'tells from_vtep who sent it',
          },
        ];
      }),
    ],
  };
}

function jumpOfVxlan({ port }: Tunnel, { name }: Chain): Rule {
  return { match: `udp dport ${port}`, verdict: `jump ${name}`, why: 'VXLAN' };
}

/** The match of our VNI in VXLAN, which it finds behind the UDP header and VXLAN's flags. */
function ofVni({ vni }: Tunnel): string {
  return `@th,96,24 ${vni}`;
}

/**
 * Matches any connection state, which switches connection tracking on, and that reassembles fragments before all of our
 * hooks. Otherwise IPv4 is reassembled only before the input hook, and IPv6 after it, and a rule would not see a VXLAN
 * header that is in the second fragment.
 */
const TRACKED = 'ct state invalid,established,related,new,untracked';

/** The two rules for VXLAN from strangers: addresses that no node has. */
function strangerRules(family: Family, tunnel: Tunnel): Record<'drop' | 'count', Rule> {
  const from = family === 4 ? 'ip saddr' : `${TRACKED} ip6 saddr`;
  const match = `${ofVni(tunnel)} ${from} != @${VTEP_SETS[family].name}`;
  return {
    drop: { match, verdict: 'counter drop', why: 'a stranger talks VXLAN' },
    count: {
      match,
      verdict: 'counter',
      why: 'VXLAN from strangers is left to from_vtep: a peer is behind NAT',
    },
  };
}

function forwardChains(desired: DesiredRules): Chain[] {
  const { networks, tunnel, uplink } = desired;
  const passing: Chain[] = tunnel
    ? [{ name: 'vxlan-forward', rules: networks.flatMap((one) => tunnelGuards(one, tunnel, desired)) }]
    : [];
  return [
    ...passing,
    {
      name: 'forward',
      hook: { type: 'filter', at: 'forward', priority: 0 },
      rules: [
        ...(tunnel ? passing.map((chain) => jumpOfVxlan(tunnel, chain)) : []),
        jumpOfPods(desired),
        ...(tunnel ? networks.map((network) => backRule(network, tunnel, uplink)) : []),
        ...networks.map(wordsOf).flatMap(({ ip, cluster }) => [
          { match: `${ip} saddr ${cluster}`, verdict: 'counter accept', why: 'from the cluster network' },
          { match: `${ip} daddr ${cluster}`, verdict: 'counter accept', why: 'to the cluster network' },
        ]),
      ],
    },
  ];
}

/**
 * What would leave this node in its name: a pod's VXLAN to another node, for once it is masqueraded, it looks like this
 * node's. Nobody knows all addresses that nodes have, so VXLAN of our VNI to the world is none of a pod's business.
 */
function tunnelGuards(desired: DesiredNetwork, tunnel: Tunnel, { uplink, bridges }: DesiredRules): Rule[] {
  const { ip, cluster } = wordsOf(desired);
  const { family } = desired.network;
  const verdict = 'counter drop';
  return [
    ...[fromPods(uplink), ...bridges.map(from)].flatMap((pod) =>
      [`@${VTEP_SETS[family].name}`, `!= ${cluster}`].map((to) => ({
        match: `${pod} ${TRACKED} ${ofVni(tunnel)} ${ip} daddr ${to}`,
        verdict,
        why: 'a pod talks VXLAN',
      })),
    ),
    {
      match: `${ofVni(tunnel)} ct status dnat ${ip} daddr @${VTEP_SETS[family].name}`,
      verdict,
      why: 'VXLAN through a Service',
    },
  ];
}

/** What came through a tunnel for others than our pods: the peer that sent it can send it there itself. */
function backRule(desired: DesiredNetwork, { vni }: Tunnel, uplink: string): Rule {
  const { ip, pods } = wordsOf(desired);
  const vtep = vtepDeviceName(desired.network.family, vni);
  return {
    match:
      `${from(vtep)} oifname { "${vtep}", "${uplink}" } ` +
      `ct direction original ct original ${ip} daddr != ${pods}`,
    verdict: 'counter drop',
    why: 'from a tunnel back to the wire',
  };
}

function postroutingChain({ networks, keepPorts }: DesiredRules): Chain {
  const masquerade = keepPorts ? 'masquerade' : 'masquerade fully-random';
  return {
    name: 'postrouting',
    hook: { type: 'nat', at: 'postrouting', priority: 100 },
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

/** The fingerprint (see {@link Ruleset}) of a listing, in the order of the listing. */
export function readFingerprint(listing: readonly NftObject[]): string[] {
  const rules = listing.flatMap(({ rule }) => (rule ? [rule] : []));
  return listing.flatMap(({ set, chain }) => {
    if (set) return [`set ${set.name} ${set.type}`];
    if (!chain) return [];
    return [
      chain.hook === undefined
        ? `chain ${chain.name}`
        : `chain ${chain.name} ${chain.type} ${chain.hook} ${chain.prio} ${chain.policy}`,
      ...rules
        .filter((rule) => rule.chain === chain.name)
        .map((rule) => `rule ${chain.name} ${rule.comment ?? ''}`),
    ];
  });
}

/**
 * Make our table equal the desired one, apart from the elements of its sets. A table that is right already is not
 * written, so its counters go on.
 * @returns whether it was written.
 * @throws RipstopError with nft's reason, or when the kernel does not list what it accepted.
 */
export async function ensureRules(desired: DesiredRules, options: RunOptions = {}): Promise<boolean> {
  // Without the elements of the sets: there may be 15,000, and the fingerprint does not contain them.
  const bare = await listTable(options, ['--terse']);
  const { fingerprint } = renderRules(desired, bare);
  const isActual = (listing: readonly NftObject[]): boolean => isSame(readFingerprint(listing), fingerprint);
  if (isActual(bare)) return false;
  const { text } = renderRules(desired, await listTable(options));
  await applyNft([text], options);
  if (!isActual(await listTable(options, ['--terse']))) {
    throw new RipstopError(
      `nft accepted the table ${RULES_KEY} but does not list it as written; see "nft list table ${RULES_KEY}"`,
      { details: text },
    );
  }
  return true;
}

/** Our table as a target. The elements of its sets are another target, see vtep-set.ts. */
export function rulesTarget(): Target<DesiredRules> {
  return {
    name: 'rules',
    list: async () => new Map(),
    difference: async (desired) => {
      const bare = await listTable({}, ['--terse']);
      const isActual = (rules: DesiredRules): boolean =>
        isSame(renderRules(rules, bare).fingerprint, readFingerprint(bare));
      const upserts = new Map([...desired].filter(([, rules]) => !isActual(rules)));
      return { upserts, removals: new Map() };
    },
    upsert: async (entries) => {
      for (const rules of entries.values()) await ensureRules(rules);
      return noFailures;
    },
    remove: async () => noFailures,
  };
}

/** Remove our table; no error when it is not there. */
export async function removeRules(options: RunOptions = {}): Promise<void> {
  await applyNft([`add table ${RULES_KEY}`, `delete table ${RULES_KEY}`], options);
}

function listTable(options: RunOptions, flags: readonly string[] = []): Promise<NftObject[]> {
  return listNft(['table', ...NFT_TABLE], options, flags);
}
