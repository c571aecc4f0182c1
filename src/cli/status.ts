// SPDX-License-Identifier: Apache-2.0
import { agentProblems, describeWatch, type Problem } from '../agent/problems.ts';
import type { AgentStatus } from '../agent/status.ts';
import { readCounters } from '../dataplane/counters.ts';
import { fastPercentOf, packetsBetweenPods, type PacketsByVerdict } from '../dataplane/pod-traffic.ts';
import { watchedFunctions } from '../dataplane/changes.ts';
import { FLOW_LIFETIME_MS } from '../dataplane/desired.ts';
import { openTables, pinPaths } from '../dataplane/tables.ts';
import { listLinks, parseLinkKey } from '../dataplane/links.ts';
import { askAgent } from './ask-agent.ts';
import { readEndpoints, readPeers } from './rows.ts';
import { colored, renderTable } from './table.ts';

export interface Status {
  /** Undefined when no agent runs. The pinned programs forward without one. */
  readonly agent?: AgentStatus;
  readonly attached: readonly {
    readonly hook: string;
    readonly device: string;
    /** The program hangs at the hook of the netkit's peer, not at tc ingress. */
    readonly netkit?: true;
    readonly programId: number;
    readonly live: boolean;
  }[];
  readonly peers: number;
  /** How many of them the kernel path alone serves. */
  readonly peersWithoutFastPath: number;
  readonly endpoints: number;
  readonly flows: number;
  /** The functions of the kernel whose changes invalidate all flows at once, whether an agent runs or not. */
  readonly watched: readonly string[];
  /** Packets between pods, since the maps were made. */
  readonly packets: PacketsByVerdict;
  /** The share of `fast` in what was carried; undefined before the first packet. */
  readonly fastPercent?: number;
}

/** Gather everything that `ripstop status` shows. @throws RipstopError when nothing is pinned. */
export async function readStatus(bpffs: string, runDir: string): Promise<Status> {
  const agent = await askAgent(runDir);
  using tables = openTables(bpffs);
  const packets = packetsBetweenPods(readCounters(tables));
  const fastPercent = fastPercentOf(packets);
  const peers = readPeers(bpffs, agent);
  return {
    ...(agent && { agent }),
    attached: [...listLinks(pinPaths(bpffs).links)]
      .map(([pin, { ifindex, programId, netkit }]) => {
        const { hook, ifname } = parseLinkKey(pin);
        return { hook, device: ifname, ...(netkit && { netkit }), programId, live: ifindex !== 0 };
      })
      .sort((a, b) => a.hook.localeCompare(b.hook) || a.device.localeCompare(b.device)),
    peers: peers.length,
    peersWithoutFastPath: peers.filter(({ fastPath }) => !fastPath).length,
    endpoints: (await readEndpoints(bpffs, runDir)).length,
    flows: [...tables.flows4.keys()].length + [...tables.flows6.keys()].length,
    watched: watchedFunctions(pinPaths(bpffs).changes),
    packets,
    ...(fastPercent !== undefined && { fastPercent }),
  };
}

type Line = Problem;

/** What a person must look at; none when all is well. */
export function problemsOf({ agent, attached }: Status): Line[] {
  if (!agent) return [['agent', 'NOT RUNNING (the pinned programs forward without it)']];
  const lines = agentProblems(agent);
  const gone = attached.filter(({ live }) => !live).map(({ hook, device }) => `${hook} of ${device}`);
  if (gone.length > 0) lines.push(['DETACHED', `${gone.join(', ')}: the device is gone`]);
  return lines;
}

/** The status as one screen of text: what a person must look at first. */
export function renderStatus(status: Status): string {
  const problems = problemsOf(status);
  const lines: Line[] = [...problems, ...agentLines(status.agent), ...dataPlaneLines(status)];
  const width = Math.max(...lines.map(([name]) => name.length)) + 2;
  const head = lines.map(([name, text], i) => {
    const line = `${name.padEnd(width)}${text}`;
    return `${colored(i < problems.length ? 'red' : undefined, line)}\n`;
  });
  const attached = renderTable(
    [
      { title: 'HOOK', value: ({ hook, netkit }) => (netkit ? `${hook} (netkit)` : hook) },
      { title: 'DEVICE', value: (row) => row.device },
      { title: 'PROGRAM', align: 'right', value: (row) => row.programId },
      {
        title: 'STATE',
        value: (row) => (row.live ? 'attached' : 'device gone'),
        color: (row) => (row.live ? undefined : 'red'),
      },
    ],
    status.attached,
  );
  return `${head.join('')}\n${attached}`;
}

function agentLines(agent: AgentStatus | undefined): Line[] {
  if (!agent) return [];
  const { uplink, families, ingress, podDevice, api, passes } = agent;
  const lines: Line[] = [['node', `${agent.node}, mode ${agent.mode}${agent.ready ? ', ready' : ''}`]];
  if (uplink) lines.push(['uplink', `${uplink.explanation}, MTU ${uplink.mtu}`]);
  for (const { podCidr, network, vtep } of families) {
    const { device, mac, ip } = vtep;
    lines.push(['podCIDR', `${podCidr} of ${network}`]);
    lines.push(['VTEP', device ? `${device} ${mac} at ${ip}` : `${ip}, no tunnels`]);
  }
  if (ingress) lines.push(['ingress', `${ingress.hook}: ${ingress.why}`]);
  if (podDevice) lines.push(['pod device', `${podDevice.kind}: ${podDevice.why}`]);
  if (api.connected) lines.push(['API watch', describeWatch(agent)]);
  const { count, lastDurationMs, errors } = passes;
  return [...lines, ['passes', `${count}, the last took ${lastDurationMs} ms, ${errors} errors`]];
}

function dataPlaneLines(status: Status): Line[] {
  const { peersWithoutFastPath: without, packets, fastPercent, agent } = status;
  const lines: Line[] = [
    ['peers', `${status.peers}${without > 0 ? `, ${without} of them on the kernel path alone` : ''}`],
    ['endpoints', `${status.endpoints}`],
    ['flows', `${status.flows}`],
    ['changes', describeWatched(status.watched)],
    ['packets', `${packetsText(packets, fastPercent)}, between pods`],
  ];
  const { recent } = agent ?? {};
  if (!recent || recent.seconds === 0) return lines;
  const rate = (recent.fast + recent.kernel) / recent.seconds;
  const perSecond = `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} per second`;
  return [
    ...lines,
    ['', `${packetsText(recent, fastPercentOf(recent))} in the last ${recent.seconds} s: ${perSecond}`],
  ];
}

function packetsText({ fast, kernel, drop }: PacketsByVerdict, percent: number | undefined): string {
  const share = percent === undefined ? '' : ` (${percent} % fast)`;
  return `${fast} fast, ${kernel} kernel path, ${drop} dropped${share}`;
}

/** How long it takes until a change of rules or routes stops an established flow. */
function describeWatched(watched: readonly string[]): string {
  if (watched.length > 0)
    return `at once, also without an agent (${watched.length} functions of the kernel watched)`;
  const seconds = FLOW_LIFETIME_MS / 1000;
  return `with the agent's next event; without one, and of iptables-legacy and ipset, within ${seconds} s`;
}
