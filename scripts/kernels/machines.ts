// SPDX-License-Identifier: Apache-2.0
/** Where the story of test/kernels is told: in a virtual machine, or on this one. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Check } from '../../test/kernels/check.ts';
import type { Kernel } from './debian.ts';
import { writeInitramfs } from './initramfs.ts';

const STORY = join(import.meta.dirname, '../../test/kernels/scenario.ts');
/** Several times what it takes where nothing else runs. */
const DEADLINE_MS = 290_000;

type Listener = (check: Check) => void;

/**
 * Boot a kernel under qemu, which needs no KVM, and have the story told there.
 * @param dir for files that are needed meanwhile.
 * @returns what the kernel and the programs said beside.
 */
export async function tellInMachine(kernel: Kernel, dir: string, onCheck: Listener): Promise<string> {
  const initramfs = join(dir, 'initramfs.cpio');
  const messages = join(dir, 'messages');
  await writeInitramfs(initramfs, kernel);
  const args = [
    ['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', '1G'],
    ['-kernel', join(kernel.root, `boot/vmlinuz-${kernel.release}`), '-initrd', initramfs],
    ['-append', 'console=ttyS0 panic=-1 quiet'],
    // The first serial port is the kernel's, the second one the story's.
    ['-serial', `file:${messages}`, '-serial', 'stdio'],
  ].flat();
  const said = await listen('qemu-system-x86_64', args, onCheck);
  return `${said}${readFileSync(messages, 'utf8')}`;
}

/** Have the story told by the running kernel, in namespaces that end with it and take everything along. */
export function tellHere(onCheck: Listener): Promise<string> {
  const namespaces = ['--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const begin = 'mount -t tmpfs run /run && exec "$0" "$1"';
  return listen('unshare', [...namespaces, 'sh', '-c', begin, process.execPath, STORY], onCheck);
}

/** Run the program and hand on every check that it prints. Returns everything else that it said. */
async function listen(program: string, args: readonly string[], onCheck: Listener): Promise<string> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: DEADLINE_MS });
  let rest = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (rest += text));
  const lines = createInterface({ input: child.stdout });
  lines.on('line', (line) => {
    if (line.startsWith('{')) onCheck(JSON.parse(line) as Check);
    else rest += `${line}\n`;
  });
  const stop = (): void => void child.kill();
  process.once('exit', stop);
  await Promise.all([once(child, 'close'), once(lines, 'close')]);
  process.off('exit', stop);
  if (child.signalCode)
    rest += `${program} was stopped after ${DEADLINE_MS / 1000} s (${child.signalCode})\n`;
  return rest;
}
