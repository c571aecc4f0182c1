// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { run } from '../../src/host/run.ts';
import { type Lab, netnsPath, underlayNetns } from '../../src/lab/index.ts';
import { commandLine, processesIn, signalProcess } from '../../src/lab/netns.ts';
import { peerPath } from '../support/peer-programs.ts';
import { clientOf } from './support.ts';

/** Compacts the history of a real API server, and kills it. */

/** A request to the JSON gateway of the lab's etcd, which listens only on the underlay's loopback. */
async function etcd(lab: Lab, path: string, body: object): Promise<{ header?: { revision?: string } }> {
  const script = `
    const answer = await fetch('http://127.0.0.1:2379${path}', { method: 'POST', body: process.argv[1] });
    if (!answer.ok) throw new Error(await answer.text());
    console.log(await answer.text());`;
  const argv = ['--input-type=module', '--eval', script, JSON.stringify(body)];
  return JSON.parse(await run(process.execPath, argv, { netns: netnsPath(underlayNetns(lab.name)) })) as {
    header?: { revision?: string };
  };
}

/** Make etcd forget its history, as kube-apiserver does every five minutes. */
export async function compactEtcd(lab: Lab): Promise<void> {
  const { header } = await etcd(lab, '/v3/kv/range', { key: Buffer.from('/registry').toString('base64') });
  await etcd(lab, '/v3/kv/compaction', { revision: header?.revision });
}

/** Kill the API server. It is restarted at once, with empty caches. Resolves when it serves again. */
export async function restartApiServer(lab: Lab): Promise<void> {
  const find = (): number[] =>
    processesIn([underlayNetns(lab.name)]).filter(
      (pid) => commandLine(pid)[0] === peerPath('kube-apiserver'),
    );
  const [before] = find();
  if (before === undefined) throw new Error('there is no API server to restart');
  signalProcess(before, 'SIGKILL');
  const client = clientOf(lab);
  for (const deadline = performance.now() + 60_000; performance.now() < deadline; await sleep(100)) {
    if (find().includes(before)) continue;
    const answer = await client.get('/readyz').catch(() => undefined);
    if (answer?.code === 200) return;
  }
  throw new Error('the API server does not come back; see apiserver.log');
}
