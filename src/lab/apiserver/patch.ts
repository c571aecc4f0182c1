// SPDX-License-Identifier: Apache-2.0
import { isDeepStrictEqual } from 'node:util';
import { isRecord, type ObjectInput } from './objects.ts';
import { StatusError } from './status.ts';

/** The content types of patches that the server supports. */
const patchTypes = {
  'application/strategic-merge-patch+json': (object: unknown, patch: unknown) =>
    strategicMergePatch(object, patch),
  'application/merge-patch+json': mergePatch,
  'application/json-patch+json': jsonPatch,
} as const;

export type PatchType = keyof typeof patchTypes;

export function isPatchType(contentType: string): contentType is PatchType {
  return Object.hasOwn(patchTypes, contentType);
}

/**
 * Apply a patch. Pure: it changes neither argument.
 * @throws StatusError 400 for a malformed patch, 422 for one that does not apply to this object
 */
export function applyPatch(type: PatchType, object: ObjectInput, patch: unknown): ObjectInput {
  if (type !== 'application/json-patch+json' && !isRecord(patch))
    throw malformed('a patch must be an object');
  const patched = patchTypes[type](object, patch);
  if (!isRecord(patched)) throw inapplicable('the patched document is not an object');
  return patched;
}

/** RFC 7386: objects merge, null removes, everything else replaces. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isRecord(patch)) return patch;
  const result = new Map(Object.entries(isRecord(target) ? target : {}));
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) result.delete(key);
    else result.set(key, mergePatch(result.get(key), value));
  }
  return Object.fromEntries(result);
}

/**
 * The lists that a strategic merge patch merges instead of replacing, by path: the member that identifies an element,
 * or `''` for a set of plain values. They follow the `patchStrategy` and `patchMergeKey` tags of the Kubernetes API
 * types. All other lists (spec.taints, status.images, …) are atomic, in Kubernetes too.
 */
const mergeKeys: Readonly<Record<string, string>> = {
  'metadata.finalizers': '',
  'metadata.ownerReferences': 'uid',
  'spec.podCIDRs': '',
  'status.addresses': 'type',
  'status.conditions': 'type',
  // Pods and Services:
  'spec.containers': 'name',
  'spec.volumes': 'name',
  'spec.ports': 'port',
  'status.podIPs': 'ip',
};

const deleteFromList = '$deleteFromPrimitiveList/';

/**
 * Kubernetes' strategic merge patch: a merge patch that merges the lists in {@link mergeKeys} element by element. It
 * supports null, `$patch` (merge, replace, delete), `$deleteFromPrimitiveList` and `$retainKeys`, and ignores
 * `$setElementOrder`, which only orders a list.
 */
export function strategicMergePatch(target: unknown, patch: unknown, path = ''): unknown {
  if (!isRecord(patch)) return patch;
  const directive = patch['$patch'];
  if (directive === 'delete') return {};
  const result = new Map(Object.entries(isRecord(target) && directive !== 'replace' ? target : {}));

  const retain = patch['$retainKeys'];
  if (Array.isArray(retain)) for (const key of result.keys()) if (!retain.includes(key)) result.delete(key);
  for (const [key, values] of Object.entries(patch)) {
    if (!key.startsWith(deleteFromList)) continue;
    const field = key.slice(deleteFromList.length);
    const list = result.get(field);
    if (Array.isArray(list) && Array.isArray(values)) {
      result.set(
        field,
        list.filter((value) => !values.includes(value)),
      );
    }
  }
  for (const [key, value] of Object.entries(patch)) {
    if (key.startsWith('$')) continue;
    const child = path === '' ? key : `${path}.${key}`;
    if (value === null) result.delete(key);
    else if (Array.isArray(value)) result.set(key, mergeList(result.get(key), value, child));
    else result.set(key, strategicMergePatch(result.get(key), value, child));
  }
  return Object.fromEntries(result);
}

function mergeList(target: unknown, patch: readonly unknown[], path: string): unknown[] {
  const directive = (element: unknown): unknown => (isRecord(element) ? element['$patch'] : undefined);
  const added = patch.filter((element) => directive(element) === undefined);
  const key = mergeKeys[path];
  if (key === undefined || patch.some((element) => directive(element) === 'replace')) return added;

  let result: unknown[] = Array.isArray(target) ? [...target] : [];
  const before: readonly unknown[] = [...result];
  if (key === '') {
    const all = [...result, ...added.filter((value) => !result.includes(value))];
    return inOrder(all, before, added);
  }
  for (const element of patch) {
    const name = isRecord(element) ? element[key] : undefined;
    if (name === undefined) throw malformed(`an element of ${path} lacks its merge key "${key}"`);
    const same = (other: unknown): boolean => isRecord(other) && other[key] === name;
    if (directive(element) === 'delete') {
      result = result.filter((other) => !same(other));
      continue;
    }
    const index = result.findIndex(same);
    const merged = strategicMergePatch(result[index], element, path);
    if (index < 0) result.push(merged);
    else result[index] = merged;
  }
  const nameOf = (element: unknown): unknown => (isRecord(element) ? element[key] : element);
  return inOrder(result, before.map(nameOf), added.map(nameOf), nameOf);
}

/**
 * Order a merged list as Kubernetes does: the elements that the patch names, in its order, and the others are merged
 * like two sorted lists. Only elements that were there `before` are compared; otherwise the patch's elements come
 * first.
 */
function inOrder(
  list: readonly unknown[],
  before: readonly unknown[],
  named: readonly unknown[],
  nameOf: (element: unknown) => unknown = (element) => element,
): unknown[] {
  const place = (element: unknown): number => before.indexOf(nameOf(element));
  const rank = (element: unknown): number => named.indexOf(nameOf(element));
  const others = list.filter((element) => rank(element) < 0);
  const ordered: unknown[] = [];
  for (const element of list.filter((one) => rank(one) >= 0).sort((a, b) => rank(a) - rank(b))) {
    while (others.length > 0 && place(others[0]) < place(element)) ordered.push(others.shift());
    ordered.push(element);
  }
  return [...ordered, ...others];
}

/** RFC 6902, all six operations; one that fails makes the whole patch fail. */
export function jsonPatch(document: unknown, patch: unknown): unknown {
  if (!Array.isArray(patch)) throw malformed('a JSON patch must be a list of operations');
  // A member around the document, so that its root can be replaced like any other value.
  const holder = { '': structuredClone(document) };
  for (const operation of patch) applyOperation(holder, operation);
  return holder[''];
}

function applyOperation(holder: Record<string, unknown>, operation: unknown): void {
  if (!isRecord(operation)) throw malformed('an operation of a JSON patch must be an object');
  const path = pointer(operation, 'path');
  switch (operation['op']) {
    case 'add':
      return insert(holder, path, member(operation, 'value'));
    case 'replace':
      return replace(holder, path, member(operation, 'value'));
    case 'remove':
      return void take(holder, path);
    case 'copy':
      return insert(holder, path, structuredClone(read(holder, pointer(operation, 'from'))));
    case 'move': {
      const from = pointer(operation, 'from');
      if (isDeepStrictEqual(path.slice(0, from.length), from) && path.length > from.length) {
        throw inapplicable('a value cannot move into itself');
      }
      return insert(holder, path, take(holder, from));
    }
    case 'test':
      if (isDeepStrictEqual(read(holder, path), member(operation, 'value'))) return undefined;
      throw inapplicable(`testing path ${String(operation['path'])} failed`);
    default:
      throw malformed(`"${String(operation['op'])}" is not an operation of a JSON patch`);
  }
}

function member(operation: Record<string, unknown>, name: string): unknown {
  if (!Object.hasOwn(operation, name)) {
    throw malformed(`a JSON patch operation "${String(operation['op'])}" needs "${name}"`);
  }
  return operation[name];
}

/** The parts of an RFC 6901 pointer, beginning at the holder. */
function pointer(operation: Record<string, unknown>, name: string): string[] {
  const text = member(operation, name);
  if (typeof text !== 'string' || (text !== '' && !text.startsWith('/'))) {
    throw malformed(`${JSON.stringify(text)} is not a JSON pointer`);
  }
  return text.split('/').map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
}

/** The index in a list that a part of a pointer stands for; `end` is the highest allowed. */
function listIndex(step: string, end: number): number {
  const index = /^(0|[1-9]\d*)$/.test(step) ? Number(step) : Number.NaN;
  if (!(index <= end)) throw inapplicable(`"${step}" is not an index of this list`);
  return index;
}

function child(parent: unknown, step: string): unknown {
  if (Array.isArray(parent)) return parent[listIndex(step, parent.length - 1)];
  if (isRecord(parent) && Object.hasOwn(parent, step)) return parent[step];
  throw inapplicable(`there is no "${step}"`);
}

function read(holder: unknown, path: readonly string[]): unknown {
  return path.reduce(child, holder);
}

function parentOf(holder: unknown, path: readonly string[]): { parent: unknown; step: string } {
  return { parent: read(holder, path.slice(0, -1)), step: path.at(-1) ?? '' };
}

function insert(holder: unknown, path: readonly string[], value: unknown): void {
  const { parent, step } = parentOf(holder, path);
  if (Array.isArray(parent)) {
    parent.splice(step === '-' ? parent.length : listIndex(step, parent.length), 0, value);
  } else if (isRecord(parent)) parent[step] = value;
  else throw inapplicable(`nothing can be added below a plain value ("${step}")`);
}

function replace(holder: unknown, path: readonly string[], value: unknown): void {
  read(holder, path);
  const { parent, step } = parentOf(holder, path);
  if (Array.isArray(parent)) parent[Number(step)] = value;
  else if (isRecord(parent)) parent[step] = value;
}

function take(holder: unknown, path: readonly string[]): unknown {
  const value = read(holder, path);
  const { parent, step } = parentOf(holder, path);
  if (Array.isArray(parent)) parent.splice(Number(step), 1);
  else if (isRecord(parent)) delete parent[step];
  return value;
}

function malformed(message: string): StatusError {
  return new StatusError(400, message);
}

function inapplicable(message: string): StatusError {
  return new StatusError(422, message);
}
