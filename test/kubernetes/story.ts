// SPDX-License-Identifier: Apache-2.0
import { type Cluster, openCluster } from './state.ts';

/**
 * The cluster of a story. Each story leaves it as it was: two nodes with ripstop and the workload.
 * @throws Error when the story was started without one
 */
export function storyCluster(): Cluster {
  const name = process.env['RIPSTOP_KUBERNETES'];
  if (name === undefined)
    throw new Error('start stories by npm run test:kubernetes, which raises their cluster');
  return openCluster(name);
}
