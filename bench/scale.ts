// SPDX-License-Identifier: Apache-2.0
/**
 * What it costs an agent to follow a large cluster: time, memory and CPU at 1,000, 5,000 and 15,000 Nodes. See
 * README.md for the flags and how to read the results.
 */
import { fork, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { buildAgent } from '../scripts/build-agent.ts';
import { renderTable } from '../src/cli/table.ts';
import { errorText, RipstopError } from '../src/errors.ts';
import { type Datapath, labDown, type NodeState, parseLabOptions, removeNode } from '../src/lab/index.ts';
import { createKubeNode } from '../src/lab/kube.ts';
import { isAlive, netnsPath, signalProcess } from '../src/lab/netns.ts';
import { setUpRipstop, startAgent, stopAgent } from '../src/lab/ripstop.ts';
import { createLab, type Lab, nodeDir, planNode, saveLab } from '../src/lab/state.ts';
import { createNodeNetns, createUnderlay } from '../src/lab/underlay.ts';
import { renderSvg, writePng } from './charts.ts';
import {
  appliedIn,
  cpuSeconds,
  KernelWatch,
  memoryOf,
  missing,
  passesOf,
  type Place,
  scrapeCost,
} from './scale-measure.ts';
import { CLUSTER_NETWORK, leaseOf } from './scale-nodes.ts';
import {
  chartOf,
  type Figures,
  judge,
  renderReport,
  type ScaleResult,
  scaleColumns,
  verdictColumns,
} from './scale-report.ts';
import type { Listed, Orders } from './scale-server.ts';

const { values: flags } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    sizes: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    flanneld: { type: 'string' },
    sources: { type: 'boolean', default: false },
  },
});

const BURST = 1000;
const BEATS_PER_SECOND = 50;
/** So long nothing may have changed for a state to count as final. */
const QUIET_MS = 2500;
const DEADLINE_MS = 120_000;

function say(text: string): void {
  const seconds = Math.round(performance.now() / 1000);
  process.stderr.write(
    `scale ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}  ${text}\n`,
  );
}

/** The server's process, to be told what to do. */
class Server {
  readonly #child: ReturnType<typeof fork>;
  readonly #open = new Map<number, PromiseWithResolvers<unknown>>();
  #last = 0;

  private constructor(lab: Lab) {
    const log = openSync(join(lab.dir, 'apiserver.log'), 'a', 0o600);
    this.#child = fork(join(import.meta.dirname, 'scale-server.ts'), [lab.dir], {
      stdio: ['ignore', log, log, 'ipc'],
      execArgv: ['--max-old-space-size=8192'],
    });
    closeSync(log);
    this.#child.on('message', ({ id, result, error }: { id: number; result?: unknown; error?: string }) => {
      const open = this.#open.get(id);
      this.#open.delete(id);
      if (error === undefined) open?.resolve(result);
      else open?.reject(new RipstopError(`the API server failed: ${error}`));
    });
    this.#child.on('exit', () => {
      for (const open of this.#open.values())
        open.reject(new RipstopError(`the API server ended; see ${lab.dir}/apiserver.log`));
    });
  }

  static async start(lab: Lab): Promise<Server> {
    const server = new Server(lab);
    const ready = Promise.withResolvers<unknown>();
    server.#open.set(0, ready);
    await ready.promise;
    return server;
  }

  order<O extends keyof Orders>(order: O, ...args: Parameters<Orders[O]>): ReturnType<Orders[O]> {
    const id = ++this.#last;
    const answer = Promise.withResolvers<unknown>();
    this.#open.set(id, answer);
    this.#child.send({ id, order, args });
    return answer.promise as ReturnType<Orders[O]>;
  }

  stop(): void {
    this.#child.disconnect();
  }
}

/** A node of the lab, on which no agent runs yet. */
async function idleNode(lab: Lab, datapath: Datapath): Promise<NodeState> {
  const node = planNode(lab, datapath);
  lab.state.nodes.push(node);
  saveLab(lab);
  mkdirSync(nodeDir(lab, node));
  await Promise.all([createNodeNetns(lab, node), createKubeNode(lab, node)]);
  return node;
}

/** A node agent under test. */
interface Subject {
  readonly name: string;
  readonly place: Place;
  start(): Promise<void>;
  stop(): Promise<void>;
  pid(): number;
  /** When it has last changed anything, ms since 1970. */
  lastChangeAt(): number | undefined;
  /** Entries written since so many ms after 1970, by target. */
  writtenSince(since: number): Record<string, number> | undefined;
  passes(): Promise<number | undefined>;
  scrape(): Promise<{ ms: number; bytes: number } | undefined>;
}

function ripstop(lab: Lab, node: NodeState): Subject {
  const dir = nodeDir(lab, node);
  const applied = () => appliedIn(readFileSync(join(dir, 'agent.log'), 'utf8'));
  return {
    name: 'ripstop',
    place: { netns: netnsPath(node.netns), bpffs: join(dir, 'bpf') },
    start: () => (existsSync(join(dir, 'bpf')) ? startAgent(lab, node) : setUpRipstop(lab, node)),
    stop: () => stopAgent(lab, node),
    pid: () => node.agentPid ?? 0,
    lastChangeAt: () => applied().at(-1)?.at,
    writtenSince: (since) => {
      const sums: Record<string, number> = {};
      for (const { at, changes } of applied()) {
        if (at < since) continue;
        for (const [target, count] of Object.entries(changes)) sums[target] = (sums[target] ?? 0) + count;
      }
      return sums;
    },
    passes: () => passesOf(join(dir, 'run/agent.sock')),
    scrape: () => scrapeCost(join(dir, 'run/agent.sock')),
  };
}

/** Of flanneld, the kernel tells when it writes: routes come last. */
function flanneld(lab: Lab, node: NodeState, program: string): Subject {
  const dir = nodeDir(lab, node);
  const netns = netnsPath(node.netns);
  let pid = 0;
  let watch: KernelWatch | undefined;
  return {
    name: 'flanneld',
    place: { netns },
    start: async () => {
      watch = new KernelWatch(netns);
      const log = openSync(join(dir, 'agent.log'), 'a', 0o600);
      const options = {
        'kube-subnet-mgr': 'true',
        'kubeconfig-file': join(lab.dir, 'node.kubeconfig'),
        'net-config-path': join(lab.dir, 'net-conf.json'),
        'subnet-file': join(dir, 'subnet.env'),
        iface: 'eth0',
      };
      const argv = Object.entries(options).map(([flag, value]) => `--${flag}=${value}`);
      const child = spawn('nsenter', [`--net=${netns}`, '--', program, ...argv], {
        stdio: ['ignore', log, log],
        env: { ...process.env, NODE_NAME: node.name },
      });
      closeSync(log);
      pid = child.pid!;
    },
    stop: async () => {
      watch?.stop();
      signalProcess(pid, 'SIGTERM');
      while (isAlive(pid)) await sleep(20);
    },
    pid: () => pid,
    lastChangeAt: () => watch?.lastAt,
    writtenSince: () => undefined,
    passes: async () => undefined,
    scrape: async () => undefined,
  };
}

/** Wait until the peers are what they should be and nothing changes any more. @returns when the last change was. */
async function settled(subject: Subject, nodes: number, generation: number): Promise<number> {
  let lacking: string[] = [];
  for (const begun = performance.now(); performance.now() - begun < DEADLINE_MS; await sleep(250)) {
    if (!isAlive(subject.pid())) break;
    const at = subject.lastChangeAt();
    if (at === undefined || Date.now() - at < QUIET_MS) continue;
    const leases = Array.from({ length: nodes }, (_, i) => leaseOf(i, i < BURST ? generation : 0));
    lacking = await missing(leases, subject.place).catch((error: unknown) => [errorText(error)]);
    if (lacking.length === 0 && subject.lastChangeAt() === at) return at;
  }
  throw new RipstopError(
    `${subject.name} did not get there in ${DEADLINE_MS / 1000} s; missing: ${lacking.join(', ') || 'rest'}`,
  );
}

/** Wait for a list to be given out and a watch to begin. */
async function untilWatching(server: Server): Promise<Listed> {
  const total: Listed = { lastByteAt: undefined, pages: 0, watchedAt: undefined };
  for (const begun = performance.now(); performance.now() - begun < DEADLINE_MS; await sleep(50)) {
    const { lastByteAt, pages, watchedAt } = await server.order('listed');
    total.lastByteAt = lastByteAt ?? total.lastByteAt;
    total.pages += pages;
    total.watchedAt = watchedAt ?? total.watchedAt;
    if (total.watchedAt !== undefined && total.lastByteAt !== undefined) return total;
  }
  throw new RipstopError('nobody listed and watched the Nodes');
}

async function measure(
  server: Server,
  subject: Subject,
  nodes: number,
  seconds: number,
  generations: { last: number },
): Promise<Figures> {
  const tell = (text: string): void => say(`${subject.name}, ${nodes.toLocaleString('en')} Nodes: ${text}`);
  const before = generations.last;
  const startedAt = Date.now();
  await server.order('listed');
  await subject.start();
  const { lastByteAt, pages } = await untilWatching(server);
  const syncedAt = await settled(subject, nodes, before);
  const cpuToSync = cpuSeconds(subject.pid());
  const sync = (syncedAt - lastByteAt!) / 1000;
  tell(
    `in place ${sync.toFixed(2)} s after the list (${pages} pages in ${((lastByteAt! - startedAt) / 1000).toFixed(1)} s)`,
  );
  const afterSync = memoryOf(subject.pid());

  const passesBefore = await subject.passes();
  const cpuBefore = cpuSeconds(subject.pid());
  const from = performance.now();
  const beats = await server.order('beat', BEATS_PER_SECOND, seconds);
  const lasted = (performance.now() - from) / 1000;
  const cpuShare = (cpuSeconds(subject.pid()) - cpuBefore) / lasted;
  const passesAfter = await subject.passes();
  const steady = memoryOf(subject.pid());
  const scrape = await subject.scrape();
  if (scrape) tell(`a scrape takes ${scrape.ms.toFixed(1)} ms and has ${(scrape.bytes / 1e3).toFixed(0)} kB`);
  tell(
    `${(cpuShare * 100).toFixed(1)} % of a core during ${(beats / lasted).toFixed(0)} heartbeats/s; ${mb(steady.rss)} MB resident, peak ${mb(steady.peak)}`,
  );

  generations.last++;
  const { first, last } = await server.order('change', Math.min(BURST, nodes), generations.last);
  const changedAt = await settled(subject, nodes, generations.last);
  const afterBurst = memoryOf(subject.pid());
  tell(
    `${Math.min(BURST, nodes)} changes in place ${((changedAt - last) / 1000).toFixed(2)} s after the last write, ${((changedAt - first) / 1000).toFixed(2)} s after the first`,
  );

  await subject.stop();
  await server.order('listed');
  const watch = new KernelWatch(subject.place.netns);
  await sleep(300);
  watch.events = 0;
  const restartedAt = Date.now();
  await subject.start();
  const again = await untilWatching(server);
  await sleep(QUIET_MS + 2000);
  const kernelEvents = watch.events;
  watch.stop();
  const written = subject.writtenSince(restartedAt);
  const afterRestart = memoryOf(subject.pid());
  const readyAgain = (again.lastByteAt! - restartedAt) / 1000;
  tell(
    `a restart writes ${JSON.stringify(written ?? {})}; the kernel tells of ${kernelEvents} changes; peak ${mb(afterRestart.peak)} MB`,
  );
  return {
    nodes,
    subject: subject.name,
    listSeconds: (lastByteAt! - startedAt) / 1000,
    pages,
    syncSeconds: sync,
    cpuToSync,
    cpuShare,
    passesDuringBeats: passesAfter === undefined ? undefined : passesAfter - passesBefore!,
    scrapeMs: scrape?.ms,
    scrapeBytes: scrape?.bytes,
    burstSeconds: (changedAt - last) / 1000,
    burstFromFirstSeconds: (changedAt - first) / 1000,
    peakBytes: Math.max(afterBurst.peak, afterRestart.peak),
    firstPeakBytes: afterBurst.peak,
    afterSyncBytes: afterSync.rss,
    steadyBytes: steady.rss,
    steadyPssBytes: steady.pss,
    restartWrites: written,
    restartKernelEvents: kernelEvents,
    restartListSeconds: readyAgain,
  };
}

function mb(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
}

async function main(): Promise<void> {
  const sizes = (flags.sizes ?? (flags.quick ? '1000,5000' : '1000,5000,15000')).split(',').map(Number);
  if (sizes.some((size) => !(size > 0 && size <= 16_000)))
    throw new RipstopError(`--sizes ${flags.sizes} is no list of numbers from 1 to 16000`, { exitCode: 2 });
  if (flags.flanneld !== undefined && !existsSync(flags.flanneld))
    throw new RipstopError(`--flanneld ${flags.flanneld} is not there`, { exitCode: 2 });
  const seconds = Number(flags.seconds);
  if (!flags.sources) process.env['RIPSTOP_LAB_COMMAND'] ??= await buildAgent();

  const begun = new Date();
  const name = `scale${process.pid}`;
  const measured: Figures[] = [];
  const failures: string[] = [];
  let nodeBytes = 0;
  let server: Server | undefined;
  try {
    const lab = createLab({ ...parseLabOptions({ name }), datapaths: [] });
    await createUnderlay(lab);
    writeFileSync(
      join(lab.dir, 'net-conf.json'),
      JSON.stringify({ Network: CLUSTER_NETWORK, Backend: { Type: 'vxlan' } }),
    );
    server = await Server.start(lab);
    const generations = { last: 0 };
    for (const size of sizes.toSorted((a, b) => a - b)) {
      say(`making ${size.toLocaleString('en')} Nodes`);
      nodeBytes = await server.order('grow', size);
      for (const make of [ripstop, ...(flags.flanneld ? [flanneld] : [])]) {
        const node = await idleNode(lab, make === ripstop ? 'ripstop' : 'host');
        const subject = make(lab, node, flags.flanneld ?? '');
        try {
          measured.push(await measure(server, subject, size, seconds, generations));
        } catch (error) {
          failures.push(`${subject.name} at ${size}: ${errorText(error)}`);
          say(failures.at(-1)!);
          say(
            readFileSync(join(nodeDir(lab, node), 'agent.log'), 'utf8')
              .split('\n')
              .slice(-6)
              .join('\n'),
          );
        }
        await subject.stop().catch(() => {});
        await removeNode(lab, node);
      }
    }
  } finally {
    server?.stop();
    await labDown(name);
  }
  report({
    meta: {
      date: begun.toISOString(),
      kernel: release(),
      cpu: cpus()[0]?.model ?? 'unknown CPU',
      cpus: cpus().length,
      node: process.version,
      nodeBytes,
      seconds,
      beatsPerSecond: BEATS_PER_SECOND,
      burst: BURST,
      program: flags.sources ? 'sources' : 'bundle',
    },
    measured,
    failures,
  });
}

function report(result: ScaleResult): void {
  process.stdout.write(
    `\n${renderTable(scaleColumns, result.measured)}\n${renderTable(verdictColumns, judge(result))}\n`,
  );
  const directory = join(
    import.meta.dirname,
    'results',
    `scale-${result.meta.date.replaceAll(/[:.]/g, '-')}`,
  );
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'results.json'), `${JSON.stringify(result, undefined, 2)}\n`);
  const svg = renderSvg(chartOf(result));
  writeFileSync(join(directory, 'scale.svg'), svg);
  writePng(svg, join(directory, 'scale.png'));
  writeFileSync(join(directory, 'report.md'), renderReport(result));
  say(
    `${((Date.now() - Date.parse(result.meta.date)) / 1000).toFixed(0)} s; see ${join(directory, 'report.md')}`,
  );
}

try {
  await main();
} catch (error) {
  say(errorText(error));
  process.exitCode = error instanceof RipstopError ? error.exitCode : 1;
}
