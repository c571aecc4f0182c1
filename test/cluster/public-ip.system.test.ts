// SPDX-License-Identifier: Apache-2.0
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { readPeers } from '../../src/cli/rows.ts';
import { bridgeJson, ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { gatewayAddress, restartAgent, startAgent, stopAgent } from '../../src/lab/index.ts';
import { listNodes, patchNodeStatus } from '../../src/lab/kube.ts';
import {
  addressesOf,
  agentLog,
  bpffsOf,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  useLab,
} from './support.ts';

const PREFIX = 'flannel.alpha.coreos.com';
/** More addresses of node 1: on its uplink, and on its loopback, as with routing daemons. */
const SECOND = '172.31.0.201';
const SECOND6 = 'fd00:31::201';
const LOOPBACK = '172.31.0.202';

describe.skipIf(missingHere())('A node with several addresses', () => {
  const cluster = useLab('public', { nodes: 2, pods: 1, ipv6: true });
  const node = () => cluster.nodes[0]!;
  const other = () => cluster.nodes[1]!;

  beforeAll(async () => {
    for (const address of [`${SECOND}/16 dev eth0`, `${SECOND6}/64 dev eth0`, `${LOOPBACK}/32 dev lo`])
      await run('ip', ['address', 'add', ...address.split(' ')], inNetns(node()));
  });
  afterEach(async () => {
    vi.unstubAllEnvs();
    await annotate({ 'node-public-ip': null, 'public-ip-overwrite': null });
  });

  const annotate = (changes: Record<string, string | null>) =>
    patchNodeStatus(cluster.lab, node().name, {
      metadata: {
        annotations: Object.fromEntries(
          Object.entries(changes).map(([key, value]) => [`${PREFIX}/${key}`, value]),
        ),
      },
    });

  /** Restart the agent with these settings. */
  async function restartWith(env: Record<string, string>): Promise<void> {
    for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
    await restartAgent(cluster.lab, node());
  }

  /** The agent's last message about its choice. */
  const choice = () => [...agentLog(cluster.lab, node()).matchAll(/"uplink":"([^"]*)"/g)].at(-1)?.[1];

  /** The addresses that node 1 publishes, IPv4 first. */
  async function published(): Promise<(string | undefined)[]> {
    const nodes = await listNodes(cluster.lab);
    const annotations = nodes.find(({ metadata }) => metadata.name === node().name)?.metadata.annotations;
    return ['public-ip', 'public-ipv6'].map((key) => annotations?.[`${PREFIX}/${key}`]);
  }

  /** The local addresses of its tunnels. */
  async function tunnels(): Promise<(string | undefined)[]> {
    const links = await ipJson<{ linkinfo: { info_data: { local?: string; local6?: string } } }>(
      ['-d', 'link', 'show', 'type', 'vxlan'],
      inNetns(node()),
    );
    const data = links.map(({ linkinfo }) => linkinfo.info_data);
    return [data.find(({ local }) => local)?.local, data.find(({ local6 }) => local6)?.local6];
  }

  /** The addresses that node 2 sends to, in its maps and on its kernel path. */
  const followed = async () => ({
    bpf: readPeers(bpffsOf(cluster.lab, other()), undefined).map(({ vtepIp }) => vtepIp),
    fdb: await Promise.all(
      ['flannel.1', 'flannel-v6.1'].map(async (device) => {
        const rows = await bridgeJson<{ dst?: string }>(['fdb', 'show', 'dev', device], inNetns(other()));
        return rows.map(({ dst }) => dst);
      }),
    ),
  });

  /**
   * Node 1 publishes these addresses, and node 2 has followed. A test that goes from one address to another and back
   * must wait for each: what node 2 still has of the first looks like what it will have in the end.
   * @param local those of its tunnels, if they are others
   */
  async function agreedAt(v4: string, v6: string, local = [v4, v6]): Promise<void> {
    await expect.poll(published).toEqual([v4, v6]);
    expect(await tunnels()).toEqual(local);
    await expect.poll(followed).toEqual({ bpf: [v4, v6], fdb: [[v4], [v6]] });
  }

  /** Ping from node 2, which drops packets from addresses that no peer publishes: answers prove that both agree. */
  async function reachedAt(v4: string, v6: string): Promise<void> {
    await agreedAt(v4, v6);
    const [one, two] = cluster.nodes.map((each) => podOf(each));
    const [carried] = await carriedDuring(cluster.lab, [node()], async () => {
      for (const address of addressesOf(two!)) await ping(one!, address);
      for (const address of addressesOf(one!)) await ping(two!, address);
    });
    // Of four times ten answered pings, all but the first and its answer, and the second.
    expect(carried!.fast).toBeGreaterThanOrEqual(28);
  }

  it('is reached at the address of --public-ip, unless an annotation overrides it', async () => {
    await restartWith({ FLANNELD_PUBLIC_IP: SECOND });
    await reachedAt(SECOND, node().ip6!);
    expect(choice()).toBe(`eth0 (${SECOND}, ${node().ip6}): it has the requested public IP ${SECOND}`);
    await annotate({ 'node-public-ip': node().ip });
    await restartWith({});
    await reachedAt(node().ip, node().ip6!);
  });

  it('may change its IPv6 address alone: peers follow it, and IPv4 stays (row 29)', async () => {
    await restartWith({ FLANNELD_PUBLIC_IPV6: SECOND6 });
    await reachedAt(node().ip, SECOND6);
  });

  it('is reached at an address that its uplink does not have, if --iface names the uplink', async () => {
    await restartWith({ FLANNELD_PUBLIC_IP: LOOPBACK, FLANNELD_IFACE: 'ens9,eth0' });
    await reachedAt(LOOPBACK, node().ip6!);
    expect(choice()).toBe(
      `eth0 (${LOOPBACK}, ${node().ip6}): it is --iface eth0; the public IP ${LOOPBACK} is on lo`,
    );
  });

  it('behind NAT publishes the address of public-ip-overwrite, and otherwise does not change', async () => {
    await restartWith({ RIPSTOP_PUBLIC_IP: SECOND });
    await annotate({ 'public-ip-overwrite': '203.0.113.77' });
    await agreedAt('203.0.113.77', node().ip6!, [SECOND, node().ip6!]);
    await annotate({ 'public-ip-overwrite': null });
    await reachedAt(SECOND, node().ip6!);
  });

  it('is not ready, and says why, when the address of --public-ip is not its own', async () => {
    await stopAgent(cluster.lab, node());
    vi.stubEnv('RIPSTOP_PUBLIC_IP', '203.0.113.9');
    const started = startAgent(cluster.lab, node()).catch(String);
    await expect
      .poll(() => agentLog(cluster.lab, node()))
      .toMatch(
        /not ready: no interface has the public IP 203\.0\.113\.9 .* annotate the Node with public-ip-o/,
      );
    // The pinned programs keep forwarding.
    await ping(podOf(node()), podOf(other()).ip);
    await stopAgent(cluster.lab, node());
    expect(await started).toMatch(/it ended/);
  });

  it('whose address is replaced under the running agent is followed (row 26)', async () => {
    await restartWith({});
    await reachedAt(node().ip, node().ip6!);
    const ip = (command: string) => run('ip', command.split(' '), inNetns(node()));
    await ip('address flush dev eth0 scope global');
    await ip(`address add ${SECOND}/16 dev eth0`);
    await ip(`address add ${SECOND6}/64 dev eth0 nodad`);
    await ip(`route replace default via ${gatewayAddress('172.31.0.0/16')}`);
    await ip(`route replace default via ${gatewayAddress('fd00:31::/64')}`);
    await reachedAt(SECOND, SECOND6);
  });
});
