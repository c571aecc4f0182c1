// SPDX-License-Identifier: Apache-2.0
/** Rules of others, in nftables and in both backends of iptables, as far as checks ask for them. */
import { existsSync, readFileSync } from 'node:fs';
import { flannelRulesTarget, readSavedTable } from '../../host/flannel-rules.ts';
import { listNft, NFT_TABLE, type NftObject } from '../../host/nft.ts';
import { tryRun } from '../../host/run.ts';
import type { DroppingChain, Facts } from './facts.ts';

/** Chains that a chain jumps to are read up to this depth, and so many of them. */
const DEPTH_MAX = 3;
const CHAINS_MAX = 40;

/** Base chains of others at the forward hook that drop what they do not accept. */
export async function readForward(): Promise<DroppingChain[]> {
  const all = await listNft(['chains']);
  const [ownFamily, ownTable] = NFT_TABLE;
  const bases = all.flatMap(({ chain }) => {
    const isOurs = chain?.family === ownFamily && chain.table === ownTable;
    return chain?.hook === 'forward' && !isOurs && chain.family !== 'bridge' ? [chain] : [];
  });
  const found: DroppingChain[] = [];
  for (const { family, table, name, policy } of bases) {
    const rules = await rulesOf([family, table, name]);
    if (policy !== 'drop' && !rules.some(dropsAll)) continue;
    found.push({ name: `${family} ${table} ${name}`, accepts: await accepted([family, table, name]) });
  }
  for (const backend of ['iptables-legacy', 'ip6tables-legacy']) {
    const saved = await savedLegacy(backend, 'filter');
    const chains = readSavedTable(backend, 'filter', saved).chains;
    const forward = chains.get('FORWARD');
    const isDropping =
      forward?.policy === 'DROP' || forward?.rules.some(({ id }) => /^-j (DROP|REJECT)/.test(id));
    if (!isDropping) continue;
    const networks = Array.from(saved.matchAll(/^-A \S+ -[sd] (\S+) .*-j ACCEPT$/gm), ([, one]) => one!);
    found.push({ name: `${backend} filter FORWARD`, accepts: [...new Set(networks)] });
  }
  return found;
}

type Place = readonly [family: string, table: string, chain: string];
type NftRule = NonNullable<NftObject['rule']>;

async function rulesOf([family, table, chain]: Place): Promise<NftRule[]> {
  const listing = await listNft(['chain', family, table, chain]);
  return listing.flatMap(({ rule }) => (rule ? [rule] : []));
}

/** Such as firewalld's last rule of its forward chain. */
function dropsAll({ expr }: NftRule): boolean {
  const words = expr.flatMap((one) => Object.keys(one));
  return conditionsOf(expr).length === 0 && (words.includes('drop') || words.includes('reject'));
}

/** The networks from or to which a chain, or one that it jumps to, accepts all packets. */
async function accepted(base: Place): Promise<string[]> {
  const [family, table] = base;
  const networks = new Set<string>();
  const seen = new Set<string>();
  let open = [base[2]];
  for (let depth = 0; depth <= DEPTH_MAX && open.length > 0; depth++) {
    const next: string[] = [];
    for (const chain of open) {
      if (seen.has(chain) || seen.size > CHAINS_MAX) continue;
      seen.add(chain);
      for (const { expr } of await rulesOf([family, table, chain])) {
        for (const network of networksOf(expr)) networks.add(network);
        for (const one of expr) if (one.jump) next.push(one.jump.target);
      }
    }
    open = next;
  }
  return [...networks];
}

interface Match {
  readonly op?: string;
  readonly left?: { readonly payload?: { readonly field?: string } };
  readonly right?: string | { readonly prefix?: { readonly addr: string; readonly len: number } };
}

/** Parts of a rule that are no conditions. */
const OTHER_WORDS = new Set(['accept', 'drop', 'reject', 'jump', 'counter', 'comment']);

/** What a rule matches; of iptables' own extensions, which are shown as `xt`, without their content. */
function conditionsOf(expr: readonly object[]): Match[] {
  return expr.flatMap((one) =>
    Object.entries(one as Record<string, Match | { name?: string }>).flatMap(([word, value]): Match[] => {
      if (word === 'match') return [value as Match];
      if (OTHER_WORDS.has(word) || (word === 'xt' && (value as { name?: string }).name === 'comment'))
        return [];
      return [{}];
    }),
  );
}

/** The network that a rule accepts, if an address is all that it matches. */
function networksOf(expr: readonly object[]): string[] {
  if (!expr.some((one) => 'accept' in one)) return [];
  const [condition, ...more] = conditionsOf(expr);
  if (!condition) return ['0.0.0.0/0', '::/0'];
  const { op, left, right } = condition;
  const isAddress = left?.payload?.field === 'saddr' || left?.payload?.field === 'daddr';
  if (more.length > 0 || op !== '==' || !isAddress || typeof right !== 'object' || !right.prefix) return [];
  return [`${right.prefix.addr}/${right.prefix.len}`];
}

/** Empty when this namespace does not use the table, so that asking does not make it. */
async function savedLegacy(backend: string, table: string): Promise<string> {
  if (!legacyTables(backend).includes(table)) return '';
  return (await tryRun(`${backend}-save`, ['-t', table])).stdout;
}

/** The tables that this namespace uses in iptables-legacy. */
function legacyTables(backend: string): string[] {
  const file = `/proc/self/net/${backend.startsWith('ip6') ? 'ip6' : 'ip'}_tables_names`;
  return existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : [];
}

/** Names that network plugins other than flannel and ripstop give to their chains. */
const OTHER_CHAINS = /^(cali-|CILIUM_|OLD_CILIUM_|WEAVE|ANTREA-|OVN-KUBE-|KUBE-ROUTER-CNI)/;

/** Who else writes rules here. @param flannels programs with a flannel in them that run. */
export async function readOwners(flannels: readonly string[]): Promise<Facts['owners']> {
  const needed: string[] = [];
  const flannelRules = await flannelRulesTarget((keys) => needed.push(...keys)).list();
  const chains = (await listNft(['chains'])).flatMap(({ chain }) => (chain ? [chain] : []));
  const legacy: { table: string; text: string }[] = [];
  for (const backend of ['iptables-legacy', 'ip6tables-legacy'])
    for (const table of legacyTables(backend))
      legacy.push({ table: `${backend} ${table}`, text: await savedLegacy(backend, table) });
  const legacyChains = legacy.flatMap(({ text }) =>
    Array.from(text.matchAll(/^:(\S+)/gm), ([, one]) => one!),
  );
  // iptables-nft has its tables in ip and ip6, under iptables' own names.
  const isOfIptables = ({ family, table, name }: (typeof chains)[number]): boolean =>
    /^ip6?$/.test(family) && /^(filter|nat|mangle|raw)$/.test(table) && name !== '';
  return {
    flannels,
    flannelRules: [...flannelRules.keys(), ...needed],
    legacyTables: legacy.filter(({ text }) => /^-A /m.test(text)).map(({ table }) => table),
    nftTables: [...new Set(chains.filter(isOfIptables).map(({ family, table }) => `${family} ${table}`))],
    otherChains: [
      ...new Set(
        [...chains.map(({ name }) => name), ...legacyChains].filter((name) => OTHER_CHAINS.test(name)),
      ),
    ],
  };
}
