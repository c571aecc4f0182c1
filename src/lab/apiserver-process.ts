// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { commandLine, listProcesses } from './netns.ts';
import { flannelNetConf } from './flannel.ts';
import { type Lab, saveLab, writeAtomically } from './state.ts';

const OWN_PROGRAM = join(import.meta.dirname, 'apiserver-main.ts');

/** A real one starts an etcd too. */
const READY_TIMEOUT_MS = 60_000;

/**
 * Start the lab's API server as a process of its own that outlives this one. It is ready when it has written both
 * kubeconfigs, the user's and (last) the nodes'.
 */
export async function startApiServer(lab: Lab): Promise<void> {
  const netConf = flannelNetConf(lab.state.options);
  writeAtomically(join(lab.dir, 'net-conf.json'), `${JSON.stringify(netConf, null, 2)}\n`);
  const logFile = join(lab.dir, 'apiserver.log');
  const log = openSync(logFile, 'a', 0o600);
  const program = lab.state.options.real?.apiServer ?? OWN_PROGRAM;
  const child = spawn(process.execPath, [program, lab.dir], { detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  child.unref();
  let ended: string | undefined;
  child.on('error', (error) => (ended = error.message));
  child.on('exit', (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`));
  if (child.pid !== undefined) lab.state.apiServerPid = child.pid;
  saveLab(lab);
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (!existsSync(join(lab.dir, 'node.kubeconfig'))) {
    if (performance.now() > deadline) ended ??= `it is silent for ${READY_TIMEOUT_MS / 1000} s`;
    if (ended !== undefined) {
      throw new RipstopError(`the lab's API server did not start: ${ended}; its log is ${logFile}`, {
        details: readFileSync(logFile, 'utf8'),
      });
    }
    await sleep(5);
  }
}

/** The API servers of the lab in this directory, by their command lines: a record may be missing or out of date. */
export function apiServerProcesses(dir: string): number[] {
  return listProcesses().filter((pid) => {
    const argv = commandLine(pid);
    return argv.at(-1) === dir && basename(argv.at(-2) ?? '') === basename(OWN_PROGRAM);
  });
}
