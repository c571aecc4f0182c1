// SPDX-License-Identifier: Apache-2.0
/**
 * What the kubectl plugin asks of kubectl, by a stand-in that answers as a cluster of two nodes would. In a real cluster
 * test/kubernetes/stories/10-paths.story.ts runs it.
 */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { load } from 'js-yaml';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packPlugin } from '../scripts/krew.ts';
import { run, tryRun } from '../src/host/run.ts';

const PLUGIN = join(import.meta.dirname, '../deploy/kubectl/kubectl-ripstop');

/** Answers `get`, and prints the arguments of `exec`. */
const STAND_IN = `#!/bin/sh
args="$*"
case $args in
  *'get pod --namespace=shop web-0'*) printf node2 ;;
  *'get pod --namespace=default lost'*) echo 'pods "lost" not found' >&2; exit 1 ;;
  *spec.nodeName=node2*) echo 'agent-b node2' ;;
  *spec.nodeName=*) ;;
  *'get pods'*) printf 'agent-a node1\\nagent-b node2\\n' ;;
  *) echo "$args"; exit 3 ;;
esac
`;

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'kubectl-ripstop-'));
  writeFileSync(join(dir, 'kubectl'), STAND_IN);
  chmodSync(join(dir, 'kubectl'), 0o755);
});
afterAll(() => rmSync(dir, { recursive: true }));

const plugin = (...args: string[]) =>
  tryRun(PLUGIN, args, { env: { ...process.env, PATH: `${dir}:${process.env['PATH']}` } });

describe('kubectl ripstop', () => {
  const exec = 'exec --namespace=kube-ripstop --container=ripstop agent-b -- ripstop';

  it.each([
    ['--node node2 status', `${exec} status`],
    ['--node=node2 flows --pod default/web-0 -o wide', `${exec} flows --pod default/web-0 -o wide`],
    ['--of shop/web-0 maps peers', `${exec} maps peers`],
    ['--context prod --kubeconfig=k --node node2 peers', `--context=prod --kubeconfig=k ${exec} peers`],
    ['-n other --node node2 peers', `${exec.replace('kube-ripstop', 'other')} peers`],
  ])('%s', async (args, called) => {
    // The exit code is that of the command.
    expect(await plugin(...args.split(' '))).toEqual({ code: 3, stdout: `${called}\n`, stderr: '' });
  });

  it.each([
    ['status', 2, 'which node? Give --node NODE or --of POD; agents run on node1 node2'],
    ['--node node7 status', 1, 'no agent runs on node node7 in namespace kube-ripstop'],
    ['--colour status', 2, 'unknown flag --colour; flags of the command come after it'],
    ['--node', 2, '--node needs a value'],
  ])('%s fails with %i, and says why', async (args, code, why) => {
    const result = await plugin(...args.split(' '));
    expect(result).toEqual({ code, stdout: '', stderr: `kubectl ripstop: ${why}\n` });
  });

  it('passes on why kubectl fails', async () => {
    expect(await plugin('--of', 'lost', 'status')).toMatchObject({
      code: 1,
      stderr: 'pods "lost" not found\n',
    });
  });

  it('has help', async () => {
    expect(await plugin('--help')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('kubectl ripstop --node worker-1 status') as unknown,
    });
    expect((await plugin()).code).toBe(2);
  });
});

it('is packed for krew: the same archive each time, and its checksum in the manifest', async () => {
  const uri = 'https://example.org/kubectl-ripstop.tar.gz';
  const { archive, manifest } = await packPlugin(uri, join(dir, 'krew'));
  const first = readFileSync(archive);
  const { spec } = load(readFileSync(manifest, 'utf8')) as {
    spec: { platforms: { uri: string; sha256: string; files: { from: string }[]; bin: string }[] };
  };
  const [platform] = spec.platforms;
  expect(platform).toMatchObject({ uri, bin: 'kubectl-ripstop' });
  expect(await run('sha256sum', [archive])).toMatch(platform!.sha256);
  const listed = (await run('tar', ['-tzf', archive])).trim().split('\n');
  expect(listed).toEqual(platform!.files.map(({ from }) => from));
  await packPlugin(uri, join(dir, 'krew'));
  expect(readFileSync(archive).equals(first)).toBe(true);
});
