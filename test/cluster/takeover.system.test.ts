// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { ipJson } from '../../src/lab/ip.ts';
import { run, tryRun } from '../../src/host/run.ts';
import {
  addPod,
  giveBack,
  type Lab,
  nodeDir,
  type NodeState,
  OUTSIDE_ADDRESS,
  OUTSIDE_ADDRESS6,
  type PodState,
  removePod,
  startAgent,
  stopAgent,
  takeOver,
} from '../../src/lab/index.ts';
import { listNodes } from '../../src/lab/kube.ts';
import { ripstopCommand } from '../../src/lab/ripstop.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import type { Family } from '../../src/net/ip.ts';
import {
  addressesOf,
  addressOf,
  agentLog,
  bpffsOf,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstop,
  runDirOf,
  serveIn,
  talkBoth,
  useLab,
  type Talk,
  whileTalking,
} from './support.ts';

const FLANNEL = 'flannel.alpha.coreos.com';

interface VtepLink {
  ifindex: number;
  address: string;
  linkinfo: { info_data: { port: number } };
  addr_info: { local: string }[];
}

/** The properties of a device that must not change in a takeover. */
async function vtep(node: NodeState): Promise<object> {
  const [link] = await ipJson<VtepLink>(['addr', 'show', 'dev', 'flannel.1'], inNetns(node));
  const { ifindex, address, linkinfo, addr_info } = link!;
  return { ifindex, address, port: linkinfo.info_data.port, addresses: addr_info.map(({ local }) => local) };
}

/** flannel's chains and tables, as nft lists them. */
async function flannelRules(node: NodeState): Promise<string[]> {
  const ruleset = await run('nft', ['list', 'ruleset'], inNetns(node));
  return [...new Set(ruleset.match(/FLANNEL-\w+|flannel-ipv\d/g))].toSorted();
}

const hasOurTable = async (node: NodeState): Promise<boolean> =>
  (await run('nft', ['list', 'tables'], inNetns(node))).includes('inet ripstop');

async function routesTo(node: NodeState, dst: string): Promise<string[]> {
  const rows = await ipJson<{ type: string; dev?: string; protocol?: string }>(
    ['route', 'show', dst],
    inNetns(node),
  );
  return rows.map(({ type, dev, protocol }) => `${type} ${dev ?? ''} ${protocol ?? ''}`);
}

/** Connections out of the cluster, one after another. Each must be masqueraded. */
async function startFlows(
  { netns }: { netns: string },
  address: string,
): Promise<{ broken: () => Promise<string> }> {
  const loop = `trap exit INT; while ping -n -q -c 1 -W 2 ${address} > /dev/null; do echo flow; sleep 0.03; done; echo broken`;
  const program = startIn(netns, 'sh', '-c', loop);
  await program.prints(/(flow\s+){3}/);
  return { broken: async () => (await program.stop()).replaceAll(/flow\n/g, '') };
}

/** The annotations of flannel and ripstop on the Node. */
async function annotationsOf(lab: Lab, node: NodeState): Promise<Record<string, string>> {
  const found = (await listNodes(lab)).find(({ metadata }) => metadata.name === node.name);
  const ours = ([key]: [string, string]): boolean => key.startsWith(FLANNEL) || key.startsWith('ripstop.io/');
  return Object.fromEntries(Object.entries(found?.metadata.annotations ?? {}).filter(ours));
}

describe.skipIf(missingHere('ip6tables-restore'))('a flannel node whose pods go on talking', () => {
  const cluster = useLab('take', { datapath: 'flannel,flannel', pods: 2, ipv6: true });
  const node = () => cluster.nodes[0]!;
  const far = () => podOf(cluster.nodes[1]);
  const old = (i: number) => podOf(node(), i);
  const conflist = () => join(nodeDir(cluster.lab, node()), 'net.d/10-flannel.conflist');

  beforeAll(async () => {
    await Promise.all([old(0), old(1), far()].map((one) => serveIn(one)));
    // Rules of others, which must not change.
    await run(
      'iptables',
      ['-t', 'nat', '-A', 'POSTROUTING', '-s', '192.0.2.9', '-j', 'RETURN'],
      inNetns(node()),
    );
  });

  /** Check pings and connections of node 1's old pods with all others, in both families, during `work` on node 1. */
  async function unharmed(
    work: () => Promise<unknown>,
    others: readonly [PodState, PodState][] = [],
  ): Promise<void> {
    const pairs: [{ netns: string }, string][] = ([4, 6] as const satisfies Family[]).flatMap((family) => [
      [old(0), addressOf(old(1), family)] as [PodState, string],
      [old(0), addressOf(far(), family)],
      [far(), addressOf(old(0), family)],
      ...others.map(([from, to]) => [from, addressOf(to, family)] as [PodState, string]),
    ]);
    const world: [PodState, string][] = [OUTSIDE_ADDRESS, OUTSIDE_ADDRESS6].map((address) => [
      old(0),
      address,
    ]);
    const local: [{ netns: string }, string][] = addressesOf(old(0)).map((address) => [node(), address]);
    const pings: Talk[] = [...pairs, ...world, ...local];
    const flows = await Promise.all(world.map(([from, address]) => startFlows(from, address)));
    const broken = () => Promise.all(flows.map((one) => one.broken()));
    const { lost, reports } = await whileTalking({ pings, connections: pairs }, 200, work).catch(
      async (error: unknown) => {
        await broken();
        throw error;
      },
    );
    expect(await broken()).toEqual(['', '']);
    const harmed = pings.map(([{ netns }, to], i) => `${netns} → ${to}: ${lost[i]!.length} lost`);
    expect(harmed.filter((_, i) => lost[i]!.length > 0)).toEqual([]);
    for (const report of reports) {
      expect(report).not.toHaveProperty('error');
      expect(report.rounds).toBeGreaterThan(10);
    }
  }

  let before: object;
  it('is taken over by an agent: no ping is lost, its VTEP is unchanged, and only the rules that pods need are left', async () => {
    before = await vtep(node());
    const vanished = '10.42.200.0';
    await run(
      'ip',
      ['route', 'add', `${vanished}/24`, 'via', vanished, 'dev', 'flannel.1', 'onlink'],
      inNetns(node()),
    );
    expect(await flannelRules(node())).toEqual(['FLANNEL-FWD', 'FLANNEL-POSTRTG']);
    await unharmed(async () => {
      await takeOver(cluster.lab, node());
      await expect.poll(() => routesTo(node(), cluster.nodes[1]!.podCIDR)).toEqual(['unicast flannel.1 82']);
      await expect.poll(() => routesTo(node(), `${vanished}/24`)).toEqual([]);
    });
    expect(await vtep(node())).toEqual(before);
    // The lab's FORWARD policy is DROP.
    expect(await flannelRules(node())).toEqual(['FLANNEL-FWD']);
    expect(await routesTo(node(), node().podCIDR)).toEqual(['unicast cni0 kernel']);
    const postrouting = await run('iptables', ['-t', 'nat', '-S', 'POSTROUTING'], inNetns(node()));
    expect(postrouting.trim().split('\n')).toEqual([
      '-P POSTROUTING ACCEPT',
      '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
      '-A POSTROUTING -s 192.0.2.9/32 -j RETURN',
    ]);
    expect(agentLog(cluster.lab, node())).not.toMatch(/"level":(50|60)/);
  });

  let fresh: PodState;
  /** Attached by ripstop, and ended by flannel's plugin. */
  let ending: PodState;
  it('gets new pods, on veths of their own, which talk with the old ones and with all others', async () => {
    fresh = await addPod(cluster.lab, node());
    ending = await addPod(cluster.lab, node());
    expect([old(0), old(1)].flatMap(addressesOf)).not.toContain(fresh.ip);
    await serveIn(fresh);
    for (const family of [4, 6] as const) {
      const talks: [PodState, PodState][] = [
        [fresh, old(0)],
        [old(1), fresh],
        [fresh, far()],
        [far(), fresh],
        [old(0), far()],
        [far(), old(1)],
      ];
      for (const [from, to] of talks) {
        expect(await talkBoth(from, addressOf(to, family))).toBe(addressOf(from, family));
      }
      for (const pod of [fresh, old(0)]) {
        await ping(pod, family === 4 ? OUTSIDE_ADDRESS : OUTSIDE_ADDRESS6);
        await ping(node(), addressOf(pod, family));
      }
    }
  });

  it('answers neighbour requests of old pods for a new one at once', async () => {
    for (const { netns } of [old(0), old(1)])
      await run('ip', ['neigh', 'flush', 'dev', 'eth0'], inNetns({ netns }));
    const asked = performance.now();
    await Promise.all(addressesOf(fresh).map((address) => ping(old(1), address, 1)));
    expect(performance.now() - asked).toBeLessThan(400);
  });

  it('survives a restart of its agent', async () => {
    await unharmed(async () => {
      await stopAgent(cluster.lab, node());
      await startAgent(cluster.lab, node());
    }, [[fresh, old(0)]]);
  });

  it('refuses to be uninstalled under a running agent', async () => {
    const { code, stderr } = await ripstop(cluster.lab, node(), 'uninstall');
    expect({ code, stderr }).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/the agent of this node runs.*stop it first/),
    });
  });

  it('is given back to flannel: no ping is lost, and it is as a stopped flanneld leaves it', async () => {
    mkdirSync(join(conflist(), '..'), { recursive: true });
    const flannels = '{"name":"cbr0","plugins":[{"type":"flannel"}]}';
    writeFileSync(conflist(), '{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"ripstop-cni"}]}');
    writeFileSync(`${conflist()}.ripstop-saved`, flannels);
    const lease = await annotationsOf(cluster.lab, node());
    expect(Object.keys(lease)).toContainEqual(expect.stringMatching(/^ripstop\.io\//));
    let printed = '';
    await unharmed(async () => {
      printed = await giveBack(cluster.lab, node());
    }, [
      [fresh, old(0)],
      [old(1), fresh],
      [fresh, far()],
    ]);
    expect(printed).toMatch(/detached all programs/);
    expect(await vtep(node())).toEqual(before);
    expect(await flannelRules(node())).toEqual(['FLANNEL-FWD', 'FLANNEL-POSTRTG']);
    expect(await hasOurTable(node())).toBe(false);
    expect(await annotationsOf(cluster.lab, node())).toEqual(
      Object.fromEntries(Object.entries(lease).filter(([key]) => key.startsWith(`${FLANNEL}/`))),
    );
    expect(existsSync(join(bpffsOf(cluster.lab, node()), 'ripstop'))).toBe(false);
    expect(readdirSync(join(conflist(), '..'))).toEqual(['10-flannel.conflist']);
    expect(readdirSync(join(nodeDir(cluster.lab, node()), 'flannel')).toSorted()).toEqual(
      [fresh.containerId, ending.containerId].toSorted(),
    );
    expect(existsSync(join(nodeDir(cluster.lab, node()), 'subnet.env'))).toBe(true);
    expect(readdirSync(runDirOf(cluster.lab, node()))).toEqual(['endpoints']);
  });

  it("gets pods of flannel's plugin again, beside those of ripstop's", async () => {
    const bridged = await addPod(cluster.lab, node());
    await serveIn(bridged);
    for (const family of [4, 6] as const) {
      for (const [from, to] of [
        [bridged, fresh],
        [fresh, bridged],
        [fresh, old(0)],
        [far(), fresh],
        [bridged, far()],
      ] as const) {
        expect(await talkBoth(from, addressOf(to, family))).toBe(addressOf(from, family));
      }
      await ping(fresh, family === 4 ? OUTSIDE_ADDRESS : OUTSIDE_ADDRESS6);
    }
    await removePod(cluster.lab, node(), bridged);
    await removePod(cluster.lab, node(), ending);
  });

  it('is taken over again, with the pods of both', async () => {
    await unharmed(
      () => takeOver(cluster.lab, node()),
      [
        [fresh, old(0)],
        [old(1), fresh],
        [far(), fresh],
      ],
    );
    expect(await flannelRules(node())).toEqual(['FLANNEL-FWD']);
  });

  it('has forgotten the pod that flannel’s plugin has deleted', () => {
    expect(readdirSync(join(runDirOf(cluster.lab, node()), 'endpoints'))).toEqual([
      `${fresh.containerId}-eth0.json`,
    ]);
  });

  it('loses its bridge with the last pod on it, and then only pods’ addresses of the podCIDR are routed', async () => {
    const leases = () => readdirSync(join(nodeDir(cluster.lab, node()), 'ipam/cbr0'));
    const gone = [old(0), old(1)];
    expect(leases()).toEqual(expect.arrayContaining(gone.map(({ ip }) => ip)));
    for (const pod of gone) await removePod(cluster.lab, node(), pod);
    for (const { ip } of gone) expect(leases()).not.toContain(ip);
    await expect
      .poll(() => routesTo(node(), node().podCIDR), { timeout: 10_000 })
      .toEqual(['unreachable  82']);
    const bridges = await ipJson<{ ifname: string }>(['link', 'show', 'type', 'bridge'], inNetns(node()));
    expect(bridges).toEqual([]);
    for (const family of [4, 6] as const)
      expect(await talkBoth(far(), addressOf(fresh, family))).toBe(addressOf(far(), family));
  });

  it('has nothing of ripstop after a plain uninstall, which continues after errors and can be repeated', async () => {
    const uninstall = async (...more: string[]) => {
      const [program, ...args] = ripstopCommand(cluster.lab, node(), 'uninstall');
      return tryRun(program, [...args, ...more], inNetns(node()));
    };
    await stopAgent(cluster.lab, node());
    const first = await uninstall('--kubeconfig', '/no/such/file');
    expect(first.code).toBe(1);
    expect(first.stderr).toMatch(/^ripstop: 1 of 12 parts failed.*our Node: .*\/no\/such\/file/);
    const ours = await ipJson(['route', 'show', 'table', 'all', 'proto', '82'], inNetns(node()));
    const tunnels = await ipJson(['link', 'show', 'type', 'vxlan'], inNetns(node()));
    expect({ ours, tunnels, rules: await hasOurTable(node()) }).toEqual({
      ours: [],
      tunnels: [],
      rules: false,
    });
    expect(existsSync(runDirOf(cluster.lab, node()))).toBe(false);

    expect(await annotationsOf(cluster.lab, node())).toHaveProperty([`${FLANNEL}/backend-data`]);
    expect(await uninstall()).toMatchObject({ code: 0, stdout: 'withdrew the lease of node node1\n' });
    expect(await annotationsOf(cluster.lab, node())).toEqual({});
    expect(await uninstall()).toEqual({
      code: 0,
      stdout: 'there is nothing of ripstop on this node\n',
      stderr: '',
    });
  });
});
