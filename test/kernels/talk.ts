// SPDX-License-Identifier: Apache-2.0
/** Runs the pods' program, test/cluster/talker.ts, in a pod of this machine. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { commandIn, tryRun } from '../../src/host/run.ts';
import { expectThat } from './story.ts';

const TALKER = join(import.meta.dirname, '../cluster/talker.ts');

export type Talker = ChildProcessByStdio<null, Readable, null>;

/** Start it and wait until it prints this word. */
export async function startTalker(netns: string, word: string, args: readonly string[]): Promise<Talker> {
  const [file, ...argv] = commandIn(netns, process.execPath, [TALKER, ...args]);
  const child = spawn(file, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
  const [text] = (await once(child.stdout, 'data', { signal: AbortSignal.timeout(180_000) })) as [Buffer];
  expectThat(text.toString().includes(word), `the talker said ${text.toString()}`);
  return child;
}

/** Stop it, and read its report. */
export async function endTalker<T>(child: Talker): Promise<T> {
  let text = '';
  child.stdout.on('data', (piece: Buffer) => (text += piece.toString()));
  const closed = once(child, 'close');
  child.kill('SIGINT');
  await closed;
  return JSON.parse(text) as T;
}

/** Run it to its end, and read its report. */
export async function talk<T>(netns: string, args: readonly string[]): Promise<T> {
  const options = { netns, timeoutMs: 120_000 };
  const { code, stdout, stderr } = await tryRun(process.execPath, [TALKER, ...args], options);
  const reason = /^\w*Error: .*/m.exec(stderr)?.[0] ?? stderr;
  expectThat(code === 0, `the talker (${args.join(' ')}) failed: ${reason}`);
  return JSON.parse(stdout) as T;
}
