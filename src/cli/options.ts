// SPDX-License-Identifier: Apache-2.0
import { Option } from 'commander';

/** `--node-name` ↔ `RIPSTOP_NODE_NAME`: every flag also reads its environment variable. */
export function flag(flags: string, description: string): Option {
  const option = new Option(flags, description);
  return option.env(`RIPSTOP_${option.name().toUpperCase().replaceAll('-', '_')}`);
}

export const bpffsFlag = (): Option =>
  flag('--bpffs <path>', 'BPF file system with the pins').default('/sys/fs/bpf');
export const runDirFlag = (): Option =>
  flag('--run-dir <path>', "the agent's run directory").default('/run/ripstop');
export const outputFlag = (): Option =>
  flag('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table');
