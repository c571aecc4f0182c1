// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { startDaemon } from './daemon.ts';
import { commandLine, listProcesses } from './netns.ts';
import { flannelNetConf } from './flannel.ts';
import { type Lab, saveLab, writeAtomically } from './state.ts';

const OWN_PROGRAM = join(import.meta.dirname, 'apiserver-main.ts');

/** A real API server starts an etcd too. */
const READY_TIMEOUT_MS = 60_000;

/**
 * Start the lab's API server as a process that outlives this one. It is ready when it has written both kubeconfigs: the
 * user's, and then the nodes'.
 */
export async function startApiServer(lab: Lab): Promise<void> {
  const netConf = flannelNetConf(lab.state.options);
  writeAtomically(join(lab.dir, 'net-conf.json'), `${JSON.stringify(netConf, null, 2)}\n`);
  await startDaemon({
    name: "the lab's API server",
    argv: [process.execPath, lab.state.options.real?.apiServer ?? OWN_PROGRAM, lab.dir],
    logFile: join(lab.dir, 'apiserver.log'),
    timeoutMs: READY_TIMEOUT_MS,
    onStart: (pid) => {
      lab.state.apiServerPid = pid;
      saveLab(lab);
    },
    notReady: () =>
      existsSync(join(lab.dir, 'node.kubeconfig')) ? undefined : 'it has not written its kubeconfigs',
  });
}

/**
 * The API servers of the lab in this directory, found by their command lines: the state may be missing or out of date.
 */
export function apiServerProcesses(dir: string): number[] {
  return listProcesses().filter((pid) => {
    const argv = commandLine(pid);
    return argv.at(-1) === dir && basename(argv.at(-2) ?? '') === basename(OWN_PROGRAM);
  });
}
