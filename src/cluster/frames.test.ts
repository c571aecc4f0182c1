// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { FrameError, Lines, newer, parseFrame, parseListPage, withoutManagedFields } from './frames.ts';

function collect(text: string | Uint8Array, size = 1024): string[] {
  const bytes = Buffer.from(text);
  const lines = new Lines(64);
  const found: string[] = [];
  for (let i = 0; i < bytes.length; i += size) found.push(...lines.push(bytes.subarray(i, i + size)));
  lines.end();
  return found;
}

describe('lines of a stream', () => {
  it.each([1, 2, 3, 7, 1000])('are the same in chunks of %i bytes', (size) => {
    expect(collect('{"a":"ä€😀"}\n\n{"b":2}\n', size)).toEqual(['{"a":"ä€😀"}', '{"b":2}']);
  });

  it.each([
    ['cut off', '{"a":1}\n{"b"', 'in the middle of a frame, after 4 bytes'],
    ['too long', 'x'.repeat(65), 'longer than 64 bytes'],
    ['no UTF-8', Uint8Array.of(0x22, 0xff, 0x22, 0x0a), 'no valid UTF-8'],
  ])('that are %s are a fault', (_, text, message) => {
    expect(() => collect(text, 5)).toThrow(message);
    expect(() => collect(text, 5)).toThrow(FrameError);
  });
});

describe('managed fields', () => {
  const object = {
    kind: 'Node',
    metadata: { name: 'a', annotations: { x: ',"managedFields":[ \\' } },
    spec: { y: [1] },
  };
  const fields = [
    { manager: 'kubelet', fieldsV1: { 'k:{"type":"]}"}': { '.': {} }, 'v:"\\"': [[], ['}']] } },
    { manager: 'flanneld', fieldsV1: {} },
  ];

  it.each([
    ['last in the metadata', { ...object, metadata: { ...object.metadata, managedFields: fields } }],
    ['none at all', { ...object, metadata: { ...object.metadata, managedFields: [] } }],
    ['before others', { ...object, metadata: { uid: 'u', managedFields: fields, ...object.metadata } }],
    ['not there', object],
  ])('are left out before a frame is parsed: %s', (_, given) => {
    expect(JSON.parse(withoutManagedFields(JSON.stringify(given)))).toMatchObject(object);
    expect(withoutManagedFields(JSON.stringify(given))).not.toContain('flanneld');
  });

  it('that are cut off anywhere leave no valid frame', () => {
    const text = JSON.stringify({ ...object, metadata: { ...object.metadata, managedFields: fields } });
    for (let end = 0; end < text.length; end++)
      expect(() => JSON.parse(withoutManagedFields(text.slice(0, end)))).toThrow(SyntaxError);
  });
});

describe('a frame', () => {
  const object = { metadata: { name: 'a', uid: 'u', resourceVersion: '7', annotations: {} }, spec: { x: 1 } };

  it('carries the object whole and its metadata checked', () => {
    expect(parseFrame(JSON.stringify({ type: 'ADDED', object }))).toEqual({
      type: 'ADDED',
      meta: { name: 'a', uid: 'u', resourceVersion: '7' },
      object,
    });
  });

  it('of type ERROR carries the Status', () => {
    const status = { code: 410, reason: 'Expired', message: 'too old', details: { retryAfterSeconds: 2 } };
    expect(parseFrame(JSON.stringify({ type: 'ERROR', object: status }))).toEqual({
      type: 'ERROR',
      code: 410,
      message: 'Expired: too old',
      retryAfterMs: 2000,
    });
  });

  it.each([
    ['{', 'no JSON'],
    ['null', 'wrong shape'],
    ['{"type":"ADDED"}', 'object: no object'],
    ['{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}', 'metadata.uid'],
    [
      '{"type":"ADDED","object":{"metadata":{"name":"a","uid":"u","resourceVersion":"x"}}}',
      'no decimal number',
    ],
    ['{"type":"ADDED","object":{"metadata":{"name":"a","uid":"u","resourceVersion":7}}}', 'resourceVersion'],
    ['{"type":"BOOKMARK","object":{}}', 'a bookmark has a wrong shape'],
    ['{"type":"SURPRISE","object":{}}', 'unknown type "SURPRISE"'],
  ])('%s is a fault', (line, message) => {
    expect(() => parseFrame(line)).toThrow(message);
  });
});

describe('a page of a list', () => {
  it('may be empty', () => {
    const page = { resourceVersion: '5', next: '', objects: [] };
    expect(parseListPage({ metadata: { resourceVersion: '5' }, items: null })).toEqual(page);
  });

  it.each([
    [{}],
    [{ metadata: { resourceVersion: '5' } }],
    [{ metadata: { resourceVersion: '5' }, items: [{}] }],
  ])('%j is a fault', (json) => expect(() => parseListPage(json)).toThrow(FrameError));
});

it('versions are compared as numbers of any size', () => {
  expect(newer('10', '9')).toBe(true);
  expect(newer('9', '9')).toBe(false);
  expect(newer('18446744073709551615', '18446744073709551614')).toBe(true);
  expect(newer('1', '')).toBe(true);
});
