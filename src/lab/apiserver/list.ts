// SPDX-License-Identifier: Apache-2.0
import { isRecord, itemJson, type View } from './objects.ts';
import { groupVersion, keyOf, type ResourceName, resources } from './resources.ts';
import { selector } from './selectors.ts';
import { StatusError } from './status.ts';
import type { Store } from './store.ts';

/** The start of the next page: the snapshot's resourceVersion, and the last key of the previous page. */
interface Continuation {
  rv: number;
  after: string;
}

/**
 * One page of a list as JSON. With `limit`, `metadata.continue` leads to the rest of the same snapshot, unaffected by
 * later writes.
 * @throws StatusError 400 for a selector or token that cannot be read, 410 for a token whose snapshot is forgotten.
 */
export function listPage(
  store: Store,
  resourceName: ResourceName,
  namespace: string | undefined,
  query: URLSearchParams,
  view: View,
): string {
  const resource = resources[resourceName];
  const labelSelector = query.get('labelSelector') ?? '';
  const fieldSelector = query.get('fieldSelector') ?? '';
  const matches = selector(resource, { namespace, labelSelector, fieldSelector });

  const from = parseContinue(query.get('continue') ?? '');
  const snapshot = from ? store.snapshotAt(resourceName, from.rv) : store.snapshot(resourceName);
  const rest = snapshot.objects.filter(
    (object) => matches(object) && (!from || keyOf(resource, object) > from.after),
  );
  const limit = Number(query.get('limit')) || rest.length;
  const page = rest.slice(0, limit);
  const left = rest.length - page.length;

  const last = page.at(-1);
  const metadata = {
    resourceVersion: String(snapshot.resourceVersion),
    ...(left > 0 &&
      last && { continue: formatContinue({ rv: snapshot.resourceVersion, after: keyOf(resource, last) }) }),
    // As in Kubernetes, the rest is not counted when there is a selector.
    ...(left > 0 && labelSelector === '' && fieldSelector === '' && { remainingItemCount: left }),
  };
  const head =
    view === 'metadata'
      ? { kind: 'PartialObjectMetadataList', apiVersion: 'meta.k8s.io/v1', metadata }
      : { kind: `${resource.kind}List`, apiVersion: groupVersion(resource), metadata };
  const items = page.map((object) => itemJson(object, view)).join(',');
  return `${JSON.stringify(head).slice(0, -1)},"items":[${items}]}`;
}

function formatContinue(continuation: Continuation): string {
  return Buffer.from(JSON.stringify(continuation)).toString('base64url');
}

function parseContinue(token: string): Continuation | undefined {
  if (token === '') return undefined;
  try {
    const value: unknown = JSON.parse(Buffer.from(token, 'base64url').toString());
    if (isRecord(value) && typeof value['rv'] === 'number' && typeof value['after'] === 'string') {
      return { rv: value['rv'], after: value['after'] };
    }
  } catch {
    // Falls through to the refusal.
  }
  throw new StatusError(400, 'the continue token is not one of this server');
}
