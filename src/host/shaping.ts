// SPDX-License-Identifier: Apache-2.0
/**
 * Who shapes pods' traffic: qdiscs, filters and programs of others in tc, such as the bandwidth plugin's. They must see
 * every packet.
 */
import { listFilters, listQdiscs, type Filter, type Qdisc, TC_H } from '#netlink';
import { filterPlace, withForeignTcx } from '../dataplane/links.ts';
import { openNetlink, type Where } from './netlink.ts';

/**
 * Which of these devices somebody shapes or whose packets somebody filters in tc.
 * @param ifindexes their indexes.
 * @param linkPins where our own links are pinned.
 * @returns the indexes in ascending order.
 */
export function findShaped(ifindexes: readonly number[], linkPins: string, where: Where = {}): number[] {
  if (ifindexes.length === 0) return [];
  using socket = openNetlink(where);
  const qdiscs = Map.groupBy(listQdiscs(socket), ({ ifindex }) => ifindex);
  const filtersOf = (ifindex: number): Filter[] =>
    [TC_H.ingress, TC_H.egress].flatMap((parent) => listFilters(socket, ifindex, parent));
  const shaped = ifindexes.filter((ifindex) => {
    const all = qdiscs.get(ifindex) ?? [];
    return (
      all.some(shapes) || (all.some(isHook) && filtersOf(ifindex).some((filter) => !isOurFilter(filter)))
    );
  });
  return [...new Set([...shaped, ...withForeignTcx(linkPins, ifindexes)])].toSorted((a, b) => a - b);
}

/** Whether it holds no packets itself, but filters that run at the device's ingress or egress. */
export function isHook({ kind }: Pick<Qdisc, 'kind'>): boolean {
  return kind === 'clsact' || kind === 'ingress';
}

/** What the kernel gives a device by itself has no handle. */
export function shapes(qdisc: Pick<Qdisc, 'kind' | 'handle'>): boolean {
  return qdisc.handle !== 0 && qdisc.kind !== 'noqueue' && !isHook(qdisc);
}

/** Whether it is a program of ours, as before Linux 6.6, or the head of such a filter, which has no handle. */
export function isOurFilter({
  handle,
  priority,
  kind,
}: Pick<Filter, 'handle' | 'priority' | 'kind'>): boolean {
  return (
    kind === 'bpf' && priority === filterPlace.priority && (handle === filterPlace.handle || handle === 0)
  );
}
