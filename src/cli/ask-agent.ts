// SPDX-License-Identifier: Apache-2.0
import { request } from 'node:http';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { runFiles } from '../agent/options.ts';
import type { AgentStatus } from '../agent/status.ts';

/** The status of the running agent; undefined when none runs. That is no error: the data plane works without it. */
export async function askAgent(runDir: string): Promise<AgentStatus | undefined> {
  const socketPath = join(runDir, runFiles.agentSocket);
  try {
    return JSON.parse(await get(socketPath, '/status')) as AgentStatus;
  } catch {
    return undefined;
  }
}

function get(socketPath: string, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    request({ socketPath, path, signal: AbortSignal.timeout(2000) }, (response) => {
      text(response).then(resolve, reject);
    })
      .on('error', reject)
      .end();
  });
}
