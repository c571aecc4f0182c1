// SPDX-License-Identifier: Apache-2.0
import { type IncomingMessage, request } from 'node:http';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { runFiles } from '../agent/options.ts';
import type { AgentStatus } from '../agent/status.ts';
import { errorText, RipstopError } from '../errors.ts';

/** The status of the running agent; undefined when none runs. That is no error: the data plane works without it. */
export async function askAgent(runDir: string): Promise<AgentStatus | undefined> {
  const socketPath = join(runDir, runFiles.agentSocket);
  try {
    return JSON.parse(await get(socketPath, '/status')) as AgentStatus;
  } catch {
    return undefined;
  }
}

/**
 * What the agent answers to a path that only an agent can answer.
 * @throws RipstopError when no agent runs, or it cannot answer.
 */
export async function requireAgent(runDir: string, path: string, timeoutMs: number): Promise<unknown> {
  const socketPath = join(runDir, runFiles.agentSocket);
  try {
    return JSON.parse(await get(socketPath, path, timeoutMs));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === 'ENOENT' || code === 'ECONNREFUSED' ? `no agent runs at ${socketPath}` : errorText(cause);
    throw new RipstopError(`the agent does not answer: ${why}`, { cause });
  }
}

/** @throws Error with the body when the status is not 200. */
async function get(socketPath: string, path: string, timeoutMs = 2000): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  request({ socketPath, path, signal: AbortSignal.timeout(timeoutMs) }, resolve)
    .on('error', reject)
    .end();
  const response = await promise;
  const body = await text(response);
  if (response.statusCode !== 200) throw new Error(body.trim() || `status ${response.statusCode}`);
  return body;
}
