// SPDX-License-Identifier: Apache-2.0
import { InvalidArgumentError, Option } from 'commander';

/** A flag and the environment variables that it reads, the first that is set before the others. */
export class Flag extends Option {
  readonly variables: readonly string[];

  /** @param others variables of other programs that mean the same; they count only when they are not empty. */
  constructor(flags: string, description: string, others: readonly string[]) {
    super(flags, description);
    const own = `RIPSTOP_${this.name().toUpperCase().replaceAll('-', '_')}`;
    this.variables = [own, ...others];
    // commander knows one variable for an option, and names it when its value is wrong.
    this.env(own in process.env ? own : (others.find((name) => process.env[name]) ?? own));
  }
}

/** `--node-name` ↔ `RIPSTOP_NODE_NAME`: every flag also reads its environment variable, and may read others. */
export function flag(flags: string, description: string, ...others: string[]): Flag {
  return new Flag(flags, description, others);
}

export const bpffsFlag = (): Option =>
  flag('--bpffs <path>', 'BPF file system with the pins').default('/sys/fs/bpf');
export const runDirFlag = (): Option =>
  flag('--run-dir <path>', "the agent's run directory").default('/run/ripstop');
export const outputFlag = (): Option =>
  flag('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table');

/** On unless told otherwise; `--flag` and `--flag=true` are the same. */
export function booleanFlag(flags: string, description: string, ...others: string[]): Flag {
  const option = flag(flags, description, ...others);
  option.argParser(parseBoolean).preset('true').default(true);
  return option;
}

/** As Go's flag package reads a boolean, for manifests that were written for flannel. */
function parseBoolean(text: string): boolean {
  if (['true', '1', 't'].includes(text.toLowerCase())) return true;
  if (['false', '0', 'f'].includes(text.toLowerCase())) return false;
  throw new InvalidArgumentError('Say true or false.');
}
