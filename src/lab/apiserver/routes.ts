// SPDX-License-Identifier: Apache-2.0
import { type ResourceName, resources } from './resources.ts';
import { StatusError } from './status.ts';

export type Verb = 'get' | 'list' | 'watch' | 'create' | 'update' | 'patch' | 'delete';

/** The properties of a request that authorisation and faults look at. */
export interface RequestInfo {
  /** The bearer token's user; undefined when there is none. */
  readonly user: string | undefined;
  readonly verb: Verb;
  readonly path: string;
  /** Undefined for paths without an object: /version, discovery, unknown ones. */
  readonly resource: ResourceName | undefined;
  readonly namespace: string | undefined;
  readonly name: string | undefined;
  readonly subresource: string | undefined;
  /** The client's address, to tell nodes from one another. */
  readonly remoteAddress: string | undefined;
}

export type Target = Pick<RequestInfo, 'resource' | 'namespace' | 'name' | 'subresource'>;

/** The target of a path without an object. */
export const noTarget: Target = {
  resource: undefined,
  namespace: undefined,
  name: undefined,
  subresource: undefined,
};

/** Which object or collection a path means:
 * `/api/v1[/namespaces/NS]/PLURAL[/NAME[/SUBRESOURCE]]`, or `/apis/GROUP/VERSION…`. */
export function parsePath(path: string): Target {
  const parts = path.split('/').slice(1).map(decodeURIComponent);
  const [group, version] = parts[0] === 'api' ? ['', parts[1]] : parts[0] === 'apis' ? parts.slice(1, 3) : [];
  const rest = parts.slice(parts[0] === 'api' ? 2 : 3);
  // /namespaces/NS/PLURAL is something inside a namespace, /namespaces/NS[/status] the namespace itself.
  const inside = rest[0] === 'namespaces' && rest.length > 2 && rest[2] !== 'status';
  const [plural, name, subresource, ...more] = inside ? rest.slice(2) : rest;
  for (const [key, resource] of Object.entries(resources)) {
    if (resource.group !== group || resource.version !== version || resource.plural !== plural) continue;
    // A namespaced object has a namespace; its collection may be asked for across all of them.
    const misplaced = resource.namespaced ? name !== undefined && !inside : inside;
    if (misplaced || more.length > 0 || parts.includes('')) break;
    return { resource: key as ResourceName, namespace: inside ? rest[1] : undefined, name, subresource };
  }
  return noTarget;
}

/** The verb of a method on a target. @throws StatusError 405. */
export function verbOf(method: string, target: Target, query: URLSearchParams): Verb {
  const collection = target.resource !== undefined && target.name === undefined;
  const watch = ['true', '1'].includes(query.get('watch') ?? '');
  if (method === 'GET') {
    if (!collection) return 'get';
    return watch ? 'watch' : 'list';
  }
  if (method === 'POST' && collection) return 'create';
  if (method === 'PUT' && !collection) return 'update';
  if (method === 'PATCH' && !collection) return 'patch';
  if (method === 'DELETE' && !collection) return 'delete';
  throw new StatusError(405, `the server does not allow ${method} here`);
}

/**
 * Whether an object can be created at this path. As in Kubernetes, a namespaced object needs a namespace in the path.
 */
export function creatable(target: Target): boolean {
  return (
    target.resource !== undefined &&
    (!resources[target.resource].namespaced || target.namespace !== undefined)
  );
}
