// SPDX-License-Identifier: Apache-2.0
import type { StatusCause } from './status.ts';

/** The metadata that a caller gives. The server adds the rest. */
export interface MetadataInput {
  name?: string;
  generateName?: string;
  namespace?: string;
  uid?: string;
  resourceVersion?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  finalizers?: string[];
  [field: string]: unknown;
}

export interface ObjectInput {
  apiVersion?: string;
  kind?: string;
  metadata?: MetadataInput;
  spec?: Record<string, unknown>;
  status?: Record<string, unknown>;
  [field: string]: unknown;
}

/** The metadata of a stored object. */
export interface Metadata extends MetadataInput {
  name: string;
  uid: string;
  resourceVersion: string;
  /** Only for kinds that count the changes of their spec. */
  generation?: number;
  creationTimestamp: string;
}

/** A stored object. It is deeply frozen, so it can be shared, and its JSON cached. */
export interface KubeObject extends ObjectInput {
  apiVersion: string;
  kind: string;
  metadata: Metadata;
}

/** Add a kind's defaults, and check the result. `current` is undefined on creation. Pure. */
export type Admit = (
  current: ObjectInput | undefined,
  proposed: ObjectInput,
) => { object: ObjectInput; causes: StatusCause[] };

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The value at a dotted path, as the text that a fieldSelector compares; '' when there is none. */
export function fieldText(object: ObjectInput, path: string): string {
  let value: unknown = object;
  for (const step of path.split('.')) value = isRecord(value) ? value[step] : undefined;
  return typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean'
    ? String(value)
    : '';
}

/** Freeze a JSON value deeply. */
export function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const part of Object.values(value)) deepFreeze(part);
  }
  return value;
}

/** How a client wants objects: whole, or `PartialObjectMetadata`. */
export type View = 'full' | 'metadata';

const bareJson = new WeakMap<KubeObject, string>();

/** The JSON of an object without kind and apiVersion, as in lists. It is made once for each stored object. */
function bare(object: KubeObject): string {
  let text = bareJson.get(object);
  if (text === undefined) {
    const { kind: _kind, apiVersion: _apiVersion, ...rest } = object;
    text = JSON.stringify(rest);
    bareJson.set(object, text);
  }
  return text;
}

/** JSON of a stored object as the client asked for it, with kind and apiVersion. */
export function objectJson(object: KubeObject, view: View): string {
  if (view === 'metadata') {
    const { metadata } = object;
    return JSON.stringify({ kind: 'PartialObjectMetadata', apiVersion: 'meta.k8s.io/v1', metadata });
  }
  const { kind, apiVersion } = object;
  return `{"kind":${JSON.stringify(kind)},"apiVersion":${JSON.stringify(apiVersion)},${bare(object).slice(1)}`;
}

/** JSON of an object inside a list, where typed lists leave kind and apiVersion out. */
export function itemJson(object: KubeObject, view: View): string {
  return view === 'metadata' ? objectJson(object, view) : bare(object);
}
