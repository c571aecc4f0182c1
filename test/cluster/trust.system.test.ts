// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readPeers } from '../../src/cli/rows.ts';
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
import type { Family } from '../../src/net/ip.ts';
import {
  ethernet,
  fragments,
  ip,
  ipv6Extension,
  type IpFields,
  protocols,
  udp,
  vxlan,
} from '../../src/net/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import {
  addressesOf,
  addressOf,
  bpffsOf,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstopJson,
  markForKernelPath,
  tagged,
  useLab,
} from './support.ts';
import { inUnderlay } from './underlay.ts';

const missing = missingHere('tcpdump');

/** A source that no pod has, so that what a liar's packets carry can be told from all else. */
const FORGED = { 4: '10.42.9.9', 6: 'fd00:42:0:99::9' } as const;

describe.skipIf(missing)('a pod that lies', () => {
  const cluster = useLab('trust', { nodes: 2, pods: 2, ipv6: true });
  const families: Family[] = [4, 6];
  const near = () => cluster.nodes[0]!;
  const far = () => cluster.nodes[1]!;
  const liar = () => podOf(near(), 0);
  const sockets = new DisposableStack();
  let out: RawSocket;
  let victims: RawSocket[];
  let gateway: string;

  beforeAll(async () => {
    out = sockets.use(new RawSocket(netnsPath(liar().netns), 'eth0'));
    victims = [podOf(near(), 1), podOf(far(), 0)].map(({ netns }) =>
      sockets.use(new RawSocket(netnsPath(netns), 'eth0')),
    );
    await ping(liar(), podOf(far(), 0).ip);
    const [hop] = await ipJson<{ lladdr: string }>(['neigh', 'show', 'dev', 'eth0'], inNetns(liar()));
    gateway = hop!.lladdr;
    // A second address of the other node, as routing daemons make them.
    await run('ip', ['address', 'add', '172.31.7.7/32', 'dev', 'lo'], inNetns(far()));
    await run('ip', ['route', 'add', '172.31.7.7/32', 'via', far().ip], inNetns(near()));
    // A Service whose backend is the other node.
    await run(
      'nft',
      [
        'table ip service { chain pre { type nat hook prerouting priority -100; ' +
          `ip daddr 10.43.0.9 udp dport 53 dnat to ${far().ip}:8472; }; }`,
      ],
      inNetns(near()),
    );
  });
  afterAll(() => sockets.dispose());

  /** How a pod may dress up a frame. */
  const dresses: Record<string, (frame: Uint8Array) => Uint8Array> = {
    plain: (frame) => frame,
    padded: (frame) => Uint8Array.of(...frame, 0),
    'behind a tag of VLAN 0': (frame) => tagged(frame),
    'behind two of them, padded': (frame) => Uint8Array.of(...tagged(tagged(frame)), 0),
  };

  /** Send IP packets in every dress. */
  function send(...packets: Uint8Array[]): void {
    for (const dress of Object.values(dresses))
      for (const packet of packets)
        expect(out.send(dress(ethernet({ dst: gateway, src: '02:00:00:00:00:66' }, packet)))).toBeUndefined();
  }

  /** How many frames with this text have reached a pod within a moment. */
  async function reached(text: string): Promise<number> {
    await sleep(300);
    let count = 0;
    for (const victim of victims)
      for (let got = victim.receive(); got; got = victim.receive())
        if (Buffer.from(got.frame).toString('latin1').includes(text)) count++;
    return count;
  }

  /** What the programs and the rules of both nodes have dropped. */
  async function dropped(): Promise<number> {
    let sum = 0;
    for (const node of cluster.nodes) {
      const stats = await ripstopJson<{ verdict: string; packets: number }[]>(cluster.lab, node, 'stats');
      const rules = await readRuleCounters(inNetns(node));
      for (const { verdict, packets } of stats) if (verdict === 'drop') sum += packets;
      for (const { why, packets } of rules) if (!why.endsWith('the cluster network')) sum += packets;
    }
    return sum;
  }

  it('about its source reaches no pod, here or elsewhere, in any dress (row 85)', async () => {
    for (const node of cluster.nodes)
      await run('sysctl', ['-qw', 'net.ipv4.conf.all.rp_filter=2'], inNetns(node));
    const before = await dropped();
    let sent = 0;
    for (const family of families)
      for (const victim of [podOf(near(), 1), podOf(far(), 0)])
        for (const src of [
          FORGED[family],
          addressOf(podOf(far(), 1), family),
          family === 4 ? '192.0.2.9' : '2001:db8::9',
        ]) {
          const dst = addressOf(victim, family);
          send(ip({ src, dst }, udp({ src: 666, dst: 6666 }, Buffer.from('a lie'))));
          sent += Object.keys(dresses).length;
        }
    expect(await reached('a lie')).toBe(0);
    expect((await dropped()) - before).toBe(sent);
    // Its own address, and neighbour discovery from none and from a link-local one, are no lies.
    for (const address of addressesOf(podOf(far(), 0))) await ping(liar(), address);
  });

  it('in VXLAN reaches no pod by any address of a node, in any dress, nor through a Service (rows 63, 83)', async () => {
    const vtep = async (node: NodeState, family: Family): Promise<string> => {
      const device = family === 4 ? 'flannel.1' : 'flannel-v6.1';
      const [link] = await ipJson<{ address: string }>(['link', 'show', device], inNetns(node));
      return link!.address;
    };
    const before = await dropped();
    let sent = 0;
    for (const family of families)
      for (const [node, victim, src] of [
        [near(), podOf(near(), 1), addressOf(podOf(far(), 0), family)],
        [far(), podOf(far(), 0), addressOf(podOf(near(), 1), family)],
      ] as const) {
        const inner = ip(
          { src, dst: addressOf(victim, family) },
          udp({ src: 666, dst: 6666 }, Buffer.from('a lie')),
        );
        const frame = ethernet({ dst: await vtep(node, family), src: '02:00:00:00:00:66' }, inner);
        const base = node.podCIDR.replace(/0\/24$/, '');
        const targets = [[addressOf(node, family), 8472]] as [string, number][];
        if (family === 4) targets.push([`${base}0`, 8472], [`${base}1`, 8472]);
        if (family === 4 && node === far()) targets.push(['172.31.7.7', 8472], ['10.43.0.9', 53]);
        for (const [dst, port] of targets) {
          const datagram = udp({ src: 40_000, dst: port }, vxlan({}, frame));
          const outer = { src: addressOf(liar(), family), dst };
          send(ip(outer, datagram));
          send(...fragments({ ...outer, id: ++sent }, datagram, 8));
          send(...fragments({ ...outer, id: ++sent }, datagram, 48));
        }
      }
    expect(await reached('a lie')).toBe(0);
    expect(await dropped()).toBeGreaterThan(before + sent);
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
  'with padding behind a tag of VLAN 0': (fields, datagram, dst) => [
    Uint8Array.of(...tagged(frame(dst, ip(fields, datagram))), 0),
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

  /**
   * Send VXLAN in every shape from an address of the underlay. Returns the shapes that have reached the pod.
   * @param from the inner source: without it, an address of the other ripstop node's pod. `tag` gives the inner frame one.
   */
  async function reached(family: Family, src: string, { from = '', vni = 1, tag = false } = {}) {
    const marks = new Map(ALL.map((shape) => [`forged ${++sent}.`, shape]));
    const dst = addressOf(near(), family);
    for (const [mark, shape] of marks) {
      const inner = ip(
        { src: from || addressOf(podOf(cluster.nodes[1]), family), dst: addressOf(pod(), family) },
        udp({ src: 666, dst: 6666 }, Buffer.from(mark)),
      );
      const ether = { dst: vtepMacs.get(family)!, src: '02:00:00:00:00:66' };
      const frame = ethernet(ether, inner);
      const datagram = udp({ src: 40_000, dst: 8472 }, vxlan({ vni }, tag ? tagged(frame) : frame));
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
    for (const family of families) {
      const from = addressOf(podOf(peer), family);
      expect(await reached(family, addressOf(peer, family), { from })).toEqual(ALL);
    }
    await markForKernelPath(cluster.lab, near(), pod(), true);
    const [carried] = await carriedDuring(cluster.lab, [near()], async () => {
      for (const address of addressesOf(pod())) await ping(podOf(peer), address);
    });
    await markForKernelPath(cluster.lab, near(), pod(), false);
    expect(carried!.vtep).toBeGreaterThanOrEqual(2 * 5);
    expect(await dropped()).toEqual(before);
  });

  it("reaches no pod when the inner source is another node's, its pod's or its own (row 84)", async () => {
    const thief = cluster.nodes[2]!;
    const [carried] = await carriedDuring(cluster.lab, [near()], async () => {
      for (const family of families)
        for (const from of [podOf(cluster.nodes[1]), podOf(near()), cluster.nodes[1]!])
          expect(await reached(family, addressOf(thief, family), { from: addressOf(from, family) })).toEqual(
            [],
          );
    });
    const drops = Object.entries(carried!.by).filter(([way]) => way.includes('drop'));
    expect(drops).toEqual([['from_vtep drop_spoofed_source', 2 * 3 * ALL.length]]);
  });

  it('is not relayed back to the wire, to another node or to the world', async () => {
    const thief = cluster.nodes[2]!;
    const relayed = async (): Promise<number[]> => {
      const rules = await readRuleCounters(inNetns(near()));
      return rules
        .filter(({ why }) => why === 'from a tunnel back to the wire')
        .map(({ packets }) => packets);
    };
    const before = await relayed();
    for (const family of families)
      for (const dst of [
        addressOf(podOf(cluster.nodes[1]), family),
        family === 4 ? '192.0.2.9' : '2001:db8::9',
      ]) {
        const inner = ip({ src: addressOf(podOf(thief), family), dst }, udp({ src: 666, dst: 6666 }));
        const datagram = udp(
          { src: 40_000, dst: 8472 },
          vxlan({}, ethernet({ dst: vtepMacs.get(family)!, src: '02:00:00:00:00:66' }, inner)),
        );
        const outer = ip({ src: addressOf(thief, family), dst: addressOf(near(), family) }, datagram);
        expect(wire.send(frame(uplinkMac, outer))).toBeUndefined();
      }
    // Of each family one that goes to the VTEP device, and one to the uplink.
    await expect
      .poll(async () => (await relayed()).map((packets, i) => packets - before[i]!))
      .toEqual([2, 2]);
  });

  it('reaches no pod when the inner frame hides its source behind a tag', async () => {
    for (const family of families)
      expect(await reached(family, addressOf(cluster.nodes[2]!, family), { tag: true })).toEqual([]);
  });

  it('reaches the pod when the inner source is nobody’s: a LAN may be behind a node (row 80)', async () => {
    const [node] = cluster.nodes.slice(2);
    for (const [family, from] of [
      [4, '192.0.2.9'],
      [4, '10.42.250.9'],
      [6, '2001:db8::9'],
    ] as const)
      expect(await reached(family, addressOf(node!, family), { from })).toEqual(ALL);
  });

  it('is ignored when the VNI is another', async () => {
    const before = await dropped();
    for (const family of families)
      expect(await reached(family, addressOf(STRANGER, family), { vni: 7 })).toEqual([]);
    expect(await dropped()).toEqual(before);
  });

  it('is accepted from a node that joins later, until it leaves', async () => {
    const node: NodeState = await addNode(cluster.lab, 'flannel', 1);
    await markForKernelPath(cluster.lab, near(), pod(), true);
    await expect
      .poll(async () => readVteps(), { timeout: 5000 })
      .toEqual(expect.arrayContaining(addressesOf(node)));
    for (const address of addressesOf(pod())) await ping(podOf(node), address);
    for (const family of families) {
      const from = addressOf(podOf(node), family);
      expect(await reached(family, addressOf(node, family), { from })).toEqual(ALL);
    }
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
      for (const sender of [STRANGER, ...cluster.nodes.slice(1)])
        for (const family of families) {
          const address = addressOf(sender, family);
          const from = 'pods' in sender ? addressOf(podOf(sender), family) : '';
          shapes[address] = await reached(family, address, { from });
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
    expect((await dropped()).map((packets, i) => packets - before[i]!)).toEqual([
      2 * ALL.length,
      2 * ALL.length,
    ]);
  });

  it('is accepted from any address of the family for the pods of a peer behind NAT, and no others (row 87)', async () => {
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
      .toEqual(['VXLAN from strangers is left to from_vtep: a peer is behind NAT', 'a stranger talks VXLAN']);
    // The rules are written before the maps.
    const slots = () => readPeers(bpffsOf(cluster.lab, near()), undefined).map(({ key }) => key);
    await expect.poll(slots).toContain('99');
    expect(await reached(4, STRANGER.ip, { from: '10.42.99.9' })).toEqual(ALL);
    expect(await reached(4, STRANGER.ip)).toEqual([]);
    expect(await reached(4, STRANGER.ip, { from: '192.0.2.9' })).toEqual([]);
    expect(await reached(6, STRANGER.ip6)).toEqual([]);
    expect((await counted()).map(({ packets }) => packets)).toEqual([3 * ALL.length, ALL.length]);
    await deleteKubeNode(cluster.lab, name);
    await expect.poll(why).toEqual(['a stranger talks VXLAN', 'a stranger talks VXLAN']);
    expect(await reached(4, STRANGER.ip)).toEqual([]);
  });
});
