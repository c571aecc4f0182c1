// SPDX-License-Identifier: Apache-2.0
/** `ripstop maps`: the BPF maps of ripstop, and of others. */
import { readFileSync, statSync } from 'node:fs';
import type { Command } from 'commander';
import { errorText, RipstopError } from '../errors.ts';
import { loadLab } from './lab.ts';
import { bpffsFlag, examples, flag, FOUND, runDirFlag } from './options.ts';
import { print, printRows } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import { addWatchFlags, type WatchOptions } from './watch.ts';

interface MapsOptions extends ReaderOptions, WatchOptions {
  readonly raw?: boolean;
}

export function addMapsCommand(program: Command): void {
  const maps = program
    .command('maps')
    .enablePositionalOptions()
    .description('the BPF maps; with NAME, one map entry by entry; with KEY, the entries of that key')
    .argument(
      '[name]',
      "one of ripstop's maps, `config`, the path of any pin or directory of pins, or a map's id",
    )
    .argument('[key...]', 'a key, or members of one: src=10.42.0.2 protocol=tcp')
    .addOption(flag('--raw', 'keys and values as bytes'));
  addDiffCommand(maps);
  addExportCommands(maps);
  addWatchFlags(addReaderFlags(maps), 'show what changes, until interrupted')
    .addHelpText('after', NOTES)
    .action(async (name: string | undefined, key: string[], options: MapsOptions) => {
      if (name === undefined || isDirectory(name)) await list(name, options);
      else if (options.watch) await watch(name, key, options);
      else await show(name, key, options);
    });
}

function addDiffCommand(maps: Command): void {
  addReaderFlags(maps.command('diff'))
    .description('what the maps should hold by the API server and the kernel as they are now, and do not')
    .addHelpText(
      'after',
      `
The agent lists the cluster's nodes and observes this node anew, and plans once more; then the maps are compared with
that plan, byte by byte. A difference is told when it is still there a second later. The exit code is 3 when there is
one. The agent looks by itself every 25 seconds, in a large cluster less often, and corrects what differs.
`,
    )
    .action(async ({ bpffs, runDir, output }: ReaderOptions) => {
      const { auditMaps, differenceColumns } = await import('./map-diff.ts');
      const { renderTable } = await import('./table.ts');
      const audit = await auditMaps(bpffs, runDir);
      const { checked, differences } = audit;
      await print(output, audit, (wide) =>
        differences.length > 0
          ? renderTable(differenceColumns, differences, wide)
          : `no difference: ${Object.entries(checked)
              .map(([name, count]) => `${name} ${count}`)
              .join(', ')}\n`,
      );
      if (differences.length > 0) process.exitCode = FOUND;
    });
}

function addExportCommands(maps: Command): void {
  maps
    .command('export')
    .description("all maps of ripstop's as JSON, with what the bytes mean; for bug reports")
    .addOption(bpffsFlag())
    .addOption(runDirFlag())
    .action(async ({ bpffs, runDir }: Pick<ReaderOptions, 'bpffs' | 'runDir'>) => {
      const { exportMaps } = await import('./map-dump.ts');
      process.stdout.write(`${JSON.stringify(await exportMaps(bpffs, runDir), undefined, 2)}\n`);
    });
  addReaderFlags(maps.command('import'))
    .description('fill the maps of a node of a lab from an export; refused elsewhere')
    .argument('<file>', 'what `ripstop maps export` has written; - is standard input')
    .addHelpText(
      'after',
      `
Stop the node's agent first: it corrects what differs from its own cluster. What programs keep for each CPU, and their
constants, are left as they are.
`,
    )
    .action(async (file: string, { bpffs, output }: ReaderOptions) => {
      const { isInLab } = await loadLab();
      if (!isInLab(bpffs)) {
        throw new RipstopError(`${bpffs} belongs to no lab: maps are imported into the node of a lab only`, {
          exitCode: 2,
        });
      }
      const { importColumns, importMaps } = await import('./map-dump.ts');
      await printRows(output, importMaps(bpffs, readText(file)), importColumns);
    });
}

function readText(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (cause) {
    throw new RipstopError(`cannot read ${file}: ${errorText(cause)}`, { cause });
  }
}

const NOTES = `
Keys and values are decoded by the BTF that the kernel keeps for each map. In JSON and YAML, numbers stay numbers, and
moments stay nanoseconds of CLOCK_MONOTONIC. Of arrays, slots that are all zero are left out. USED is counted by
reading the map. The kernel does not count evictions: an LRU map that is full evicts its oldest entries.
${examples([
  ['maps', 'all maps of ripstop, with their use of memory'],
  ['maps peers', 'the peers, with the header that each packet to them gets'],
  ['maps peers 10.42.1.0/24', 'one of them'],
  ['maps flows4 dst=10.42.1.2', 'the flows to an address'],
  ['maps flows4 --watch', 'what is learned, renewed and removed'],
  ['maps endpoints --raw', 'bytes'],
  ['maps /sys/fs/bpf', 'all maps that are pinned, whoever did it'],
  ['maps config -o yaml', "the programs' constants"],
  ['maps diff', 'an audit: what is not as it should be'],
  ['maps export > maps.json', 'everything, for a bug report'],
])}`;

function isDirectory(name: string): boolean {
  return name.includes('/') && (statSync(name, { throwIfNoEntry: false })?.isDirectory() ?? false);
}

async function list(path: string | undefined, options: MapsOptions): Promise<void> {
  const { listMaps, mapColumns } = await import('./maps.ts');
  if (options.watch) throw new RipstopError('--watch needs the name of a map', { exitCode: 2 });
  await printRows(options.output, listMaps(options.bpffs, path), mapColumns);
}

async function show(name: string, terms: readonly string[], options: MapsOptions): Promise<void> {
  const { entryColumns } = await import('./maps.ts');
  const entries = await read(name, terms, options);
  const [entry, ...more] = entries;
  if (terms.length === 0 || more.length > 0) return printRows(options.output, entries, entryColumns);
  if (entry === undefined) throw new RipstopError(`${name} has no entry ${terms.join(' ')}`);
  const { dump } = await import('js-yaml');
  const { asText } = await import('./map-values.ts');
  await print(options.output, entry, () => dump(asText(entry)));
}

async function read(name: string, terms: readonly string[], { bpffs, raw = false }: MapsOptions) {
  const { openMap, readEntries, selectEntries } = await import('./maps.ts');
  using open = openMap(bpffs, name);
  const entries = await readEntries(bpffs, open, raw);
  return terms.length === 0 ? entries : selectEntries(entries, terms);
}

async function watch(name: string, terms: readonly string[], options: MapsOptions): Promise<void> {
  const { printChanges } = await import('./map-watch.ts');
  await printChanges(options, () => read(name, terms, options));
}
