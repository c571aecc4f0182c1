// SPDX-License-Identifier: Apache-2.0
/** Runs the stories of test/kernels: in a virtual machine, between two of them, or on this machine. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Check } from '../../test/kernels/story.ts';
import type { Kernel } from './debian.ts';

const stories = join(import.meta.dirname, '../../test/kernels');
/** Several times as long as it takes on an idle machine. */
const DEADLINE_MS = 900_000;

type Listener = (check: Check) => void;

/** A kernel, with the file system that its machines boot. */
export interface Bootable extends Kernel {
  readonly initramfs: string;
  /** A directory for temporary files. */
  readonly dir: string;
}

/**
 * The command that starts a machine with qemu, without KVM. The machine's second serial port is the program's standard
 * input and output.
 * @param program a program of test/kernels, which process 1 runs
 * @param messages the file for messages of the kernel and of programs
 */
export function qemu(
  { root, release, initramfs }: Bootable,
  program: string,
  messages: string,
): [string, ...string[]] {
  const args = [
    ['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ['-accel', 'tcg,thread=single', '-cpu', 'max', '-smp', '2', '-m', '1G'],
    ['-kernel', join(root, `boot/vmlinuz-${release}`), '-initrd', initramfs],
    // On a busy host the machine's timer is late, and Linux's check of it ends in a panic. So does, now and then,
    // the patching of sched_clock_tick() while both processors run, when Linux finds the clock unstable only later.
    ['-append', `console=ttyS0 panic=-1 quiet no_timer_check tsc=unstable -- ${program}`],
    ['-serial', `file:${messages}`, '-serial', 'stdio'],
  ].flat();
  return ['qemu-system-x86_64', ...args];
}

/** Run the story of a kernel in a machine. Returns the messages of the kernel and of programs. */
export async function tellInMachine(kernel: Bootable, onCheck: Listener): Promise<string> {
  const messages = join(kernel.dir, 'messages');
  const said = await listen(qemu(kernel, 'scenario', messages), onCheck);
  return `${said}${readFileSync(messages, 'utf8')}`;
}

/** Run the story of a kernel's network driver between two machines. Returns their messages. */
export function tellBetweenMachines(kernel: Bootable, onCheck: Listener): Promise<string> {
  return tellInNamespaces('drivers.ts', [JSON.stringify(kernel)], onCheck);
}

/** Run the story on the running kernel. */
export function tellHere(onCheck: Listener): Promise<string> {
  return tellInNamespaces('scenario.ts', [], onCheck);
}

/** Run it in namespaces that end with the story, so that nothing is left. */
function tellInNamespaces(story: string, args: readonly string[], onCheck: Listener): Promise<string> {
  const namespaces = ['--net', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const begin = ['sh', '-c', 'mount -t tmpfs run /run && exec "$0" "$@"', process.execPath];
  return listen(['unshare', ...namespaces, ...begin, join(stories, story), ...args], onCheck);
}

/** Run the program, and pass on every check that it prints. Returns the rest of its output. */
async function listen([program, ...args]: [string, ...string[]], onCheck: Listener): Promise<string> {
  // unshare ignores SIGTERM; its program dies with it.
  const killSignal = 'SIGKILL';
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: DEADLINE_MS, killSignal });
  let rest = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (rest += text));
  const lines = createInterface({ input: child.stdout });
  lines.on('line', (line) => {
    if (line.startsWith('{')) onCheck(JSON.parse(line) as Check);
    else rest += `${line}\n`;
  });
  const stop = (): void => void child.kill(killSignal);
  process.once('exit', stop);
  await Promise.all([once(child, 'close'), once(lines, 'close')]);
  process.off('exit', stop);
  if (child.signalCode)
    rest += `${program} was stopped after ${DEADLINE_MS / 1000} s (${child.signalCode})\n`;
  return rest;
}
