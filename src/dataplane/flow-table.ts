// SPDX-License-Identifier: Apache-2.0
/** How full the flow table is, how it has changed, and between whom packets go. */
import {
  addUp,
  type CarriedSums,
  type FlowCount,
  type FlowSums,
  type Networks,
  readCarried,
  scanFlowCounts,
} from './flow-sums.ts';
import { layout } from './layout.gen.ts';
import type { Tables } from './tables.ts';

/** Of one family, since the maps were made. */
export interface FlowChanges {
  readonly family: 'ipv4' | 'ipv6';
  /** Flows that were learned and not in the table before. */
  readonly added: number;
  /** Flows that were learned again. */
  readonly renewed: number;
  /** Flows that ended with their connections. */
  readonly removed: number;
  /** Flows that made room for others: what was added, was not removed, and is not there. */
  readonly evicted: number;
  /** Flows that are there. */
  readonly entries: number;
}

export interface FlowTable {
  /** IPv4 first. */
  readonly families: readonly FlowChanges[];
  /** Of the flows that are there. */
  readonly sums: FlowSums;
  /** What the kernel path has carried, since the maps were made. */
  readonly carried: CarriedSums;
}

type FlowTables = Pick<Tables, 'flows4' | 'flows6' | 'flow_changes' | 'carried' | 'endpoints' | 'endpoints6'>;

/** Reading takes no larger share of a core than this: a table that takes long to read is read less often. */
const SHARE = 0.01;
/** Nobody waits for a table that takes longer. */
const QUICK_MS = 20;

/**
 * Reads the flow table, of which the kernel does not even tell how many entries it has. A full one of the usual size takes
 * 200 ms. So what is returned may be old: of a small table a second, of a full one half a minute.
 */
export class FlowTableReader {
  #last:
    | { readonly of: FlowTables; readonly read: FlowTable; readonly tookMs: number; goodUntilMs: number }
    | undefined;

  /** @param networks of the programs. */
  read(tables: FlowTables, networks: Networks): FlowTable {
    const last = this.#last?.of === tables ? this.#last : undefined;
    if (!last) return this.#readNow(tables, networks);
    if (performance.now() < last.goodUntilMs) return last.read;
    if (last.tookMs <= QUICK_MS) return this.#readNow(tables, networks, last.read);
    // The next one to ask gets what is read now.
    last.goodUntilMs = Infinity;
    setImmediate(() => {
      if (this.#last === last && !tables.flows4.map.closed) this.#readNow(tables, networks, last.read);
    });
    return last.read;
  }

  #readNow(of: FlowTables, networks: Networks, last?: FlowTable): FlowTable {
    const beganMs = performance.now();
    const read = readFlowTable(of, networks, last);
    const endedMs = performance.now();
    const tookMs = endedMs - beganMs;
    this.#last = { of, read, tookMs, goodUntilMs: endedMs + tookMs / SHARE };
    return read;
  }
}

function readFlowTable(tables: FlowTables, networks: Networks, last: FlowTable | undefined): FlowTable {
  const changes = (['ipv4', 'ipv6'] as const).map((family) => readChanges(tables, family));
  const entries = { ipv4: 0, ipv6: 0 };
  const sums = addUp(counting(scanFlowCounts(tables, networks), entries));
  const families = changes.map(({ family, added, renewed, removed }, i) => {
    // Flows come and go while they are counted: the number must not seem to fall.
    const evicted = Math.max(last?.families[i]?.evicted ?? 0, added - removed - entries[family]);
    return { family, added, renewed, removed, evicted, entries: entries[family] };
  });
  return { families, sums, carried: readCarried(tables, networks) };
}

function* counting(
  flows: Iterable<FlowCount>,
  entries: Record<FlowChanges['family'], number>,
): Generator<FlowCount> {
  for (const flow of flows) {
    entries[flow.key.length === layout.structs.flow4.size ? 'ipv4' : 'ipv6']++;
    yield flow;
  }
}

function readChanges(tables: FlowTables, family: FlowChanges['family']) {
  const { FLOW_ADDED, FLOW_RENEWED, FLOW_REMOVED } = layout.enums.flow_change;
  const sum = (change: number): number =>
    (tables.flow_changes.getPerCpu(change) ?? []).reduce((total, count) => total + count[family], 0);
  return { family, added: sum(FLOW_ADDED), renewed: sum(FLOW_RENEWED), removed: sum(FLOW_REMOVED) };
}
