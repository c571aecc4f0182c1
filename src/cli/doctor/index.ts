// SPDX-License-Identifier: Apache-2.0
/** `ripstop doctor`: observe the node, judge, and tell what is wrong, why, and what helps. It changes nothing. */
import { RipstopError } from '../../errors.ts';
import { colored, renderTable } from '../table.ts';
import type { Check, Finding, State } from './check.ts';
import { checks } from './checks.ts';
import { observe, type Places } from './observe.ts';

/** The checks of these names, or all. @throws RipstopError for a name that no check has. */
export function chooseChecks(names: readonly string[]): Check[] {
  const unknown = names.filter((name) => !checks.some((one) => one.name === name));
  if (unknown.length > 0) {
    const all = checks.map(({ name }) => name).join(', ');
    throw new RipstopError(`there is no check "${unknown.join('", "')}"; the checks are ${all}`, {
      exitCode: 2,
    });
  }
  return checks.filter(({ name }) => names.length === 0 || names.includes(name));
}

/** Make these checks. Takes at most 3 s. */
export async function diagnose(places: Places, chosen: readonly Check[]): Promise<Finding[]> {
  const known = await observe(places, new Set(chosen.flatMap(({ needs }) => needs)));
  return chosen.flatMap((one) => one.judge(known));
}

/** Whether there is something that a person must look at. */
export function isIll(findings: readonly Finding[]): boolean {
  return findings.some(({ state }) => state === 'fail');
}

const COLORS = { fail: 'red', warn: 'yellow', ok: 'green', skipped: undefined } as const;
const ORDER: readonly State[] = ['fail', 'warn', 'skipped', 'ok'];

/** Problems first, each with cause and cure; then what could not be checked, and how much is in order. */
export function renderFindings(findings: readonly Finding[], isWide = false): string {
  const sorted = findings.toSorted((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  if (isWide) {
    return renderTable(
      [
        { title: 'CHECK', value: (row) => row.check },
        { title: 'STATE', value: (row) => row.state, color: (row) => COLORS[row.state] },
        { title: 'WHAT', value: (row) => row.what },
        { title: 'WHY', value: (row) => row.why },
        { title: 'CURE', value: (row) => row.cure },
      ],
      sorted,
    );
  }
  const problems = sorted.filter(({ state }) => state === 'fail' || state === 'warn');
  const lines = problems.map(({ check, state, what, why, cure }) => {
    const head = colored(COLORS[state], `${state}  ${check}: ${plain(what)}`);
    return `${head}\n      why   ${plain(why)}\n      cure  ${plain(cure)}\n`;
  });
  const skipped = Object.groupBy(
    sorted.filter(({ state }) => state === 'skipped'),
    ({ why = '' }) => why,
  );
  for (const [why, group] of Object.entries(skipped))
    lines.push(`skipped  ${group!.map(({ check }) => check).join(', ')}: ${plain(why)}\n`);
  const inOrder = sorted.filter(({ state }) => state === 'ok').length;
  return `${lines.join('')}${inOrder} of ${new Set(sorted.map(({ check }) => check)).size} checks find all in order\n`;
}

/** Text of others must not move the cursor or begin a new line. */
function plain(text = ''): string {
  return text.replaceAll(/\p{Cc}+/gu, ' ');
}
