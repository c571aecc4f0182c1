// SPDX-License-Identifier: Apache-2.0
import { fieldText, type KubeObject } from './objects.ts';
import type { Resource } from './resources.ts';
import { StatusError } from './status.ts';

/** The objects that a list or watch asks for. */
export interface Selection {
  namespace: string | undefined;
  labelSelector: string;
  fieldSelector: string;
}

/**
 * A predicate over a resource's objects. Label selectors support `k=v`, `k==v`, `k!=v`, `k`, `!k`; field selectors
 * `f=v`, `f==v`, `f!=v` on the fields that the resource declares; commas join requirements. As in Kubernetes, `!=` is
 * true where the label is missing.
 * @throws StatusError 400 for anything else.
 */
export function selector(resource: Resource, selection: Selection): (object: KubeObject) => boolean {
  const { namespace, labelSelector, fieldSelector } = selection;
  const tests: ((object: KubeObject) => boolean)[] = [];
  if (namespace !== undefined) tests.push((object) => object.metadata.namespace === namespace);
  for (const { key, operator, value } of requirements(labelSelector)) {
    const label = (object: KubeObject): string | undefined => object.metadata.labels?.[key];
    if (operator === 'exists') tests.push((object) => label(object) !== undefined);
    else if (operator === 'missing') tests.push((object) => label(object) === undefined);
    else tests.push((object) => (label(object) === value) === (operator === '='));
  }
  const known = ['metadata.name', 'metadata.namespace', ...resource.fields];
  for (const { key, operator, value } of requirements(fieldSelector)) {
    if (!known.includes(key) || operator === 'exists' || operator === 'missing') {
      throw new StatusError(400, `field selector "${fieldSelector}" is not supported for ${resource.plural}`);
    }
    tests.push((object) => (fieldText(object, key) === value) === (operator === '='));
  }
  return (object) => tests.every((test) => test(object));
}

interface Requirement {
  key: string;
  operator: '=' | '!=' | 'exists' | 'missing';
  value: string;
}

function requirements(text: string): Requirement[] {
  if (text.trim() === '') return [];
  return text.split(',').map((part) => {
    const match = /^\s*(!?)([\w./-]+)\s*(?:(==|=|!=)\s*([\w./:-]*))?\s*$/.exec(part);
    const [, not, key, operator, value] = match ?? [];
    if (key === undefined || (not && operator)) {
      throw new StatusError(400, `cannot parse "${part}" in selector "${text}"`);
    }
    if (operator) return { key, operator: operator === '!=' ? '!=' : '=', value: value ?? '' };
    return { key, operator: not ? 'missing' : 'exists', value: '' };
  });
}
