// SPDX-License-Identifier: Apache-2.0
/** Programs, filters and qdiscs of others on the devices that ripstop's programs are on. */
import { BpfProgram, programsAt } from '#libbpf-ts';
import { listLinks } from '../../dataplane/links.ts';
import { openNetlink } from '../../host/netlink.ts';
import { isHook, isOurFilter, shapes } from '../../host/shaping.ts';
import { listFilters, listQdiscs, TC_H } from '#netlink';
import type { Facts } from './facts.ts';

type Stranger = Facts['strangers'][number];
interface Device {
  readonly name: string;
  readonly ifindex: number;
  readonly role: Stranger['role'];
}

/** @param linkPins where our own links are pinned. */
export function findStrangers(devices: readonly Device[], linkPins: string): Stranger[] {
  const ours = new Set([...listLinks(linkPins).values()].map(({ programId }) => programId));
  using socket = openNetlink({});
  const qdiscs = Map.groupBy(listQdiscs(socket), ({ ifindex }) => ifindex);
  return devices.flatMap(({ name, ifindex, role }) => {
    const stranger = (what: string, kind: Stranger['kind']): Stranger => ({ device: name, role, what, kind });
    const all = qdiscs.get(ifindex) ?? [];
    const found: Stranger[] = (['ingress', 'egress'] as const).flatMap((direction) =>
      programsAt(ifindex, `tcx_${direction}`)
        .filter((id) => !ours.has(id))
        .map((id) => stranger(`${programName(id)} (tcx ${direction})`, 'program')),
    );
    for (const direction of all.some(isHook) ? (['ingress', 'egress'] as const) : []) {
      // The head of a chain of filters has no handle.
      const others = listFilters(socket, ifindex, TC_H[direction]).filter(
        (filter) => filter.handle !== 0 && !isOurFilter(filter),
      );
      for (const { kind, bpf } of others)
        found.push(
          bpf
            ? stranger(`${bpf.name} (tc ${direction})`, 'program')
            : stranger(`a ${kind} filter (tc ${direction})`, 'shaping'),
        );
    }
    // A queue of its own is how a NIC works, and how the fast path leaves it too.
    const shaping = role === 'uplink' ? [] : all.filter(shapes);
    return [...found, ...shaping.map(({ kind }) => stranger(`${kind} (qdisc)`, 'shaping'))];
  });
}

function programName(id: number): string {
  try {
    using program = BpfProgram.fromId(id);
    return program.info.name || `program ${id}`;
  } catch {
    return `program ${id}`;
  }
}
