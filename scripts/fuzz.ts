// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run fuzz [-- --packets 1000000 --seed N --first N]` compares the programs with the model of the specification
 * (test/model), on every CPU. Packet n of a seed is always the same, so a disagreement is reported as a command that
 * reproduces it. The exit code is 1 after a disagreement, and when a reason was never met.
 */
import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { setImmediate } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { type Coverage, describeDisagreement, openComparison, unmet } from '../test/model/compare.ts';
import { generate } from '../test/model/generate.ts';
import { missing } from '../test/bpf/node.ts';

/** Packets between two reports to the parent. */
const BATCH = 5000;

interface Share {
  seed: number;
  first: number;
  packets: number;
}

interface Report {
  /** Packets since the last report. */
  done: number;
  disagreement?: string;
  /** Only in the last report. */
  coverage?: [string, number][];
}

/** A child: it runs its share of the packets through programs and maps of its own. */
async function compareShare(
  { seed, first, packets }: Share,
  report: (report: Report) => void,
): Promise<void> {
  using comparison = openComparison();
  let done = 0;
  for (let number = first; number < first + packets; number++) {
    const found = comparison.check(generate(seed, number));
    done++;
    if (found) {
      const again = `npm run fuzz -- --seed ${seed} --first ${number} --packets 1`;
      report({ done, disagreement: `${describeDisagreement(found)}\nagain: ${again}` });
      return;
    }
    if (done < BATCH) continue;
    report({ done });
    done = 0;
    await setImmediate(); // lets the parent's disconnect arrive
    if (!process.connected) return;
  }
  const strays = comparison.strays();
  if (strays.length > 0) report({ done, disagreement: `counted without a packet: ${strays.join(', ')}` });
  else report({ done, coverage: [...comparison.coverage] });
}

/** @returns the first disagreement of any child, or the reasons that all of them met */
async function compareAll({ seed, first, packets }: Share): Promise<string | Coverage> {
  const coverage: Coverage = new Map();
  const started = Date.now();
  const workers = Math.min(availableParallelism(), Math.ceil(packets / BATCH));
  const share = Math.ceil(packets / workers);
  let done = 0;
  let disagreement: string | undefined;
  const children = Array.from({ length: workers }, (_, i) => {
    const begin = first + i * share;
    const job = { seed, first: begin, packets: Math.min(share, first + packets - begin) };
    return fork(import.meta.filename, ['--share', JSON.stringify(job)]);
  });
  const failures = await Promise.all(
    children.map(
      (child) =>
        new Promise<string | undefined>((resolve) => {
          child.on('message', (report: Report) => {
            done += report.done;
            const rate = Math.round((done / Math.max(1, Date.now() - started)) * 1000);
            if (process.stdout.isTTY)
              process.stdout.write(`\r${done} of ${packets} packets, ${rate} a second `);
            for (const [key, count] of report.coverage ?? [])
              coverage.set(key, (coverage.get(key) ?? 0) + count);
            disagreement ??= report.disagreement;
            // The others end by themselves at their next report, and unmount their bpffs.
            if (disagreement) for (const other of children) if (other.connected) other.disconnect();
          });
          child.on('exit', (code, signal) =>
            resolve(code === 0 || disagreement ? undefined : `a worker ended with ${code ?? signal}`),
          );
        }),
    ),
  );
  const seconds = (Date.now() - started) / 1000;
  console.log(`\r${done} packets of seed ${seed} in ${seconds.toFixed(1)} s on ${workers} CPUs`);
  return disagreement ?? failures.find((failure) => failure !== undefined) ?? coverage;
}

function printCoverage(coverage: Coverage): void {
  for (const [key, count] of [...coverage].toSorted(([a], [b]) => a.localeCompare(b)))
    console.log(`  ${key.padEnd(32)} ${String(count).padStart(9)}`);
}

const { values } = parseArgs({
  options: {
    packets: { type: 'string', default: '1000000' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
    first: { type: 'string', default: '0' },
    share: { type: 'string' },
  },
});

if (values.share !== undefined) {
  // The parent disconnects when another child has found a disagreement.
  await compareShare(JSON.parse(values.share) as Share, (report) => {
    if (process.connected) process.send?.(report, undefined, undefined, () => {});
  });
  if (process.connected) process.disconnect?.();
} else if (missing) {
  console.error(`fuzz ${missing}`);
  process.exitCode = 1;
} else {
  const [packets, seed, first] = [values.packets, values.seed, values.first].map(Number) as [
    number,
    number,
    number,
  ];
  if (![packets, seed, first].every(Number.isSafeInteger) || packets < 1 || first < 0) {
    console.error('usage: npm run fuzz [-- --packets N --seed N --first N], whole numbers');
    process.exitCode = 2;
  } else {
    const result = await compareAll({ packets, seed, first });
    if (typeof result === 'string') {
      console.log(result);
      process.exitCode = 1;
    } else {
      printCoverage(result);
      const never = unmet(result);
      if (never.length > 0) console.log(`never met: ${never.join(', ')}`);
      // A few packets, run for a closer look, cannot meet every reason.
      if (never.length > 0 && packets >= 10_000) process.exitCode = 1;
    }
  }
}
