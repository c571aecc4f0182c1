// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { History, type StoreEvent } from './history.ts';
import type { KubeObject } from './objects.ts';
import { resources } from './resources.ts';
import { selector } from './selectors.ts';
import { Store } from './store.ts';
import { visibleType } from './watch.ts';

const node = (name: string, more: object = {}): { metadata: { name: string } } => ({
  metadata: { name },
  ...more,
});
const refusal = (code: number, reason: string): unknown => expect.objectContaining({ code, reason });

describe('the store', () => {
  it('sets the fields of a new object that only a server can set', () => {
    const store = new Store(10);
    const created = store.create('nodes', node('a', { spec: { podCIDR: '10.42.0.0/24' } }));
    expect(created).toMatchObject({
      apiVersion: 'v1',
      kind: 'Node',
      metadata: { name: 'a', resourceVersion: '1' },
      spec: { podCIDR: '10.42.0.0/24', podCIDRs: ['10.42.0.0/24'] },
    });
    expect(created.metadata.uid).toMatch(/^[0-9a-f-]{36}$/);
    expect(created.metadata.creationTimestamp).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
    expect(store.get('nodes', 'a')).toBe(created);
    expect(() => (created.metadata.name = 'b')).toThrow(TypeError);
  });

  it('has one resourceVersion counter for all kinds', () => {
    const store = new Store(10);
    store.create('nodes', node('a'));
    store.create('pods', node('p'));
    const { metadata } = store.update('nodes', node('a', { spec: { unschedulable: true } }));
    expect(metadata.resourceVersion).toBe('3');
  });

  it('counts the changes of a spec for the kinds for which Kubernetes does; Nodes are not among them', () => {
    const store = new Store(10);
    for (const [kind, generations] of [
      ['nodes', [undefined, undefined, undefined]],
      ['networkpolicies', [1, 1, 2]],
    ] as const) {
      const labelled = { metadata: { name: 'a', labels: { x: 'y' } } };
      const steps = [
        store.create(kind, node('a')),
        store.update(kind, node('a', labelled)),
        store.update(kind, node('a', { ...labelled, spec: { podSelector: {} } })),
      ];
      expect(steps.map(({ metadata }) => metadata.generation)).toEqual(generations);
    }
  });

  it('writes nothing when nothing changes', () => {
    const store = new Store(10);
    const created = store.create('nodes', node('a', { metadata: { name: 'a', labels: { x: 'y' } } }));
    expect(
      store.patch('nodes', 'a', 'application/merge-patch+json', { metadata: { labels: { x: 'y' } } }),
    ).toBe(created);
    expect(store.revision).toBe(1);
  });

  it('refuses a second creation, a missing object and a stale resourceVersion by name', () => {
    const store = new Store(10);
    const first = store.create('nodes', node('a'));
    expect(() => store.create('nodes', node('a'))).toThrow(refusal(409, 'AlreadyExists'));
    expect(() => store.delete('nodes', 'b')).toThrow(refusal(404, 'NotFound'));
    store.update('nodes', node('a', { spec: { unschedulable: true } }));
    expect(() => store.update('nodes', first)).toThrow(refusal(409, 'Conflict'));
    expect(() => store.delete('nodes', 'a', { preconditions: { uid: 'x' } })).toThrow(
      refusal(409, 'Conflict'),
    );
  });

  it('gives a re-created object a new uid, and a deletion a resourceVersion of its own', () => {
    const store = new Store(10);
    const first = store.create('nodes', node('a'));
    expect(store.delete('nodes', 'a').metadata).toMatchObject({
      uid: first.metadata.uid,
      resourceVersion: '2',
    });
    expect(store.create('nodes', node('a')).metadata.uid).not.toBe(first.metadata.uid);
  });

  it('keeps namespaces apart', () => {
    const store = new Store(10);
    store.create('pods', { metadata: { name: 'p', namespace: 'one' } });
    store.create('pods', { metadata: { name: 'p' } });
    expect(store.list('pods').map(({ metadata }) => metadata.namespace)).toEqual(['default', 'one']);
    expect(store.get('pods', 'p', 'two')).toBeUndefined();
  });

  it('makes names from generateName', () => {
    const store = new Store(10);
    expect(store.create('events', { metadata: { generateName: 'a.' } }).metadata.name).toMatch(
      /^a\.[0-9a-f]{5}$/,
    );
  });

  it.each([
    ['a wrong kind', 400, { kind: 'Pod', metadata: { name: 'a' } }],
    ['an annotation that is no string', 400, { metadata: { name: 'a', annotations: { x: 1 } } }],
    ['a resourceVersion', 400, { metadata: { name: 'a', resourceVersion: '1' } }],
    ['a name in capitals', 422, { metadata: { name: 'A' } }],
    ['no name', 422, {}],
    ['a podCIDR that is none', 422, { metadata: { name: 'a' }, spec: { podCIDR: '10.42.0.0' } }],
    [
      'two IPv4 podCIDRs',
      422,
      { metadata: { name: 'a' }, spec: { podCIDRs: ['10.1.0.0/24', '10.2.0.0/24'] } },
    ],
    [
      'a podCIDR unlike podCIDRs[0]',
      422,
      { metadata: { name: 'a' }, spec: { podCIDR: '10.1.0.0/24', podCIDRs: ['10.2.0.0/24'] } },
    ],
  ])('refuses a new node with %s', (_what, code, input) => {
    expect(() => new Store(10).create('nodes', input as never)).toThrow(expect.objectContaining({ code }));
  });

  it('lets podCIDRs be set once', () => {
    const store = new Store(10);
    store.create('nodes', node('a'));
    const patch = (spec: object): KubeObject =>
      store.patch('nodes', 'a', 'application/merge-patch+json', { spec });
    expect(patch({ podCIDRs: ['10.42.1.0/24', 'fd00::/64'] }).spec).toMatchObject({
      podCIDR: '10.42.1.0/24',
    });
    for (const spec of [
      { podCIDR: '10.42.2.0/24' },
      { podCIDR: null, podCIDRs: null },
      { podCIDRs: ['10.42.1.0/24'] },
    ]) {
      expect(() => patch(spec)).toThrow(/node updates may not change podCIDR/);
    }
    expect(store.revision).toBe(2);
  });
});

describe('status and the other fields', () => {
  const start = (): Store => {
    const store = new Store(10);
    store.create('nodes', node('a', { spec: { unschedulable: false }, status: { phase: 'one' } }));
    return store;
  };
  const change = {
    metadata: { annotations: { x: '1' } },
    spec: { unschedulable: true },
    status: { phase: 'two' },
  };

  it('are written apart: nodes/status takes status and annotations, and no spec', () => {
    expect(
      start().patch('nodes', 'a', 'application/strategic-merge-patch+json', change, {
        subresource: 'status',
      }),
    ).toMatchObject({
      metadata: { annotations: { x: '1' } },
      spec: { unschedulable: false },
      status: { phase: 'two' },
    });
  });

  it('are written apart: nodes takes spec and annotations, and no status', () => {
    expect(start().patch('nodes', 'a', 'application/strategic-merge-patch+json', change)).toMatchObject({
      metadata: { annotations: { x: '1' } },
      spec: { unschedulable: true },
      status: { phase: 'one' },
    });
  });

  it('stay together where a kind has no status subresource', () => {
    const store = new Store(10);
    store.create('events', { metadata: { name: 'e' }, reason: 'One' });
    expect(() => store.update('events', node('e'), 'status')).toThrow(refusal(404, 'NotFound'));
    expect(store.update('events', { ...node('e'), reason: 'Two' })['reason']).toBe('Two');
  });

  it('cannot be used to forge what the server manages', () => {
    const store = start();
    const { uid, creationTimestamp } = store.get('nodes', 'a')!.metadata;
    const metadata = { generation: 99, creationTimestamp: '2000-01-01T00:00:00Z', labels: { l: '1' } };
    const patched = store.patch('nodes', 'a', 'application/merge-patch+json', { metadata });
    expect(patched.metadata).toMatchObject({ uid, creationTimestamp });
    expect(patched.metadata.generation).toBeUndefined();
    const rename = { metadata: { name: 'b' } };
    expect(() => store.patch('nodes', 'a', 'application/merge-patch+json', rename)).toThrow(
      refusal(400, 'BadRequest'),
    );
  });
});

describe('the history', () => {
  const event = (revision: number): StoreEvent => ({ revision }) as StoreEvent;

  it('replays the events that it has, and says when it has forgotten some, at every length', () => {
    const history = new History(3);
    for (let revision = 1; revision <= 20; revision++) {
      history.push(event(revision * 2));
      const kept = Array.from({ length: Math.min(3, revision) }, (_, i) => (revision - i) * 2).toReversed();
      const forgotten = Math.max(0, revision - 3) * 2;
      expect(history.since(forgotten)?.map(({ revision }) => revision)).toEqual(kept);
      expect(history.since(revision * 2)).toEqual([]);
      expect(history.since(revision * 2 - 1)).toHaveLength(1);
      if (forgotten > 0) expect(history.since(forgotten - 1)).toBeUndefined();
    }
  });

  it('forgets everything when it expires', () => {
    const history = new History(3);
    history.push(event(1));
    history.expire(5);
    expect(history.since(4)).toBeUndefined();
    expect(history.since(5)).toEqual([]);
  });
});

describe('selectors', () => {
  const store = new Store(10);
  store.create('pods', {
    metadata: { name: 'p', labels: { app: 'web', 'k8s.io/x': '' } },
    spec: { nodeName: 'a' },
  });
  const [pod] = store.list('pods');
  const matches = (labelSelector: string, fieldSelector = ''): boolean =>
    selector(resources.pods, { namespace: undefined, labelSelector, fieldSelector })(pod!);

  it.each(['', 'app=web', 'app==web', 'app', 'app!=db', 'none!=x', '!none', 'app=web,k8s.io/x='])(
    'match %j',
    (text) => expect(matches(text)).toBe(true),
  );
  it.each(['app=db', 'app!=web', 'none', '!app', 'app=web,none'])('do not match %j', (text) =>
    expect(matches(text)).toBe(false),
  );
  it.each(['spec.nodeName=a', 'metadata.name=p,spec.nodeName!=b', 'metadata.namespace=default'])(
    'match fields %j',
    (text) => expect(matches('', text)).toBe(true),
  );
  it.each(['app in (a)', '=x', 'a=b=c'])('refuse %j', (text) =>
    expect(() => matches(text)).toThrow(refusal(400, 'BadRequest')),
  );
  it('refuse a field that the kind does not offer', () =>
    expect(() => matches('', 'spec.hostname=a')).toThrow(refusal(400, 'BadRequest')));

  it('determine the type of event that a watch with them sees', () => {
    const inside = { metadata: { labels: { in: 'y' } } } as unknown as KubeObject;
    const outside = { metadata: {} } as KubeObject;
    const seen = (
      type: StoreEvent['type'],
      previous: KubeObject | undefined,
      object: KubeObject,
    ): string | undefined =>
      visibleType({ type, previous, object, revision: 1 }, ({ metadata }) => metadata.labels?.['in'] === 'y');
    expect(seen('MODIFIED', outside, inside)).toBe('ADDED');
    expect(seen('MODIFIED', inside, outside)).toBe('DELETED');
    expect(seen('MODIFIED', inside, inside)).toBe('MODIFIED');
    expect(seen('DELETED', outside, outside)).toBeUndefined();
    expect(seen('DELETED', inside, inside)).toBe('DELETED');
  });
});
