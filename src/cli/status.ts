// SPDX-License-Identifier: Apache-2.0
import type { AgentStatus } from '../agent/status.ts';
import { type Counter, readCounters, type Verdict } from '../dataplane/counters.ts';
import { watchedFunctions } from '../dataplane/changes.ts';
import { FLOW_LIFETIME_MS } from '../dataplane/desired.ts';
import { openTables, pinPaths } from '../dataplane/tables.ts';
import { listLinks, parseLinkKey } from '../dataplane/links.ts';
import { askAgent } from './ask-agent.ts';
import { readEndpoints, readPeers } from './rows.ts';
import { renderTable } from './table.ts';

export interface Status {
  /** Undefined when no agent runs. The pinned programs forward without one. */
  readonly agent?: AgentStatus;
  readonly attached: readonly {
    readonly hook: string;
    readonly device: string;
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
  /** Packets by verdict, of pod traffic only. */
  readonly packets: Readonly<Record<Verdict, number>>;
  /** The share of `fast`; undefined before the first packet. */
  readonly fastPercent?: number;
}

/** Gather everything that `ripstop status` shows. @throws RipstopError when nothing is pinned. */
export async function readStatus(bpffs: string, runDir: string): Promise<Status> {
  const agent = await askAgent(runDir);
  using tables = openTables(bpffs);
  const counters = readCounters(tables);
  const packets = sumByVerdict(counters.filter(isPodTraffic));
  const peers = readPeers(bpffs, agent);
  const all = packets.fast + packets.kernel + packets.drop;
  return {
    ...(agent && { agent }),
    attached: [...listLinks(pinPaths(bpffs).links)]
      .map(([pin, { ifindex, programId }]) => {
        const { hook, ifname } = parseLinkKey(pin);
        return { hook, device: ifname, programId, live: ifindex !== 0 };
      })
      .sort((a, b) => a.hook.localeCompare(b.hook) || a.device.localeCompare(b.device)),
    peers: peers.length,
    peersWithoutFastPath: peers.filter(({ fastPath }) => !fastPath).length,
    endpoints: (await readEndpoints(bpffs, runDir)).length,
    flows: [...tables.flows4.keys()].length + [...tables.flows6.keys()].length,
    watched: watchedFunctions(pinPaths(bpffs).changes),
    packets,
    ...(all > 0 && { fastPercent: Math.round((packets.fast / all) * 1000) / 10 }),
  };
}

/** Whether it counts packets from or to pods. ARP and the node's own traffic only pass the hooks. */
function isPodTraffic({ hook, reason }: Counter): boolean {
  if (reason === 'not_ip' || reason === 'not_vxlan') return false;
  return hook === 'from_pod' || hook === 'from_wire';
}

function sumByVerdict(counters: readonly Counter[]): Record<Verdict, number> {
  const sums: Record<Verdict, number> = { fast: 0, kernel: 0, drop: 0 };
  for (const { verdict, packets } of counters) sums[verdict] += packets;
  return sums;
}

/** How many failures of a target are shown; the rest is in the JSON. */
const FAILURES_SHOWN = 3;

/** The status as one screen of text. */
export function renderStatus(status: Status): string {
  const { agent, packets } = status;
  const lines: [string, string][] = [];
  if (agent) {
    lines.push([
      'node',
      `${agent.node}, mode ${agent.mode}, ${agent.ready ? 'ready' : `NOT READY: ${agent.notReady}`}`,
    ]);
    if (agent.uplink) lines.push(['uplink', `${agent.uplink.explanation}, MTU ${agent.uplink.mtu}`]);
    for (const { podCidr, network, vtep } of agent.families) {
      lines.push(['podCIDR', `${podCidr} of ${network}`]);
      lines.push([
        'VTEP',
        vtep.device ? `${vtep.device} ${vtep.mac} at ${vtep.ip}` : `${vtep.ip}, no tunnels`,
      ]);
    }
    if (agent.ingress) lines.push(['ingress', `${agent.ingress.hook}: ${agent.ingress.why}`]);
    lines.push(['API watch', describeWatch(agent)]);
    if (agent.api.lastKnownAgeMs !== undefined) {
      const age = Math.round(agent.api.lastKnownAgeMs / 1000);
      lines.push(['LAST KNOWN', `runs on the last-known state, ${age} s old, until the API server answers`]);
    }
    lines.push([
      'passes',
      `${agent.passes.count}, the last took ${agent.passes.lastDurationMs} ms, ${agent.passes.errors} errors`,
    ]);
    for (const { name, failures } of agent.targets)
      for (const { key, why } of failures.slice(0, FAILURES_SHOWN))
        lines.push(['ERROR', `${name} ${key}: ${why}`]);
    for (const { node, reason } of agent.alarms) lines.push(['ALARM', `${node}: ${reason}`]);
  } else {
    lines.push(['agent', 'not running (the pinned programs forward without it)']);
  }
  const { peersWithoutFastPath: without } = status;
  lines.push([
    'peers',
    `${status.peers}${without > 0 ? `, ${without} of them on the kernel path alone` : ''}`,
  ]);
  lines.push(['endpoints', `${status.endpoints}`], ['flows', `${status.flows}`]);
  lines.push(['changes', describeWatched(status.watched)]);
  lines.push([
    'packets',
    `${packets.fast} fast, ${packets.kernel} kernel path, ${packets.drop} dropped` +
      (status.fastPercent === undefined ? '' : ` (${status.fastPercent} % fast)`),
  ]);
  const width = Math.max(...lines.map(([name]) => name.length)) + 2;
  const head = lines.map(([name, text]) => `${name.padEnd(width)}${text}\n`).join('');
  const attached = renderTable(
    [
      { title: 'HOOK', value: (row) => row.hook },
      { title: 'DEVICE', value: (row) => row.device },
      { title: 'PROGRAM', align: 'right', value: (row) => row.programId },
      { title: 'STATE', value: (row) => (row.live ? 'attached' : 'device gone') },
    ],
    status.attached,
  );
  return `${head}\n${attached}`;
}

/** How long it takes until a change of rules or routes stops an established flow. */
function describeWatched(watched: readonly string[]): string {
  if (watched.length > 0)
    return `at once, also without an agent (${watched.length} functions of the kernel watched)`;
  const seconds = FLOW_LIFETIME_MS / 1000;
  return `with the agent's next event; without one, and of iptables-legacy and ipset, within ${seconds} s`;
}

function describeWatch({ api }: AgentStatus): string {
  const age =
    api.lastEventAgeMs === undefined ? '' : `, last event ${Math.round(api.lastEventAgeMs / 1000)} s ago`;
  if (api.connected) return `connected${api.synced ? '' : ', waiting for the first list'}${age}`;
  return `NOT CONNECTED${age}${api.lastError === undefined ? '' : `: ${api.lastError}`}`;
}
