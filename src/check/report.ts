// SPDX-License-Identifier: Apache-2.0
/** What a check has found, as a value. Pure. */
import { diagnose, type Finding } from './diagnose.ts';
import type { Kind, Skipped } from './plan.ts';
import type { Failed, Result } from './run.ts';

/** A node on which the test pods did not start. */
export interface Unready {
  readonly node: string;
  readonly why: string;
}

export interface Report {
  /** What was checked: `lab demo`, `context prod`. */
  readonly where: string;
  /** The nodes that took part. */
  readonly nodes: readonly string[];
  /** If they were drawn at random: of how many, and by which seed. */
  readonly sample?: { readonly of: number; readonly seed: number };
  readonly probes: number;
  readonly failed: number;
  /** Passed only when they were sent again. */
  readonly again: number;
  /** By the sender's node, then by the receiver's, or `dns`: `ok`, or what failed. */
  readonly matrix: Readonly<Record<string, Readonly<Record<string, string>>>>;
  readonly failures: readonly Failure[];
  readonly notReady: readonly Unready[];
  readonly skipped: readonly Skipped[];
  readonly results: readonly object[];
}

export interface Failure {
  readonly kind: Kind;
  readonly protocols: readonly string[];
  readonly from: string;
  readonly to?: string;
  readonly way: 'there' | 'back';
  readonly cause: string;
  /** Another failure between these nodes explains it. */
  readonly follows: boolean;
  readonly next: string;
  readonly detail?: string;
}

/** The column of probes that go to no node. */
export const DNS = 'dns';

interface About {
  readonly where: string;
  readonly nodes: readonly string[];
  readonly sample?: NonNullable<Report['sample']>;
  readonly notReady: readonly Unready[];
  readonly skipped: readonly Skipped[];
  readonly next: (failed: Failed) => string;
}

export function reportOf(results: readonly Result[], { next, ...about }: About): Report {
  const findings = diagnose(results);
  return {
    ...about,
    probes: results.length,
    failed: results.filter(({ outcome }) => outcome.failure).length,
    again: results.filter(({ again }) => again).length,
    matrix: matrixOf(about.nodes, results, findings),
    failures: findings.map(({ failed, from, to, ...rest }) => ({
      ...rest,
      from: from.name,
      ...(to && { to: to.name }),
      next: next(failed),
    })),
    results: results.map(({ kind, from, to, probe, outcome, arrived, again }) => {
      const { protocol, ...where } = { name: undefined, address: undefined, token: undefined, ...probe };
      return {
        kind,
        protocol,
        from: from.name,
        fromNode: from.node,
        ...(to && { to: to.name, toNode: to.node }),
        target: where.address ?? where.name,
        passed: outcome.failure === undefined,
        ...outcome,
        ...(arrived !== undefined && { arrived }),
        ...(again && { again }),
      };
    }),
  };
}

function matrixOf(
  nodes: readonly string[],
  results: readonly Result[],
  findings: readonly Finding[],
): Report['matrix'] {
  const pairOf = ({ from, to }: Result | Finding): string => `${from.node} ${to?.node ?? DNS}`;
  const tried = Map.groupBy(results, pairOf);
  const found = Map.groupBy(findings, pairOf);
  const columns = [...nodes, ...(results.some(({ to }) => !to) ? [DNS] : [])];
  const senders = nodes.filter((node) => results.some(({ from }) => from.node === node));
  return Object.fromEntries(
    senders.map((from) => [
      from,
      Object.fromEntries(
        columns.flatMap((to) => {
          const all = tried.get(`${from} ${to}`);
          return all ? [[to, cellOf(all, found.get(`${from} ${to}`) ?? [])]] : [];
        }),
      ),
    ]),
  );
}

/** `ok`, or the kinds that failed, with their protocols where others have passed. */
function cellOf(tried: readonly Result[], findings: readonly Finding[]): string {
  if (findings.length === 0) return 'ok';
  const roots = findings.filter(({ follows }) => !follows);
  const shown = roots.length > 0 ? roots : findings;
  if (shown.every(({ way }) => way === 'back')) return 'answers lost';
  return shown
    .map(({ kind, protocols }) => {
      const ofKind = tried.filter((one) => one.kind === kind);
      const isTotal = ofKind.every(({ outcome }) => outcome.failure);
      return isTotal ? kind : `${kind}/${protocols.map((one) => one.replace(' over IPv', '')).join('+')}`;
    })
    .join(',');
}
