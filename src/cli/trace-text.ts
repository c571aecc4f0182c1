// SPDX-License-Identifier: Apache-2.0
/** A trace and the kernel's answer, for people. */
import { EXPLANATIONS } from '../dataplane/explanations.ts';
import { type KernelAnswer, type NextHop, tableName } from '../host/kernel-answer.ts';
import { hexDump } from '../net/dissect.ts';
import { flowText, type Lookup } from './lookups.ts';
import type { Hop, Trace } from './trace.ts';

/** Bytes of a frame that are shown: headers, and some of the payload. */
const SHOWN = 128;
/** Flows that are listed. */
const LISTED = 10;

function line(title: string, text: string): string {
  return `  ${title.padEnd(11)}${text}\n`;
}

export function renderTrace({ packet, bytes, knownFlows, hops, kernel }: Trace): string {
  return [
    `packet     ${packet} (${bytes} bytes)\n`,
    ...(knownFlows.length > 0
      ? [`flows of this pair, the youngest first; the packet is of the first\n${renderFlows(knownFlows)}`]
      : []),
    ...hops.map(renderHop),
    ...(kernel ? [`\nkernel path: what the kernel tells of it\n${renderKernel(kernel)}`] : []),
  ].join('');
}

export function renderFlows(flows: readonly Lookup[]): string {
  const more = flows.length > LISTED ? [line('', `and ${flows.length - LISTED} more`)] : [];
  return [...flows.slice(0, LISTED).map(renderLookup), ...more].join('');
}

export function renderHop({
  hook,
  device,
  program,
  lookups,
  verdict,
  reason,
  goes,
  leaves,
  frame,
}: Hop): string {
  if (!program) return `\n${hook} on ${device}: no program is attached, so packets take the kernel path\n`;
  const all = Buffer.from(frame, 'hex');
  const more = all.length > SHOWN ? [line('', `and ${all.length - SHOWN} bytes more`)] : [];
  return [
    `\n${hook} on ${device} (program ${program.id}, tag ${program.tag}, run by BPF_PROG_TEST_RUN)\n`,
    ...lookups.map(renderLookup),
    line('verdict', [verdict, reason, EXPLANATIONS[reason ?? '']].filter(Boolean).join(', ')),
    ...(goes === undefined ? [] : [line('goes', goes)]),
    line('leaves', leaves),
    ...hexDump(all.subarray(0, SHOWN)).map((text, i) => line(i === 0 ? 'bytes' : '', text)),
    ...more,
  ].join('');
}

export function renderLookup({ map, key, says }: Lookup): string {
  return line(map, `[${key}] ${says ?? 'no entry'}`);
}

export function renderKernel(answer: KernelAnswer): string {
  const { destination, route, rules, tunnel, connection, chains } = answer;
  return [
    ...rules.map((rule, i) => line(i === 0 ? 'rules' : '', rule)),
    line('route', `${destination} ${'error' in route ? `none: ${route.error}` : routeText(route)}`),
    ...(tunnel
      ? [
          line(
            'tunnel',
            `VTEP ${tunnel.vtepIp ?? 'unknown'} (${tunnel.vtepMac})${tunnel.outer ? ` ${hopText(tunnel.outer)}` : ''}`,
          ),
        ]
      : []),
    ...(connection === undefined
      ? []
      : [line('conntrack', connection ? connectionText(connection) : 'knows no connection of it')]),
    ...chains.map((chain, i) => line(i === 0 ? 'chains' : '', chain)),
  ].join('');
}

function routeText(route: Exclude<KernelAnswer['route'], { error: string }>): string {
  const { type, table, mtu, device, gateway, neighbour } = route;
  const hop =
    device === undefined
      ? ''
      : ` ${hopText({ device, ...(gateway && { gateway }), ...(neighbour && { neighbour }) })}`;
  const kind = type === 'unicast' ? '' : `${type} `;
  return `${kind}table ${tableName(table)}${hop}${mtu === undefined ? '' : ` mtu ${mtu}`}`;
}

function hopText({ device, gateway, neighbour }: NextHop): string {
  const via = gateway === undefined ? '' : `via ${gateway} `;
  return `${via}dev ${device}${neighbour ? ` (${neighbour.mac} ${neighbour.state})` : ''}`;
}

function connectionText({
  original,
  reply,
  status,
  state,
  timeoutSeconds,
}: NonNullable<KernelAnswer['connection']>): string {
  const tuple = (one: typeof original): string =>
    flowText({ ...one, src_port: one.srcPort, dst_port: one.dstPort });
  const facts = [state, ...status, timeoutSeconds !== undefined && `${timeoutSeconds} s left`].filter(
    Boolean,
  );
  return `${tuple(original)}; answers ${tuple(reply)}; ${facts.join(', ')}`;
}
