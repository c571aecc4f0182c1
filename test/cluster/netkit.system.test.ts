// SPDX-License-Identifier: Apache-2.0
import { readdirSync } from 'node:fs';
import { release } from 'node:os';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { AgentStatus } from '../../src/agent/status.ts';
import type { EndpointRow } from '../../src/cli/rows.ts';
import { whyNoNetkit } from '../../src/cni/pod-device.ts';
import { hostVethName } from '../../src/cni/pod-network.ts';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { openNetlink } from '../../src/host/netlink.ts';
import { addPod, removePod, restartAgent, setServices } from '../../src/lab/index.ts';
import {
  addressesOf,
  addressOf,
  bpffsOf,
  carriedDuring,
  FAMILIES,
  missingHere,
  podOf,
  PORT,
  ripstopJson,
  serveIn,
  serviceOf,
  talkBoth,
  useLab,
} from './support.ts';

const SERVICE = { 4: '10.43.0.10', 6: 'fd00:43::10' };

function whyNot(): string | undefined {
  const missing = missingHere('nft');
  if (missing !== undefined) return missing;
  using socket = openNetlink({});
  return whyNoNetkit(release(), socket);
}
const why = whyNot();

describe.skipIf(why)(`pods with netkits${why === undefined ? '' : ` (skipped: ${why})`}`, () => {
  // The lab's agents have the variables of this process.
  beforeAll(() => void vi.stubEnv('RIPSTOP_POD_DEVICE', 'netkit'));
  const cluster = useLab('netkit', { pods: 2, ipv6: true, kubeProxy: 'nftables' });
  afterAll(() => void vi.unstubAllEnvs());
  const node = () => cluster.nodes[0]!;
  const pod = (n: number, i = 0) => podOf(cluster.nodes[n - 1], i);
  const kinds = async () => {
    const rows = await ripstopJson<EndpointRow[]>(cluster.lab, node(), 'endpoints');
    return rows.map(({ deviceKind = 'none' }) => deviceKind);
  };
  const sortedKinds = async () => (await kinds()).toSorted();
  const status = async () => (await ripstopJson<{ agent: AgentStatus }>(cluster.lab, node(), 'status')).agent;

  it('are what the agent’s flag says', async () => {
    expect((await status()).podDevice).toEqual({ kind: 'netkit', why: '--pod-device netkit says so' });
    expect(await kinds()).toEqual(['netkit', 'netkit', 'netkit', 'netkit']);
  });

  it('talk fast, on their node and across nodes, in both families, and through a Service', async () => {
    await Promise.all([pod(1, 1), pod(2)].map((one) => serveIn(one)));
    const services = FAMILIES.flatMap((family) =>
      serviceOf('far', SERVICE[family], PORT, addressOf(pod(2), family)),
    );
    await setServices(cluster.lab, node(), services);
    const addresses = [...[pod(1, 1), pod(2)].flatMap(addressesOf), ...Object.values(SERVICE)];
    const [here, there] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
      for (const address of addresses)
        expect(addressesOf(pod(1))).toContain((await talkBoth(pod(1), address)).replace('::ffff:', ''));
    });
    expect(here!.by['from_pod fast_local']).toBeGreaterThan(40);
    for (const counter of ['from_pod fast_encap', 'from_wire fast_decap']) {
      expect(here!.by[counter]).toBeGreaterThan(80);
      expect(there!.by[counter]).toBeGreaterThan(80);
    }
    expect(here!.by).not.toHaveProperty('from_pod drop_other_source');
  });

  it('stay as they are when the flag changes, beside new pods with veths; and a DEL leaves nothing', async () => {
    vi.stubEnv('RIPSTOP_POD_DEVICE', 'veth');
    await restartAgent(cluster.lab, node());
    const added = await addPod(cluster.lab, node());
    await serveIn(added);
    expect(await sortedKinds()).toEqual([...Array<string>(4).fill('netkit'), 'veth', 'veth']);
    const [carried] = await carriedDuring(cluster.lab, cluster.nodes, () => talkBoth(pod(1), added.ip));
    expect(carried!.by['from_pod fast_local']).toBeGreaterThan(20);

    const gone = pod(1, 1);
    const device = hostVethName({ containerId: gone.containerId, ifname: 'eth0' });
    await removePod(cluster.lab, node(), gone);
    await expect
      .poll(() =>
        readdirSync(pinPaths(bpffsOf(cluster.lab, node())).links).filter((pin) => pin.includes(device)),
      )
      .toEqual([]);
    expect(await sortedKinds()).toEqual(['netkit', 'netkit', 'veth', 'veth']);
  });
});
