// SPDX-License-Identifier: Apache-2.0
import type { Answer } from '../../src/lab/apiserver/client.support.ts';
import type { Conversation } from './conversation.ts';

/*
 * The requests of ripstop, flanneld, the lab and their tests to an API server, and similar ones. They are sent to two
 * servers without Nodes, and the answers are compared one by one.
 */

export interface Servers {
  /** A token of a user with only the rights of deploy/ripstop.yml, on node n2. */
  readonly nodeToken: string;
  /** Forget the history, so that no earlier resourceVersion can be listed or watched from. */
  readonly compact: () => Promise<void>;
}

const strategic = 'application/strategic-merge-patch+json';
const merge = 'application/merge-patch+json';
const jsonPatch = 'application/json-patch+json';
const METADATA_LIST = 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1';
const METADATA = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1';

function node(name: string, index: number, labels: Record<string, string> = {}): object {
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name, labels: { 'kubernetes.io/hostname': name, ...labels } },
    spec: { podCIDR: `10.42.${index}.0/24`, podCIDRs: [`10.42.${index}.0/24`] },
  };
}

export async function converse(say: Conversation, { nodeToken, compact }: Servers): Promise<void> {
  await aboutObjects(say);
  await aboutLists(say, compact);
  await aboutPatches(say);
  await aboutRights(say, nodeToken);
  await aboutWatches(say, compact);
  await aboutDeletion(say);
  await aboutEvents(say);
}

async function aboutObjects(say: Conversation): Promise<void> {
  await say.ask('the list of no nodes', '/api/v1/nodes');
  await say.ask('create', '/api/v1/nodes', { method: 'POST', body: node('n1', 1) });
  await say.ask('create what is there', '/api/v1/nodes', { method: 'POST', body: node('n1', 1) });
  for (let i = 2; i <= 5; i++) {
    const labels = i % 2 === 0 ? { even: 'yes' } : {};
    await say.quietly('/api/v1/nodes', { method: 'POST', body: node(`n${i}`, i, labels) });
  }
  await say.ask('get', '/api/v1/nodes/n2');
  await say.ask('get what is not there', '/api/v1/nodes/none');
  await say.ask('get metadata only', '/api/v1/nodes/n1', { accept: METADATA });
  await say.ask('get metadata only, or else the whole', '/api/v1/nodes/n1', {
    accept: `${METADATA},application/json`,
  });
  await say.ask('a subresource that does not exist', '/api/v1/nodes/n1/nonsense');
  await say.ask('a resource that does not exist', '/api/v1/nonsense');
  await say.ask('create with a bad podCIDR', '/api/v1/nodes', {
    method: 'POST',
    body: { ...node('bad', 9), spec: { podCIDR: 'rubbish', podCIDRs: ['rubbish'] } },
  });
  await say.ask('create with a body that is no JSON', '/api/v1/nodes', { method: 'POST', body: '{"kind":' });
}

async function aboutLists(say: Conversation, compact: () => Promise<void>): Promise<void> {
  await say.ask('list', '/api/v1/nodes');
  await say.ask('list metadata only', '/api/v1/nodes', { accept: METADATA_LIST });
  await say.ask('list metadata only, or else the whole', '/api/v1/nodes?limit=2', {
    accept: `${METADATA_LIST},application/json`,
  });
  await say.ask('list from the cache', '/api/v1/nodes?resourceVersion=0');
  await say.ask('list by label', '/api/v1/nodes?labelSelector=even%3Dyes');
  await say.ask('list by label, one page', '/api/v1/nodes?labelSelector=even%3Dyes&limit=1');
  await say.ask('list by name', '/api/v1/nodes?fieldSelector=metadata.name%3Dn3');
  await say.ask('list by a field that cannot be asked for', '/api/v1/nodes?fieldSelector=spec.nonsense%3Dx');
  await say.ask('list by a selector that is none', '/api/v1/nodes?labelSelector=a%3D%3D%3Db');
  const first = await say.ask('page 1', '/api/v1/nodes?limit=2');
  // Between two pages: the later pages show neither.
  await say.quietly('/api/v1/nodes', { method: 'POST', body: node('n35', 35) });
  await say.quietly('/api/v1/nodes/n5/status', {
    method: 'PATCH',
    type: strategic,
    body: { metadata: { annotations: { between: 'pages' } } },
  });
  const second = await say.ask('page 2', `/api/v1/nodes?limit=2&continue=${tokenOf(first)}`);
  await say.ask('page 3, the last', `/api/v1/nodes?limit=2&continue=${tokenOf(second)}`);
  await say.ask('a page of metadata', `/api/v1/nodes?limit=2&continue=${tokenOf(first)}`, {
    accept: METADATA_LIST,
  });
  await say.ask('a page after nonsense', '/api/v1/nodes?limit=2&continue=nonsense');
  await compact();
  await say.ask('a page of what is forgotten', `/api/v1/nodes?limit=2&continue=${tokenOf(first)}`);
  await say.quietly('/api/v1/nodes/n35', { method: 'DELETE' });
}

async function aboutPatches(say: Conversation): Promise<void> {
  const status = (title: string, body: unknown, more: object = {}): Promise<Answer> =>
    say.ask(title, '/api/v1/nodes/n1/status', { method: 'PATCH', type: strategic, body, ...more });
  const condition = (type: string, reason: string): object => ({
    type,
    status: 'False',
    reason,
    message: 'so it is',
    lastHeartbeatTime: '2026-01-02T03:04:05Z',
    lastTransitionTime: '2026-01-02T03:04:05Z',
  });
  const flannel = {
    'flannel.alpha.coreos.com/backend-type': 'vxlan',
    'flannel.alpha.coreos.com/backend-data': '{"VNI":1,"VtepMAC":"12:34:56:78:9a:bc"}',
    'flannel.alpha.coreos.com/public-ip': '192.0.2.1',
    'flannel.alpha.coreos.com/kube-subnet-manager': 'true',
  };
  await status('annotations', { metadata: { annotations: flannel } });
  await status('annotations that are there already', { metadata: { annotations: flannel } });
  await status('annotations beside others', { metadata: { annotations: { mine: 'too' } } });
  await status('an annotation taken back', {
    metadata: { annotations: { 'flannel.alpha.coreos.com/public-ip': null, mine: 'still' } },
  });
  await status('an annotation taken back that is not there', { metadata: { annotations: { absent: null } } });
  await status('a condition', { status: { conditions: [condition('NetworkUnavailable', 'FlannelIsUp')] } });
  await status('a condition beside others', { status: { conditions: [condition('Ready', 'NotYet')] } });
  await status('a condition changed', { status: { conditions: [condition('NetworkUnavailable', 'Other')] } });
  await status('a condition taken away', {
    status: { conditions: [{ $patch: 'delete', type: 'Ready' }] },
  });
  await status('annotations and a condition at once', {
    metadata: { annotations: { both: 'yes' } },
    status: { conditions: [condition('NetworkUnavailable', 'FlannelIsUp')] },
  });
  await status('addresses', {
    status: {
      addresses: [
        { type: 'InternalIP', address: '192.0.2.1' },
        { type: 'Hostname', address: 'n1' },
      ],
    },
  });
  await status('addresses in place of others', {
    status: {
      addresses: [
        { type: 'InternalIP', address: '192.0.2.1' },
        { type: 'InternalIP', address: '2001:db8::1' },
        { $patch: 'replace' },
      ],
    },
  });
  await status(
    'metadata only as the answer',
    { metadata: { annotations: { short: 'yes' } } },
    { accept: METADATA },
  );
  await status('labels through the status', { metadata: { labels: { colour: 'red' } } });
  await status('the spec through the status', { spec: { unschedulable: true } });
  await status('an empty patch', {});
  await status('a patch that is no object', []);
  await status('a patch that is no JSON', '{');
  await status(
    'the right resourceVersion',
    await versioned(say, { metadata: { annotations: { right: 'yes' } } }),
  );
  await status('a stale resourceVersion', {
    metadata: { resourceVersion: '1', annotations: { stale: 'yes' } },
  });
  await status('another UID', { metadata: { uid: 'another', annotations: { stale: 'yes' } } });
  await status('an annotation with a bad key', { metadata: { annotations: { 'no key at all': 'x' } } });
  await status('an annotation that is no text', { metadata: { annotations: { number: 5 } } });
  await status('a patch of an unknown type', {}, { type: 'application/nonsense' });
  await status(
    'a merge patch',
    { metadata: { annotations: { merged: 'yes', right: null } } },
    { type: merge },
  );
  await status(
    'a merge patch replaces lists',
    { status: { conditions: [condition('Ready', 'Merged')] } },
    { type: merge },
  );
  await status('a JSON patch', [{ op: 'add', path: '/metadata/annotations/json', value: 'yes' }], {
    type: jsonPatch,
  });
  await status('a JSON patch whose test fails', [{ op: 'test', path: '/metadata/name', value: 'n9' }], {
    type: jsonPatch,
  });
  await say.ask('a patch of what is not there', '/api/v1/nodes/none/status', {
    method: 'PATCH',
    type: strategic,
    body: { metadata: { annotations: flannel } },
  });
  const whole = (title: string, body: unknown): Promise<Answer> =>
    say.ask(title, '/api/v1/nodes/n1', { method: 'PATCH', type: strategic, body });
  await whole('finalizers', { metadata: { finalizers: ['example.com/a', 'example.com/b'] } });
  await whole('finalizers beside others', { metadata: { finalizers: ['example.com/c', 'example.com/b'] } });
  await whole('finalizers taken away', {
    metadata: { '$deleteFromPrimitiveList/finalizers': ['example.com/a', 'example.com/b', 'example.com/c'] },
  });
  await whole('the status through the node', { status: { conditions: [condition('Ready', 'Ignored')] } });
  await whole('another podCIDR', { spec: { podCIDR: '10.42.77.0/24', podCIDRs: ['10.42.77.0/24'] } });
  await say.quietly('/api/v1/nodes', {
    method: 'POST',
    body: { apiVersion: 'v1', kind: 'Node', metadata: { name: 'bare' } },
  });
  await say.ask('a podCIDR given late', '/api/v1/nodes/bare', {
    method: 'PATCH',
    type: strategic,
    body: { spec: { podCIDRs: ['10.42.88.0/24'], podCIDR: '10.42.88.0/24' } },
  });
  await say.quietly('/api/v1/nodes/bare', { method: 'DELETE' });
}

async function versioned(say: Conversation, patch: { metadata: object }): Promise<object> {
  const { resourceVersion } = (await say.quietly('/api/v1/nodes/n1')).body.metadata;
  return { metadata: { ...patch.metadata, resourceVersion } };
}

async function aboutRights(say: Conversation, token: string): Promise<void> {
  const patch = {
    method: 'PATCH',
    type: strategic,
    body: { metadata: { annotations: { 'ripstop.io/by': 'n2' } } },
  };
  await say.ask('ripstop gets', '/api/v1/nodes/n2', { token });
  await say.ask('ripstop lists', '/api/v1/nodes?limit=1', { token });
  await say.ask('ripstop patches a status', '/api/v1/nodes/n2/status', { token, ...patch });
  await say.ask('ripstop may not patch a node', '/api/v1/nodes/n2', { token, ...patch });
  await say.ask('ripstop may not create a node', '/api/v1/nodes', {
    token,
    method: 'POST',
    body: node('x', 1),
  });
  await say.ask('ripstop may not delete a node', '/api/v1/nodes/n2', { token, method: 'DELETE' });
  await say.ask('ripstop may not list pods', '/api/v1/pods', { token });
  await say.ask('ripstop may not list the pods of a namespace', '/api/v1/namespaces/default/pods', { token });
  await say.ask('ripstop may not watch services', '/api/v1/services?watch=1', { token });
  await say.ask('an unknown token', '/api/v1/nodes', { token: 'nobody' });
}

async function aboutWatches(say: Conversation, compact: () => Promise<void>): Promise<void> {
  const annotate = (name: string, value: string) => () =>
    say.quietly(`/api/v1/nodes/${name}/status`, {
      method: 'PATCH',
      type: strategic,
      body: {
        metadata: { annotations: { watched: value }, labels: { even: value === 'in' ? 'yes' : 'no' } },
      },
    });
  const now = async (): Promise<string> =>
    (await say.quietly('/api/v1/nodes?limit=1')).body.metadata.resourceVersion;
  const start = await now();
  const life = async (): Promise<void> => {
    await say.quietly('/api/v1/nodes', { method: 'POST', body: node('brief', 90) });
    await annotate('brief', 'out')();
    await say.quietly('/api/v1/nodes/brief', { method: 'DELETE' });
  };
  await say.watch('a life', `resourceVersion=${start}`, { count: 3, meanwhile: life });
  await say.watch('a life, told afterwards', `resourceVersion=${start}`, { count: 3 });
  await say.watch('a life in metadata', `resourceVersion=${start}`, { count: 3, accept: METADATA });
  await say.watch('a life in metadata, or else the whole', `resourceVersion=${start}`, {
    count: 3,
    accept: `${METADATA},application/json`,
  });
  await say.watch('objects of a name', `resourceVersion=${start}&fieldSelector=metadata.name%3Dbrief`, {
    count: 3,
  });
  const labels = await now();
  await annotate('n3', 'in')();
  await annotate('n3', 'in again')();
  await say.watch(
    'coming under a selector and leaving it',
    `resourceVersion=${labels}&labelSelector=even%3Dyes`,
    {
      count: 2,
    },
  );
  await say.watch('everything there is, first', 'labelSelector=even%3Dyes', { count: 2 });
  await say.watch(
    'everything there is, and a mark',
    [
      'sendInitialEvents=true',
      'allowWatchBookmarks=true',
      'resourceVersionMatch=NotOlderThan',
      'labelSelector=even%3Dyes',
    ].join('&'),
    { count: 3 },
  );
  await say.watch('a watch that ends', `resourceVersion=${await now()}&timeoutSeconds=1`, {});
  const bookmarks = 'timeoutSeconds=5&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dn3';
  for (const [what, accept] of [
    ['nodes', 'application/json'],
    ['metadata', METADATA],
  ] as const) {
    await say.watch(
      `a watch of ${what} that ends with a bookmark`,
      `resourceVersion=${await now()}&${bookmarks}`,
      {
        accept,
        // A change that this watch does not see, but whose resourceVersion a bookmark must have.
        meanwhile: annotate('n4', `for ${what}`),
      },
    );
  }
  await say.ask('a watch from nonsense', '/api/v1/nodes?watch=1&resourceVersion=nonsense');
  await compact();
  await say.watch('a watch from what is forgotten', 'resourceVersion=1', {});
  await say.watch('a watch of metadata from what is forgotten', 'resourceVersion=1', { accept: METADATA });
}

async function aboutDeletion(say: Conversation): Promise<void> {
  await say.ask('delete another UID', '/api/v1/nodes/n2', {
    method: 'DELETE',
    body: { kind: 'DeleteOptions', apiVersion: 'v1', preconditions: { uid: 'another' } },
  });
  await say.ask('delete', '/api/v1/nodes/n2', { method: 'DELETE' });
  await say.ask('delete what is gone', '/api/v1/nodes/n2', { method: 'DELETE' });
  await say.ask('create what was deleted', '/api/v1/nodes', { method: 'POST', body: node('n2', 2) });
}

/** An Event as from src/cluster/events.ts. */
async function aboutEvents(say: Conversation): Promise<void> {
  const events = '/api/v1/namespaces/default/events';
  const event = {
    apiVersion: 'v1',
    kind: 'Event',
    metadata: { name: 'n1.0123456789abcdef', namespace: 'default' },
    involvedObject: { apiVersion: 'v1', kind: 'Node', name: 'n1', uid: 'of-n1' },
    type: 'Warning',
    reason: 'PodcidrConflict',
    message: 'two nodes have it',
    source: { component: 'ripstop', host: 'n3' },
    reportingComponent: 'ripstop',
    reportingInstance: 'n3',
    firstTimestamp: '2026-01-02T03:04:05Z',
    lastTimestamp: '2026-01-02T03:04:05Z',
    count: 1,
  };
  const again = { lastTimestamp: '2026-01-02T04:04:05Z', message: 'they still have it', count: 2 };
  await say.ask('an Event', events, { method: 'POST', body: event });
  await say.ask('an Event that is there', events, { method: 'POST', body: event });
  await say.ask('an Event told again', `${events}/${event.metadata.name}`, {
    method: 'PATCH',
    type: merge,
    body: again,
  });
  await say.ask('an Event told again that is gone', `${events}/gone`, {
    method: 'PATCH',
    type: merge,
    body: again,
  });
  await say.ask('the Events of a node', `${events}?fieldSelector=involvedObject.name%3Dn1`);
}

function tokenOf({ body }: Answer): string {
  return encodeURIComponent(body.metadata.continue ?? '');
}
