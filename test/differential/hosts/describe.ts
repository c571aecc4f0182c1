// SPDX-License-Identifier: Apache-2.0
/** The report of the host configurations as text. */
import type { HostDifference, HostReport, Share } from './compare.ts';
import type { Change, Configuration } from './configuration.ts';
import type { Flow } from './flows.ts';
import { SERVICES } from './flows.ts';

/** The number of differences that are shown of a configuration. */
const MAX_DIFFERENCES = 10;

const percent = ({ fast, all }: Share): string => `${all === 0 ? 0 : Math.round((100 * fast) / all)} %`;

export function describeHosts({
  configurations,
  flows,
  bridged,
  differences,
  unrepeated,
  share,
  plainShare,
}: HostReport): string {
  return [
    `${configurations} host configurations; ${flows.whole} flows had all answers, ${flows.hindered} had not`,
    `ripstop carried fast ${percent(share)} of ${share.all} packets, ${percent(plainShare)} of ${plainShare.all} without obstacles`,
    `${bridged} times flannel’s bridge made a difference: packets had a hop less, or there was no error`,
    ...(unrepeated.length > 0
      ? [`tried again, and then without a difference that was there before: ${unrepeated.join(' ')}`]
      : []),
    `${differences.length} differences`,
  ].join('\n');
}

/** The differences, configuration by configuration; empty when there are none. */
export function describeHostFaults({ differences }: HostReport, seed: number): string {
  return [...Map.groupBy(differences, ({ configuration }) => configuration)]
    .map(([configuration, all]) =>
      [
        `configuration ${configuration.number} of seed ${seed}`,
        `  again: npm run differential -- --hosts 1 --seed ${seed} --first ${configuration.number}`,
        ...describeConfiguration(configuration).map((text) => `  ${text}`),
        ...all
          .slice(0, MAX_DIFFERENCES)
          .flatMap(describeDifference)
          .map((text) => `  ${text}`),
        ...(all.length > MAX_DIFFERENCES ? [`  … and ${all.length - MAX_DIFFERENCES} more`] : []),
      ].join('\n'),
    )
    .join('\n\n');
}

function describeConfiguration({ kubeProxy, backends, obstacles, change }: Configuration): string[] {
  const services = (of: Configuration['backends']): string =>
    SERVICES.map((service) => `Service ${service} → ${of[service] ?? 'nobody'}`).join(', ');
  const changed = (one: Change): string =>
    one.what === 'services'
      ? services(one.backends)
      : `${one.what} on ${one.obstacle.node}: ${one.obstacle.add}`;
  return [
    `kube-proxy in ${kubeProxy} mode, ${services(backends)}`,
    ...obstacles.map(({ node, add }) => `on ${node}: ${add}`),
    `change: ${changed(change)}`,
  ];
}

function describeDifference({ flow, phase, what, flannel, ripstop }: HostDifference): string[] {
  return [
    `flow ${describeFlow(flow)}, ${phase === 1 ? 'before' : 'after'} the change:`,
    ...Object.keys(flannel).flatMap((key) =>
      what.includes(key)
        ? [`  ${key}: flannel: ${flannel[key]}`, `  ${key}: ripstop: ${ripstop[key]}`]
        : [`  ${key}: ${flannel[key]}`],
    ),
  ];
}

function describeFlow({ number, protocol, family, from, to, address, port, messages, tos }: Flow): string {
  const sizes = messages.map(({ bytes, ttl }) => `${bytes}${ttl ? ` with ttl ${ttl}` : ''}`);
  const said = protocol === 'ping' ? `${messages.length} × ${sizes[0]}` : sizes.join(' ');
  return `${number}: ${protocol} over IPv${family}, ${from} → ${to} (${address}, ${port}), tos ${tos}, bytes ${said}`;
}
