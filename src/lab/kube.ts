// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { request } from 'node:https';
import { join } from 'node:path';
import { RipstopError } from '../errors.ts';
import { familyParts } from './addresses.ts';
import type { Lab, NodeState } from './state.ts';

/** How the lab itself reaches its API server: the content of its kubeconfig, without YAML. */
export interface ApiAccess {
  url: string;
  /** PEM. */
  ca: string;
  token: string;
}

/** The fields of a Node that the lab reads. */
export interface KubeNode {
  metadata: { name: string; annotations?: Record<string, string> };
  spec?: { podCIDRs?: string[] };
}

/** Register a Node, as kubelet does, with podCIDRs, as the controller manager assigns them. */
export async function createKubeNode(lab: Lab, node: NodeState): Promise<void> {
  const parts = familyParts(node);
  await call(lab, 'POST', '/api/v1/nodes', {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name: node.name,
      labels: { 'kubernetes.io/hostname': node.name, 'kubernetes.io/os': 'linux' },
      // kubelet sets this one; flanneld 0.28 crashes on a Node without annotations.
      annotations: { 'volumes.kubernetes.io/controller-managed-attach-detach': 'true' },
    },
    spec: { podCIDR: node.podCIDR, podCIDRs: parts.map((part) => part.podCIDR) },
  });
  await patchNodeStatus(lab, node.name, {
    status: {
      addresses: [
        ...parts.map(({ ip }) => ({ type: 'InternalIP', address: ip })),
        { type: 'Hostname', address: node.name },
        // Otherwise the server merges addresses by their type, and one of two InternalIPs is lost.
        { $patch: 'replace' },
      ],
    },
  });
}

export async function deleteKubeNode(lab: Lab, name: string): Promise<void> {
  await call(lab, 'DELETE', `/api/v1/nodes/${name}`);
}

/**
 * A token as kubelet gives it to a node's agent: for the service account of deploy/ripstop.yml, bound to a Pod on the
 * node. Only a real API server issues such tokens.
 */
export async function createAgentToken(lab: Lab, node: string): Promise<string> {
  const namespace = '/api/v1/namespaces/kube-ripstop';
  const pod = (await call(lab, 'POST', `${namespace}/pods`, {
    metadata: { generateName: 'ripstop-' },
    spec: {
      nodeName: node,
      serviceAccountName: 'ripstop',
      containers: [{ name: 'ripstop', image: 'ripstop' }],
    },
  })) as { metadata: { name: string; uid: string } };
  const { name, uid } = pod.metadata;
  const { status } = (await call(lab, 'POST', `${namespace}/serviceaccounts/ripstop/token`, {
    spec: { boundObjectRef: { kind: 'Pod', apiVersion: 'v1', name, uid } },
  })) as { status: { token: string } };
  return status.token;
}

/** Patch nodes/status by strategic merge, as flanneld does for its annotations and kubelet for its addresses. */
export async function patchNodeStatus(lab: Lab, name: string, patch: object): Promise<void> {
  await call(lab, 'PATCH', `/api/v1/nodes/${name}/status`, patch, 'application/strategic-merge-patch+json');
}

export async function listNodes(lab: Lab): Promise<KubeNode[]> {
  const { items } = (await call(lab, 'GET', '/api/v1/nodes')) as { items: KubeNode[] };
  return items;
}

/** The fields of an Event that the lab reads. */
export interface KubeEvent {
  involvedObject: { kind: string; name: string; uid: string };
  reason: string;
  message: string;
  type: string;
  count: number;
  source: { component: string; host: string };
}

/** The Events about one Node. */
export async function eventsOn(lab: Lab, node: string): Promise<KubeEvent[]> {
  const { items } = (await call(lab, 'GET', '/api/v1/namespaces/default/events')) as { items: KubeEvent[] };
  return items.filter(({ involvedObject: { kind, name } }) => kind === 'Node' && name === node);
}

/**
 * Send a request to the lab's API server with the admin's credentials. (The client library takes half a second to load,
 * as long as the rest of a small lab.)
 * @throws RipstopError with the server's own message.
 */
async function call(
  lab: Lab,
  method: string,
  path: string,
  body?: object,
  type = 'application/json',
): Promise<unknown> {
  const { url, ca, token } = JSON.parse(readFileSync(join(lab.dir, 'apiserver.json'), 'utf8')) as ApiAccess;
  const text = body === undefined ? undefined : JSON.stringify(body);
  const { status, answer } = await new Promise<{ status: number; answer: string }>((resolve, reject) => {
    const outgoing = request(
      new URL(path, url),
      {
        method,
        ca,
        agent: false,
        headers: {
          authorization: `Bearer ${token}`,
          accept: 'application/json',
          ...(text !== undefined && { 'content-type': type, 'content-length': Buffer.byteLength(text) }),
        },
        timeout: 10_000,
      },
      (incoming) => {
        let answer = '';
        incoming.setEncoding('utf8').on('data', (chunk: string) => (answer += chunk));
        incoming.on('end', () => resolve({ status: incoming.statusCode ?? 0, answer }));
        incoming.on('error', reject);
      },
    );
    outgoing.on('timeout', () => outgoing.destroy(new Error('no answer in 10 s')));
    outgoing.on('error', reject);
    outgoing.end(text);
  }).catch((error: unknown) => {
    throw new RipstopError(`the lab's API server does not answer; see ${join(lab.dir, 'apiserver.log')}`, {
      cause: error,
    });
  });
  const parsed = JSON.parse(answer) as { message?: string };
  if (status < 300) return parsed;
  throw new RipstopError(
    `the lab's API server refused ${method} ${path} with ${status}: ${parsed.message ?? answer}`,
  );
}
