// SPDX-License-Identifier: Apache-2.0
import { beforeEach, describe, expect, it } from 'vitest';
import { ItemStore, type ObjectFrame } from './item-store.ts';

const meta = (name: string, uid: string, version: number) => ({
  name,
  uid,
  resourceVersion: String(version),
});

function event(
  type: ObjectFrame['type'],
  name: string,
  uid: string,
  version: number,
  object = 'new',
): ObjectFrame {
  return { type, meta: meta(name, uid, version), object };
}

describe('the item store', () => {
  let store: ItemStore<string>;
  const apply = (frame: ObjectFrame) => store.apply(frame, String);
  const content = () => [...store.items.values()].map((item) => `${item.name}/${item.uid}=${item.value}`);

  beforeEach(() => {
    store = new ItemStore();
    store.replace(
      [
        { meta: meta('a', 'a1', 5), value: 'A' },
        { meta: meta('b', 'b1', 7), value: 'B' },
      ],
      '10',
    );
  });

  it('applies events and goes on from the newest', () => {
    expect(apply(event('ADDED', 'c', 'c1', 11))).toBe(true);
    expect(apply(event('MODIFIED', 'a', 'a1', 12, 'AA'))).toBe(true);
    expect(apply(event('DELETED', 'b', 'b1', 13))).toBe(true);
    expect(content()).toEqual(['a/a1=AA', 'c/c1=new']);
    expect(store.resourceVersion).toBe('13');
  });

  it('does nothing for duplicates and older versions', () => {
    apply(event('MODIFIED', 'a', 'a1', 12, 'AA'));
    expect(apply(event('MODIFIED', 'a', 'a1', 12, 'again'))).toBe(false);
    expect(apply(event('MODIFIED', 'a', 'a1', 5, 'older'))).toBe(false);
    expect(apply(event('DELETED', 'a', 'a1', 11))).toBe(false);
    expect(content()).toEqual(['a/a1=AA', 'b/b1=B']);
    expect(store.resourceVersion).toBe('12');
  });

  it('does not bring back a deleted object with a late event', () => {
    apply(event('DELETED', 'b', 'b1', 13));
    expect(apply(event('MODIFIED', 'b', 'b1', 12))).toBe(false);
    expect(apply(event('DELETED', 'b', 'b1', 13))).toBe(false);
    expect(content()).toEqual(['a/a1=A']);
  });

  it('takes a new UID of an old name for another object, and a late deletion of the old one for nothing', () => {
    expect(apply(event('ADDED', 'a', 'a2', 11))).toBe(true);
    expect(content()).toEqual(['b/b1=B', 'a/a2=new']);
    expect(apply(event('DELETED', 'a', 'a1', 12))).toBe(false);
    expect(content()).toEqual(['b/b1=B', 'a/a2=new']);
  });

  it('tells objects of one name in two namespaces apart', () => {
    apply({ type: 'ADDED', meta: { ...meta('a', 'a9', 11), namespace: 'x' }, object: 'other' });
    expect(content()).toContain('a/a1=A');
  });

  it('takes over a list by its differences and keeps equal values as they are', () => {
    const before = store.items.get('a1');
    const same = [
      { meta: meta('a', 'a1', 5), value: 'other object, same version' },
      { meta: meta('b', 'b1', 7), value: 'B' },
    ];
    expect(store.replace(same, '20')).toBe(false);
    expect(store.items.get('a1')).toBe(before);
    expect(store.resourceVersion).toBe('20');
    expect(store.replace(same.slice(0, 1), '21')).toBe(true);
    expect(content()).toEqual(['a/a1=A']);
  });

  it('keeps the very same value where an event changes only the version, and does not call that a change', () => {
    const store = new ItemStore<{ readonly cidrs: readonly string[] }>();
    const cidrs = (...cidrs: string[]) => ({ cidrs });
    store.replace([{ meta: meta('a', 'a1', 5), value: cidrs('x', 'y') }], '10');
    const before = store.items.get('a1')!.value;
    const modified = (version: number, ...now: string[]) =>
      store.apply(event('MODIFIED', 'a', 'a1', version), () => cidrs(...now));
    expect(modified(11, 'x', 'y')).toBe(false);
    expect(store.items.get('a1')).toMatchObject({ resourceVersion: '11' });
    expect(store.resourceVersion).toBe('11');
    expect(store.items.get('a1')!.value).toBe(before);
    // The version has gone on, so what is older is still known as such.
    expect(modified(8, 'old')).toBe(false);
    expect(store.replace([{ meta: meta('a', 'a1', 12), value: cidrs('x', 'y') }], '12')).toBe(false);
    expect(store.items.get('a1')!.value).toBe(before);
    expect(store.items.get('a1')!.resourceVersion).toBe('12');
    expect(modified(13, 'y', 'x')).toBe(true);
    expect(store.items.get('a1')!.value).toEqual(cidrs('y', 'x'));
  });

  it('counts a new object as a change, whatever is kept of it', () => {
    const store = new ItemStore<undefined>();
    store.replace([], '10');
    expect(store.apply(event('ADDED', 'a', 'a1', 11), () => undefined)).toBe(true);
    expect(store.replace([{ meta: meta('a', 'a2', 12), value: undefined }], '12')).toBe(true);
    expect(store.apply(event('ADDED', 'a', 'a3', 13), () => undefined)).toBe(true);
  });

  it('believes a list from the past: the API server was restored from a backup', () => {
    expect(store.replace([{ meta: meta('a', 'a1', 3), value: 'old A' }], '4')).toBe(true);
    expect(content()).toEqual(['a/a1=old A']);
    expect(store.resourceVersion).toBe('4');
  });
});
