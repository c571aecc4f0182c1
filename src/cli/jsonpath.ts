// SPDX-License-Identifier: Apache-2.0
/** kubectl's JSONPath templates: `{.agent.node}`, `{range [*]}{.podCidr}{"\n"}{end}`. */
import { JSONPath } from 'jsonpath-plus';
import { errorText, quote, RipstopError } from '../errors.ts';

/** Text, or what is between braces. */
const PART = /\{(?<inner>(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^{}"'])*)\}|(?<text>[^{}]+)|(?<stray>[{}])/g;

/**
 * Fill a template from a value. A path without braces is one as a whole; the values that a path finds are separated by
 * spaces.
 * @throws RipstopError when it is no template.
 */
export function fillTemplate(template: string, value: unknown): string {
  const parts = [...(/[{}]/.test(template) ? template : `{${template}}`).matchAll(PART)];
  const wrong = (why: string): never => {
    throw new RipstopError(`the jsonpath ${quote(template)} is wrong: ${why}`, { exitCode: 2 });
  };
  const find = (path: string, from: unknown): unknown[] => {
    const relative = path.replace(/^[$@]/, '');
    if (relative !== '' && !/^[.[]/.test(relative)) wrong(`${quote(path)} must begin with "." or "["`);
    try {
      const found: unknown = JSONPath({ path: `$${relative}`, json: from as object, eval: 'safe' });
      return (found as unknown[] | undefined) ?? [];
    } catch (error) {
      return wrong(errorText(error));
    }
  };
  let at = 0;
  const fill = (from: unknown, isInRange: boolean): string => {
    let filled = '';
    for (; at < parts.length; at++) {
      const { inner = '', text, stray } = parts[at]!.groups!;
      if (stray !== undefined) wrong(`a lone "${stray}"`);
      const range = /^\s*range\s+(?<path>.+?)\s*$/.exec(inner)?.groups?.['path'];
      if (text !== undefined) filled += text;
      else if (/^\s*["']/.test(inner)) filled += literal(inner.trim());
      else if (inner.trim() === 'end') {
        if (!isInRange) wrong('{end} without {range}');
        return filled;
      } else if (range !== undefined) {
        const begin = ++at;
        const items = find(range, from);
        for (const item of items) {
          at = begin;
          filled += fill(item, true);
        }
        if (items.length === 0) fill(undefined, true);
      } else filled += find(inner.trim(), from).map(textOf).join(' ');
    }
    return isInRange ? wrong('{range} without {end}') : filled;
  };
  return fill(value, false);
}

function literal(quoted: string): string {
  const inner = quoted.slice(1, -1);
  return quoted.startsWith("'") ? inner : (JSON.parse(quoted) as string);
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value);
}
