// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync } from 'node:fs';
import { inNetns } from '#netlink';
import { noFailures, type Target } from '../reconcile/target.ts';
import { applyNft, listNft, type NftObject } from './nft.ts';
import { type PodNetwork, wordsOf } from './pod-network.ts';
import { run, type RunOptions } from './run.ts';

/*
 * flanneld's own rules. They are removed once ours replace them, and written again when the node goes back to flannel.
 * flanneld writes them in one of two forms (EnableNFTables): as chains FLANNEL-POSTRTG and FLANNEL-FWD in iptables'
 * tables, or as nftables tables of its own.
 *
 * iptables itself has two backends. Rules of iptables-nft are in nftables: one nft transaction removes them, without
 * the xtables lock and without a program that a container may lack. Rules of iptables-legacy are visible only to the
 * legacy programs, so these are run, but only for tables that this namespace uses.
 */

/** flannel's chains: the table that each is in, and the base chain that jumps to it. */
const CHAINS = [
  { table: 'nat', from: 'POSTROUTING', chain: 'FLANNEL-POSTRTG' },
  { table: 'filter', from: 'FORWARD', chain: 'FLANNEL-FWD' },
] as const;

/** The tables of its nftables mode. */
export const OWN_TABLES: readonly string[] = ['ip flannel-ipv4', 'ip6 flannel-ipv6'];

/** One of iptables' tables, in either backend. */
export interface RuleTable {
  /** Where the table is: `ip` or `ip6` of nftables, or `iptables-legacy`, `ip6tables-legacy`. */
  backend: string;
  name: string;
  /** Policy and rules of the base chains, and the names of flannel's chains. */
  chains: ReadonlyMap<string, { policy?: string; rules: readonly { id: string; jump?: string }[] }>;
}

/** One of flannel's chains, with what its removal needs. */
export interface Leftover {
  from: string;
  chain: string;
  /** The rules in `from` that jump to it. */
  jumps: readonly string[];
  /**
   * Whether the pods' packets would be dropped without it: it accepts packets that a later rule or the policy of `from`
   * may drop. An accept in a table of ours cannot replace that, since every base chain decides on its own.
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

/** Chains and rules of an nft listing as a {@link RuleTable}; the ID of a rule is its handle. */
export function readNftTable(backend: string, name: string, listing: readonly NftObject[]): RuleTable {
  const rules = listing.flatMap(({ rule }) => (rule ? [rule] : []));
  return {
    backend,
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

/** The same of the output of `iptables-legacy-save -t NAME`; the ID of a rule is its text after `-A CHAIN`. */
export function readSavedTable(backend: string, name: string, text: string): RuleTable {
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
  return { backend, name, chains };
}

/** The lines for `nft -f` that remove these chains: one transaction. */
export function nftRemoval({ backend, name }: RuleTable, leftovers: readonly Leftover[]): string[] {
  return leftovers.flatMap(({ from, chain, jumps }) => [
    ...jumps.map((handle) => `delete rule ${backend} ${name} ${from} handle ${handle}`),
    `flush chain ${backend} ${name} ${chain}`,
    `delete chain ${backend} ${name} ${chain}`,
  ]);
}

/** The input of `iptables-restore --noflush` that removes these chains. */
export function restoreRemoval({ name }: RuleTable, leftovers: readonly Leftover[]): string {
  const lines = leftovers.flatMap(({ from, chain, jumps }) => [
    ...jumps.map((rule) => `-D ${from} ${rule}`),
    `-F ${chain}`,
    `-X ${chain}`,
  ]);
  return [`*${name}`, ...lines, 'COMMIT', ''].join('\n');
}

/** One of flannel's chains or tables, and how to remove it. */
export interface FlannelRule {
  /** Why it must stay; undefined when our rules replace it. */
  readonly needed?: string;
  /** The lines for `nft -f`, or the input of `BACKEND-restore --noflush`. */
  readonly removal:
    | { readonly nft: readonly string[] }
    | { readonly backend: string; readonly restore: string };
}

/**
 * flannel's chains and tables, by keys such as `FLANNEL-FWD in ip filter` and `table ip flannel-ipv4`.
 * @throws RipstopError with the reason of nft or iptables-legacy.
 */
async function listFlannelRules(options: RunOptions = {}): Promise<Map<string, FlannelRule>> {
  const found = new Map<string, FlannelRule>();
  const add = (table: RuleTable, removalOf: (leftover: Leftover) => FlannelRule['removal']): void => {
    for (const leftover of findLeftovers(table)) {
      const { chain, from, needed } = leftover;
      found.set(`${chain} in ${table.backend} ${table.name}`, {
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
  for (const backend of ['ip', 'ip6']) {
    for (const { table, from, chain } of CHAINS) {
      if (!tables.has(`${backend} ${table}`)) continue;
      const listChain = (name: string) => listNft(['chain', backend, table, name], options);
      const ours = await listChain(chain);
      if (ours.length === 0) continue;
      const read = readNftTable(backend, table, [...ours, ...(await listChain(from))]);
      add(read, (leftover) => ({ nft: nftRemoval(read, [leftover]) }));
    }
  }
  for (const table of OWN_TABLES.filter((name) => tables.has(name)))
    found.set(`table ${table}`, { removal: { nft: [`delete table ${table}`] } });
  for (const { backend, name } of legacyTables(options)) {
    const read = readSavedTable(backend, name, await run(`${backend}-save`, ['-t', name], options));
    add(read, (leftover) => ({ backend, restore: restoreRemoval(read, [leftover]) }));
  }
  return found;
}

/**
 * Remove these rules, those in nftables in one transaction.
 * @throws RipstopError with the reason of nft or iptables-legacy.
 */
async function removeFlannelRules(rules: Iterable<FlannelRule>, options: RunOptions = {}): Promise<void> {
  const removals = Array.from(rules, ({ removal }) => removal);
  const lines = removals.flatMap((removal) => ('nft' in removal ? removal.nft : []));
  if (lines.length > 0) await applyNft(lines, options);
  for (const removal of removals) {
    if ('nft' in removal) continue;
    await run(`${removal.backend}-restore`, ['--noflush', '--wait', '5'], {
      ...options,
      stdin: removal.restore,
    });
  }
}

/**
 * flannel's rules, as a target without desired entries. To be reconciled after our own rules.
 * @param onNeeded gets the rules that must stay because pods need them; called at each list, also with none.
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

/** The tables that flannel writes to and that this namespace uses in iptables-legacy. */
function legacyTables({ netns }: RunOptions): { backend: string; name: string }[] {
  const used = inNetns(netns, () =>
    [
      { backend: 'iptables-legacy', names: 'ip_tables_names' },
      { backend: 'ip6tables-legacy', names: 'ip6_tables_names' },
    ].flatMap(({ backend, names }) => {
      const file = `/proc/thread-self/net/${names}`;
      const found = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : [];
      return found.map((name) => ({ backend, name }));
    }),
  );
  return used.filter(({ name }) => CHAINS.some(({ table }) => table === name));
}

/** The configuration of flanneld that determines its rules. */
export interface FlannelRules {
  networks: readonly PodNetwork[];
  /** flanneld's `--ip-masq`. */
  masquerade: boolean;
  /** flanneld's `--ip-masq-fully-random-disable`. */
  keepPorts?: boolean;
  /** `EnableNFTables` of net-conf.json. */
  nftables: boolean;
}

/**
 * flannel's tables, for `nft -f`. When flanneld starts, it replaces them in one transaction, so at no moment are they
 * missing. (The condition `saddr != P daddr C` differs from that of its iptables rules; flanneld writes it so.)
 */
export function renderFlannelTables({ networks, masquerade, keepPorts }: FlannelRules): string {
  const verdict = keepPorts ? 'masquerade' : 'masquerade fully-random';
  return networks
    .map(wordsOf)
    .flatMap(({ ip, cluster, pods, multicast }) => {
      const table = `${ip} flannel-ipv${ip === 'ip' ? 4 : 6}`;
      const postrtg = [
        'meta mark 0x4000 return',
        `${ip} saddr ${pods} ${ip} daddr ${cluster} return`,
        `${ip} saddr ${cluster} ${ip} daddr ${pods} return`,
        `${ip} saddr != ${pods} ${ip} daddr ${cluster} return`,
        `${ip} saddr ${cluster} ${ip} daddr != ${multicast} ${verdict}`,
        `${ip} saddr != ${cluster} ${ip} daddr ${cluster} ${verdict}`,
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
 * flannel's chains of one family, for `iptables-restore --noflush`, which replaces their content.
 * @param jumps the chains to which a jump exists already.
 */
export function renderFlannelChains(
  network: PodNetwork,
  { masquerade, keepPorts }: Pick<FlannelRules, 'masquerade' | 'keepPorts'>,
  jumps: ReadonlySet<string>,
): string {
  const { cluster, pods, multicast } = wordsOf(network);
  const verdict = `-j MASQUERADE${keepPorts ? '' : ' --random-fully'}`;
  const rules: Record<(typeof CHAINS)[number]['table'], string[]> = {
    nat: [
      '-m mark --mark 0x4000/0x4000 -j RETURN',
      `-s ${pods} -d ${cluster} -j RETURN`,
      `-s ${cluster} -d ${pods} -j RETURN`,
      `! -s ${cluster} -d ${pods} -j RETURN`,
      `-s ${cluster} ! -d ${multicast} ${verdict}`,
      `! -s ${cluster} -d ${cluster} ${verdict}`,
    ],
    filter: [`-s ${cluster} -j ACCEPT`, `-d ${cluster} -j ACCEPT`],
  };
  return CHAINS.filter(({ table }) => masquerade || table !== 'nat')
    .flatMap(({ table, from, chain }) => {
      // flanneld recognizes its rules by their whole text.
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
 * @returns a description of what was written.
 * @throws RipstopError with the reason of nft or iptables; then our rules should stay.
 */
export async function writeFlannelRules(desired: FlannelRules, options: RunOptions = {}): Promise<string[]> {
  if (desired.nftables) {
    await applyNft([renderFlannelTables(desired)], options);
    return desired.networks.map(({ network }) => `table ${OWN_TABLES[network.family === 4 ? 0 : 1]}`);
  }
  // In the backend that kube-proxy and others use here: flanneld will use it too.
  const legacy = legacyTables(options);
  const written: string[] = [];
  for (const network of desired.networks) {
    const program = network.network.family === 4 ? 'iptables' : 'ip6tables';
    const backend = legacy.some((table) => table.backend === `${program}-legacy`)
      ? `${program}-legacy`
      : program;
    const jumps = new Set<string>();
    for (const { table, from, chain } of CHAINS) {
      const { chains } = readSavedTable(backend, table, await run(`${backend}-save`, ['-t', table], options));
      if (chains.get(from)?.rules.some(({ jump }) => jump === chain)) jumps.add(chain);
    }
    const stdin = renderFlannelChains(network, desired, jumps);
    await run(`${backend}-restore`, ['--noflush', '--wait', '5'], { ...options, stdin });
    written.push(`${desired.masquerade ? 'FLANNEL-POSTRTG and ' : ''}FLANNEL-FWD in ${backend}`);
  }
  return written;
}
