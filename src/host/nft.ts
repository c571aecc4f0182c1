// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { run, tryRun, type RunOptions } from './run.ts';

/** Our only table: family and name. */
export const NFT_TABLE = ['inet', 'ripstop'] as const;

/** The part of the output of `nft -j` that ripstop reads. */
export interface NftObject {
  chain?: {
    family: string;
    table: string;
    name: string;
    type?: string;
    hook?: string;
    prio?: number;
    policy?: string;
  };
  table?: { family: string; name: string };
  rule?: {
    chain: string;
    /** Identifies the rule, for example to delete it. */
    handle?: number;
    comment?: string;
    expr: { counter?: { packets: number; bytes: number }; jump?: { target: string } }[];
  };
  /** Elements of our sets are strings. Those of others may have a timeout or a comment, and are objects then. */
  set?: { name: string; type: string; elem?: unknown[] };
}

/**
 * Run `nft list` with arguments such as `['chains']` or `['table', 'inet', 'ripstop']`. Empty when there is no such
 * object.
 * @throws RipstopError with nft's reason.
 */
export async function listNft(
  what: readonly string[],
  options: RunOptions = {},
  flags: readonly string[] = [],
): Promise<NftObject[]> {
  const { code, stdout, stderr } = await tryRun('nft', ['-j', ...flags, 'list', ...what], options);
  if (code === 0) return (JSON.parse(stdout) as { nftables: NftObject[] }).nftables;
  if (stderr.includes('No such file or directory')) return [];
  throw new RipstopError(
    `cannot list the nft ${what.join(' ')}: ${stderr.trim().split('\n')[0] || `exit code ${code}`}`,
    { details: stderr },
  );
}

/** Apply these lines in one transaction. @throws RipstopError with nft's reason. */
export async function applyNft(lines: readonly string[], options: RunOptions = {}): Promise<void> {
  await run('nft', ['-f', '-'], { ...options, stdin: `${lines.join('\n')}\n` });
}
