// SPDX-License-Identifier: Apache-2.0
import { isDeepStrictEqual } from 'node:util';
import {
  isRecord,
  type KubeObject,
  type Metadata,
  type MetadataInput,
  type ObjectInput,
  deepFreeze,
} from './objects.ts';
import { groupVersion, type Resource } from './resources.ts';
import { conflict, invalid, type StatusCause, StatusError } from './status.ts';

/** The fields of a new object that the server sets. */
export interface Stamp {
  name: string;
  uid: string;
  /** RFC 3339, whole seconds. */
  creationTimestamp: string;
  resourceVersion: string;
}

export type Subresource = 'status' | undefined;

/**
 * The object to store for a creation. Pure.
 * @throws StatusError 400 or 422 when it is not allowed
 */
export function decideCreate(resource: Resource, input: ObjectInput, stamp: Stamp): KubeObject {
  checkShape(resource, input);
  if (input.metadata?.resourceVersion) {
    throw new StatusError(400, 'metadata.resourceVersion must not be set on an object to be created');
  }
  if (!/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/.test(stamp.name)) {
    const message = `"${stamp.name}" is not a lower-case DNS name`;
    throw invalid(resource.kind, stamp.name, [
      { field: 'metadata.name', reason: 'FieldValueInvalid', message },
    ]);
  }
  const admitted = admit(resource, undefined, input, stamp.name);
  const { generation: _, ...metadata } = admitted.metadata ?? {};
  return canonical(resource, admitted, {
    ...metadata,
    ...stamp,
    ...(resource.generation && { generation: 1 }),
  });
}

/**
 * The object to store for an update; `current` itself when nothing changes. A write to the main resource leaves status
 * alone where that is a subresource; a write to status leaves all but status and metadata alone. Pure.
 * @throws StatusError 400 for another object's name or a wrong shape, 409 for a stale resourceVersion or uid, 422 for a
 * change that the kind forbids.
 */
export function decideUpdate(
  resource: Resource,
  current: KubeObject,
  input: ObjectInput,
  subresource: Subresource,
  resourceVersion: string,
): KubeObject {
  checkShape(resource, input);
  const { name, namespace, uid, generation, creationTimestamp, resourceVersion: version } = current.metadata;
  const given: MetadataInput = input.metadata ?? {};
  if (given.name !== name || (given.namespace ?? namespace) !== namespace) {
    throw new StatusError(400, `the object's name (${given.name}) is not the one on the URL (${name})`);
  }
  if (given.uid && given.uid !== uid) {
    const message = `"${given.uid}": field is immutable`;
    throw invalid(resource.kind, name, [{ field: 'metadata.uid', reason: 'FieldValueInvalid', message }]);
  }
  if (given.resourceVersion && given.resourceVersion !== version) {
    throw conflict(
      resource.plural,
      name,
      'the object has been modified; apply your change to the latest version and try again',
    );
  }

  const { metadata: _metadata, status: _status, ...rest } = current;
  const proposed: ObjectInput =
    subresource === 'status'
      ? { ...rest, ...pick(input, 'metadata'), ...pick(input, 'status') }
      : resource.status
        ? { ...without(input, 'status'), ...pick(current, 'status') }
        : input;
  const admitted = admit(resource, current, proposed, name);
  const kept = { name, ...(namespace && { namespace }), uid, creationTimestamp, resourceVersion: version };
  const { generation: _, ...changed } = admitted.metadata ?? {};
  const metadata = { ...changed, ...kept, ...(generation !== undefined && { generation }) };
  const next = canonical(resource, admitted, metadata);
  if (isDeepStrictEqual(next, current)) return current;
  return deepFreeze({
    ...next,
    metadata: {
      ...next.metadata,
      resourceVersion,
      ...(generation !== undefined && {
        generation: isDeepStrictEqual(next.spec, current.spec) ? generation : generation + 1,
      }),
    },
  });
}

/** The last state of a deleted object: as it was, with the deletion's own resourceVersion. */
export function decideDelete(
  resource: Resource,
  current: KubeObject,
  preconditions: { uid?: string; resourceVersion?: string },
  resourceVersion: string,
): KubeObject {
  for (const field of ['uid', 'resourceVersion'] as const) {
    const expected = preconditions[field];
    if (expected && expected !== current.metadata[field]) {
      throw conflict(resource.kind, current.metadata.name, `its ${field} is not ${expected}`);
    }
  }
  return deepFreeze({ ...current, metadata: { ...current.metadata, resourceVersion } });
}

function pick<K extends 'metadata' | 'status'>(object: ObjectInput, field: K): Pick<ObjectInput, K> {
  return (object[field] === undefined ? {} : { [field]: object[field] }) as Pick<ObjectInput, K>;
}

function without(object: ObjectInput, field: 'status'): ObjectInput {
  const { [field]: _, ...rest } = object;
  return rest;
}

function admit(
  resource: Resource,
  current: KubeObject | undefined,
  proposed: ObjectInput,
  name: string,
): ObjectInput {
  const { object, causes } = resource.admit(current, proposed);
  causes.push(...metadataCauses(object.metadata));
  if (causes.length > 0) throw invalid(resource.kind, name, causes);
  return object;
}

/** A key of a label or an annotation: a name, optionally after a DNS name and a slash. */
const qualifiedName =
  /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const labelValue = /^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/;

/** What is wrong with labels and annotations. */
function metadataCauses({ labels = {}, annotations = {} }: MetadataInput = {}): StatusCause[] {
  const causes: StatusCause[] = [];
  for (const [field, map] of Object.entries({ labels, annotations })) {
    for (const [key, value] of Object.entries(map ?? {})) {
      const wrong = !qualifiedName.test(key) ? key : field === 'labels' && !labelValue.test(value) && value;
      if (wrong === false) continue;
      const message = `Invalid value: "${wrong}"`;
      causes.push({ field: `metadata.${field}`, reason: 'FieldValueInvalid', message });
    }
  }
  return causes;
}

/** The errors that Kubernetes' typed decoder would find. */
function checkShape(resource: Resource, input: ObjectInput): void {
  const expected = { apiVersion: groupVersion(resource), kind: resource.kind };
  for (const field of ['apiVersion', 'kind'] as const) {
    if (input[field] !== undefined && input[field] !== expected[field]) {
      throw new StatusError(
        400,
        `${field} is ${JSON.stringify(input[field])}, expected "${expected[field]}"`,
      );
    }
  }
  for (const field of ['metadata', 'spec', 'status'] as const) {
    if (input[field] !== undefined && !isRecord(input[field])) {
      throw new StatusError(400, `${field} must be an object`);
    }
  }
  for (const field of ['labels', 'annotations'] as const) {
    const map: unknown = input.metadata?.[field];
    if (map === undefined || map === null) continue;
    if (!isRecord(map) || Object.values(map).some((value) => typeof value !== 'string')) {
      throw new StatusError(400, `metadata.${field} must map strings to strings`);
    }
  }
}

/** The object as plain JSON, frozen: members in the usual order, without empty members of metadata. */
function canonical(resource: Resource, object: ObjectInput, metadata: Metadata): KubeObject {
  const { apiVersion: _apiVersion, kind: _kind, metadata: _metadata, ...rest } = object;
  const whole = {
    apiVersion: groupVersion(resource),
    kind: resource.kind,
    metadata: {
      ...metadata,
      labels: emptyToNothing(metadata.labels),
      annotations: emptyToNothing(metadata.annotations),
      finalizers: emptyToNothing(metadata.finalizers),
    },
    ...rest,
  };
  return deepFreeze(JSON.parse(JSON.stringify(whole)) as KubeObject);
}

function emptyToNothing<T extends object>(collection: T | undefined): T | undefined {
  return collection && Object.keys(collection).length > 0 ? collection : undefined;
}
