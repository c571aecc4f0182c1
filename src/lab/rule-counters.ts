// SPDX-License-Identifier: Apache-2.0
/** The counters of our nft rules. */
import { listNft, NFT_TABLE } from '../host/nft.ts';
import type { RunOptions } from '../host/run.ts';

/** What a rule counted since the table was last written. */
interface RuleCounter {
  chain: string;
  /** The rule's comment without its digest, e.g. `a stranger talks VXLAN`. */
  why: string;
  packets: number;
  bytes: number;
}

/** The counters of our rules, in their order; none when there is no table. */
export async function readRuleCounters(options: RunOptions = {}): Promise<RuleCounter[]> {
  return (await listNft(['table', ...NFT_TABLE], options)).flatMap(({ rule }) =>
    (rule?.expr ?? []).flatMap(({ counter }) =>
      counter
        ? [{ chain: rule!.chain, why: (rule!.comment ?? '').replace(/ \[\w+\]$/, ''), ...counter }]
        : [],
    ),
  );
}

/**
 * What the kernel path forwarded from and to the cluster network since the table was last written; undefined without a
 * table.
 */
export async function readForwardCounters(
  options: RunOptions = {},
): Promise<{ packets: number; bytes: number } | undefined> {
  const counters = (await readRuleCounters(options)).filter(
    ({ chain, why }) => chain === 'forward' && why.endsWith('the cluster network'),
  );
  if (counters.length === 0) return undefined;
  return {
    packets: counters.reduce((sum, { packets }) => sum + packets, 0),
    bytes: counters.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}
