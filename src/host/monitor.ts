// SPDX-License-Identifier: Apache-2.0
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { NFT_TABLE } from './nft.ts';
import { commandIn, type RunOptions } from './run.ts';

export interface MonitorOptions extends RunOptions {
  /** The monitor ended by itself or could not start, and will be started again after `retryMs`. */
  onTrouble?: (why: string, retryMs: number) => void;
}

export type KernelChange = 'pods' | 'peers' | 'any';

export interface Monitor {
  /** Resolves when the monitor runs no more; `onChange` is not called again. */
  stop(): Promise<void>;
}

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;
/** A monitor that lived this long was healthy: the next trouble starts at the first retry again. */
const HEALTHY_MS = 60_000;

/**
 * Call `onChange` whenever links, addresses, routes, neighbours or settings of the network (forwarding, rp_filter) change:
 * a trigger to list again, nothing more (`ip monitor` prints text only, and may miss events under load). Expect bursts and
 * act at your own pace. It is also called after each restart, since changes may have gone unseen.
 * @param onChange gets `pods` when only a pod's device or route is concerned, so that all about peers is as it was, and `peers`
 * when it is an entry of a VTEP device, which says nothing of how VTEPs are reached.
 */
export function monitorKernel(
  onChange: (change: KernelChange) => void,
  options: MonitorOptions = {},
): Monitor {
  const objects = ['link', 'address', 'route', 'nexthop', 'neigh', 'netconf'];
  return monitor(
    ['ip', '-oneline', 'monitor', ...objects],
    (line) => changeOf(line) !== undefined,
    (line) => onChange((line === undefined ? undefined : changeOf(line)) ?? 'any'),
    options,
  );
}

/** What a line of `ip -oneline monitor` is about; undefined: nothing that anybody here looks at. Pure. */
export function changeOf(line: string): 'pods' | 'peers' | 'any' | undefined {
  const onVtep = / dev flannel(-v6)?\.\d+ /.test(line);
  // What neighbours on the wire are up to, minute by minute. Of ours, on VTEP devices, any change counts.
  if (!onVtep && / (INCOMPLETE|REACHABLE|STALE|DELAY|PROBE|FAILED) *$/.test(line)) return undefined;
  // Of a pod's veth, or a route to it.
  if (/(^|: | dev )veth[0-9a-f]{8}\b/.test(line) && !/ via /.test(line)) return 'pods';
  // A route, nexthop, neighbour or FDB entry; lines about the device itself begin with its number.
  return onVtep && !/^(Deleted )?\d+: /.test(line) ? 'peers' : 'any';
}

/**
 * Call `onLoss` when somebody takes something of our nft table away, as `nft flush ruleset` does. What others do to their own
 * tables, which kube-proxy does all the time, and what becomes of our sets' elements, is passed over.
 */
export function monitorRules(onLoss: () => void, options: MonitorOptions = {}): Monitor {
  const ours = new RegExp(`^delete (table|chain|rule|set) ${NFT_TABLE.join(' ')}\\b`);
  return monitor(
    ['nft', 'monitor', 'destroy'],
    (line) => ours.test(line),
    () => onLoss(),
    options,
  );
}

/** Run a program that prints a line for each event, for as long as we want it. */
function monitor(
  [program, ...programArgs]: readonly [string, ...string[]],
  concerns: (line: string) => boolean,
  onChange: (line?: string) => void,
  options: MonitorOptions,
): Monitor {
  let stopped = false;
  let child: ChildProcess | undefined;
  let timer: NodeJS.Timeout | undefined;
  let retryMs = FIRST_RETRY_MS;
  const ended = Promise.withResolvers<void>();

  const start = (): void => {
    const [file, ...args] = commandIn(options.netns, program, programArgs);
    const startedAt = performance.now();
    let why = '';
    const running = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], env: options.env ?? process.env });
    child = running;
    const trigger = (line?: string): void => {
      if (!stopped) onChange(line);
    };
    createInterface({ input: running.stdout }).on('line', (line) => concerns(line) && trigger(line));
    // Lost events (ENOBUFS) are told on standard error.
    running.stderr.setEncoding('utf8').on('data', (text: string) => {
      why = text.trim();
      trigger();
    });
    running.on('error', (error) => (why = error.message));
    running.on('close', (code, signal) => {
      child = undefined;
      if (stopped) {
        ended.resolve();
        return;
      }
      if (performance.now() - startedAt > HEALTHY_MS) retryMs = FIRST_RETRY_MS;
      options.onTrouble?.(why || `ended with ${signal ?? `exit code ${code}`}`, retryMs);
      timer = setTimeout(() => {
        start();
        onChange();
      }, retryMs);
      retryMs = Math.min(retryMs * 2, LAST_RETRY_MS);
    });
  };
  start();

  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
      if (child) child.kill();
      else ended.resolve();
      return ended.promise;
    },
  };
}
