// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync } from 'node:fs';
import { inNetns } from '#netlink';
import { noFailures, type Target } from '../reconcile/target.ts';
import { applyNft, listNft, type NftObject } from './nft.ts';
import { type PodNetwork, wordsOf } from './pod-network.ts';
import { run, type RunOptions } from './run.ts';

/*
 * flanneld's own rules: taken away once ours stand in their place, put back when flanneld is to run again. It has two forms
 * of them (EnableNFTables): chains FLANNEL-POSTRTG and FLANNEL-FWD in iptables' tables, or tables of its own.
 *
 * iptables itself has two homes. What iptables-nft writes is in nftables: one transaction there takes it away, without the
 * xtables lock and without a program that a container may lack. What iptables-legacy writes is seen by that alone, so it
 * is asked, but only about tables that this namespace uses.
 */

/** flannel's chains: in which table, and which chain jumps to them. */
const CHAINS = [
  { table: 'nat', from: 'POSTROUTING', chain: 'FLANNEL-POSTRTG' },
  { table: 'filter', from: 'FORWARD', chain: 'FLANNEL-FWD' },
] as const;

const OWN_TABLES = ['ip flannel-ipv4', 'ip6 flannel-ipv6'];

/** One of iptables' tables, as far as flannel has something in it, wherever it is kept. */
export interface RuleTable {
  /** Whose: `ip`, `ip6` in nftables; `iptables-legacy`, `ip6tables-legacy`. */
  home: string;
  name: string;
  /** Policy and rules of the base chains, and the names of flannel's chains. */
  chains: ReadonlyMap<string, { policy?: string; rules: readonly { id: string; jump?: string }[] }>;
}

/** What is to be done about one of flannel's chains. */
export interface Leftover {
  from: string;
  chain: string;
  /** The rules in `from` that jump to it. */
  jumps: readonly string[];
  /**
   * Without it packets of the pods would be dropped: it accepts where the chain's policy, or a rule after it, may not. An
   * accept in a table of ours cannot stand in for that, since every base chain judges on its own.
   */
  needed: boolean;
}

/** flannel's chains in a table. */
export function findLeftovers({ name, chains }: RuleTable): Leftover[] {
  return CHAINS.flatMap(({ table, from, chain }) => {
    if (table !== name || !chains.has(chain)) return [];
    const base = chains.get(from);
    const rules = base?.rules ?? [];
    const isJump = ({ jump }: { jump?: string }): boolean => jump === chain;
    const first = rules.findIndex(isJump);
    const followed = first >= 0 && rules.slice(first).some((rule) => !isJump(rule));
    const drops = base?.policy !== undefined && base.policy.toLowerCase() !== 'accept';
    return [
      {
        from,
        chain,
        jumps: rules.filter(isJump).map(({ id }) => id),
        needed: table === 'filter' && first >= 0 && (drops || followed),
      },
    ];
  });
}

/** A listing's chains and rules in the form of {@link RuleTable}; rules are known by their handles. */
export function readNftTable(home: string, name: string, listing: readonly NftObject[]): RuleTable {
  const rules = listing.flatMap(({ rule }) => (rule ? [rule] : []));
  return {
    home,
    name,
    chains: new Map(
      listing.flatMap(({ chain }) =>
        chain
          ? [
              [
                chain.name,
                {
                  ...(chain.policy !== undefined && { policy: chain.policy }),
                  rules: rules
                    .filter((rule) => rule.chain === chain.name)
                    .map(({ handle, expr }) => {
                      const jump = expr.find((one) => one.jump)?.jump?.target;
                      return { id: String(handle), ...(jump !== undefined && { jump }) };
                    }),
                },
              ] as const,
            ]
          : [],
      ),
    ),
  };
}

/** What `iptables-legacy-save -t NAME` printed, in the same form; rules are known by their text after `-A CHAIN`. */
export function readSavedTable(home: string, name: string, text: string): RuleTable {
  const chains = new Map<string, { policy?: string; rules: { id: string; jump?: string }[] }>();
  for (const line of text.split('\n')) {
    const chain = /^:(\S+) (\S+)/.exec(line);
    // User-defined chains have no policy.
    if (chain) chains.set(chain[1]!, { ...(chain[2] !== '-' && { policy: chain[2]! }), rules: [] });
    const rule = /^-A (\S+) (.+)$/.exec(line);
    if (!rule) continue;
    const jump = / -j (\S+)$/.exec(` ${rule[2]!}`)?.[1];
    chains.get(rule[1]!)?.rules.push({ id: rule[2]!, ...(jump !== undefined && { jump }) });
  }
  return { home, name, chains };
}

/** nft's lines that take these chains away: one transaction. */
export function nftRemoval({ home, name }: RuleTable, leftovers: readonly Leftover[]): string[] {
  return leftovers.flatMap(({ from, chain, jumps }) => [
    ...jumps.map((handle) => `delete rule ${home} ${name} ${from} handle ${handle}`),
    `flush chain ${home} ${name} ${chain}`,
    `delete chain ${home} ${name} ${chain}`,
  ]);
}

/** The same for `iptables-restore --noflush`. */
export function restoreRemoval({ name }: RuleTable, leftovers: readonly Leftover[]): string {
  const lines = leftovers.flatMap(({ from, chain, jumps }) => [
    ...jumps.map((rule) => `-D ${from} ${rule}`),
    `-F ${chain}`,
    `-X ${chain}`,
  ]);
  return [`*${name}`, ...lines, 'COMMIT', ''].join('\n');
}

/** Something of flannel's rules that is still there, and how it is taken away. */
export interface FlannelRule {
  /** Why it must stay; undefined when ours stand in for it. */
  readonly needed?: string;
  /** nft's lines that remove it, or the input of `<home>-restore --noflush`. */
  readonly removal: { readonly nft: readonly string[] } | { readonly home: string; readonly restore: string };
}

/**
 * All that flannel's rules consist of, by `FLANNEL-FWD in ip filter` or `table ip flannel-ipv4`; nobody else's are listed.
 * @throws RipstopError with the reason of nft or iptables-legacy.
 */
export async function listFlannelRules(options: RunOptions = {}): Promise<Map<string, FlannelRule>> {
  const found = new Map<string, FlannelRule>();
  const add = (table: RuleTable, removalOf: (leftover: Leftover) => FlannelRule['removal']): void => {
    for (const leftover of findLeftovers(table)) {
      const { chain, from, needed } = leftover;
      found.set(`${chain} in ${table.home} ${table.name}`, {
        ...(needed && {
          needed: `${from} drops what nothing in it accepts`,
        }),
        removal: removalOf(leftover),
      });
    }
  };
  const tables = new Set(
    (await listNft(['tables'], options)).flatMap(({ table }) =>
      table ? [`${table.family} ${table.name}`] : [],
    ),
  );
  for (const home of ['ip', 'ip6']) {
    for (const { table, from, chain } of CHAINS) {
      if (!tables.has(`${home} ${table}`)) continue;
      const listChain = (name: string) => listNft(['chain', home, table, name], options);
      const ours = await listChain(chain);
      if (ours.length === 0) continue;
      const read = readNftTable(home, table, [...ours, ...(await listChain(from))]);
      add(read, (leftover) => ({ nft: nftRemoval(read, [leftover]) }));
    }
  }
  for (const table of OWN_TABLES.filter((name) => tables.has(name)))
    found.set(`table ${table}`, { removal: { nft: [`delete table ${table}`] } });
  for (const { home, name } of legacyTables(options)) {
    const read = readSavedTable(home, name, await run(`${home}-save`, ['-t', name], options));
    add(read, (leftover) => ({ home, restore: restoreRemoval(read, [leftover]) }));
  }
  return found;
}

/** Take these away: what is in nftables in one transaction. @throws RipstopError with the reason of nft or iptables-legacy. */
export async function removeFlannelRules(
  rules: Iterable<FlannelRule>,
  options: RunOptions = {},
): Promise<void> {
  const removals = Array.from(rules, ({ removal }) => removal);
  const lines = removals.flatMap((removal) => ('nft' in removal ? removal.nft : []));
  if (lines.length > 0) await applyNft(lines, options);
  for (const removal of removals) {
    if ('nft' in removal) continue;
    await run(`${removal.home}-restore`, ['--noflush', '--wait', '5'], {
      ...options,
      stdin: removal.restore,
    });
  }
}

/**
 * flannel's rules as a target of which nothing is desired. To be reconciled after ours are there.
 * @param onNeeded is told of those that pods cannot do without: they stay. Called at each look, also with none.
 */
export function flannelRulesTarget(
  onNeeded: (needed: readonly string[]) => void,
  options: RunOptions = {},
): Target<FlannelRule> {
  return {
    name: 'flannel-rules',
    list: async () => {
      const all = [...(await listFlannelRules(options))];
      onNeeded(all.flatMap(([key, { needed }]) => (needed === undefined ? [] : [`${key}: ${needed}`])));
      return new Map(all.filter(([, { needed }]) => needed === undefined));
    },
    upsert: async () => noFailures,
    remove: async (entries) => {
      await removeFlannelRules(entries.values(), options);
      return noFailures;
    },
  };
}

/** The tables of iptables-legacy that this namespace uses, of those that flannel writes into. */
function legacyTables({ netns }: RunOptions): { home: string; name: string }[] {
  const used = inNetns(netns, () =>
    [
      { home: 'iptables-legacy', names: 'ip_tables_names' },
      { home: 'ip6tables-legacy', names: 'ip6_tables_names' },
    ].flatMap(({ home, names }) => {
      const file = `/proc/thread-self/net/${names}`;
      const found = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : [];
      return found.map((name) => ({ home, name }));
    }),
  );
  return used.filter(({ name }) => CHAINS.some(({ table }) => table === name));
}

/** What flanneld would have on this node. */
export interface FlannelRules {
  networks: readonly PodNetwork[];
  /** flanneld's `--ip-masq`. */
  masquerade: boolean;
  /** `EnableNFTables` of net-conf.json. */
  nftables: boolean;
}

/**
 * flannel's tables, for `nft -f`. flanneld puts its rules in their place in one transaction, so nothing is ever missing.
 * (Its condition `saddr != P daddr C` is not that of its iptables rules; this is how it writes it.)
 */
export function renderFlannelTables({ networks, masquerade }: FlannelRules): string {
  return networks
    .map(wordsOf)
    .flatMap(({ ip, cluster, pods, multicast }) => {
      const table = `${ip} flannel-ipv${ip === 'ip' ? 4 : 6}`;
      const postrtg = [
        'meta mark 0x4000 return',
        `${ip} saddr ${pods} ${ip} daddr ${cluster} return`,
        `${ip} saddr ${cluster} ${ip} daddr ${pods} return`,
        `${ip} saddr != ${pods} ${ip} daddr ${cluster} return`,
        `${ip} saddr ${cluster} ${ip} daddr != ${multicast} masquerade fully-random`,
        `${ip} saddr != ${cluster} ${ip} daddr ${cluster} masquerade fully-random`,
      ];
      return [
        `add table ${table}`,
        `delete table ${table}`,
        `table ${table} {`,
        '  chain forward {',
        '    type filter hook forward priority 0;',
        `    ${ip} saddr ${cluster} accept`,
        `    ${ip} daddr ${cluster} accept`,
        '  }',
        ...(masquerade
          ? [
              '  chain postrtg {',
              '    type nat hook postrouting priority 100;',
              ...postrtg.map((rule) => `    ${rule}`),
              '  }',
            ]
          : []),
        '}',
        '',
      ];
    })
    .join('\n');
}

/**
 * flannel's chains of one family, for `iptables-restore --noflush`: what is in them before is replaced.
 * @param jumps the chains that are jumped to already.
 */
export function renderFlannelChains(
  network: PodNetwork,
  masquerade: boolean,
  jumps: ReadonlySet<string>,
): string {
  const { cluster, pods, multicast } = wordsOf(network);
  const rules: Record<(typeof CHAINS)[number]['table'], string[]> = {
    nat: [
      '-m mark --mark 0x4000/0x4000 -j RETURN',
      `-s ${pods} -d ${cluster} -j RETURN`,
      `-s ${cluster} -d ${pods} -j RETURN`,
      `! -s ${cluster} -d ${pods} -j RETURN`,
      `-s ${cluster} ! -d ${multicast} -j MASQUERADE --random-fully`,
      `! -s ${cluster} -d ${cluster} -j MASQUERADE --random-fully`,
    ],
    filter: [`-s ${cluster} -j ACCEPT`, `-d ${cluster} -j ACCEPT`],
  };
  return CHAINS.filter(({ table }) => masquerade || table !== 'nat')
    .flatMap(({ table, from, chain }) => {
      // flanneld looks for its rules by their whole text.
      const comment = `-m comment --comment "flanneld ${table === 'nat' ? 'masq' : 'forward'}"`;
      const spec = (rule: string): string => rule.replace(/(?=-j )/, `${comment} `);
      return [
        `*${table}`,
        `:${chain} - [0:0]`,
        ...rules[table].map((rule) => `-A ${chain} ${spec(rule)}`),
        ...(jumps.has(chain) ? [] : [`-A ${from} ${comment} -j ${chain}`]),
        'COMMIT',
      ];
    })
    .concat('')
    .join('\n');
}

/**
 * Write the rules that a flanneld of this configuration leaves behind when it stops.
 * @returns what was written, in words.
 * @throws RipstopError with the reason of nft or iptables; then ours should stay.
 */
export async function writeFlannelRules(wanted: FlannelRules, options: RunOptions = {}): Promise<string[]> {
  if (wanted.nftables) {
    await applyNft([renderFlannelTables(wanted)], options);
    return wanted.networks.map(({ network }) => `table ${OWN_TABLES[network.family === 4 ? 0 : 1]}`);
  }
  // In the home that kube-proxy and the others use here, where flanneld will look too.
  const legacy = legacyTables(options);
  const written: string[] = [];
  for (const network of wanted.networks) {
    const program = network.network.family === 4 ? 'iptables' : 'ip6tables';
    const home = legacy.some((table) => table.home === `${program}-legacy`) ? `${program}-legacy` : program;
    const jumps = new Set<string>();
    for (const { table, from, chain } of CHAINS) {
      const { chains } = readSavedTable(home, table, await run(`${home}-save`, ['-t', table], options));
      if (chains.get(from)?.rules.some(({ jump }) => jump === chain)) jumps.add(chain);
    }
    const stdin = renderFlannelChains(network, wanted.masquerade, jumps);
    await run(`${home}-restore`, ['--noflush', '--wait', '5'], { ...options, stdin });
    written.push(`${wanted.masquerade ? 'FLANNEL-POSTRTG and ' : ''}FLANNEL-FWD in ${home}`);
  }
  return written;
}
