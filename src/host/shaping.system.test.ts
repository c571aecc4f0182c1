// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fixture, noKernel } from '../libbpf-ts/libbpf.support.ts';
import { type TestNetns, testNetns, whyNoNetns } from './netns.support.ts';

const missing = noKernel ?? (await whyNoNetns());
const SHAPING = join(import.meta.dirname, 'shaping.ts');

describe.skipIf(missing)(`what shapes a host veth${missing ? ` (skipped: ${missing})` : ''}`, () => {
  let node: TestNetns;
  let folder: string;

  beforeAll(async () => {
    node = await testNetns();
    await node.ip('link add veth0 index 100 type veth peer name pod', 'link set veth0 up');
    folder = mkdtempSync(join(tmpdir(), 'ripstop-shaping-'));
    writeFileSync(join(folder, 'basic.o'), fixture('basic'));
  });
  afterAll(async () => {
    rmSync(folder, { recursive: true });
    await node[Symbol.asyncDispose]();
  });

  /** What findShaped() sees after these commands of tc; tcx knows only the process's own namespace. */
  async function shapedAfter(...commands: string[]): Promise<number[]> {
    for (const command of commands) await node.run('tc', ...command.split(' '));
    const script = `import { findShaped } from ${JSON.stringify(SHAPING)};
      console.log(JSON.stringify(findShaped([100, 4711], ${JSON.stringify(folder + '/none')})));`;
    return JSON.parse(await node.run(process.execPath, '--input-type=module', '-e', script)) as number[];
  }

  it.each([
    ['nothing, when nobody has configured anything', [], [], []],
    [
      'a token bucket',
      ['qdisc add dev veth0 root tbf rate 1mbit burst 10k latency 1ms'],
      ['qdisc del dev veth0 root'],
      [100],
    ],
    [
      'a queue without a limit, as somebody has asked for it',
      ['qdisc add dev veth0 root pfifo'],
      ['qdisc del dev veth0 root'],
      [100],
    ],
    ['no hook without filters', ['qdisc add dev veth0 clsact'], ['qdisc del dev veth0 clsact'], []],
    [
      'a filter at its ingress, as that of the bandwidth plugin',
      ['qdisc add dev veth0 ingress', 'filter add dev veth0 ingress protocol ip u32 match u32 0 0 flowid :1'],
      ['qdisc del dev veth0 ingress'],
      [100],
    ],
    [
      'a filter at its egress',
      ['qdisc add dev veth0 clsact', 'filter add dev veth0 egress protocol ip u32 match u32 0 0 flowid :1'],
      ['qdisc del dev veth0 clsact'],
      [100],
    ],
    [
      "somebody's program",
      [
        'qdisc add dev veth0 clsact',
        'filter add dev veth0 ingress pref 100 handle 1 bpf da obj FOLDER/basic.o sec tc',
      ],
      ['qdisc del dev veth0 clsact'],
      [100],
    ],
    [
      'not our own program (before Linux 6.6)',
      [
        'qdisc add dev veth0 clsact',
        'filter add dev veth0 ingress pref 100 handle 0x72697073 bpf da obj FOLDER/basic.o sec tc',
      ],
      ['qdisc del dev veth0 clsact'],
      [],
    ],
  ] as const)('is %s', async (_, before, after, expected) => {
    const inFolder = before.map((command) => command.replace('FOLDER', folder));
    try {
      expect(await shapedAfter(...inFolder)).toEqual(expected);
    } finally {
      expect(await shapedAfter(...after)).toEqual([]);
    }
  });
});
