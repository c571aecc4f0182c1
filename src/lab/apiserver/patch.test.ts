// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { applyPatch, jsonPatch, mergePatch, strategicMergePatch } from './patch.ts';

describe('a merge patch (RFC 7386)', () => {
  // The examples of the RFC's appendix A.
  it.each([
    [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
    [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
    [{ a: 'b' }, { a: null }, {}],
    [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
    [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
    [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
    [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
    [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
    [
      ['a', 'b'],
      ['c', 'd'],
      ['c', 'd'],
    ],
    [{ a: 'foo' }, 'bar', 'bar'],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: 'b', c: null }, { a: 'b' }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ])('makes of %j with %j: %j', (target, patch, result) => expect(mergePatch(target, patch)).toEqual(result));
});

describe('a strategic merge patch', () => {
  const node = {
    metadata: { name: 'a', annotations: { kept: '1', gone: '2' }, finalizers: ['x'] },
    spec: { podCIDRs: ['10.42.0.0/24'], taints: [{ key: 'a', effect: 'NoSchedule' }] },
    status: {
      conditions: [
        { type: 'Ready', status: 'True', reason: 'KubeletReady' },
        { type: 'NetworkUnavailable', status: 'True' },
      ],
      addresses: [
        { type: 'InternalIP', address: '192.0.2.1' },
        { type: 'Hostname', address: 'a' },
      ],
      images: [{ names: ['one'] }],
    },
  };
  const patched = (patch: unknown): typeof node => strategicMergePatch(node, patch) as typeof node;

  it('merges annotations; null removes one', () => {
    expect(patched({ metadata: { annotations: { gone: null, new: '3' } } }).metadata.annotations).toEqual({
      kept: '1',
      new: '3',
    });
  });

  it('merges conditions by type, member by member', () => {
    const conditions = [{ type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' }];
    expect(patched({ status: { conditions } }).status.conditions).toEqual([
      { type: 'Ready', status: 'True', reason: 'KubeletReady' },
      { type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' },
    ]);
  });

  it('adds a condition of a new type in front, as Kubernetes does', () => {
    const { conditions } = patched({ status: { conditions: [{ type: 'New', status: 'True' }] } }).status;
    expect(conditions.map(({ type }) => type)).toEqual(['New', 'Ready', 'NetworkUnavailable']);
  });

  it('merges addresses by type and removes one with $patch: delete', () => {
    const addresses = [
      { type: 'InternalIP', address: '192.0.2.9' },
      { type: 'Hostname', $patch: 'delete' },
    ];
    expect(patched({ status: { addresses } }).status.addresses).toEqual([
      { type: 'InternalIP', address: '192.0.2.9' },
    ]);
  });

  it('joins finalizers and podCIDRs as sets, and removes from them by name', () => {
    expect(patched({ metadata: { finalizers: ['x', 'y'] } }).metadata.finalizers).toEqual(['x', 'y']);
    expect(patched({ spec: { podCIDRs: ['fd00::/64'] } }).spec.podCIDRs).toEqual([
      'fd00::/64',
      '10.42.0.0/24',
    ]);
    expect(
      patched({ metadata: { '$deleteFromPrimitiveList/finalizers': ['x'] } }).metadata.finalizers,
    ).toEqual([]);
  });

  it('replaces the lists that Kubernetes calls atomic', () => {
    const taints = [{ key: 'b', effect: 'NoExecute' }];
    expect(patched({ spec: { taints } }).spec.taints).toEqual(taints);
    expect(patched({ status: { images: [] } }).status.images).toEqual([]);
  });

  it('replaces a map or a list that says so', () => {
    expect(
      patched({ metadata: { annotations: { $patch: 'replace', only: '1' } } }).metadata.annotations,
    ).toEqual({
      only: '1',
    });
    const conditions = [{ $patch: 'replace' }, { type: 'Only', status: 'True' }];
    expect(patched({ status: { conditions } }).status.conditions).toEqual([{ type: 'Only', status: 'True' }]);
    expect(patched({ metadata: { annotations: { $patch: 'delete' } } }).metadata.annotations).toEqual({});
    expect(patched({ metadata: { annotations: { $retainKeys: ['kept'] } } }).metadata.annotations).toEqual({
      kept: '1',
    });
  });

  it('passes over $setElementOrder, which kubectl adds', () => {
    const conditions = [{ type: 'Ready', status: 'False' }];
    const order = [{ type: 'Ready' }, { type: 'NetworkUnavailable' }];
    const result = patched({ status: { '$setElementOrder/conditions': order, conditions } });
    expect(Object.keys(result.status)).toEqual(Object.keys(node.status));
    expect(result.status.conditions[0]).toMatchObject({
      type: 'Ready',
      status: 'False',
      reason: 'KubeletReady',
    });
  });

  it('refuses an element without its merge key', () => {
    expect(() => patched({ status: { conditions: [{ status: 'True' }] } })).toThrow(
      'lacks its merge key "type"',
    );
  });

  it('leaves its arguments alone', () => {
    const before = structuredClone(node);
    patched({
      metadata: { annotations: { kept: 'x' } },
      status: { conditions: [{ type: 'Ready', status: 'x' }] },
    });
    expect(node).toEqual(before);
  });
});

describe('a JSON patch (RFC 6902)', () => {
  it.each([
    ['adds a member', { foo: 'bar' }, [{ op: 'add', path: '/baz', value: 1 }], { foo: 'bar', baz: 1 }],
    [
      'adds an element',
      { foo: ['a', 'c'] },
      [{ op: 'add', path: '/foo/1', value: 'b' }],
      { foo: ['a', 'b', 'c'] },
    ],
    ['appends with -', { foo: ['a'] }, [{ op: 'add', path: '/foo/-', value: 'b' }], { foo: ['a', 'b'] }],
    [
      'removes',
      { foo: ['a', 'b'], x: 1 },
      [
        { op: 'remove', path: '/foo/0' },
        { op: 'remove', path: '/x' },
      ],
      { foo: ['b'] },
    ],
    [
      'replaces',
      { foo: { bar: 1 } },
      [{ op: 'replace', path: '/foo/bar', value: null }],
      { foo: { bar: null } },
    ],
    ['replaces the whole', { foo: 1 }, [{ op: 'replace', path: '', value: { bar: 2 } }], { bar: 2 }],
    ['moves', { a: { b: 1 }, c: {} }, [{ op: 'move', from: '/a/b', path: '/c/d' }], { a: {}, c: { d: 1 } }],
    ['copies', { a: { b: 1 } }, [{ op: 'copy', from: '/a', path: '/c' }], { a: { b: 1 }, c: { b: 1 } }],
    [
      'tests',
      { a: { x: 1, y: [2] } },
      [{ op: 'test', path: '/a', value: { y: [2], x: 1 } }],
      { a: { x: 1, y: [2] } },
    ],
    ['unescapes ~1 and ~0', { 'a/b': { 'c~d': 1 } }, [{ op: 'remove', path: '/a~1b/c~0d' }], { 'a/b': {} }],
  ])('%s', (_what, document, patch, result) => expect(jsonPatch(document, patch)).toEqual(result));

  it.each([
    ['a path that is not there', 422, [{ op: 'remove', path: '/nope' }]],
    ['a test that fails', 422, [{ op: 'test', path: '/a', value: 2 }]],
    ['an index past the end', 422, [{ op: 'add', path: '/list/3', value: 0 }]],
    ['an index with a leading zero', 422, [{ op: 'remove', path: '/list/01' }]],
    ['a move into itself', 422, [{ op: 'move', from: '/deep', path: '/deep/er' }]],
    ['an unknown operation', 400, [{ op: 'merge', path: '/a' }]],
    ['an add without a value', 400, [{ op: 'add', path: '/a' }]],
    ['a path that is no pointer', 400, [{ op: 'remove', path: 'a' }]],
    ['a patch that is no list', 400, { op: 'remove', path: '/a' }],
  ])('refuses %s', (_what, code, patch) => {
    const document = { a: 1, list: [1, 2], deep: { er: 1 } };
    expect(() => applyPatch('application/json-patch+json', document, patch)).toThrow(
      expect.objectContaining({ code }),
    );
    expect(document).toEqual({ a: 1, list: [1, 2], deep: { er: 1 } });
  });
});
