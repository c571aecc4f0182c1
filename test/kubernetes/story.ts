// SPDX-License-Identifier: Apache-2.0
import { type Cluster, openCluster } from './state.ts';

/**
 * The cluster that a story is told on. Each story leaves it as it was: two nodes, ripstop and the workload on them.
 * @throws Error when the story was started without one.
 */
export function storyCluster(): Cluster {
  const name = process.env['RIPSTOP_KUBERNETES'];
  if (name === undefined)
    throw new Error('start stories by npm run test:kubernetes, which raises their cluster');
  return openCluster(name);
}
