// SPDX-License-Identifier: Apache-2.0
/**
 * Makes a lab of two nodes look like a large cluster to ripstop: with Node objects in the API server, which the agents
 * turn into map entries, routes, neighbours and FDB entries; and with idle pods. Other nodes than the two do not exist,
 * so all traffic is between these.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readEndpoints, readPeers } from '../src/cli/rows.ts';
import { AttachmentStore } from '../src/cni/attachments.ts';
import { linkKey, listLinkKeys } from '../src/dataplane/links.ts';
import { pinPaths } from '../src/dataplane/tables.ts';
import { RipstopError } from '../src/errors.ts';
import { ipBatch, ipJson } from '../src/lab/ip.ts';
import {
  type Lab,
  netnsPath,
  nodeDir,
  type NodeState,
  startAgent,
  removePrograms,
} from '../src/lab/index.ts';
import type { ApiAccess } from '../src/lab/kube.ts';
import { addressAt, parseCidr } from '../src/net/ip.ts';

/** With room for 65,536 nodes of a /24 each. It includes the lab's own 10.42.0.0/16. */
const WIDE_NETWORK = '10.0.0.0/8';
/** The number of concurrent POSTs. */
const WRITERS = 8;
const DEADLINE_MS = 120_000;
const PODS_HOOKS = ['from_pod', 'to_pod'] as const;

/**
 * Give every ripstop node this many peers, including the real one, in a cluster network with room for them: ripstop is
 * reloaded. Call it before the nodes have pods. Resolves when the maps of all nodes have the peers.
 */
export async function growPeers(lab: Lab, peers: number): Promise<void> {
  const nodes = lab.state.nodes.filter(({ datapath }) => datapath === 'ripstop');
  await Promise.all(nodes.map((node) => removePrograms(lab, node)));
  const file = join(lab.dir, 'net-conf.json');
  const netConf = JSON.parse(readFileSync(file, 'utf8')) as object;
  writeFileSync(file, JSON.stringify({ ...netConf, Network: WIDE_NETWORK }));
  // The agents are stopped meanwhile, so that they have one large change to make.
  await createNodes(lab, peers - (lab.state.nodes.length - 1));
  await Promise.all(nodes.map((node) => startAgent(lab, node)));
  await Promise.all(
    nodes.map((node) =>
      untilMapped(lab, node, `its ${peers} peers`, (bpffs) => readPeers(bpffs, undefined).length === peers),
    ),
  );
}

async function createNodes(lab: Lab, count: number): Promise<void> {
  const api = JSON.parse(readFileSync(join(lab.dir, 'apiserver.json'), 'utf8')) as ApiAccess;
  const agent = new Agent({ keepAlive: true, maxSockets: WRITERS, ca: api.ca });
  const numbers = Array.from({ length: count }, (_, i) => i).values();
  const write = async (): Promise<void> => {
    for (const i of numbers) await post(agent, api, distantNode(i));
  };
  try {
    await Promise.all(Array.from({ length: WRITERS }, write));
  } finally {
    agent.destroy();
  }
}

/** A Node as with flannel. Its podCIDR is from 10.64.0.0/24 on, outside the lab's, like its address. */
function distantNode(i: number): object {
  const podCIDR = `${addressAt(parseCidr('10.64.0.0/10'), i * 256)}/24`;
  const tail = [i >> 16, i >> 8, i].map((byte) => (byte & 255).toString(16).padStart(2, '0')).join(':');
  const flannel = {
    'kube-subnet-manager': 'true',
    'backend-type': 'vxlan',
    'backend-data': JSON.stringify({ VNI: 1, VtepMAC: `0a:00:64:${tail}` }),
    'public-ip': addressAt(parseCidr('172.31.64.0/18'), i),
  };
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name: `distant${i}`,
      annotations: Object.fromEntries(
        Object.entries(flannel).map(([key, value]) => [`flannel.alpha.coreos.com/${key}`, value]),
      ),
    },
    spec: { podCIDR, podCIDRs: [podCIDR] },
  };
}

function post(agent: Agent, { url, token }: ApiAccess, body: object): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
  const outgoing = request(
    new URL('/api/v1/nodes', url),
    { method: 'POST', agent, headers, timeout: 10_000 },
    (incoming) => {
      incoming.resume();
      incoming.on('error', reject);
      incoming.on('end', () => {
        if (incoming.statusCode === 201) resolve();
        else reject(new RipstopError(`the lab's API server refused a Node with ${incoming.statusCode}`));
      });
    },
  );
  outgoing.on('timeout', () => outgoing.destroy(new Error("the lab's API server is silent for 10 s")));
  outgoing.on('error', reject);
  outgoing.end(JSON.stringify(body));
  return promise;
}

/**
 * Give a node with one pod this many. Each of the others is a veth pair without a peer namespace, and the attachment
 * that the CNI plugin would have stored: to ripstop that is an endpoint like any other.
 */
export async function growEndpoints(lab: Lab, node: NodeState, endpoints: number): Promise<void> {
  const netns = netnsPath(node.netns);
  const store = new AttachmentStore(join(nodeDir(lab, node), 'run'));
  const [model] = await store.list();
  if (!model) throw new RipstopError(`${node.name} has no pod yet; add one before its idle neighbours`);
  const cidr = parseCidr(node.podCIDR);
  const idle = Array.from({ length: endpoints - 1 }, (_, i) => ({
    hostIfname: `idle${i}`,
    // From the end of the podCIDR: addresses at its beginning are in use.
    ip: addressAt(cidr, 254 - i),
  }));
  await ipBatch(
    idle.map(({ hostIfname }, i) => `link add ${hostIfname} up type veth peer name end${i}`),
    { netns },
  );
  const links = await ipJson<{ ifname: string; ifindex: number; address: string }>(['link', 'show'], {
    netns,
  });
  const linkOf = new Map(links.map((link) => [link.ifname, link]));
  for (const [i, { hostIfname, ip }] of idle.entries()) {
    const host = linkOf.get(hostIfname)!;
    store.put({
      ...model,
      containerId: `idle${i}`,
      hostIfname,
      hostIfindex: host.ifindex,
      hostMac: host.address,
      podMac: linkOf.get(`end${i}`)!.address,
      ips: [ip],
    });
  }
  await nudgeAgent(node);
  await untilMapped(lab, node, `its ${endpoints} endpoints`, async (bpffs, runDir) => {
    if ((await readEndpoints(bpffs, runDir)).length !== endpoints) return false;
    // Their programs follow. Without both, a pod's flows are not learned.
    const links = listLinkKeys(pinPaths(bpffs).links);
    const veths = (await store.list()).map(({ hostIfname }) => hostIfname);
    return veths.every((veth) => PODS_HOOKS.every((hook) => links.has(linkKey(hook, veth))));
  });
}

/** Change the node's addresses, so that its agent starts a pass. */
export async function nudgeAgent(node: NodeState): Promise<void> {
  const netns = netnsPath(node.netns);
  await ipBatch(['address add 192.0.2.1/32 dev lo', 'address del 192.0.2.1/32 dev lo'], { netns });
}

/** Wait until a check of a node's maps is true. @throws RipstopError that names `what` it waited for. */
export async function untilMapped(
  lab: Lab,
  node: NodeState,
  what: string,
  holds: (bpffs: string, runDir: string) => boolean | Promise<boolean>,
): Promise<void> {
  const directory = nodeDir(lab, node);
  for (const begun = performance.now(); performance.now() - begun < DEADLINE_MS; await sleep(250)) {
    if (await holds(join(directory, 'bpf'), join(directory, 'run'))) return;
  }
  throw new RipstopError(
    `${node.name}'s agent did not put ${what} into its maps in ${DEADLINE_MS / 1000} s; see ${join(directory, 'agent.log')}`,
  );
}
