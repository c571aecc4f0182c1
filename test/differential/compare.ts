// SPDX-License-Identifier: Apache-2.0
/** Compares what arrived in the two labs, field by field. */
import { dissect, type Fields } from './dissect.ts';
import type { Arrival, Outcome } from './exchange.ts';
import type { DiffLab } from './labs.ts';
import type { Place } from './plan.ts';
import { cut, reassemble } from './reassemble.ts';

/** A packet as it arrived in one lab. */
export interface Seen {
  readonly place: Place;
  readonly isAnswer: boolean;
  readonly fields: Fields;
}

/** A packet arrived in one lab only, or in both with different values in one field; or the labs refused different frames. */
export type Difference =
  | { readonly what: 'only flannel' | 'only ripstop'; readonly seen: Seen }
  | {
      readonly what: 'differs';
      readonly field: string;
      readonly flannel: string | undefined;
      readonly ripstop: string | undefined;
      /** As ripstop delivered it. */
      readonly seen: Seen;
    }
  | { readonly what: 'refused'; readonly flannel: string; readonly ripstop: string };

/** @param labs flannel's and ripstop's, in the order of the outcomes. */
export function differences(
  labs: readonly [DiffLab, DiffLab],
  outcomes: readonly [Outcome, Outcome],
): Difference[] {
  const [flannel, ripstop] = outcomes.map(({ refused }) => refused.join(', ')) as [string, string];
  const refusal: Difference[] = flannel === ripstop ? [] : [{ what: 'refused', flannel, ripstop }];
  const [a, b] = outcomes.map(({ arrivals }, i) => sorted(arrivals, labs[i]!)) as [Sorted, Sorted];
  return [
    ...refusal,
    ...[...new Set([...a.keys(), ...b.keys()])].flatMap((shape) =>
      pairwise(a.get(shape) ?? [], b.get(shape) ?? []),
    ),
  ];
}

type Sorted = ReadonlyMap<string, readonly Seen[]>;

/** Grouped by what makes packets of two labs the same one: where it arrived, who made it, and what it is. */
function sorted(arrivals: readonly Arrival[], { names }: DiffLab): Sorted {
  const seen = reassemble(arrivals.flatMap(cut)).map(({ place, isAnswer, received, fragments }): Seen => {
    const sizes = fragments && { fragments: fragments.join(' ') };
    return { place, isAnswer, fields: { ...sizes, ...dissect(received, names) } };
  });
  // A kernel that reassembles and refragments writes into memory that an earlier capture shares.
  const kept = seen.filter(
    ({ place, fields }) => !(place.startsWith('cable') && isFragment(fields, 'inner ')),
  );
  return Map.groupBy(kept, ({ place, isAnswer, fields }) =>
    [place, isAnswer, ...identity(isAnswer, fields).map((name) => fields[name])].join(' '),
  );
}

/**
 * The fields that tell a case's packets at one place apart, in a tunnel or not. The id of an answer says nothing: the
 * sender's kernel makes it up. So it does for IPv6 fragments, where the flow label stays.
 */
function identity(isAnswer: boolean, fields: Fields): string[] {
  const layer = 'vxlan vni' in fields ? 'inner ' : '';
  const own = [`${layer}ip label` in fields ? 'ip label' : 'ip id', 'ip offset'];
  const answer = ['icmp type', 'icmp code', 'tcp seq', 'tcp ack', 'quoted ip offset'];
  return [
    'vxlan vni',
    ...['ip src', 'ip dst', 'ip protocol', ...(isAnswer ? answer : own)].map((name) => `${layer}${name}`),
  ];
}

function pairwise(unsortedA: readonly Seen[], unsortedB: readonly Seen[]): Difference[] {
  const [a, b] = [unsortedA, unsortedB].map((all) => all.toSorted(byQuotedId)) as [Seen[], Seen[]];
  const both = Math.min(a.length, b.length);
  return [
    ...a.slice(0, both).flatMap((one, i) => fieldwise(one, b[i]!)),
    ...a.slice(both).map((seen) => ({ what: 'only flannel', seen }) as const),
    ...b.slice(both).map((seen) => ({ what: 'only ripstop', seen }) as const),
  ];
}

/** Orders errors about the segments of one super-packet, each of which is refused. */
function byQuotedId(a: Seen, b: Seen): number {
  const idOf = ({ fields }: Seen): number =>
    Number(fields['quoted ip id'] ?? fields['inner quoted ip id'] ?? 0);
  return idOf(a) - idOf(b);
}

function fieldwise(a: Seen, b: Seen): Difference[] {
  return [...new Set([...Object.keys(a.fields), ...Object.keys(b.fields)])].flatMap((field) => {
    const [flannel, ripstop] = [a.fields[field], b.fields[field]];
    return flannel === ripstop ? [] : [{ what: 'differs', field, flannel, ripstop, seen: b } as const];
  });
}

/** An IPv6 fragment is known by its header alone, since the header's content may have been overwritten. */
const isFragment = (fields: Fields, prefix: string): boolean =>
  (`${prefix}ip label` in fields && `${prefix}ip id` in fields) ||
  Number(fields[`${prefix}ip offset`]) > 0 ||
  (Number(fields[`${prefix}ip flags`]) & 1) === 1;
