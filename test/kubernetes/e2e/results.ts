// SPDX-License-Identifier: Apache-2.0
import type { Spec } from './report.ts';
import type { Suite } from './suites.ts';

/** RESULTS.md has a row and a section for each run. A run replaces its own and leaves the others alone. */

/** The parameters of a run. */
export interface Environment {
  readonly kubernetes: string;
  readonly containerd: string;
  readonly kernel: string;
  readonly ripstop: string;
  readonly nodes: number;
  /** The day of the run, `2026-11-30`. */
  readonly date: string;
}

/** A spec that failed, twice, with ripstop. */
export interface Failure extends Spec {
  /** Its result with flannel, in the same kind of cluster. */
  readonly withFlannel: 'passed' | 'failed' | 'skipped' | 'not run';
  readonly explanation?: string;
}

export interface Outcome {
  readonly suite: Suite;
  readonly environment: Environment;
  /** Every spec of the program, with its result of the first round. */
  readonly specs: readonly Spec[];
  /** Names of specs that failed in the first round, in parallel with others, and passed when they ran again alone. */
  readonly passedAgain: readonly string[];
  readonly failures: readonly Failure[];
}

const INTRODUCTION = `# What Kubernetes' own network tests say

\`npm run test:kubernetes -- --only e2e\` wrote this file, see [README.md](README.md); do not edit it by hand. Each run is a
cluster of its own, with ripstop from \`deploy/ripstop.yml\`. A spec that fails is run again alone. What fails again is run with
the real flannel instead of ripstop, in the same kind of cluster.
`;

const HEADER = `| run | done on | specs | passed | of them at the second try | failed | of them with flannel too | skipped |
|---|---|---|---|---|---|---|---|
`;

/**
 * The file with this outcome in place of the run's previous one. @param before the previous file; empty the first time
 */
export function withOutcome(before: string, outcome: Outcome): string {
  const { name } = outcome.suite;
  const rows = new Map(
    [...before.matchAll(/^\| \[([\w-]+)\]\(.*$/gm)].map(([row, run]) => [run!, `${row}\n`]),
  );
  const sections = new Map(
    before
      .split(/^(?=## )/m)
      .slice(1)
      .map((text) => [/^## (\S+)/.exec(text)![1]!, `${text.trimEnd()}\n`]),
  );
  rows.set(name, row(outcome));
  sections.set(name, section(outcome));
  const inOrder = (parts: Map<string, string>): string[] =>
    [...parts].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, text]) => text);
  return `${INTRODUCTION}\n${HEADER}${inOrder(rows).join('')}\n${inOrder(sections).join('\n')}`;
}

/** The outcome's specs: those of the run, and those in each state. */
function counted({ suite, specs, failures, passedAgain }: Outcome) {
  const focus = new RegExp(suite.focus);
  const own = specs.filter(({ name }) => focus.test(name));
  const of = (state: Spec['state']): Spec[] => own.filter((spec) => spec.state === state);
  const run = own.filter(({ state }) => state !== 'left out');
  const bad = new Set(failures.map(({ name }) => name));
  const good = run.filter(({ name, state }) => state === 'passed' || (state === 'failed' && !bad.has(name)));
  return { run, good, passedAgain, skipped: of('skipped'), leftOut: of('left out') };
}

function row(outcome: Outcome): string {
  const { run, good, passedAgain, skipped } = counted(outcome);
  const { failures, suite, environment } = outcome;
  const also = failures.filter(({ withFlannel }) => withFlannel === 'failed').length;
  const cells = [
    `[${suite.name}](#${suite.name})`,
    environment.date,
    run.length,
    good.length,
    passedAgain.length,
    failures.length,
    also,
    skipped.length,
  ];
  return `| ${cells.join(' | ')} |\n`;
}

function section(outcome: Outcome): string {
  const { suite, environment, failures, passedAgain } = outcome;
  const { kubernetes, containerd, kernel, ripstop, nodes } = environment;
  const { run, skipped, leftOut } = counted(outcome);
  const parts = [
    `## ${suite.name}`,
    `${suite.title}. Kubernetes ${kubernetes}, containerd ${containerd}, Linux ${kernel}, ripstop ${ripstop}; ${nodes} nodes.`,
    table(
      ['specs', 'run', 'passed', 'failed', 'skipped'],
      [true, false]
        .map((conformance) => byKind(outcome, run, conformance))
        .filter(([, count]) => count !== 0),
    ),
    list(
      'Failed',
      table(
        ['spec', 'with flannel', 'explanation'],
        failures.map(({ name, withFlannel, explanation, message }) => [
          name,
          withFlannel,
          explanation ?? `not explained yet: ${message}`,
        ]),
      ),
    ),
    list(
      'Passed when run again alone',
      [...passedAgain]
        .toSorted()
        .map((name) => `- ${cell(name)}\n`)
        .join(''),
    ),
    list('Skipped themselves', skippedTable(skipped)),
    list('Left out', leftOutTable(suite, leftOut)),
  ];
  return `${parts
    .filter(Boolean)
    .join('\n\n')
    .replaceAll(/\n{3,}/g, '\n\n')
    .trimEnd()}\n`;
}

function byKind({ failures }: Outcome, run: readonly Spec[], conformance: boolean): (string | number)[] {
  const ours = run.filter(({ name }) => name.includes('[Conformance]') === conformance);
  const failed = failures.filter(({ name }) => name.includes('[Conformance]') === conformance).length;
  const skipped = ours.filter(({ state }) => state === 'skipped').length;
  return [
    conformance ? 'Conformance' : 'others',
    ours.length,
    ours.length - failed - skipped,
    failed,
    skipped,
  ];
}

function reasonOf({ leftOut }: Suite, name: string): string {
  return leftOut.find(({ pattern }) => new RegExp(pattern).test(name))?.reason ?? 'not reached by the run';
}

function skippedTable(skipped: readonly Spec[]): string {
  const reasons = byReason(skipped, ({ message }) => withoutNumbers(message));
  return table(
    ['why', 'which'],
    reasons.map(([reason, names]) => [reason, names.join('<br>')]),
  );
}

function leftOutTable(suite: Suite, leftOut: readonly Spec[]): string {
  const reasons = byReason(leftOut, ({ name }) => reasonOf(suite, name));
  return table(
    ['why', 'specs'],
    reasons.map(([reason, names]) => [reason, names.length]),
  );
}

/** The reasons, each with the names of its specs. */
function byReason(specs: readonly Spec[], reasonFor: (spec: Spec) => string): [string, string[]][] {
  return [...Map.groupBy(specs, reasonFor)]
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([reason, of]) => [reason, of.map(({ name }) => shortName(name))]);
}

/** Remove counts, names and ports from a message, which differ from run to run. */
const withoutNumbers = (message: string): string => message.replaceAll(/\[[^\]]*\]/g, '…');

const shortName = (name: string): string => name.replace('[sig-network] ', '');

const list = (title: string, text: string): string => (text === '' ? '' : `### ${title}\n\n${text}`);

function table(header: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  if (rows.length === 0) return '';
  const lines = [header, header.map(() => '---'), ...rows];
  return lines.map((cells) => `| ${cells.map(cell).join(' | ')} |\n`).join('');
}

/** Escape text for a cell of a Markdown table. */
const cell = (text: string | number): string =>
  String(text)
    .replaceAll('|', String.raw`\|`)
    .replaceAll('\n', ' ');
