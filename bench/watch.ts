// SPDX-License-Identifier: Apache-2.0
/**
 * Measures the cost of following all Nodes of a cluster: whole, as flannel does, or by their metadata. Run it by hand:
 * `node bench/watch.ts [--sizes 1000,5000] [--seconds 10]`. Needs no root.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { renderTable } from '../src/cli/table.ts';
import { ApiServer } from '../src/lab/apiserver/index.ts';
import { conditionsAt, leaseOf, nodeName, realisticNode } from './scale-nodes.ts';
import type { Cost } from './watch-client.ts';

const { values: flags } = parseArgs({
  options: { sizes: { type: 'string', default: '1000,5000' }, seconds: { type: 'string', default: '10' } },
});
const UPDATES_PER_SECOND = 50;

/** `ripstop`: every node publishes its podCIDRs; `flannel`: none does. */
const arms = [
  ['whole', 'ripstop'],
  ['metadata', 'ripstop'],
  ['metadata', 'flannel'],
] as const;

/** A server that forwards connections to another and counts the bytes of its answers, TLS and HTTP included. */
async function countingRelay(to: number): Promise<{ port: number; bytes(): number; close(): void }> {
  let bytes = 0;
  const relay = net.createServer((client) => {
    const server = net.connect(to, '127.0.0.1');
    server.on('data', (chunk: Buffer) => (bytes += chunk.length));
    client.pipe(server).pipe(client);
    client.on('error', () => server.destroy());
    server.on('error', () => client.destroy());
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  return {
    port: (relay.address() as net.AddressInfo).port,
    bytes: () => bytes,
    close: () => void relay.close(),
  };
}

async function answer(child: ChildProcess): Promise<Cost> {
  const [cost] = (await once(child, 'message')) as [Cost];
  return cost;
}

function fill(server: ApiServer, nodes: number, published: boolean): number {
  let bytes = 0;
  for (let i = 0; i < nodes; i++) {
    const node = realisticNode(i);
    if (published) node.metadata!.annotations!['ripstop.io/pod-cidrs'] = leaseOf(i).podCidr;
    bytes += JSON.stringify(server.store.create('nodes', node)).length;
  }
  return bytes / nodes;
}

/** Send heartbeats for Nodes in turn, at a constant rate. */
async function beat(server: ApiServer, nodes: number, seconds: number): Promise<void> {
  const begun = performance.now();
  for (let n = 0; n < UPDATES_PER_SECOND * seconds; n++) {
    const node = server.store.get('nodes', nodeName((n * 7) % nodes))!;
    const status = { ...node.status, conditions: conditionsAt(new Date()) };
    server.store.update('nodes', { ...node, status }, 'status');
    await sleep(Math.max(0, begun + ((n + 1) * 1000) / UPDATES_PER_SECOND - performance.now()));
  }
}

async function measure(nodes: number, view: string, kind: string, seconds: number): Promise<string[]> {
  const server = await ApiServer.start();
  const directory = mkdtempSync(join(tmpdir(), 'ripstop-watch-'));
  const nodeBytes = fill(server, nodes, kind === 'ripstop');
  const relay = await countingRelay(Number(new URL(server.url).port));
  const kubeconfig = join(directory, 'kubeconfig');
  writeFileSync(kubeconfig, server.kubeconfig(`https://127.0.0.1:${relay.port}`));
  const child = fork(join(import.meta.dirname, 'watch-client.ts'), [kubeconfig, view]);
  try {
    const atStart = await answer(child);
    const begun = performance.now();
    const startBytes = relay.bytes();
    const listed = await answer(child);
    const listMs = performance.now() - begun;
    const listBytes = relay.bytes() - startBytes;
    if (listed.peers !== nodes) throw new Error(`${listed.peers} peers of ${nodes}`);
    await sleep(500);
    child.send('cost');
    const before = await answer(child);
    const watchStart = relay.bytes();
    await beat(server, nodes, seconds);
    child.send('cost');
    const after = await answer(child);
    const kb = (bytes: number, digits = 0): string => (bytes / 1000).toFixed(digits);
    return [
      `${nodes} × ${kb(nodeBytes, 1)} kB`,
      kind,
      view,
      kb(listBytes),
      listMs.toFixed(0),
      (listed.cpuMs - atStart.cpuMs).toFixed(0),
      ((listed.rssBytes - atStart.rssBytes) / 1e6).toFixed(0),
      (after.rssBytes / 1e6).toFixed(0),
      kb((relay.bytes() - watchStart) / (UPDATES_PER_SECOND * seconds), 1),
      ((after.cpuMs - before.cpuMs) / (UPDATES_PER_SECOND * seconds)).toFixed(2),
      String(after.changes - before.changes),
    ];
  } finally {
    child.kill('SIGKILL');
    relay.close();
    await server.close();
    rmSync(directory, { recursive: true });
  }
}

const rows: string[][] = [];
for (const size of flags.sizes.split(',')) {
  for (const [view, kind] of arms) rows.push(await measure(Number(size), view, kind, Number(flags.seconds)));
}
const titles = [
  'nodes',
  'they run',
  'watched',
  'list kB',
  'ms',
  'CPU ms',
  'RSS +MB',
  'RSS MB',
  'update kB',
  'CPU ms',
  'changes',
];
process.stdout.write(
  renderTable(
    titles.map((title, i) => ({ title, align: i < 3 ? 'left' : 'right', value: (row: string[]) => row[i] })),
    rows,
  ),
);
