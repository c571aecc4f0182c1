// SPDX-License-Identifier: Apache-2.0
import { readInvalidations } from '../dataplane/changes.ts';
import { readCounters } from '../dataplane/counters.ts';
import { FlowTableReader } from '../dataplane/flow-table.ts';
import type { LoadedPrograms } from '../dataplane/programs.ts';
import { mapNames } from '../dataplane/tables.ts';
import type { TargetStatus } from '../reconcile/reconciled.ts';
import type { MapFacts } from './metrics.ts';

/** The maps that the agent alone fills, each as the target of that name. */
const FILLED: ReadonlySet<string> = new Set(['vteps', 'peers', 'peers6', 'endpoints', 'endpoints6']);

/** Reads what the metrics need of the maps. */
export class MapReader {
  readonly #flows = new FlowTableReader();

  read({ tables, networks }: LoadedPrograms, targets: readonly TargetStatus[]): MapFacts {
    const flows = this.#flows.read(tables, networks);
    const filled = targets.filter(({ name }) => FILLED.has(name));
    return {
      flows,
      counters: readCounters(tables),
      invalidations: readInvalidations(tables),
      entries: new Map([
        ...flows.families.map(
          ({ family, entries }) => [family === 'ipv4' ? 'flows4' : 'flows6', entries] as const,
        ),
        ...filled.map(
          ({ name, desired, pending, failures }) => [name, desired - pending - failures.length] as const,
        ),
      ]),
      maxEntries: new Map(mapNames.map((map) => [map, tables[map].map.info.maxEntries])),
    };
  }
}
