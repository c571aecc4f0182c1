// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { readRuleCounters } from '../../src/lab/rule-counters.ts';
import { run } from '../../src/host/run.ts';
import {
  addNode,
  netnsPath,
  type NodeState,
  removeNode,
  restartAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import { createKubeNode, deleteKubeNode, patchNodeStatus } from '../../src/lab/kube.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import type { Family } from '../../src/net/ip.ts';
import {
  ethernet,
  fragments,
  ip,
  ipv4,
  ipv6Extension,
  type IpFields,
  protocols,
  udp,
  vxlan,
} from '../support/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import {
  addressesOf,
  addressOf,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstopJson,
  markForKernelPath,
  useLab,
} from './support.ts';
import { inUnderlay } from './underlay.ts';

const missing = missingHere('tcpdump');

/** A datagram in VXLAN that a pod forges, with an inner source that no pod has. */
function forged(vtepMac: string, to: string): Uint8Array {
  const inner = ipv4({ src: '10.42.9.9', dst: to, protocol: 17 }, udp({ src: 666, dst: 6666 }));
  return vxlan({}, ethernet({ dst: vtepMac, src: '02:00:00:00:00:66' }, inner));
}

describe.skipIf(missing)('a pod that sends VXLAN (row 63)', () => {
  const cluster = useLab('trust', { nodes: 2, pods: 2 });

  it('reaches no other pod by any address of a node', async () => {
    const [near, far] = cluster.nodes;
    const forger = podOf(near, 0);
    const victims = [podOf(near, 1), podOf(far, 0)];
    const dumps = victims.map(({ netns }) =>
      startIn(netns, 'tcpdump', '-l', '-nn', '-i', 'eth0', 'udp', 'port', '6666'),
    );
    await Promise.all(dumps.map((dump) => dump.prints(/listening/)));

    for (const [node, victim] of [near!, far!].map((node, i) => [node, victims[i]!] as const)) {
      const status = await ripstopJson<{ agent: { families: { vtep: { mac: string } }[] } }>(
        cluster.lab,
        node,
        'status',
      );
      const packet = Buffer.from(forged(status.agent.families[0]!.vtep.mac, victim.ip)).toString('hex');
      const base = node.podCIDR.replace(/0\/24$/, '');
      for (const address of [node.ip, `${base}0`, `${base}1`]) {
        const script = `require('node:dgram').createSocket('udp4').send(Buffer.from('${packet}','hex'),8472,'${address}',()=>process.exit())`;
        await run(process.execPath, ['-e', script], inNetns(forger));
      }
    }
    await sleep(200);
    const seen = await Promise.all(dumps.map((dump) => dump.stop()));
    expect(seen.map((output) => output.split('\n').filter((line) => line.includes('10.42.9.9')))).toEqual([
      [],
      [],
    ]);

    const dropped = await ripstopJson<{ reason: string; packets: number }[]>(cluster.lab, near!, 'stats');
    expect(dropped.find(({ reason }) => reason === 'vxlan_from_pod')?.packets).toBe(2);
    const rules = await run('nft', ['list', 'chain', 'inet', 'ripstop', 'input'], inNetns(near!));
    expect(rules).toMatch(/udp dport 8472 counter packets 2 .* drop/);
  });
});

/** A machine on the underlay that is not a node, or not yet. */
const STRANGER = { ip: '172.31.0.200', ip6: 'fd00:31::200', mac: '02:00:00:00:00:c8' };
const BROADCAST = 'ff:ff:ff:ff:ff:ff';
const PREFIX = 'flannel.alpha.coreos.com';

/** The shapes of VXLAN that from_wire always leaves to the kernel path: a datagram in an IP packet to a MAC address. */
const SHAPES: Record<string, (fields: IpFields, datagram: Uint8Array, dst: string) => Uint8Array[]> = {
  'with a byte of padding': (fields, datagram, dst) => [
    Uint8Array.of(...frame(dst, ip(fields, datagram)), 0),
  ],
  'with IP options': (fields, datagram, dst) =>
    fields.src.includes(':')
      ? [frame(dst, ip({ ...fields, protocol: 60 }, ipv6Extension(protocols.udp, datagram)))]
      : [frame(dst, ip({ ...fields, options: [1, 1, 1, 0] }, datagram))],
  'in two fragments': (fields, datagram, dst) =>
    fragments(fields, datagram, 48).map((packet) => frame(dst, packet)),
  'in fragments, the first of which ends before the VXLAN header': (fields, datagram, dst) =>
    fragments(fields, datagram, 8).map((packet) => frame(dst, packet)),
  'as a broadcast': (fields, datagram) => [frame(BROADCAST, ip(fields, datagram))],
};
const ALL = Object.keys(SHAPES);

const frame = (dst: string, packet: Uint8Array) => ethernet({ dst, src: STRANGER.mac }, packet);

describe.skipIf(missing)('VXLAN that from_wire leaves to the kernel path', () => {
  const cluster = useLab('strangers', { datapath: 'ripstop,ripstop,flannel', pods: 1, ipv6: true });
  const families: Family[] = [4, 6];
  const netns = () => `${cluster.lab.name}-stranger`;
  const near = () => cluster.nodes[0]!;
  const pod = () => podOf(near());
  const sockets = new DisposableStack();
  let wire: RawSocket;
  let inPod: RawSocket;
  let uplinkMac: string;
  const vtepMacs = new Map<Family, string>();
  let sent = 0;

  beforeAll(async () => {
    await run('ip', ['netns', 'add', netns()]);
    await ipBatch(
      [`link add stranger type veth peer name eth0 netns ${netns()}`, 'link set stranger master br0 up'],
      inUnderlay(cluster.lab),
    );
    await ipBatch(['link set eth0 up'], inNetns({ netns: netns() }));
    const macOf = async (device: string): Promise<string> => {
      const [link] = await ipJson<{ address: string }>(['link', 'show', device], inNetns(near()));
      return link!.address;
    };
    uplinkMac = await macOf('eth0');
    vtepMacs.set(4, await macOf('flannel.1'));
    vtepMacs.set(6, await macOf('flannel-v6.1'));
    wire = sockets.use(new RawSocket(netnsPath(netns()), 'eth0'));
    inPod = sockets.use(new RawSocket(netnsPath(pod().netns), 'eth0'));
  });
  afterAll(async () => {
    sockets.dispose();
    await run('ip', ['netns', 'del', netns()]);
  });

  /** Send VXLAN in every shape from an address of the underlay. Returns the shapes that have reached the pod. */
  async function reached(family: Family, src: string, vni = 1): Promise<string[]> {
    const marks = new Map(ALL.map((shape) => [`forged ${++sent}.`, shape]));
    const dst = addressOf(near(), family);
    for (const [mark, shape] of marks) {
      // The inner source is a pod of the other ripstop node.
      const inner = ip(
        { src: addressOf(podOf(cluster.nodes[1]), family), dst: addressOf(pod(), family) },
        udp({ src: 666, dst: 6666 }, Buffer.from(mark)),
      );
      const ether = { dst: vtepMacs.get(family)!, src: '02:00:00:00:00:66' };
      const datagram = udp({ src: 40_000, dst: 8472 }, vxlan({ vni }, ethernet(ether, inner)));
      for (const one of SHAPES[shape]!({ src, dst, id: sent }, datagram, uplinkMac))
        expect(wire.send(one)).toBeUndefined();
    }
    const arrived = new Set<string>();
    for (let i = 0; i < 30 && arrived.size < ALL.length; i++) {
      await sleep(10);
      for (let got = inPod.receive(); got; got = inPod.receive()) {
        const text = Buffer.from(got.frame).toString('latin1');
        for (const [mark, shape] of marks) if (text.includes(mark)) arrived.add(shape);
      }
    }
    return ALL.filter((shape) => arrived.has(shape));
  }

  /** The packets that the rules against unknown senders have counted: IPv4, IPv6. */
  async function counted(): Promise<{ why: string; packets: number }[]> {
    const counters = await readRuleCounters(inNetns(near()));
    return counters
      .filter(({ why }) => why.includes('stranger'))
      .map(({ why, packets }) => ({ why, packets }));
  }
  const dropped = async (): Promise<number[]> => {
    const counters = await counted();
    for (const { why } of counters) expect(why).toBe('a stranger talks VXLAN');
    return counters.map(({ packets }) => packets);
  };

  it('reaches no pod when the sender is unknown', async () => {
    const before = await dropped();
    const [carried] = await carriedDuring(cluster.lab, [near()], async () => {
      for (const family of families) expect(await reached(family, addressOf(STRANGER, family))).toEqual([]);
    });
    expect(Object.keys(carried!.by).filter((way) => way.includes('drop'))).toEqual([]);
    const after = await dropped();
    expect(after.map((packets, i) => packets - before[i]!)).toEqual([ALL.length, ALL.length]);
  });

  it.each([2, 3])('reaches the pod when node %i sent it, ripstop or flannel', async (i) => {
    const peer = cluster.nodes[i - 1]!;
    const before = await dropped();
    for (const family of families) expect(await reached(family, addressOf(peer, family))).toEqual(ALL);
    await markForKernelPath(cluster.lab, near(), pod(), true);
    const [carried] = await carriedDuring(cluster.lab, [near()], async () => {
      for (const address of addressesOf(pod())) await ping(podOf(peer), address);
    });
    await markForKernelPath(cluster.lab, near(), pod(), false);
    expect(carried!.vtep).toBeGreaterThanOrEqual(2 * 5);
    expect(await dropped()).toEqual(before);
  });

  it('is ignored when the VNI is another', async () => {
    const before = await dropped();
    for (const family of families) expect(await reached(family, addressOf(STRANGER, family), 7)).toEqual([]);
    expect(await dropped()).toEqual(before);
  });

  it('is accepted from a node that joins later, until it leaves', async () => {
    const node: NodeState = await addNode(cluster.lab, 'flannel', 1);
    await markForKernelPath(cluster.lab, near(), pod(), true);
    await expect
      .poll(async () => readVteps(), { timeout: 5000 })
      .toEqual(expect.arrayContaining(addressesOf(node)));
    for (const address of addressesOf(pod())) await ping(podOf(node), address);
    for (const family of families) expect(await reached(family, addressOf(node, family))).toEqual(ALL);
    await markForKernelPath(cluster.lab, near(), pod(), false);
    const addresses = addressesOf(node);
    await removeNode(cluster.lab, node);
    await expect
      .poll(async () => (await readVteps()).filter((address) => addresses.includes(address)), {
        timeout: 5000,
      })
      .toEqual([]);
    for (const [i, address] of addresses.entries()) expect(await reached(families[i]!, address)).toEqual([]);
  });

  /** The elements of both sets. */
  async function readVteps(): Promise<string[]> {
    const sets = await Promise.all(
      ['vteps4', 'vteps6'].map((set) =>
        run('nft', ['-j', 'list', 'set', 'inet', 'ripstop', set], inNetns(near())),
      ),
    );
    return sets.flatMap((text) => {
      const { nftables } = JSON.parse(text) as { nftables: { set?: { elem?: string[] } }[] };
      return nftables.flatMap(({ set }) => set?.elem ?? []);
    });
  }

  it('is checked when the agent has died, and when the next one starts', async () => {
    const judged = async () => {
      const shapes: Record<string, string[]> = {};
      for (const from of [STRANGER, ...cluster.nodes.slice(1)])
        for (const family of families) {
          const address = addressOf(from, family);
          shapes[address] = await reached(family, address);
        }
      return shapes;
    };
    const right = Object.fromEntries([
      ...addressesOf(STRANGER).map((address) => [address, []]),
      ...cluster.nodes.slice(1).flatMap((node) => addressesOf(node).map((address) => [address, ALL])),
    ]);
    const before = await dropped();
    await stopAgent(cluster.lab, near(), 'SIGKILL');
    expect(await judged()).toEqual(right);
    await restartAgent(cluster.lab, near());
    expect(await judged()).toEqual(right);
    // The table has not been rewritten.
    expect((await dropped()).map((packets, i) => packets - before[i]!)).toEqual([10, 10]);
  });

  it('is accepted from any address of the family while a peer is behind NAT', async () => {
    const name = 'behind-nat';
    const address = '203.0.113.7';
    await createKubeNode(cluster.lab, {
      name,
      index: 99,
      netns: '',
      ip: address,
      podCIDR: '10.42.99.0/24',
      datapath: 'host',
      pods: [],
    });
    await patchNodeStatus(cluster.lab, name, {
      metadata: {
        annotations: {
          [`${PREFIX}/kube-subnet-manager`]: 'true',
          [`${PREFIX}/backend-type`]: 'vxlan',
          [`${PREFIX}/backend-data`]: '{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}',
          [`${PREFIX}/public-ip`]: address,
          [`${PREFIX}/public-ip-overwrite`]: address,
        },
      },
    });
    const why = async () => (await counted()).map((rule) => rule.why);
    await expect
      .poll(why)
      .toEqual(['VXLAN from strangers is let in: a peer is behind NAT', 'a stranger talks VXLAN']);
    expect(await reached(4, STRANGER.ip)).toEqual(ALL);
    expect(await reached(6, STRANGER.ip6)).toEqual([]);
    expect((await counted()).map(({ packets }) => packets)).toEqual([ALL.length, ALL.length]);
    await deleteKubeNode(cluster.lab, name);
    await expect.poll(why).toEqual(['a stranger talks VXLAN', 'a stranger talks VXLAN']);
    expect(await reached(4, STRANGER.ip)).toEqual([]);
  });
});
