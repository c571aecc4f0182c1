// SPDX-License-Identifier: Apache-2.0
/** The report of the differential as text. */
import type { Difference, Seen } from './compare.ts';
import type { Report, Unexplained } from './differential.ts';
import type { Fields } from './dissect.ts';
import { rules } from './rules.ts';

/** The number of cases that are shown in full. */
const MAX_CASES = 10;
/** The length to which long values are cut. */
const MAX_LENGTH = 80;

/** Every rule with the differences that it explained, and the counters of ripstop's programs. */
export function describeSummary({
  cases,
  arrivals,
  explained,
  unexplained,
  unrepeated,
  carried,
}: Report): string {
  const total = [...explained.values()].reduce((sum, count) => sum + count, 0);
  const width = Math.max(...rules.map(({ name }) => name.length));
  return [
    `${cases} cases, ${arrivals[0]} arrivals with flannel, ${arrivals[1]} with ripstop`,
    `${total} differences explained:`,
    ...rules.map(
      ({ name, why }) => `  ${String(explained.get(name) ?? 0).padStart(7)}  ${name.padEnd(width)}  ${why}`,
    ),
    'by ripstop:',
    ...[...carried]
      .toSorted(([, a], [, b]) => b - a)
      .map(([what, packets]) => `  ${String(packets).padStart(7)}  ${what}`),
    ...(unrepeated.length > 0 ? [`sent again, and then without a difference: ${unrepeated.join(' ')}`] : []),
    `${unexplained.length} cases with differences that nothing explains`,
  ].join('\n');
}

/** The unexplained differences, field by field; empty when there are none. */
export function describeFaults({ unexplained, strays }: Report, seed: number): string {
  return [
    ...unexplained.slice(0, MAX_CASES).map((one) => describeCase(one, seed)),
    ...(unexplained.length > MAX_CASES
      ? [
          `… and cases ${unexplained
            .slice(MAX_CASES)
            .map((one) => one.case.number)
            .join(' ')}`,
        ]
      : []),
    ...strays.slice(0, MAX_CASES).map(
      ({ lab, arrival: { place, received } }) =>
        `of no case: at ${place} with ${lab.datapath}: ${Buffer.from(received.frame)
          .toString('hex')
          .slice(0, 2 * MAX_LENGTH)}`,
    ),
  ].join('\n\n');
}

function describeCase(
  { case: { number, kind, from, frames }, sent, differences }: Unexplained,
  seed: number,
): string {
  return [
    `case ${number} of seed ${seed}, ${kind}, ${frames.length} frame${frames.length === 1 ? '' : 's'} from ${from}`,
    `  again: npm run differential -- --seed ${seed} --first ${number} --cases 1`,
    `  sent: ${describeFields(sent)}`,
    ...differences.slice(0, MAX_CASES).map((difference) => `  ${describeDifference(difference)}`),
    ...(differences.length > MAX_CASES ? [`  … and ${differences.length - MAX_CASES} more`] : []),
  ].join('\n');
}

function describeDifference(difference: Difference): string {
  switch (difference.what) {
    case 'refused':
      return `the sending call: flannel ${difference.flannel || 'fine'}, ripstop ${difference.ripstop || 'fine'}`;
    case 'differs': {
      const { field, flannel, ripstop, seen } = difference;
      return `${describePlace(seen)}: ${field}: flannel ${apart(flannel, ripstop)}, ripstop ${apart(ripstop, flannel)}`;
    }
    default:
      return `${describePlace(difference.seen)}, ${difference.what}: ${describeFields(difference.seen.fields)}`;
  }
}

const describePlace = ({ place, isAnswer }: Seen): string => `${isAnswer ? 'answer' : 'packet'} at ${place}`;

const describeFields = (fields: Fields): string =>
  Object.entries(fields)
    .map(([name, value]) => `${name} ${value.length > MAX_LENGTH ? `${value.slice(0, MAX_LENGTH)}…` : value}`)
    .join(', ');

/** A value, beginning shortly before the first difference. */
function apart(value: string | undefined, other: string | undefined): string {
  if (value === undefined) return 'none';
  if (value.length <= MAX_LENGTH) return value;
  let at = 0;
  while (at < value.length && value[at] === other?.[at]) at++;
  const start = Math.max(0, at - 8);
  return `…${value.slice(start, start + MAX_LENGTH)}… (at ${at} of ${value.length})`;
}
