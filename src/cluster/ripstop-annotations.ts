// SPDX-License-Identifier: Apache-2.0
import { z } from 'zod';
import type { ApiClient } from './api-client.ts';

const NodeAnnotations = z.object({
  metadata: z.object({ annotations: z.record(z.string(), z.string()).default({}) }),
});

/**
 * Remove ripstop's own annotations from a Node. flannel's stay: a flanneld reads them at its start.
 * @returns their keys.
 * @throws ApiError when the API server refuses.
 */
export async function removeRipstopAnnotations(client: ApiClient, nodeName: string): Promise<string[]> {
  const node = encodeURIComponent(nodeName);
  const { metadata } = NodeAnnotations.parse(await client.request('GET', `/api/v1/nodes/${node}`));
  const ours = Object.keys(metadata.annotations).filter((key) => key.startsWith('ripstop.io/'));
  if (ours.length > 0) {
    await client.request('PATCH', `/api/v1/nodes/${node}/status`, {
      body: { metadata: { annotations: Object.fromEntries(ours.map((key) => [key, null])) } },
      contentType: 'application/strategic-merge-patch+json',
    });
  }
  return ours;
}
