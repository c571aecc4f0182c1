// SPDX-License-Identifier: Apache-2.0
/** Gives both labs the same host configurations and flows, and compares what each end of each flow has received. */
import { setTimeout as sleep } from 'node:timers/promises';
import { carriedBy } from '../differential.ts';
import { families, GATEWAYS, nodeNames, nodeOf, NODES, OUTSIDE, podNames, PODS, VTEPS } from '../plan.ts';
import { type Configuration, configurationOf, FLOWS } from './configuration.ts';
import { type Flow, type Phase, PHASES, type Place } from './flows.ts';
import type { Captured, HostLab } from './labs.ts';
import type { Served, Talked } from './talker.child.ts';

export type HostLabs = readonly [flannel: HostLab, ripstop: HostLab];

/** What the ends of a flow have seen: `client` and `server`, and TTL and DSCP of the packets at each. */
export type Seen = Readonly<Record<string, string>>;

/** A flow whose ends have not seen the same in both labs, in a phase. */
export interface HostDifference {
  readonly configuration: Configuration;
  readonly flow: Flow;
  readonly phase: Phase;
  /** What differs. */
  readonly what: readonly string[];
  readonly flannel: Seen;
  readonly ripstop: Seen;
}

/** Pods' packets that took the fast path, and all that might have. */
export interface Share {
  readonly fast: number;
  readonly all: number;
}

export interface HostReport {
  readonly configurations: number;
  /** Flows, each as often as it has talked: those of which all came back, and the others. */
  readonly flows: { readonly whole: number; readonly hindered: number };
  /** How often flannel's bridge made a difference. */
  readonly bridged: number;
  readonly differences: readonly HostDifference[];
  /** The numbers of configurations with a difference that did not recur when they were tried again. */
  readonly unrepeated: readonly number[];
  readonly share: Share;
  /** The same of phases without obstacles. */
  readonly plainShare: Share;
}

/** The agents have heard of a change by then. */
const HEARD_MS = 300;
/** The last packets, such as acknowledgements, have arrived by then. */
const LAST_MS = 30;
/** Each configuration's flows have local ports of their own; they come again when nothing of the first ones is left. */
const FIRST_PORT = 20_000;
const TURNS = 100;

/** Try configurations `first` … `first + count − 1` of the seed. @param onProgress gets the number done. */
export async function compareHosts(
  labs: HostLabs,
  { seed, first = 0, count }: { seed: number; first?: number; count: number },
  onProgress: (done: number) => void = () => {},
): Promise<HostReport> {
  const results: Result[] = [];
  const phases: Observed[] = [];
  const differences: HostDifference[] = [];
  const unrepeated: number[] = [];
  for (let done = 0; done < count; onProgress(++done)) {
    const configuration = configurationOf(seed, first + done);
    const observed = await tryOut(labs, configuration);
    const result = judge(configuration, observed);
    phases.push(...observed);
    results.push(result);
    if (result.differences.length === 0) continue;
    // On a busy machine a client may wait in vain in either lab. A real difference recurs.
    const second = judge(configuration, await tryOut(labs, configuration));
    const again = new Set(second.differences.map(keyOf));
    const recurring = result.differences.filter((difference) => again.has(keyOf(difference)));
    differences.push(...recurring);
    if (recurring.length < result.differences.length) unrepeated.push(configuration.number);
  }
  const sum = (key: 'whole' | 'hindered' | 'bridged'): number =>
    results.reduce((all, result) => all + result[key], 0);
  return {
    configurations: count,
    flows: { whole: sum('whole'), hindered: sum('hindered') },
    bridged: sum('bridged'),
    differences,
    unrepeated,
    share: sumOf(phases),
    plainShare: sumOf(phases.filter(({ isPlain }) => isPlain)),
  };
}

const sumOf = (phases: readonly Observed[]): Share => ({
  fast: phases.reduce((sum, { share }) => sum + share.fast, 0),
  all: phases.reduce((sum, { share }) => sum + share.all, 0),
});

const keyOf = ({ flow, phase, what, flannel, ripstop }: HostDifference): string =>
  [flow.number, phase, ...what.flatMap((key) => [key, flannel[key], ripstop[key]])].join('\n');

/** What was seen in a phase. */
interface Observed {
  readonly phase: Phase;
  readonly flows: readonly Flow[];
  /** By flow number. */
  readonly flannel: ReadonlyMap<number, Seen>;
  readonly ripstop: ReadonlyMap<number, Seen>;
  readonly share: Share;
  /** There were no obstacles. */
  readonly isPlain: boolean;
}

/** Bring a configuration to both labs, phase by phase, and see what becomes of its flows. */
async function tryOut(labs: HostLabs, configuration: Configuration): Promise<Observed[]> {
  const { obstacles, change } = configuration;
  const inForce = { 1: obstacles, 2: afterwards(configuration) };
  const observed: Observed[] = [];
  await Promise.all(labs.map((lab) => lab.begin(configuration)));
  try {
    for (const phase of PHASES) {
      if (phase === 2) await Promise.all(labs.map((lab) => lab.change(change)));
      await sleep(HEARD_MS);
      const flows = configuration.flows.filter(({ phases }) => phases.includes(phase));
      const before = shareOf(labs[1].name);
      const [flannel, ripstop] = await Promise.all([
        observe(labs[0], configuration, flows, phase),
        observe(labs[1], configuration, flows, phase),
      ]);
      const after = shareOf(labs[1].name);
      const share = { fast: after.fast - before.fast, all: after.all - before.all };
      observed.push({ phase, flows, flannel, ripstop, share, isPlain: inForce[phase].length === 0 });
    }
  } finally {
    await Promise.all(labs.map((lab) => lab.end()));
  }
  return observed;
}

interface Result {
  readonly differences: readonly HostDifference[];
  readonly whole: number;
  readonly hindered: number;
  readonly bridged: number;
}

/** Compare what was seen in the two labs. */
function judge(configuration: Configuration, observed: readonly Observed[]): Result {
  const differences: HostDifference[] = [];
  let [whole, hindered, bridged] = [0, 0, 0];
  for (const { phase, flows, ...seenIn } of observed)
    for (const flow of flows) {
      const [flannel, ripstop] = [seenIn.flannel.get(flow.number)!, seenIn.ripstop.get(flow.number)!];
      if (/(^|, )all answered$|(\d+) of \2 answered(, closed)?$/.test(flannel['client']!)) whole++;
      else hindered++;
      const all = Object.keys(flannel).filter((key) => flannel[key] !== ripstop[key]);
      const what = all.filter((key) => !isByBridge(flow, flannel, ripstop, key));
      bridged += all.length - what.length;
      if (what.length > 0) differences.push({ configuration, flow, phase, what, flannel, ripstop });
    }
  return { differences, whole, hindered, bridged };
}

/** The obstacles after the change. */
function afterwards({ obstacles, change }: Configuration) {
  if (change.what === 'added') return [...obstacles, change.obstacle];
  return change.what === 'removed' ? obstacles.filter((one) => one !== change.obstacle) : obstacles;
}

function shareOf(name: string): Share {
  let [fast, all] = [0, 0];
  for (const [counter, packets] of carriedBy(name)) {
    const [hook, reason] = counter.split(' ') as [string, string];
    if (!['from_pod', 'from_wire', 'xdp_from_wire'].includes(hook) || /kernel_not_(ip|vxlan)/.test(reason))
      continue;
    all += packets;
    if (reason.startsWith('fast_')) fast += packets;
  }
  return { fast, all };
}

async function observe(
  lab: HostLab,
  { number }: Configuration,
  flows: readonly Flow[],
  phase: Phase,
): Promise<Map<number, Seen>> {
  lab.captured();
  const firstPort = FIRST_PORT + (number % TURNS) * 100;
  const talk = flows.map((flow) => ({ flow, port: firstPort + 2 * (flow.number % FLOWS) }));
  const talked = await lab.talk({ talk, phase });
  await sleep(LAST_MS);
  const served = await lab.served();
  const packets = lab.captured();
  const describe = (isSized: boolean, isOfFlow: (packet: Captured) => boolean): string => {
    const all = packets.filter(
      (packet) => !packet.fragment && !((packet.tcpFlags ?? 0) & TCP_RST) && isOfFlow(packet),
    );
    const headers = [...new Set(all.map(({ ttl, tos }) => `ttl ${ttl} dscp ${tos >> 2}`))].toSorted();
    const size =
      isSized && all.length > 0 ? [`up to ${Math.max(...all.map(({ bytes }) => bytes))} bytes`] : [];
    return [...headers, ...size].join(', ');
  };
  return new Map(
    flows.map((flow) => {
      const client = talked.find((one) => one.flow === flow.number)!;
      const servers = served.filter((one) => one.flow === flow.number);
      const isPing = flow.protocol === 'ping';
      const isSized = flow.protocol !== 'tcp'; // of which there are super-packets
      return [
        flow.number,
        {
          client: client.outcome,
          server: isPing ? '' : describeServers(servers, client),
          'packets at the client': describe(
            isSized && !flow.messages.some(({ mayBeLost }) => mayBeLost),
            ({ at, src, dstPort, echoId }) =>
              at === flow.from && src === flow.address && (isPing ? echoId : dstPort) === client.port,
          ),
          'packets at the server': describe(isSized, ({ at, src, srcPort, dst, echoId }) =>
            isPing
              ? echoId === client.port && dst === flow.address
              : servers.some(({ by, peer, port }) => at === by && src === peer && srcPort === port),
          ),
        },
      ];
    }),
  );
}

const TCP_RST = 0x04;

function describeServers(servers: readonly (Served & { by: Place })[], client: Talked): string {
  return servers
    .map(({ by, peer, port, bytes, hash }) => {
      const from = `${nameOf(peer)}, ${port === client.port ? 'its own' : 'another'} port`;
      return `${by} got ${bytes} bytes (${hash.slice(0, 8)}) from ${from}`;
    })
    .toSorted()
    .join('; ');
}

/** Nodes have several addresses, and take one or the other for packets that are theirs. */
function nameOf(address: string): string {
  for (const family of families) {
    const pod = podNames.find((one) => PODS[family][one] === address);
    if (pod) return pod;
    const node = nodeNames.find((one) => [NODES, GATEWAYS, VTEPS].some((of) => of[family][one] === address));
    if (node) return node;
    if (address === OUTSIDE[family]) return 'outside';
  }
  return address;
}

/**
 * Whether a difference is of flannel's bridge. It joins the pods of a node, so a packet between them has a hop less. And it
 * drops IPv6 in silence that is translated to a destination to which no route leads, where ripstop's node sends an error.
 */
function isByBridge(flow: Flow, flannel: Seen, ripstop: Seen, key: string): boolean {
  const { protocol, family, from, to } = flow;
  const isPodName = (place: string): boolean => podNames.some((pod) => pod === place);
  const by = protocol === 'ping' ? to : flannel['server']!.split(' ')[0]!;
  const [one, other] = [flannel[key]!, ripstop[key]!];
  if (isPodName(from) && isPodName(by) && nodeOf(from) === nodeOf(by))
    return one.replaceAll(/ttl (\d+)/g, (_, ttl: string) => `ttl ${Number(ttl) - 1}`) === other;
  const isTranslated = isPodName(from) && /Service|^port/.test(to);
  return (
    family === 6 &&
    isTranslated &&
    key === 'client' &&
    other.replace(UNREACHABLE, '') === one.replace(': timeout', '')
  );
}

const UNREACHABLE = /[:,] (EACCES|EHOSTUNREACH|ENETUNREACH)$/;
