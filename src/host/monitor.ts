// SPDX-License-Identifier: Apache-2.0
import { spawn, type ChildProcess } from 'node:child_process';
import { commandIn, type RunOptions } from './run.ts';

export interface MonitorOptions extends RunOptions {
  /** The monitor ended by itself or could not start, and will be started again after `retryMs`. */
  onTrouble?: (why: string, retryMs: number) => void;
}

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
 */
export function monitorKernel(onChange: () => void, options: MonitorOptions = {}): Monitor {
  let stopped = false;
  let child: ChildProcess | undefined;
  let timer: NodeJS.Timeout | undefined;
  let retryMs = FIRST_RETRY_MS;
  const ended = Promise.withResolvers<void>();

  const start = (): void => {
    const [file, ...args] = commandIn(options.netns, 'ip', [
      'monitor',
      'link',
      'address',
      'route',
      'neigh',
      'netconf',
    ]);
    const startedAt = performance.now();
    let why = '';
    child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'], env: options.env ?? process.env });
    const trigger = (): void => {
      if (!stopped) onChange();
    };
    child.stdout?.on('data', trigger);
    // Lost events (ENOBUFS) are told on standard error.
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      why = text.trim();
      trigger();
    });
    child.on('error', (error) => (why = error.message));
    child.on('close', (code, signal) => {
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
