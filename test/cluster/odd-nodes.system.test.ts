// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { AgentStatus } from '../../src/agent/status.ts';
import { type Attachment, AttachmentStore } from '../../src/cni/attachments.ts';
import { readEndpoints } from '../../src/cli/rows.ts';
import { listLinks } from '../../src/host/links.ts';
import {
  addPod,
  nodeDir,
  type NodeState,
  type PodState,
  removePod,
  startAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { readSysctl } from '../../src/host/sysctl.ts';
import {
  agentLog,
  bpffsOf,
  inNetns,
  missingHere,
  nudge,
  ping,
  podOf,
  ripstopJson,
  runDirOf,
  useLab,
  whileTalking,
} from './support.ts';

describe.skipIf(missingHere())('a node on which somebody meddles', () => {
  const cluster = useLab('odd', { nodes: 2, pods: 2 });
  const node = (): NodeState => cluster.nodes[0]!;
  const far = (): PodState => podOf(cluster.nodes[1]);
  const endpointsDir = (): string => join(runDirOf(cluster.lab, node()), 'endpoints');

  async function attachmentOf({ containerId }: PodState): Promise<Attachment> {
    const all = await new AttachmentStore(runDirOf(cluster.lab, node())).list();
    return all.find((one) => one.containerId === containerId)!;
  }
  const alarms = async (): Promise<string[]> => {
    const { agent } = await ripstopJson<{ agent: AgentStatus }>(cluster.lab, node(), 'status');
    return agent.alarms.map(({ reason }) => reason);
  };

  const passes = async (): Promise<number> => {
    const { agent } = await ripstopJson<{ agent: AgentStatus }>(cluster.lab, node(), 'status');
    return agent.passes.count;
  };

  it('sees to pods that come and go alone, and looks at nothing else', async () => {
    const before = await passes();
    for (let i = 0; i < 5; i++) {
      const pod = await addPod(cluster.lab, node());
      await ping(pod, far().ip, 1);
      await removePod(cluster.lab, node(), pod);
    }
    // An audit may be due meanwhile.
    expect((await passes()) - before).toBeLessThanOrEqual(1);
  });

  it('sets the rp_filter of a pod that has only come again at once', async () => {
    const pod = await addPod(cluster.lab, node());
    const path = `net/ipv4/conf/${(await attachmentOf(pod)).hostIfname}/rp_filter`;
    await run('tee', [`/proc/sys/${path}`], { ...inNetns(node()), stdin: '0' });
    await expect.poll(() => readSysctl(path, inNetns(node())), { timeout: 2000 }).toBe('1');
    await removePod(cluster.lab, node(), pod);
  });

  it('follows a host veth that is set down and up again', async () => {
    const pod = await addPod(cluster.lab, node());
    const { hostIfname } = await attachmentOf(pod);
    const known = async (): Promise<boolean> =>
      (await readEndpoints(bpffsOf(cluster.lab, node()), runDirOf(cluster.lab, node()))).some(
        ({ ip }) => ip === pod.ip,
      );
    expect(await known()).toBe(true);
    for (const [state, isKnown] of [
      ['down', false],
      ['up', true],
    ] as const) {
      await run('ip', ['link', 'set', hostIfname, state], inNetns(node()));
      await expect.poll(known, { timeout: 5000 }).toBe(isKnown);
    }
    await ping(pod, far().ip);
    await removePod(cluster.lab, node(), pod);
  });

  it('goes on serving a pod whose host veth is renamed, says so, and takes the veth away with the pod', async () => {
    const pod = await addPod(cluster.lab, node());
    await ping(pod, far().ip);
    const { hostIfname } = await attachmentOf(pod);
    const { lost } = await whileTalking({ pings: [[pod, far().ip]], connections: [] }, 200, async () => {
      await run('ip', ['link', 'set', hostIfname, 'name', 'lan7'], inNetns(node()));
      await expect.poll(async () => (await attachmentOf(pod)).hostIfname).toBe('lan7');
    });
    expect(lost).toEqual([[]]);
    interface Status {
      attached: { hook: string; device: string; live: boolean }[];
    }
    const hooks = async (): Promise<string[]> => {
      const { attached } = await ripstopJson<Status>(cluster.lab, node(), 'status');
      return attached.flatMap(({ hook, device, live }) => (device === 'lan7' && live ? [hook] : []));
    };
    await expect.poll(hooks).toEqual(['from_pod', 'to_pod']);
    expect(await ipJson(['route', 'show', `${pod.ip}/32`], inNetns(node()))).toMatchObject([{ dev: 'lan7' }]);
    expect(agentLog(cluster.lab, node())).toContain('"hostIfname":"lan7"');
    await removePod(cluster.lab, node(), pod);
    expect([...(await listLinks({ netns: inNetns(node()).netns })).keys()]).not.toContain('lan7');
  });

  it('goes on serving a pod whose file somebody removes, and writes it anew', async () => {
    const pod = podOf(node());
    const files = () => readdirSync(endpointsDir()).filter((name) => name.startsWith(pod.containerId));
    const { lost } = await whileTalking({ pings: [[pod, far().ip]], connections: [] }, 200, async () => {
      rmSync(join(endpointsDir(), files()[0]!));
      await expect
        .poll(
          async () => {
            await nudge(node());
            return files();
          },
          { timeout: 10_000, interval: 500 },
        )
        .toHaveLength(1);
    });
    expect(lost).toEqual([[]]);
    expect(await attachmentOf(pod)).toMatchObject({ ips: [pod.ip] });
  });

  it('keeps pods talking whose files are malformed, over a restart too, and names the files', async () => {
    const [pod, other] = [podOf(node()), podOf(node(), 1)];
    const file = join(
      endpointsDir(),
      readdirSync(endpointsDir()).find((name) => name.startsWith(pod.containerId))!,
    );
    writeFileSync(file, '{');
    await nudge(node());
    // A running agent knows what was in it.
    await expect
      .poll(async () => JSON.parse(readFileSync(file, 'utf8')) as unknown)
      .toMatchObject({ ips: [pod.ip] });
    const pings = [pod, other].map((one) => [one, far().ip] as const);
    const { lost } = await whileTalking({ pings, connections: [] }, 200, async () => {
      await stopAgent(cluster.lab, node());
      writeFileSync(file, '{"contai');
      writeFileSync(join(endpointsDir(), 'zzz.json'), '');
      symlinkSync('yyy.json', join(endpointsDir(), 'yyy.json'));
      // As a runtime does when a container mounts one of them while it is not there.
      for (const path of ['run/cni.sock', 'run/agent.sock', 'subnet.env']) {
        rmSync(join(nodeDir(cluster.lab, node()), path), { force: true });
        mkdirSync(join(nodeDir(cluster.lab, node()), path));
      }
      await startAgent(cluster.lab, node());
    });
    expect(lost).toEqual([[], []]);
    await ping(far(), pod.ip);
    await expect
      .poll(alarms)
      .toEqual([
        expect.stringContaining(file),
        expect.stringContaining('yyy.json does not hold an attachment'),
        expect.stringContaining('zzz.json does not hold an attachment'),
      ]);
    const third = await addPod(cluster.lab, node());
    await ping(third, pod.ip);
    await removePod(cluster.lab, node(), pod);
    await expect
      .poll(alarms)
      .toEqual([expect.stringContaining('yyy.json'), expect.stringContaining('zzz.json')]);
    expect(await ipJson(['route', 'show', `${pod.ip}/32`], inNetns(node()))).toEqual([]);
  });
});
