// SPDX-License-Identifier: Apache-2.0
import { hrtime } from 'node:process';
import type { Attachment } from '../../cni/attachments.ts';
import { readCounters } from '../../dataplane/counters.ts';
import { type Networks, readCounted } from '../../dataplane/flow-sums.ts';
import type { Tables } from '../../dataplane/tables.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { AgentStatus } from '../status.ts';
import { endsOf, type Overview, type OverviewFacts, overviewOf } from './overview.ts';
import { Paced } from './paced.ts';
import { podFacts } from './pods.ts';
import { ratesBetween, type TrafficReading } from './rates.ts';

/** Of a core: for what grows with the cluster and the flow table, and for all else. With HTTP, about 1 %. */
const ENDS_SHARE = 0.002;
const SHARE = 0.002;

/** What the overview is read from. */
export interface OverviewSource {
  readonly summary: () => OverviewFacts['summary'];
  readonly peers: () => AgentStatus['peers'];
  readonly attachments: () => Promise<readonly Attachment[]>;
  /** As of the last pass; undefined before there was one. */
  readonly node: () => NodeSnapshot | undefined;
  /** Undefined before programs were loaded. */
  readonly tables: () => Tables | undefined;
  /** As the programs have them. */
  readonly networks: () => Networks | undefined;
}

interface Traffic extends TrafficReading {
  readonly tables: Tables;
  readonly networks: Networks;
}

interface Ends {
  readonly ends: OverviewFacts['ends'];
  /** To compare the next reading with. */
  readonly traffic: Traffic | undefined;
}

/** Reads the overview while somebody looks. */
export class OverviewReader {
  readonly #source: OverviewSource;
  readonly #ends = new Paced<Ends>(ENDS_SHARE, (before) => this.#readEnds(before?.traffic));
  readonly #text: Paced<string>;
  #attachments: readonly Attachment[] = [];

  constructor(source: OverviewSource) {
    this.#source = source;
    this.#text = new Paced(SHARE, () => JSON.stringify(this.#readOverview()));
  }

  /** The overview as JSON; it changes at most once a second. */
  async text(): Promise<string> {
    this.#attachments = await this.#source.attachments();
    // On their own account, not on that of the text.
    this.#ends.get();
    return this.#text.get();
  }

  #readOverview(): Overview {
    const { summary, tables } = this.#source;
    const [{ ends }, there] = [this.#ends.get(), tables()];
    return overviewOf({ atMs: nowMs(), summary: summary(), ends, counters: there && readCounters(there) });
  }

  #readEnds(before: Traffic | undefined): Ends {
    const { node, peers } = this.#source;
    const traffic = this.#readTraffic();
    // Another table counts anew.
    const rates =
      before && traffic && before.tables === traffic.tables
        ? ratesBetween(before, traffic, traffic.networks)
        : undefined;
    return { ends: endsOf(podFacts(this.#attachments, node()), peers(), rates), traffic };
  }

  #readTraffic(): Traffic | undefined {
    const [tables, networks] = [this.#source.tables(), this.#source.networks()];
    if (!tables || !networks) return undefined;
    return { ...readCounted(tables, networks), atMs: nowMs(), tables, networks };
  }
}

/** CLOCK_MONOTONIC, which the agent's successor has too. */
function nowMs(): number {
  return Number(hrtime.bigint()) / 1e6;
}
