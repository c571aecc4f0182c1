// SPDX-License-Identifier: Apache-2.0
/**
 * The embedded API server of a large cluster, as a process of its own whose memory and time are nobody else's:
 * `node scale-server.ts /run/ripstop-lab/NAME`, told what to do over IPC. It takes the place of the lab's own server.
 */
import { subscribe } from 'node:diagnostics_channel';
import type { IncomingMessage } from 'node:http';
import { basename, join } from 'node:path';
import { setImmediate as breathe, setTimeout as sleep } from 'node:timers/promises';
import { gatewayAddress } from '../src/lab/addresses.ts';
import { ApiServer, listenInNetns } from '../src/lab/apiserver/index.ts';
import type { ApiAccess } from '../src/lab/kube.ts';
import { netnsPath } from '../src/lab/netns.ts';
import { openLab, underlayNetns, writeAtomically } from '../src/lab/state.ts';
import { conditionsAt, leaseAnnotations, leaseOf, nodeName, realisticNode } from './scale-nodes.ts';

/** What it can be told. Each is answered with its result. */
export interface Orders {
  /** Nodes up to this number; the answer is how many bytes of JSON a mean one has. */
  grow(to: number): Promise<number>;
  /** Give so many Nodes another MAC. The answer: the times of the first and the last write, ms since 1970. */
  change(count: number, generation: number): Promise<{ first: number; last: number }>;
  /** kubelets' heartbeats on Nodes in turn, evenly. The answer is how many. */
  beat(perSecond: number, seconds: number): Promise<number>;
  /** Since the last time it was asked. */
  listed(): Promise<Listed>;
}

/** Times in ms since 1970. */
export interface Listed {
  /** When the last byte of the last list of Nodes was given to the connection. */
  lastByteAt: number | undefined;
  pages: number;
  /** When the last watch of Nodes was asked for. */
  watchedAt: number | undefined;
}

const PORT = 6443;
const lab = openLab(basename(process.argv[2] ?? ''));
const gateway = gatewayAddress(lab.state.options.underlay);
const server = await ApiServer.start({ sans: [gateway], tokens: { 'scale-nodes': 'system:nodes' } });
server.adoptListener(await listenInNetns(netnsPath(underlayNetns(lab.name)), gateway, PORT));

let seen: Listed = { lastByteAt: undefined, pages: 0, watchedAt: undefined };
/** All Nodes, watched or listed; other clients than nodes ask for no such thing. */
const asks = (request: IncomingMessage): 'watch' | 'list' | undefined => {
  const [path, query = ''] = (request.url ?? '').split('?');
  if (request.method !== 'GET' || path !== '/api/v1/nodes' || query.includes('fieldSelector'))
    return undefined;
  return /(^|&)watch=(1|true)/.test(query) ? 'watch' : 'list';
};
subscribe('http.server.request.start', (message) => {
  const { request } = message as { request: IncomingMessage };
  if (asks(request) === 'watch') seen.watchedAt = Date.now();
});
subscribe('http.server.response.finish', (message) => {
  const { request } = message as { request: IncomingMessage };
  if (asks(request) !== 'list') return;
  seen.lastByteAt = Date.now();
  seen.pages++;
});

let nodes = 0;
const orders: Orders = {
  async grow(to) {
    let bytes = 0;
    const begun = nodes;
    for (; nodes < to; nodes++) {
      bytes += JSON.stringify(server.store.create('nodes', realisticNode(nodes))).length;
      if (nodes % 100 === 0) await breathe();
    }
    return bytes / Math.max(1, nodes - begun);
  },
  async change(count, generation) {
    const first = Date.now();
    for (let i = 0; i < count; i++) {
      const annotations = leaseAnnotations(leaseOf(i, generation));
      server.store.patch(
        'nodes',
        nodeName(i),
        'application/merge-patch+json',
        { metadata: { annotations } },
        { subresource: 'status' },
      );
      // So that what is written is also sent.
      if (i % 20 === 19) await breathe();
    }
    return { first, last: Date.now() };
  },
  async beat(perSecond, seconds) {
    const begun = performance.now();
    let beats = 0;
    for (; beats < perSecond * seconds; beats++) {
      const node = server.store.get('nodes', nodeName((beats * 7) % nodes))!;
      const status = { ...node.status, conditions: conditionsAt(new Date()) };
      server.store.update('nodes', { ...node, status }, 'status');
      await sleep(Math.max(0, begun + ((beats + 1) * 1000) / perSecond - performance.now()));
    }
    return beats;
  },
  async listed() {
    const result = seen;
    seen = { lastByteAt: undefined, pages: 0, watchedAt: undefined };
    return result;
  },
};

process.on('disconnect', () => process.exit());
process.on('message', ({ id, order, args }: { id: number; order: keyof Orders; args: never[] }) => {
  const work = orders[order] as (...args: never[]) => Promise<unknown>;
  work(...args).then(
    (result) => process.send?.({ id, result }),
    (error: unknown) => process.send?.({ id, error: error instanceof Error ? error.message : String(error) }),
  );
});

const access: ApiAccess = { url: server.url, ca: server.caPem, token: server.adminToken };
writeAtomically(join(lab.dir, 'apiserver.json'), JSON.stringify(access));
writeAtomically(
  join(lab.dir, 'node.kubeconfig'),
  server.kubeconfig(`https://${gateway}:${PORT}`, 'scale-nodes'),
);
process.send?.({ id: 0 });
