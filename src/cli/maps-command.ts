// SPDX-License-Identifier: Apache-2.0
/** `ripstop maps`: the BPF maps of ripstop, and of others. */
import { statSync } from 'node:fs';
import type { Command } from 'commander';
import { RipstopError } from '../errors.ts';
import { examples, flag } from './options.ts';
import { format, print, printRows } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import { addWatchFlags, clockText, repeatedly, type WatchOptions } from './watch.ts';

interface MapsOptions extends ReaderOptions, WatchOptions {
  readonly raw?: boolean;
}

export function addMapsCommand(program: Command): void {
  const maps = program
    .command('maps')
    .description('the BPF maps; with NAME, one map entry by entry; with KEY, the entries of that key')
    .argument(
      '[name]',
      "one of ripstop's maps, `config`, the path of any pin or directory of pins, or a map's id",
    )
    .argument('[key...]', 'a key, or members of one: src=10.42.0.2 protocol=tcp')
    .addOption(flag('--raw', 'keys and values as bytes'));
  addWatchFlags(addReaderFlags(maps), 'show what changes, until interrupted')
    .addHelpText('after', NOTES)
    .action(async (name: string | undefined, key: string[], options: MapsOptions) => {
      if (name === undefined || isDirectory(name)) await list(name, options);
      else if (options.watch) await watch(name, key, options);
      else await show(name, key, options);
    });
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

/** In JSON, each change is one line. */
async function watch(name: string, terms: readonly string[], options: MapsOptions): Promise<void> {
  const { changesBetween, changeText, readingOf } = await import('./map-watch.ts');
  let before = readingOf(await read(name, terms, options));
  await repeatedly(options.interval, async () => {
    const after = readingOf(await read(name, terms, options));
    for (const change of changesBetween(before, after)) {
      const time = clockText();
      if (options.output === 'json') process.stdout.write(`${JSON.stringify({ time, ...change })}\n`);
      else
        process.stdout.write(await format(options.output, change, () => `${time} ${changeText(change)}\n`));
    }
    before = after;
  });
}
