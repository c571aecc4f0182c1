// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ApiClient } from '../../src/cluster/api-client.ts';
import { AlarmEvents } from '../../src/cluster/events.ts';
import { dualStack, flannelNode } from '../../src/cluster/nodes.support.ts';
import { KubeSubnetManager } from '../../src/cluster/kube-subnets.ts';
import { fetchOwnNode, type OwnLease, publishLease } from '../../src/cluster/own-lease.ts';
import { Reflector } from '../../src/cluster/reflector.ts';
import { errorText } from '../../src/errors.ts';
import { kubeconfigText } from '../../src/lab/apiserver/index.ts';
import type { TestClient } from '../../src/lab/apiserver/client.support.ts';
import { type Lab, labDown } from '../../src/lab/index.ts';
import { createAgentToken } from '../../src/lab/kube.ts';
import { manifest, parseManifest } from '../support/manifest.ts';
import { compactEtcd, restartApiServer } from './server.ts';
import { clientOf, labNameFor, realLab, unboundTokenOf } from './support.ts';

const NODES = '/api/v1/nodes';
const EVENTS = '/api/v1/namespaces/default/events';
const SELF = 'node-1';
const silent = pino({ level: 'silent' });
/** The timing of production, but faster. */
const quick = { pageSize: 3, healthyAfterMs: 100, backoffMinMs: 50, backoffMaxMs: 200, settleMs: 5 };
const lease: OwnLease = {
  v4: { publicIp: '192.168.1.1', vtepMac: '0a:00:00:00:04:01' },
  v6: { publicIp: '2001:db8::1', vtepMac: '0a:00:00:00:06:01' },
  flannelIsUp: true,
};

let lab: Lab;
let admin: TestClient;
/** The agent of node-1. */
let agentToken: string;
let directory: string;

beforeAll(async () => {
  lab = await realLab('cluster', []);
  admin = clientOf(lab);
  agentToken = await createAgentToken(lab, SELF);
  directory = mkdtempSync(join(tmpdir(), 'ripstop-peers-'));
});

afterAll(async () => {
  admin?.close();
  if (directory) rmSync(directory, { recursive: true });
  await labDown(labNameFor('cluster'));
});

/** A client with the credentials of a service account, in a kubeconfig. */
async function clientWith(token: string): Promise<ApiClient> {
  // A file for each client: it is read again when the server refuses.
  const kubeconfig = join(directory, randomUUID());
  writeFileSync(kubeconfig, kubeconfigText(admin.server.url, admin.server.caPem, token));
  return ApiClient.open({ kubeconfig });
}

async function ask(method: string, path: string, body?: object, type?: string): Promise<unknown> {
  const answer = await admin.request(path, { method, body, ...(type && { type }) });
  if (answer.code >= 300) throw new Error(`${method} ${path}: ${answer.text}`);
  return answer.body;
}

/** Node number `n`, of plain flannel or with the podCIDRs that ripstop publishes. */
async function add(n: number, kind: 'bare' | 'flannel' | 'ripstop'): Promise<void> {
  const published = { 'ripstop.io/pod-cidrs': `10.42.${n}.0/24,fd00:42:0:${n.toString(16)}::/64` };
  const { apiVersion, metadata, spec } = flannelNode(n, kind === 'ripstop' ? published : {});
  const { name, annotations } = metadata;
  const given = { name, ...(kind !== 'bare' && { annotations }) };
  await ask('POST', NODES, { apiVersion, kind: 'Node', metadata: given, spec });
}

const remove = (n: number): Promise<unknown> => ask('DELETE', `${NODES}/node-${n}`);

async function removeAll(): Promise<void> {
  const { items = [] } = (await admin.get(NODES)).body;
  for (const { metadata } of items) await ask('DELETE', `${NODES}/${metadata.name}`);
}

describe('the agent’s view of the cluster', () => {
  let manager: KubeSubnetManager;

  beforeEach(async () => {
    await add(1, 'bare');
    for (let n = 2; n <= 8; n++) await add(n, n % 2 === 0 ? 'ripstop' : 'flannel');
    manager = new KubeSubnetManager(await clientWith(agentToken), SELF, dualStack, silent, quick);
    manager.start(() => {});
    await expect.poll(() => manager.snapshot([]).synced && manager.health.connected).toBe(true);
  });

  afterEach(async () => {
    await manager.stop();
    await removeAll();
  });

  const peers = (): string[] => {
    const own = manager.snapshot([]).own?.podCidrs ?? [];
    return manager
      .snapshot(own)
      .nodes.map(({ name, v4 }) => `${name} ${v4?.podCidr.base} ${v4?.vtepIp}`)
      .toSorted();
  };
  const peer = (n: number): string => `node-${n} 10.42.${n}.0 192.168.1.${n}`;

  it('is complete after pages of metadata, with the podCIDRs of plain flannel, and is kept up to date', async () => {
    expect(peers()).toEqual([2, 3, 4, 5, 6, 7, 8].map(peer));
    await add(9, 'flannel');
    await add(10, 'ripstop');
    await remove(3);
    await remove(4);
    await expect.poll(peers).toEqual([peer(10), ...[2, 5, 6, 7, 8, 9].map(peer)]);
    // Deleted and re-created as another machine, between two events.
    await remove(5);
    await add(5, 'ripstop');
    await ask(
      'PATCH',
      `${NODES}/node-5/status`,
      { metadata: { annotations: { 'flannel.alpha.coreos.com/public-ip': '192.168.1.55' } } },
      'application/strategic-merge-patch+json',
    );
    await expect.poll(peers).toContain('node-5 10.42.5.0 192.168.1.55');
    expect(manager.health).toMatchObject({ connected: true });
  });

  it('survives a restart of the server and the loss of its history', async () => {
    const whole = reflectorOf(await clientWith(agentToken), { metadataOnly: false });
    whole.start();
    try {
      await expect.poll(() => whole.health.connected).toBe(true);
      const names = (): string[] => [...whole.items.values()].map(({ name }) => name).toSorted();
      const before = peers();
      await remove(2);
      await expect.poll(peers).toEqual(before.slice(1));
      await add(11, 'ripstop');
      await expect.poll(names).toContain('node-11');
      // The history continues without Nodes, so the last resourceVersion seen is then too old to watch from.
      await ask('POST', '/api/v1/namespaces/default/configmaps', { metadata: { name: 'unrelated' } });
      await compactEtcd(lab);
      await restartApiServer(lab);
      await remove(3);
      const left = [11, 4, 5, 6, 7, 8];
      await expect.poll(peers, { timeout: 30_000 }).toEqual(left.map(peer));
      await expect.poll(names).toEqual([SELF, ...left.map((n) => `node-${n}`)]);
      await expect.poll(() => manager.health.connected && whole.health.connected).toBe(true);
      expect(whole.health).toMatchObject({ activity: { lists: 2, faults: { gone: 1 } } });
    } finally {
      await whole.stop();
    }
  });

  it('is published: lease and condition in one patch, once; and is withdrawn', async () => {
    const own = await manager.fetchOwn();
    expect(own.podCidrs.map(({ base }) => base)).toEqual(['10.42.1.0', 'fd00:42:0:1::']);
    expect(await manager.publish(own, lease)).toBe(true);
    const { metadata, status } = (await admin.get(`${NODES}/${SELF}`)).body;
    expect(metadata.annotations).toEqual({
      'flannel.alpha.coreos.com/backend-data': '{"VNI":1,"VtepMAC":"0a:00:00:00:04:01"}',
      'flannel.alpha.coreos.com/backend-type': 'vxlan',
      'flannel.alpha.coreos.com/backend-v6-data': '{"VNI":1,"VtepMAC":"0a:00:00:00:06:01"}',
      'flannel.alpha.coreos.com/kube-subnet-manager': 'true',
      'flannel.alpha.coreos.com/public-ip': '192.168.1.1',
      'flannel.alpha.coreos.com/public-ipv6': '2001:db8::1',
      'ripstop.io/pod-cidrs': '10.42.1.0/24,fd00:42:0:1::/64',
      'ripstop.io/udp6-zero-checksum': 'true',
    });
    expect(status).toMatchObject({
      conditions: [{ type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' }],
    });
    await expect.poll(() => manager.snapshot([]).own?.flannelIsUp).toBe(true);
    expect(await manager.publish(manager.snapshot([]).own!, lease)).toBe(false);
    await manager.withdraw();
    expect((await admin.get(`${NODES}/${SELF}`)).body.metadata.annotations).toBeUndefined();
  });
});

/** The product's calls of the API server, by the right that each needs. Each fails when its call fails. */
const uses: Readonly<Record<string, (client: ApiClient) => Promise<void>>> = {
  'get nodes': async (client) => void (await fetchOwnNode(client, SELF, dualStack)),
  'list nodes': (client) => reflect(client, (reflector) => reflector.synced),
  'watch nodes': (client) => reflect(client, (reflector) => reflector.health.connected),
  'patch nodes/status': async (client) => {
    await removeAll();
    await add(1, 'bare');
    const asAdmin = await clientWith(admin.server.adminToken);
    const own = await fetchOwnNode(asAdmin, SELF, dualStack).finally(() => asAdmin.close());
    await publishLease(client, own, lease, dualStack);
  },
  'create events': (client) => tell(client, 'one'),
  'patch events': (client) => tell(client, 'one', 'another'),
};

function reflectorOf(client: ApiClient, { metadataOnly }: { metadataOnly: boolean }): Reflector<unknown> {
  return new Reflector<unknown>({
    client,
    path: NODES,
    metadataOnly,
    project: () => undefined,
    onChange: () => {},
    log: silent,
    timing: quick,
  });
}

async function reflect(client: ApiClient, done: (reflector: Reflector<unknown>) => boolean): Promise<void> {
  const reflector = reflectorOf(client, { metadataOnly: true });
  reflector.start();
  try {
    await expect
      .poll(() => done(reflector) || (reflector.health.activity.faults['auth'] ?? 0) > 0)
      .toBe(true);
    if (!done(reflector)) throw new Error(reflector.health.lastError);
  } finally {
    await reflector.stop();
  }
}

/** Raise an alarm with these reasons, one after another, and expect each in the Node's Events. */
async function tell(client: ApiClient, ...reasons: string[]): Promise<void> {
  let warned = '';
  const log = pino({ level: 'warn' }, { write: (line: string) => (warned = line) });
  const timing = { repeatMs: 60_000, burst: 10, refillMs: 10, retryMs: 50 };
  const events = new AlarmEvents(client, SELF, log, timing);
  try {
    for (const reason of reasons) {
      const alarm = { node: 'node-2', uid: 'uid-2', kind: 'malformed_lease', reason } as const;
      events.update([alarm], () => [SELF]);
      const isWritten = async (): Promise<boolean> => {
        const { items = [] } = (await admin.get(`${EVENTS}?fieldSelector=involvedObject.name%3Dnode-2`)).body;
        return warned !== '' || items.some((event) => event.message === reason);
      };
      await expect.poll(isWritten).toBe(true);
      if (warned !== '') throw new Error(warned);
    }
  } finally {
    await events.stop();
    await ask('DELETE', EVENTS);
  }
}

interface Rule {
  apiGroups?: string[];
  resources?: string[];
  verbs: string[];
  nonResourceURLs?: string[];
}

/** The rights that the rules give, such as `list nodes`. */
function rightsOf(rules: readonly Rule[]): string[] {
  return rules
    .flatMap(({ apiGroups = [], resources = [], nonResourceURLs = [], verbs }) => {
      const grouped = apiGroups.flatMap((group) => resources.map((one) => (group ? `${one}.${group}` : one)));
      return verbs.flatMap((verb) => [...grouped, ...nonResourceURLs].map((what) => `${verb} ${what}`));
    })
    .toSorted();
}

async function effectiveRights(token: string): Promise<string[]> {
  const { status } = (
    await admin.request('/apis/authorization.k8s.io/v1/selfsubjectrulesreviews', {
      method: 'POST',
      token,
      body: { spec: { namespace: 'default' } },
    })
  ).body as { status: { resourceRules: Rule[]; nonResourceRules: Rule[] } };
  return rightsOf([...status.resourceRules, ...status.nonResourceRules]);
}

/** Create a service account with only these rights. Returns its token. */
async function accountWith(name: string, rules: readonly Rule[]): Promise<string> {
  const accounts = '/api/v1/namespaces/default/serviceaccounts';
  const rbac = '/apis/rbac.authorization.k8s.io/v1';
  await ask('POST', accounts, { metadata: { name } });
  await ask('POST', `${rbac}/clusterroles`, { metadata: { name }, rules });
  await ask('POST', `${rbac}/clusterrolebindings`, {
    metadata: { name },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name },
    subjects: [{ kind: 'ServiceAccount', name, namespace: 'default' }],
  });
  const { status } = (await ask('POST', `${accounts}/${name}/token`, {})) as { status: { token: string } };
  // The authorizer gets it by a watch, a little later.
  await expect.poll(() => effectiveRights(status.token)).toEqual(expect.arrayContaining(rightsOf(rules)));
  return status.token;
}

describe('the ClusterRole that deploy/ripstop.yml ships', () => {
  const rules: readonly Rule[] = parseManifest(manifest).role.rules!;
  const rights = rightsOf(rules);

  beforeAll(async () => {
    for (let n = 1; n <= 4; n++) await add(n, 'flannel');
  });
  afterAll(removeAll);

  async function complaints(token: string): Promise<Record<string, string>> {
    const client = await clientWith(token);
    const said: Record<string, string> = {};
    for (const [right, use] of Object.entries(uses)) {
      await use(client).catch((error: unknown) => (said[right] = errorText(error)));
    }
    client.close();
    return said;
  }

  it('has only rights that are used', () => {
    expect(rights).toEqual(Object.keys(uses).toSorted());
  });

  it('suffices for all calls', async () => {
    expect(await complaints(agentToken)).toEqual({});
  });

  it('gives only these rights besides those of every account', async () => {
    const everybodys = await effectiveRights(await accountWith('nobody', []));
    const ours = await effectiveRights(agentToken);
    expect(ours.filter((right) => !everybodys.includes(right))).toEqual(rights);
  });

  for (const right of rights) {
    it(`does not suffice without "${right}"`, async () => {
      const [verb = '', what = ''] = right.split(' ');
      const fewer = rules
        .map((rule) =>
          rule.resources?.includes(what)
            ? { ...rule, verbs: rule.verbs.filter((one) => one !== verb) }
            : rule,
        )
        .filter(({ verbs }) => verbs.length > 0);
      const said = await complaints(await accountWith(right.replaceAll(/[ /]/g, '-'), fewer));
      expect(said).toHaveProperty([right]);
      // A watch needs a list first, and a second Event a first one, so these fail too.
      for (const text of Object.values(said)) expect(text).toMatch(`cannot ${verb} resource`);
    });
  }
});

describe('the policies that deploy/ripstop.yml ships', () => {
  const strategic = 'application/strategic-merge-patch+json';
  const OTHER = 'node-2';
  const POLICIES = '/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings';
  const { policies } = parseManifest(manifest);
  const bindings = [policies[1], policies[3]];

  beforeAll(async () => {
    await add(1, 'flannel');
    await add(2, 'flannel');
    await patch(admin.server.adminToken, SELF, {
      metadata: { labels: { zone: 'a' }, annotations: { 'example.org/rack': '7' } },
      // As large as a real Node.
      status: {
        addresses: [{ type: 'InternalIP', address: '192.168.1.1' }],
        capacity: { cpu: '2' },
        conditions: [{ type: 'Ready', status: 'True', reason: 'KubeletReady' }],
        images: Array.from({ length: 50 }, (_, i) => ({
          names: Array.from(
            { length: 5 },
            (_, k) => `registry.example/team/image-${i}:v${k}@sha256:${'0'.repeat(64)}`,
          ),
          sizeBytes: 1e8 + i,
        })),
      },
    });
  });
  afterAll(removeAll);

  /** The server's answer to a change of a Node's status. */
  async function patch(token: string, node: string, body: object): Promise<string> {
    const path = `${NODES}/${node}/status`;
    const { code, text } = await admin.request(path, { method: 'PATCH', token, type: strategic, body });
    return code === 200 ? 'done' : `${code} ${(JSON.parse(text) as { message: string }).message}`;
  }

  const annotate = (annotations: Record<string, string | null>): object => ({ metadata: { annotations } });
  const lie = annotate({ 'flannel.alpha.coreos.com/public-ip': '192.0.2.66' });
  const condition = (type: string, status: string): object => ({
    status: { conditions: [{ type, status }] },
  });

  it.each([
    ['flannel annotations', lie],
    ['annotations of ours', annotate({ 'ripstop.io/pod-cidrs': '10.42.1.0/24' })],
    ['their removal', annotate({ 'ripstop.io/pod-cidrs': null })],
    ['its NetworkUnavailable', condition('NetworkUnavailable', 'False')],
    ['its NetworkUnavailable again', condition('NetworkUnavailable', 'True')],
  ])('let an agent change of its own Node %s', async (_, body) => {
    expect(await patch(agentToken, SELF, body)).toBe('done');
  });

  const annotations = 'no annotations but those that begin with flannel.alpha.coreos.com/ or ripstop.io/';
  const metadata = 'nothing in the metadata of its Node but annotations';
  const status = 'nothing in the status of its Node but the condition NetworkUnavailable';
  it.each([
    ['an annotation of others', annotate({ 'example.org/rack': '8' }), annotations],
    ['a new annotation of others', annotate({ 'example.org/row': '8' }), annotations],
    ['that an annotation of others is there', annotate({ 'example.org/rack': null }), annotations],
    ['a label', { metadata: { labels: { zone: 'b' } } }, metadata],
    ['all labels', { metadata: { labels: null } }, metadata],
    ['the finalizers', { metadata: { finalizers: ['example.org/hold'] } }, metadata],
    ['its addresses', { status: { addresses: [{ type: 'InternalIP', address: '192.0.2.66' }] } }, status],
    ['its capacity', { status: { capacity: { cpu: '64' } } }, status],
    ['that it has images', { status: { images: null } }, status],
    ['its condition Ready', condition('Ready', 'False'), status],
    ['a condition that is not there', condition('MemoryPressure', 'True'), status],
  ])('do not let an agent change of its own Node %s', async (_, body, message) => {
    const answer = await patch(agentToken, SELF, body);
    expect(answer).toMatch(/^403 nodes "node-1" is forbidden: ValidatingAdmissionPolicy 'ripstop-own-node'/);
    expect(answer).toContain(`a ripstop agent may change ${message}`);
    expect(answer).not.toContain('failed');
  });

  it("do not let an agent change another's Node, and say why", async () => {
    const client = await clientWith(agentToken);
    const own = await fetchOwnNode(client, OTHER, dualStack);
    await expect(publishLease(client, own, lease, dualStack)).rejects.toThrow(
      'the ripstop agent of node node-1 may not change node node-2',
    );
    client.close();
  });

  it('do not let anybody change a Node with a token without a pod', async () => {
    const token = unboundTokenOf(lab);
    expect(await patch(token, SELF, lie)).toMatch(/^403 .* the token of this ripstop agent names no node/);
    expect(await write(token, event('two'))).toMatch(/^403 .* the token of this ripstop agent names no node/);
  });

  it('do not apply to changes by others', async () => {
    const token = admin.server.adminToken;
    expect(await patch(token, OTHER, condition('Ready', 'True'))).toBe('done');
    const role = [{ apiGroups: [''], resources: ['nodes/status'], verbs: ['patch'] }];
    expect(await patch(await accountWith('somebody', role), OTHER, lie)).toBe('done');
  });

  const event = (name: string, change: object = {}): object => ({
    metadata: { name, namespace: 'default' },
    involvedObject: { kind: 'Node', name: OTHER },
    reason: 'MalformedLease',
    message: 'one',
    type: 'Warning',
    source: { component: 'ripstop', host: SELF },
    reportingComponent: 'ripstop',
    reportingInstance: SELF,
    ...change,
  });

  async function write(token: string, body: object): Promise<string> {
    const { code, text } = await admin.request(EVENTS, { method: 'POST', token, body });
    return code === 201 ? 'done' : `${code} ${(JSON.parse(text) as { message: string }).message}`;
  }

  async function rewrite(token: string, name: string, body: object): Promise<string> {
    const how = { method: 'PATCH', token, body, type: 'application/merge-patch+json' };
    const { code, text } = await admin.request(`${EVENTS}/${name}`, how);
    return code === 200 ? 'done' : `${code} ${(JSON.parse(text) as { message: string }).message}`;
  }

  it('let an agent write its own Events on Nodes, and update those of others', async () => {
    const other = await createAgentToken(lab, OTHER);
    expect(await write(agentToken, event('mine'))).toBe('done');
    expect(await rewrite(agentToken, 'mine', { message: 'another', count: 2 })).toBe('done');
    expect(await rewrite(other, 'mine', { message: 'a third', count: 3 })).toBe('done');
    expect(await write(other, event('not-theirs'))).toMatch(
      /^403 .*the ripstop agent of node node-2 may write Events on Nodes in its own name only/,
    );
    for (const change of [
      { involvedObject: { kind: 'Pod', name: 'web', namespace: 'default' } },
      { reportingComponent: 'kubelet', source: { component: 'kubelet' } },
    ]) {
      expect(await write(agentToken, event('as-another', change))).toMatch(/^403 .*in its own name only/);
    }
    const kubelet = { source: { component: 'kubelet' }, reportingComponent: 'kubelet' };
    expect(await write(admin.server.adminToken, event('a-kubelets', kubelet))).toBe('done');
    for (const [name, change] of [
      ['a-kubelets', { message: 'all is well' }],
      ['a-kubelets', { reportingComponent: 'ripstop' }],
      ['mine', { reportingInstance: OTHER }],
      ['mine', { involvedObject: { name: SELF } }],
    ] as const) {
      expect(await rewrite(agentToken, name, change)).toMatch(/^403 .*may change Events of ripstop only/);
    }
    await ask('DELETE', EVENTS);
  });

  it('are necessary: without them all of this is allowed', async () => {
    for (const { metadata } of bindings) await ask('DELETE', `${POLICIES}/${metadata!.name}`);
    try {
      await expect.poll(() => patch(agentToken, OTHER, lie)).toBe('done');
      expect(await patch(agentToken, SELF, { metadata: { labels: { zone: 'b' } } })).toBe('done');
      expect(await patch(agentToken, SELF, condition('Ready', 'False'))).toBe('done');
      const pod = { involvedObject: { kind: 'Pod', name: 'web', namespace: 'default' } };
      await expect.poll(() => write(agentToken, event(randomUUID(), pod))).toBe('done');
    } finally {
      for (const binding of bindings) await ask('POST', POLICIES, binding);
    }
    await expect.poll(() => patch(agentToken, OTHER, lie)).toMatch(/^403/);
    await ask('DELETE', EVENTS);
  });
});
