// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../../src/host/run.ts';
import { gatewayAddress } from '../../src/lab/addresses.ts';
import { startFlanneld, stopFlanneld } from '../../src/lab/flanneld.ts';
import {
  boost,
  giveBack,
  type Lab,
  labDown,
  type NodeState,
  startKubeProxy,
  takeOver,
  unboost,
} from '../../src/lab/index.ts';
import { tracesOf } from '../../src/lab/lab.support.ts';
import {
  agentLog,
  carriedDuring,
  holdFrom,
  inNetns,
  ping,
  podOf,
  PORT,
  released,
  ripstopJson,
  serveIn,
  serviceOf,
  type Talk,
  talkBoth,
  timeUntil,
  whileNumbering,
} from '../cluster/support.ts';
import { labNameFor, realLab } from './support.ts';

const NAME = labNameFor('boost');
/** ClusterIPs of a pod on the ripstop node and of one beside the clients. */
const SERVICE = { other: '10.43.0.10', beside: '10.43.0.11' };

describe('a node of the real flanneld, between one of plain flannel and one of ripstop', () => {
  let lab: Lab;
  const node = (i: number): NodeState => lab.state.nodes[i - 1]!;
  const boosted = (): NodeState => node(1);
  const [near, beside] = [() => podOf(boosted()), () => podOf(boosted(), 1)];
  const [plain, other] = [() => podOf(node(2)), () => podOf(node(3))];
  const direct = (): Record<string, Talk> => ({
    'to a pod of the same node': [near(), beside().ip],
    'to a pod of a plain node': [near(), plain().ip],
    'from a pod of a plain node': [plain(), near().ip],
    'to a pod of a ripstop node': [near(), other().ip],
    'from a pod of a ripstop node': [other(), near().ip],
  });
  const throughServices = (): Record<string, Talk> => ({
    'through a ClusterIP to a ripstop node': [near(), SERVICE.other],
    'through a ClusterIP to the boosted node': [other(), SERVICE.beside],
    'through a NodePort of a plain node': [near(), node(2).ip],
    'through a NodePort of the boosted node': [plain(), boosted().ip],
  });
  const during = (work: () => Promise<unknown>, switches?: number): Promise<void> =>
    whileNumbering(
      { ...direct(), ...throughServices() },
      [near(), beside(), plain(), other()],
      work,
      switches,
    );

  beforeAll(async () => {
    lab = await realLab('boost', ['flannel', 'flannel', 'ripstop'], { pods: 2, kubeProxy: 'none' });
    // kube-proxy's rules, with its INVALID drop; test/peers/kube-proxy.peers.ts compares them with the real ones.
    const services = [
      ...serviceOf('other', SERVICE.other, PORT, other().ip, PORT),
      ...serviceOf('beside', SERVICE.beside, PORT, beside().ip),
    ];
    for (const one of lab.state.nodes) await startKubeProxy(lab, one, 'iptables', services);
    for (const one of [near(), beside(), plain(), other()]) await serveIn(one);
  });
  afterAll(async () => {
    await labDown(NAME);
    expect(await tracesOf(NAME)).toEqual([]);
  });

  /** Both ways of every talk, fast on the boosted node. */
  async function isFast(): Promise<boolean> {
    const [carried] = await carriedDuring(lab, [boosted()], async () => {
      for (const [from, address] of Object.values(direct())) await talkBoth(from, address);
    });
    return carried!.fast > 10 * carried!.forwarded;
  }

  it('is boosted and left alone again ten times: no message of its pods is lost, and hardly one overtaken', async () => {
    await during(async () => {
      for (let i = 0; i < 10; i++) {
        await boost(lab, boosted());
        expect(agentLog(lab, boosted())).not.toContain('"level":50');
        await unboost(lab, boosted());
      }
    }, 20);
  }, 300_000);

  it('is boosted, and its pods are fast to all others', async () => {
    await boost(lab, boosted());
    await expect.poll(isFast, { timeout: 30_000 }).toBe(true);
  });

  it('goes on when flanneld is restarted, which takes its rules away for a moment: no connection breaks', async () => {
    const held = await Promise.all(
      Object.values({ ...direct(), ...throughServices() }).map(([from, address]) => holdFrom(from, address)),
    );
    await stopFlanneld(lab, boosted());
    await startFlanneld(lab, boosted());
    for (const one of held) expect(await released(one)).not.toHaveProperty('error');
    expect(await isFast()).toBe(true);
  });

  /** Where the agent says that its tunnels begin; undefined while it is not ready. */
  async function vtepOf(): Promise<string | undefined> {
    type Status = { agent: { ready: boolean; families: { vtep: { ip: string } }[] } };
    const { agent } = await ripstopJson<Status>(lab, boosted(), 'status');
    return agent.ready ? agent.families[0]?.vtep.ip : undefined;
  }

  it('follows flanneld when that makes its device again', async () => {
    const device = async (): Promise<string> =>
      (await run('ip', ['-o', 'link', 'show', 'flannel.1'], inNetns(boosted()))).split(':')[0]!;
    const before = await device();
    await stopFlanneld(lab, boosted());
    await run('ip', ['link', 'del', 'flannel.1'], inNetns(boosted()));
    await startFlanneld(lab, boosted());
    expect(await device()).not.toBe(before);
    expect(await timeUntil(async () => (await vtepOf()) === boosted().ip)).toBeLessThan(1000);
    for (const [from, address] of Object.values(direct())) await ping(from, address);
    await expect.poll(isFast, { timeout: 30_000 }).toBe(true);
  });

  it('follows flanneld to another address of its node, and back', async () => {
    const ip = (command: string) => run('ip', command.split(' '), inNetns(boosted()));
    for (const address of ['172.31.0.77', boosted().ip]) {
      await stopFlanneld(lab, boosted());
      await ip('address flush dev eth0 scope global');
      await ip(`address add ${address}/16 dev eth0`);
      await ip(`route replace default via ${gatewayAddress('172.31.0.0/16')}`);
      await startFlanneld(lab, boosted());
      expect(await timeUntil(async () => (await vtepOf()) === address)).toBeLessThan(1000);
      // The other nodes follow the Node's annotation.
      for (const [from, to] of Object.values(direct())) await expect.poll(() => answers(from, to)).toBe(true);
      await expect.poll(isFast, { timeout: 30_000 }).toBe(true);
    }
  });

  const answers = async (from: { netns: string }, to: string): Promise<boolean> =>
    (await tryRun('ping', ['-n', '-c', '1', '-W', '0.5', to], inNetns(from))).code === 0;

  it('moves to mode cni and back while its pods talk: ripstop takes the lease over, and flanneld has it again', async () => {
    await during(async () => {
      await unboost(lab, boosted());
      await stopFlanneld(lab, boosted());
      await takeOver(lab, boosted());
    });
    await expect.poll(isFast, { timeout: 30_000 }).toBe(true);
    await during(() => giveBack(lab, boosted()));
    // It empties its chains at its start.
    await startFlanneld(lab, boosted());
    await during(() => boost(lab, boosted()));
    await expect.poll(isFast, { timeout: 30_000 }).toBe(true);
  }, 120_000);
});
