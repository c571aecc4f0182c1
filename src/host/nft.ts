// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { run, tryRun, type RunOptions } from './run.ts';

/** Our one table: family and name. */
export const NFT_TABLE = ['inet', 'ripstop'] as const;

/** The part of `nft -j` that is read here. */
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
    /** By which it can be deleted. */
    handle?: number;
    comment?: string;
    expr: { counter?: { packets: number; bytes: number }; jump?: { target: string } }[];
  };
  /** Elements of a set of ours are plain text; somebody else's may have a timeout or a comment, and are then objects. */
  set?: { name: string; type: string; elem?: unknown[] };
}

/**
 * What `nft list` says: `['chains']`, `['table', 'inet', 'ripstop']`. Empty when there is no such thing.
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

/** Apply these lines, all or none. @throws RipstopError with nft's reason. */
export async function applyNft(lines: readonly string[], options: RunOptions = {}): Promise<void> {
  await run('nft', ['-f', '-'], { ...options, stdin: `${lines.join('\n')}\n` });
}
