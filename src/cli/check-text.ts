// SPDX-License-Identifier: Apache-2.0
/** A check's report for people: the matrix, then what failed. */
import type { Failure, Report } from '../check/report.ts';
import { stripVTControlCharacters } from 'node:util';
import { DNS } from '../check/report.ts';
import { type Column, renderTable } from './table.ts';

/** So many failures are listed without `-o wide`. */
const LISTED = 20;

/** @param width of the terminal, characters; on one that is too narrow for the nodes' names columns have numbers. */
export function renderReport(report: Report, isWide: boolean, width = Infinity): string {
  const { nodes, sample, notReady, skipped } = report;
  return [
    ...(report.probes > 0 ? [renderMatrix(report, width), `\n${summary(report)}\n`] : []),
    ...(sample
      ? [
          `${nodes.length} of ${sample.of} nodes, drawn at random; the same ones again: --sample ${nodes.length} --seed ${sample.seed}\n`,
        ]
      : []),
    ...notReady.map(({ node, why }) => `not tried: ${node}: ${why}\n`),
    renderFailures(report.failures, isWide),
    ...skipped.map(
      ({ kind, node, why }) => `skipped: ${[kind, node].filter(Boolean).join(' of ')}: ${why}\n`,
    ),
  ].join('');
}

function summary({ where, nodes, probes, failed, again }: Report): string {
  const all = `${probes} probes between ${nodes.length} ${nodes.length === 1 ? 'node' : 'nodes'} of ${where}`;
  const twice = again === 0 ? '' : `; ${again} passed only when they were sent again`;
  return `${all}: ${failed === 0 ? 'all passed' : `${failed} failed`}${twice}`;
}

function renderMatrix({ matrix, nodes }: Report, width: number): string {
  const rows = Object.entries(matrix);
  const last = rows.some(([, cells]) => DNS in cells) ? [DNS] : [];
  const columnsOf = (
    title: (node: string, i: number) => string,
  ): Column<[string, Record<string, string>]>[] => [
    { title: 'FROM \\ TO', value: ([node]) => title(node, nodes.indexOf(node)) },
    ...[...nodes, ...last].map((to, i): Column<[string, Record<string, string>]> => ({
      title: to === DNS ? 'DNS' : title(to, i),
      value: ([, cells]) => cells[to],
      color: ([, cells]) => (cells[to] === undefined ? undefined : cells[to] === 'ok' ? 'green' : 'red'),
    })),
  ];
  const named = columnsOf((node) => node);
  const length = nodes.length + last.length;
  const lines = stripVTControlCharacters(renderTable(named, rows)).split('\n');
  const needed = Math.max(...lines.map((line) => line.length));
  if (needed <= width || length === 0) return renderTable(named, rows);
  const [first, ...others] = columnsOf((_, i) => String(i + 1));
  return renderTable(
    [{ ...first!, value: ([node]) => `${nodes.indexOf(node) + 1} ${node}` }, ...others],
    rows,
  );
}

function renderFailures(failures: readonly Failure[], isWide: boolean): string {
  const told = isWide ? failures : failures.filter(({ follows }) => !follows).slice(0, LISTED);
  if (told.length === 0) return '';
  const columns: Column<Failure>[] = [
    { title: 'FAILED', value: ({ kind, protocols }) => `${kind} (${protocols.join(', ')})` },
    { title: 'FROM', value: ({ from }) => from },
    { title: 'TO', value: ({ to }) => to },
    { title: 'LIKELY CAUSE', value: ({ cause }) => cause },
    { title: 'RUN NEXT', value: ({ next }) => next },
    { title: 'THE SYSTEM SAYS', wide: true, value: ({ detail }) => detail },
  ];
  const more = failures.length - told.length;
  return `\n${renderTable(columns, told, isWide)}${more > 0 ? `and ${more} more: -o wide\n` : ''}\n`;
}
