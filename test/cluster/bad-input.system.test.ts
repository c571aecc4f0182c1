// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, type RunResult, tryRun } from '../../src/host/run.ts';
import { netnsPath, nodeDir } from '../../src/lab/index.ts';
import { type Background, startIn } from '../../src/lab/lab.support.ts';
import { missingHere, useLab } from './support.ts';

const ROOT = join(import.meta.dirname, '../..');
const CLI = join(ROOT, 'src/cli/main.ts');
const NOBODY = 65_534;

/** Expect this exit code, and one line on standard error that matches. */
function refusal(code: 1 | 2, says: RegExp) {
  return { code, lines: 1, says: expect.stringMatching(says) as string };
}

function seen({ code, stderr }: RunResult) {
  return { code, lines: stderr.trimEnd().split('\n').length, says: stderr };
}

describe.skipIf(missingHere('setpriv', 'unshare'))('a node with something wrong', () => {
  const cluster = useLab('bad', { datapath: 'host', nodes: 1, pods: 0 });
  let dir: string;
  let netns: string;

  beforeAll(() => {
    const node = cluster.nodes[0]!;
    dir = mkdtempSync(join(nodeDir(cluster.lab, node), 'bad-'));
    netns = node.netns;
  });

  /** The command line of an agent that could start, with the test's changes. */
  function agent(changes: Record<string, string> = {}): string[] {
    const flags = {
      'node-name': 'node1',
      kubeconfig: join(cluster.lab.dir, 'node.kubeconfig'),
      'net-conf': join(cluster.lab.dir, 'net-conf.json'),
      mode: 'cni',
      iface: 'eth0',
      bpffs: join(dir, 'bpf'),
      'run-dir': join(dir, 'run'),
      'state-dir': join(dir, 'state'),
      'subnet-file': join(dir, 'subnet.env'),
      'ipam-dir': join(dir, 'ipam'),
      ...changes,
    };
    return ['agent', ...Object.entries(flags).map(([flag, value]) => `--${flag}=${value}`)];
  }

  const ripstop = async (args: readonly string[], env: Record<string, string> = {}) =>
    seen(
      await tryRun(process.execPath, [CLI, ...args], {
        netns: netnsPath(netns),
        env: { PATH: process.env['PATH'] ?? '', ...env },
        timeoutMs: 10_000,
      }),
    );

  function file(name: string, text: string): string {
    writeFileSync(join(dir, name), text);
    return join(dir, name);
  }

  it.each([
    ['is missing', undefined, /kubeconfig/],
    ['is no YAML', '{{{', /kubeconfig/],
  ])('is told when the kubeconfig %s', async (_, text, says) => {
    const kubeconfig = text === undefined ? join(dir, 'none') : file('kubeconfig', text);
    expect(await ripstop(agent({ kubeconfig }))).toEqual(refusal(1, says));
  });

  it.each([
    ['is missing', undefined, /cannot read the network configuration .*--net-conf/],
    [
      'has several mistakes',
      '{"Network":"10.42.0.0/99","Backend":{"Type":"ipip","VNI":-1}}',
      /Network.*"ipip" is not supported.*Backend\.VNI -1/,
    ],
    [
      'enables IPv6',
      '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/56","Backend":{"Type":"vxlan"}}',
      /IPv6/,
    ],
  ])('is told when net-conf.json %s', async (_, text, says) => {
    const netConf = text === undefined ? join(dir, 'none') : file('net-conf.json', text);
    expect(await ripstop(agent({ 'net-conf': netConf }))).toEqual(refusal(1, says));
  });

  it.each([
    ['an unknown flag', ['agent', '--node-name=n', '--node-nmae', 'x'], /--node-nmae/],
    ['no node name', ['agent'], /--node-name/],
    ['an unknown mode', ['agent', '--node-name=n', '--mode=fast'], /--mode.*auto, cni/],
    ['an unknown ingress', ['agent', '--node-name=n', '--ingress=dpdk'], /--ingress.*auto, tc, xdp/],
    ['an unknown command', ['frobnicate'], /frobnicate/],
    ['an unknown map', ['maps', 'nonesuch'], /no map "nonesuch".*peers/],
    ['an unknown output', ['peers', '-o', 'xml'], /xml/],
    ['a lab that cannot be', ['lab', 'up', '--nodes', '0'], /--nodes cannot be "0"/],
  ])('gets exit code 2 and one line for %s', async (_, args, says) => {
    expect(await ripstop(args)).toEqual(refusal(2, says));
  });

  it.each(['metrics-addr', 'healthz-addr'])(
    'gets exit code 2 and one line for an invalid --%s',
    async (flag) => {
      expect(await ripstop(agent({ [flag]: 'everywhere' }))).toEqual(
        refusal(2, new RegExp(`--${flag} "everywhere" is not HOST:PORT`)),
      );
    },
  );

  it('gets exit code 2 for an environment variable with a wrong value', async () => {
    expect(await ripstop(['agent', '--node-name=n'], { RIPSTOP_MODE: 'fast' })).toEqual(
      refusal(2, /RIPSTOP_MODE|--mode/),
    );
  });

  it('is told when nothing is pinned', async () => {
    const readers = ['status', 'peers', 'endpoints', 'flows', 'maps', 'stats'];
    for (const answer of await Promise.all(readers.map((reader) => ripstop([reader, `--bpffs=${dir}`])))) {
      expect(answer).toEqual(refusal(1, /no ripstop maps are pinned below/));
    }
  });

  it('is told which package is missing', async () => {
    const path = mkdtempSync(join(dir, 'path-'));
    const refused = await tryRun(
      (await run('which', ['nsenter'])).trim(),
      [`--net=${netnsPath(netns)}`, '--', process.execPath, CLI, ...agent()],
      { env: { PATH: path } },
    );
    expect(seen(refused)).toEqual(refusal(1, /nft not found on PATH: install the package nftables/));
  });

  it('is told to become root', async ({ skip }) => {
    const as = [
      '--reuid',
      String(NOBODY),
      '--regid',
      String(NOBODY),
      '--clear-groups',
      '--',
      process.execPath,
    ];
    const reads = await tryRun('setpriv', [...as, CLI, '--version']);
    if (reads.code !== 0) skip('nobody cannot read this checkout');
    const args = [
      'agent',
      '--node-name=n',
      `--net-conf=${join(cluster.lab.dir, 'net-conf.json')}`,
      '--mode=cni',
    ];
    expect(seen(await tryRun('setpriv', [...as, CLI, ...args], { netns: netnsPath(netns) }))).toEqual(
      refusal(1, /must run as root/),
    );
    expect(seen(await tryRun('setpriv', [...as, CLI, 'lab', 'up', '--name', 'never']))).toEqual(
      refusal(1, /needs root/),
    );
  });

  it('is told that the BPF objects need clang, and keeps those that it has', async () => {
    const path = mkdtempSync(join(dir, 'path-'));
    const object = join(ROOT, 'build/wire.bpf.o');
    const before = statSync(object).ino;
    const refused = await tryRun(process.execPath, [join(ROOT, 'scripts/build-bpf.ts'), '--force'], {
      env: { PATH: path },
    });
    expect(seen(refused)).toEqual(refusal(1, /no clang found.*install clang-19/));
    expect(statSync(object).ino).toBe(before);
  });

  describe('waits', () => {
    let running: Background | undefined;
    afterAll(async () => {
      await running?.stop();
    });

    it('for an API server that is down, says so once, and ends on SIGTERM', async () => {
      const text = readFileSync(join(cluster.lab.dir, 'node.kubeconfig'), 'utf8').replaceAll(':6443', ':1');
      running = startIn(
        netns,
        process.execPath,
        CLI,
        ...agent({ kubeconfig: file('down.kubeconfig', text) }),
      );
      await running.prints(/cannot read our own Node yet/);
      await new Promise((resolve) => setTimeout(resolve, 1500)); // It has tried several times by then.
      const output = await running.stop();
      running = undefined;
      expect(output.match(/cannot read our own Node yet/g)).toHaveLength(1);
      expect(output).toMatch(/"why":"[^"]*ECONNREFUSED/);
      expect(output).toMatch(/stopping; the pinned programs keep forwarding/);
    });
  });
});
