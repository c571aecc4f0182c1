// SPDX-License-Identifier: Apache-2.0
import { request } from 'node:http';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { runFiles } from '../agent/options.ts';
import type { AgentStatus } from '../agent/status.ts';

/** What the running agent says of itself; undefined when none runs (which is no fault: the data plane does without). */
export async function askAgent(runDir: string): Promise<AgentStatus | undefined> {
  const socketPath = join(runDir, runFiles.agentSocket);
  return new Promise((resolve) => {
    const asking = request({ socketPath, path: '/status', timeout: 2000 }, (response) => {
      text(response).then(
        (body) => resolve(JSON.parse(body) as AgentStatus),
        () => resolve(undefined),
      );
    });
    asking.on('timeout', () => asking.destroy());
    asking.on('error', () => resolve(undefined));
    asking.end();
  });
}
