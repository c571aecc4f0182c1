#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * The data plane on other kernels: programs are loaded, attached (by tcx, or clsact before Linux 6.6) and forward on
 * Debian's cloud kernels under qemu, and on the running kernel; and with virtio-net, a driver with XDP, between two
 * machines. Needs root; fetches kernels and qemu with apt when they are missing.
 *
 *   sudo npm run test:kernels [-- 6.1 | 6.12 | 6.1-drivers | 6.12-drivers | here ...]
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { styleText } from 'node:util';
import { which } from 'zx';
import { errorText, RipstopError } from '../src/errors.ts';
import { run } from '../src/host/run.ts';
import { type Check, theEnd } from '../test/kernels/story.ts';
import { buildPrograms, missingForPrograms } from '../test/support/go-programs.ts';
import { programs } from '../test/support/peer-programs.ts';
import { reportFailure } from './failure.ts';
import { allSeries, fetchIpvsPrograms, fetchKernel, type Series } from './kernels/debian.ts';
import { writeInitramfs } from './kernels/initramfs.ts';
import { type Bootable, tellBetweenMachines, tellHere, tellInMachine } from './kernels/machines.ts';

const cacheDir = join(process.env['XDG_CACHE_HOME'] ?? '/var/cache', 'ripstop', 'kernels');

/** One line of the table. */
function show(kernel: string, check: string, result: 'ok' | 'FAILED' | 'skipped', ms?: number): void {
  const colour = ({ ok: 'green', FAILED: 'red', skipped: 'yellow' } as const)[result];
  const time = ms === undefined ? '' : `${ms} ms`;
  console.log(
    `${kernel.padEnd(31)}${check.padEnd(89)} ${styleText(colour, result.padEnd(8))}${time.padStart(9)}`,
  );
}

function note(line: string): void {
  console.log(styleText('dim', line));
}

type Tell = (onCheck: (check: Check) => void) => Promise<string>;

/** Run the story and print its checks. Returns false when one has failed. */
async function test(kernel: string, tell: Tell): Promise<boolean> {
  let last: Check | undefined;
  const said = await tell((check) => {
    last = check;
    const passed = check.skipped === undefined ? 'ok' : 'skipped';
    show(kernel, check.check, check.problem === undefined ? passed : 'FAILED', check.ms);
    const why = check.problem ?? check.skipped;
    if (why !== undefined) console.log(`  ${why}`);
  });
  if (last?.check === theEnd && last.problem === undefined) return true;
  if (last?.problem === undefined) show(kernel, 'the story breaks off', 'FAILED');
  console.log(
    said
      .trim()
      .split(/\r?\n/)
      .slice(-40)
      .map((line) => `  | ${line}`)
      .join('\n'),
  );
  return false;
}

async function ensureQemu(): Promise<void> {
  if (await which('qemu-system-x86_64', { nothrow: true })) return;
  note('installing qemu-system-x86');
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } as Record<string, string>;
  await run('apt-get', ['-q', 'update'], { env, timeoutMs: 120_000 });
  const install = ['-q', '-y', '--no-install-recommends', 'install', 'qemu-system-x86'];
  await run('apt-get', install, { env, timeoutMs: 300_000 });
}

/** Build the engine of NetworkPolicies, if that has not been done and can be. Without it its steps are skipped. */
async function buildEngine(): Promise<void> {
  const engine = [programs['kube-network-policies']];
  const missing = await missingForPrograms(engine);
  if (missing === undefined) await buildPrograms(engine, note);
  else note(missing);
}

let skipped = 0;

/** Get one of Debian's kernels, ready to boot. Undefined when it cannot be fetched; it is then skipped. */
async function prepare(series: Series): Promise<Bootable | undefined> {
  try {
    if (process.arch !== 'x64') throw new RipstopError('only x86-64 machines boot these kernels');
    await ensureQemu();
    const kernel = await fetchKernel(series, cacheDir, note);
    const dir = mkdtempSync(join(tmpdir(), 'ripstop-kernel-'));
    process.once('exit', () => rmSync(dir, { recursive: true, force: true }));
    const initramfs = join(dir, 'initramfs.cpio');
    const ipvs = await fetchIpvsPrograms(cacheDir, note).catch((error: unknown) => {
      note(`no IPVS: ${errorText(error)}`);
      return undefined;
    });
    await writeInitramfs(initramfs, kernel, ipvs);
    return { ...kernel, initramfs, dir };
  } catch (error) {
    show(`Linux ${series}`, 'not to be had', 'skipped');
    console.log(`  ${errorText(error)}`);
    skipped++;
    return undefined;
  }
}

/** The story of this kernel's network driver. */
function driversOf(series: Series): `${Series}-drivers` {
  return `${series}-drivers`;
}

type Story = () => Promise<boolean>;

/**
 * Tell stories side by side, but on no more pairs of machines at a time than there are pairs of CPUs: each machine uses a
 * little more than one, and has a deadline.
 * @param pairs what a pair of machines tells: two stories of one machine each, or one of both
 */
async function tellAll(pairs: (readonly Story[])[]): Promise<boolean[]> {
  const results: boolean[] = [];
  const tellInTurn = async (): Promise<void> => {
    for (let stories = pairs.shift(); stories; stories = pairs.shift())
      results.push(...(await Promise.all(stories.map((tell) => tell()))));
  };
  await Promise.all(Array.from({ length: Math.ceil(availableParallelism() / 2) }, tellInTurn));
  return results;
}

async function main(selected: readonly string[]): Promise<boolean> {
  if (process.getuid?.() !== 0)
    throw new RipstopError('run as root (sudo): BPF and network namespaces need it');
  const known = [...allSeries.flatMap((series) => [series, driversOf(series)]), 'here'];
  const strange = selected.filter((name) => !known.includes(name));
  if (strange.length > 0) {
    throw new RipstopError(`no such story: ${strange.join(', ')}; there are ${known.join(', ')}`, {
      exitCode: 2,
    });
  }
  const chosen = (name: string): boolean => selected.length === 0 || selected.includes(name);
  await buildEngine();
  const alone: Story[] = [];
  const drivers: Story[] = [];
  for (const series of allSeries) {
    if (!chosen(series) && !chosen(driversOf(series))) continue;
    const kernel = await prepare(series); // one after another: two runs of apt exclude each other
    if (!kernel) continue;
    const { release } = kernel;
    if (chosen(series)) alone.push(() => test(release, (onCheck) => tellInMachine(kernel, onCheck)));
    if (chosen(driversOf(series))) {
      drivers.push(() => test(`${release} ×2`, (onCheck) => tellBetweenMachines(kernel, onCheck)));
    }
  }
  const results = await tellAll([alone, ...drivers.map((one) => [one])]);
  if (chosen('here')) results.push(await test(release(), tellHere));
  return results.every(Boolean);
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));
const begun = performance.now();
try {
  process.exitCode = (await main(process.argv.slice(2))) ? 0 : 1;
  const end = process.exitCode === 0 ? 'All as it should be' : 'Not as it should be';
  const but = skipped > 0 ? `, ${skipped} skipped` : '';
  console.log(`${end}${but}, ${((performance.now() - begun) / 1000).toFixed(1)} s.`);
} catch (error) {
  reportFailure('test-kernels', error);
}
