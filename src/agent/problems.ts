// SPDX-License-Identifier: Apache-2.0
/** What of an agent's status a person must look at: for `ripstop status`, and for the page. Pure. */
import type { AgentStatus } from './status.ts';

/** How many failures of a target are shown; the rest is in the JSON of `ripstop status`. */
const FAILURES_SHOWN = 3;

export type Problem = [name: string, text: string];

/** The gravest first; none when all is well. */
export function agentProblems(
  agent: Pick<AgentStatus, 'ready' | 'notReady' | 'api' | 'alarms' | 'targets'>,
): Problem[] {
  const { ready, notReady, api, alarms, targets } = agent;
  const problems = alarms.map(({ node, reason }): Problem => ['ALARM', `${node}: ${reason}`]);
  for (const { name, failures } of targets)
    for (const { key, why } of failures.slice(0, FAILURES_SHOWN))
      problems.push(['ERROR', `${name} ${key}: ${why}`]);
  if (!ready) problems.push(['NOT READY', notReady ?? 'the agent does not say why']);
  if (!api.connected) problems.push(['API watch', describeWatch(agent)]);
  if (api.lastKnownAgeMs !== undefined) {
    const age = Math.round(api.lastKnownAgeMs / 1000);
    problems.push(['LAST KNOWN', `runs on the last-known state, ${age} s old, until the API server answers`]);
  }
  return problems;
}

export function describeWatch({ api }: Pick<AgentStatus, 'api'>): string {
  const age =
    api.lastEventAgeMs === undefined ? '' : `, last event ${Math.round(api.lastEventAgeMs / 1000)} s ago`;
  if (api.connected) return `connected${api.synced ? '' : ', waiting for the first list'}${age}`;
  return `NOT CONNECTED${age}${api.lastError === undefined ? '' : `: ${api.lastError}`}`;
}
