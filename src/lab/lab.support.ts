// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../host/run.ts';
import { netnsPath } from './netns.ts';

/** Why the lab's tests cannot run here, in one line; undefined when they can. */
export function missingForLab(...programs: string[]): string | undefined {
  if (process.getuid?.() !== 0) return 'the lab needs root';
  if (!existsSync('/usr/lib/cni/bridge'))
    return 'the lab needs the CNI plugins in /usr/lib/cni (containernetworking-plugins)';
  const path = (process.env['PATH'] ?? '').split(':');
  const missing = ['ip', 'nsenter', 'ping', 'iptables-restore', 'ethtool', ...programs].filter(
    (program) => !path.some((dir) => existsSync(join(dir, program))),
  );
  return missing.length === 0 ? undefined : `the lab needs ${missing.join(', ')}`;
}

/** Run a program to its end inside a namespace. Returns its standard output. @throws RipstopError when it fails. */
export function runIn(netns: string, program: string, ...args: string[]): Promise<string> {
  return run(program, args, { netns: netnsPath(netns) });
}

/** A program that runs in a namespace until it is stopped or ends. */
export interface Background {
  /** Everything it has printed so far, on either stream. */
  readonly output: () => string;
  /** Resolves when its output matches; rejects with the output after 10 s. */
  readonly prints: (pattern: RegExp) => Promise<void>;
  /** Stop it by SIGINT (on which tcpdump writes what it has captured), and wait for its end. Returns its output. */
  readonly stop: () => Promise<string>;
}

export function startIn(netns: string, program: string, ...args: string[]): Background {
  const child = spawn('nsenter', [`--net=${netnsPath(netns)}`, '--', program, ...args]);
  let isClosed = false;
  const closed = once(child, 'close').then(() => (isClosed = true));
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  return {
    output: () => output,
    async prints(pattern) {
      const signal = AbortSignal.timeout(10_000);
      while (!pattern.test(output)) {
        // Not as soon as it has ended: what it printed last may still be on its way.
        if (signal.aborted || isClosed) {
          throw new Error(`${program} did not print ${String(pattern)} but: ${output}`);
        }
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    async stop() {
      child.kill('SIGINT');
      await closed;
      return output;
    },
  };
}

/** Everything on this machine that a lab has left behind, found by other means than `labDown` uses. */
export async function tracesOf(name: string): Promise<string[]> {
  const [namespaces, processes, links] = await Promise.all([
    run('ip', ['netns', 'list']),
    run('ps', ['-eo', 'pid,args']),
    run('ip', ['-o', 'link']),
  ]);
  const lines = (text: string) => text.split('\n').filter((line) => line.includes(name));
  return [
    ...lines(namespaces).map((line) => `namespace ${line}`),
    ...lines(processes).map((line) => `process ${line}`),
    ...lines(links).map((line) => `link ${line}`),
    ...lines(readFileSync('/proc/self/mounts', 'utf8')).map((line) => `mount ${line}`),
    ...(existsSync(`/run/ripstop-lab/${name}`) ? [`directory /run/ripstop-lab/${name}`] : []),
  ];
}
