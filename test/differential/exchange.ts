// SPDX-License-Identifier: Apache-2.0
/** Sends cases through labs, and sorts the resulting packets by case. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Received } from '../support/raw-socket.ts';
import type { Case } from './cases.ts';
import type { DiffLab } from './labs.ts';
import type { Place } from './plan.ts';
import { isTunnelledFragment, Tagger } from './tags.ts';

export interface Arrival {
  readonly place: Place;
  readonly received: Received;
  /** Whether a kernel made it, of a node or of the receiver: an error, an echo reply, a reset. */
  readonly isAnswer: boolean;
}

/** The outcome of a case in one lab. */
export interface Outcome {
  /** Errors of the sending call, by frame. */
  refused: string[];
  arrivals: Arrival[];
}

/** A frame that belongs to no case. */
export interface Stray {
  readonly lab: DiffLab;
  readonly arrival: Arrival;
}

/**
 * The time without arrivals after which no more are expected: longer than a fragment is kept, or a neighbour resolved.
 */
const SILENCE_MS = 1500;

/**
 * @returns the outcomes of each case in each lab, and packets that belong to none of them
 */
export async function exchange(
  labs: readonly DiffLab[],
  cases: readonly Case[],
): Promise<{ outcomes: Map<Case, Outcome[]>; strays: Stray[] }> {
  const outcomes = new Map(
    cases.map((one) => [one, labs.map((): Outcome => ({ refused: [], arrivals: [] }))]),
  );
  const byTag = new Map(cases.map((one) => [one.tag, one]));
  const strays: Stray[] = [];
  const taggers = labs.map(() => new Tagger());

  const collect = (): boolean => {
    let any = false;
    for (const [i, lab] of labs.entries()) {
      for (const { place, received } of lab.drain()) {
        const tagged = taggers[i]!.tagOf(received.frame);
        const one = tagged && byTag.get(tagged.tag);
        const arrival = { place, received, isAnswer: tagged?.isAnswer ?? false };
        any ||= !(tagged?.isBackground || tagged?.looksLikeBackground);
        if (
          tagged?.isBackground ||
          (tagged?.looksLikeBackground && one?.kind !== 'frame' && one?.kind !== 'tunnelled')
        )
          continue;
        if (one) outcomes.get(one)![i]!.arrivals.push(arrival);
        // Recognized by the first fragment, which on a cable may have been overwritten before it was read (compare.ts).
        else if (!(place.startsWith('cable') && isTunnelledFragment(received.frame)))
          strays.push({ lab, arrival });
      }
    }
    return any;
  };

  collect(); // discard packets between the labs' nodes
  strays.length = 0;
  for (const one of cases) {
    for (const { frame, offload } of one.frames) {
      for (const [i, { sockets, macs }] of labs.entries()) {
        const error = sockets.get(one.from)!.send(frame(macs), offload);
        if (error) outcomes.get(one)![i]!.refused.push(error);
      }
    }
    collect();
  }
  for (let heard = performance.now(); performance.now() - heard < SILENCE_MS; await sleep(5))
    if (collect()) heard = performance.now();
  for (const { name, sockets } of labs)
    for (const [place, socket] of sockets) {
      const lost = socket.lost();
      if (lost > 0) throw new Error(`${lost} frames at ${place} of ${name} came faster than they were read`);
    }
  return { outcomes, strays };
}
