// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, it } from 'vitest';
import { commandLine, isAlive, killAll, signalProcess } from './netns.ts';

it('a process is alive with its command line until it is killed, and killing it twice is no error', async () => {
  const child = spawn('sleep', ['1000']);
  const ended = once(child, 'exit');
  const pid = child.pid!;
  expect(isAlive(pid)).toBe(true);
  await expect.poll(() => commandLine(pid)).toEqual(['sleep', '1000']);
  await killAll(() => (isAlive(pid) ? [pid] : []));
  expect(await ended).toEqual([null, 'SIGKILL']);
  signalProcess(pid, 'SIGTERM');
  expect(isAlive(pid)).toBe(false);
  expect(commandLine(pid)).toEqual([]);
});
