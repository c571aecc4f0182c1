// SPDX-License-Identifier: Apache-2.0
import { access, constants } from 'node:fs/promises';
import { release } from 'node:os';
import { delimiter, join } from 'node:path';

/** The properties of the node on which ripstop's requirements depend. */
export interface HostFacts {
  /** The effective user. */
  uid: number;
  /** As `uname -r` prints it. */
  kernelRelease: string;
  /** Whether the kernel has its BTF at /sys/kernel/btf/vmlinux. */
  btf: boolean;
  /** Which of {@link REQUIRED_PROGRAMS} are on PATH. */
  programs: ReadonlySet<string>;
}

/** The oldest supported kernel, that of Debian 12. From 6.1 on, tc programs can call the conntrack kfuncs. */
const OLDEST_KERNEL = [6, 1] as const;

/** Programs that the agent runs, each with its Debian package. For all else about the network it uses netlink. */
export const REQUIRED_PROGRAMS: Readonly<Record<string, string>> = {
  nft: 'nftables',
};

/** What is missing and what to do, one line for each; empty when ripstop can run on this node. Pure. */
export function missingRequirements(facts: HostFacts): string[] {
  const missing: string[] = [];
  if (facts.uid !== 0) missing.push('ripstop must run as root: use sudo, or a privileged container');
  const [major = 0, minor = 0] = facts.kernelRelease.split('.').map((part) => Number.parseInt(part, 10));
  if (!(major > OLDEST_KERNEL[0] || (major === OLDEST_KERNEL[0] && minor >= OLDEST_KERNEL[1]))) {
    missing.push(
      `Linux ${facts.kernelRelease} is too old: ripstop needs ${OLDEST_KERNEL.join('.')} or later ` +
        '(conntrack lookups from tc programs)',
    );
  }
  if (!facts.btf) {
    missing.push(
      '/sys/kernel/btf/vmlinux does not exist: ' +
        'use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys in the container',
    );
  }
  const packages = new Map<string, string[]>();
  for (const [program, pkg] of Object.entries(REQUIRED_PROGRAMS)) {
    if (!facts.programs.has(program)) packages.set(pkg, [...(packages.get(pkg) ?? []), program]);
  }
  for (const [pkg, programs] of packages) {
    missing.push(`${programs.join(' and ')} not found on PATH: install the package ${pkg}`);
  }
  return missing;
}

/** The facts of this node. */
export async function gatherHostFacts(): Promise<HostFacts> {
  const names = Object.keys(REQUIRED_PROGRAMS);
  const found = await Promise.all(names.map(isOnPath));
  return {
    uid: process.geteuid?.() ?? -1,
    kernelRelease: release(),
    btf: await canAccess('/sys/kernel/btf/vmlinux', constants.R_OK),
    programs: new Set(names.filter((_, i) => found[i])),
  };
}

async function isOnPath(program: string): Promise<boolean> {
  for (const directory of (process.env['PATH'] ?? '').split(delimiter)) {
    if (directory !== '' && (await canAccess(join(directory, program), constants.X_OK))) return true;
  }
  return false;
}

async function canAccess(path: string, mode: number): Promise<boolean> {
  try {
    await access(path, mode);
    return true;
  } catch {
    return false;
  }
}
