// SPDX-License-Identifier: Apache-2.0
/**
 * The story of a network driver, run on two machines with this kernel: each is a node with the real data plane and a
 * pod, and their NICs are virtio-net, with XDP in the driver. Prints a {@link Check} as JSON for each step; a failure
 * ends the story. Argument: a Bootable as JSON.
 *
 * Run it in namespaces of its own (network, mount, process ids), since it cleans nothing up.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { linkKey } from '../../src/dataplane/links.ts';
import { ipBatch } from '../../src/lab/ip.ts';
import { qemu, type Bootable } from '../../scripts/kernels/machines.ts';
import type { HoldReport, TcpReport, UdpReport } from '../cluster/talker.ts';
import { Machine } from './machine.ts';
import { type NodeSpec, type PassReport, vethOf } from './node.ts';
import { expectThat, type Step, tellStory } from './story.ts';

const kernel = JSON.parse(process.argv[2] ?? '') as Bootable;
const PORT = 4711;
const POD_NETNS = '/run/netns/pod';

interface Node extends Omit<NodeSpec, 'uplink' | 'ingress'> {
  readonly machine: Machine;
  readonly podIp: string;
  /** The socket of qemu's monitor. */
  readonly monitor: string;
}

const identities = [1, 2].map((n) => ({
  name: `node${n}`,
  ip: `192.168.77.${n}`,
  podCidr: `10.42.${n}.0/24`,
  vtepMac: `02:00:00:00:00:0${n}`,
}));

// ---- Machines

/**
 * The cable between the machines, two ports for each. It carries super-packets without checksums for NICs that accept
 * those.
 */
async function layCable(): Promise<void> {
  await ipBatch(['link add cable type bridge forward_delay 0 mcast_snooping 0', 'link set cable up']);
  for (const name of identities.flatMap((_, n) => [tapOf(n, 0), tapOf(n, 1)])) {
    await ipBatch([
      `tuntap add dev ${name} mode tap vnet_hdr`,
      `link set ${name} mtu 9100 master cable up`, // room for a tag
    ]);
  }
}

const tapOf = (node: number, nic: number): string => `node${node + 1}eth${nic}`;

/** eth1 has no offloads: no checksums and no segmentation, in both directions. */
const NO_OFFLOAD =
  ',csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off';

async function start(n: number): Promise<Node> {
  const identity = identities[n]!;
  const monitor = join(kernel.dir, `${identity.name}.monitor`);
  const messages = join(kernel.dir, `${identity.name}.messages`);
  const nics = [0, 1].flatMap((nic) => [
    '-netdev',
    `tap,id=cable${nic},ifname=${tapOf(n, nic)},script=no,downscript=no`,
    '-device',
    `virtio-net-pci,id=eth${nic},netdev=cable${nic},mac=02:00:00:00:0${n + 1}:0${nic}${nic === 1 ? NO_OFFLOAD : ''}`,
  ]);
  const command = qemu(kernel, 'remote', messages);
  const machine = await Machine.boot([...command, ...nics, '-monitor', `unix:${monitor},server=on,wait=off`]);
  return {
    ...identity,
    machine,
    monitor,
    podIp: identity.podCidr.replace('.0/24', '.2'),
    network: '10.42.0.0/16',
    bpffs: '/run/bpf',
    runDir: '/run/node',
    peers: identities.filter((other) => other !== identity),
  };
}

let one: Node;
let two: Node;
const onBoth = <T>(work: (node: Node) => Promise<T>): Promise<[T, T]> => Promise.all([work(one), work(two)]);

async function furnish(node: Node): Promise<void> {
  const { machine, ip: address, podIp, name } = node;
  // VLANs first: with them a NIC that filters by tag lets priority tags through.
  await machine.call('run', 'modprobe', ['-a', '8021q', 'virtio_pci', 'virtio_net']);
  await machine.call('ensureBpffs', node.bpffs);
  await machine.call('ipBatch', [
    'netns add pod',
    'link set lo up',
    `address add ${address}/24 dev eth0`,
    'link set eth0 up',
  ]);
  await machine.call('connectPod', { name, netns: POD_NETNS, ip: podIp }, node);
  await machine.call('startTalker', POD_NETNS, 'serving', ['serve', '0.0.0.0', String(PORT)]);
}

// ---- What a node does

let uplink = 'eth0';
let settings: Pick<NodeSpec, 'ingress' | 'directRouting'> = {};

/** Start (or restart) a node's data plane. */
async function pass(node: Node): Promise<PassReport> {
  const { machine, monitor: _, podIp: _ip, ...spec } = node;
  return machine.call('pass', { ...spec, uplink, ...settings });
}

/** Start both nodes so, and check that they decapsulate at this hook, for this reason. */
async function startWith(next: typeof settings, hook: 'xdp' | 'tc', why: string): Promise<void> {
  settings = next;
  const expected = [
    linkKey('from_wire', uplink),
    ...(hook === 'xdp' ? [linkKey('xdp_from_wire', uplink)] : []),
  ];
  for (const { problems, attached, ingress } of await onBoth(pass)) {
    expectThat(problems.length === 0, problems.join(' · '));
    expectThat(ingress?.hook === hook && ingress.why === why, `ingress: ${JSON.stringify(ingress)}`);
    const keys = Object.keys(attached).filter((key) => key.includes('from_wire'));
    expectThat(keys.sort().join() === expected.join(), `attached: ${keys.join(', ')}`);
  }
}

/**
 * Start both nodes with `--ingress xdp`, which the uplink's driver must refuse in these words, so that no XDP is
 * attached.
 */
async function startRefused(why: string): Promise<void> {
  settings = { ingress: 'xdp' };
  for (const { problems, attached } of await onBoth(pass)) {
    const said = problems.every((problem) => problem.endsWith(why));
    expectThat(problems.length > 0 && said, `problems: ${problems.join(' · ')}`);
    const keys = Object.keys(attached);
    expectThat(!keys.some((key) => key.startsWith('xdp')), `attached: ${keys.join(', ')}`);
  }
}

interface LinkRow {
  readonly xdp?: { readonly mode: number };
}
/** linux/if_link.h: XDP in the driver. */
const XDP_ATTACHED_DRV = 1;

async function xdpModeOf(node: Node): Promise<number | undefined> {
  const text = await node.machine.call('run', 'ip', ['-json', 'link', 'show', 'eth0']);
  return (JSON.parse(text) as LinkRow[])[0]?.xdp?.mode;
}

/** linux/virtio_net.h: offload of checksums and TCP segmentation, in both directions. */
const OFFLOADS = { CSUM: 0, GUEST_CSUM: 1, GUEST_TSO4: 7, HOST_TSO4: 11 };

/** Those that the driver has negotiated with the NIC. */
async function offloadsOf(node: Node, device: string): Promise<string[]> {
  const read = `read bits </sys/class/net/${device}/device/features && echo $bits`;
  const bits = await node.machine.call('run', 'sh', ['-c', read]);
  return Object.entries(OFFLOADS).flatMap(([name, bit]) => (bits[bit] === '1' ? [name] : []));
}

// ---- Traffic

/**
 * Sizes around the limits of packets and fragments, almost up to the largest datagram: the server's answers have a
 * heading.
 */
const SIZES = [
  1, 100, 512, 1200, 1380, 1395, 1410, 1422, 1423, 1500, 2900, 4000, 8800, 8922, 8923, 20_000, 65_000,
];
const TCP_BYTES = 512 * 1024;
const PINGS = 20;

type Counters = Readonly<Record<string, number>>;

/** How far both nodes' counters moved during `work`. */
async function counted(work: () => Promise<unknown>): Promise<[Counters, Counters]> {
  const read = () => onBoth((node) => node.machine.call('countersOf', node));
  const before = await read();
  await work();
  const after = await read();
  const moved = (i: 0 | 1): Counters =>
    Object.fromEntries(
      Object.entries(after[i])
        .map(([name, n]) => [name, n - (before[i][name] ?? 0)] as const)
        .filter(([, n]) => n > 0),
    );
  return [moved(0), moved(1)];
}

/** A pod sends a TCP stream, datagrams of many sizes and pings to the other, and gets all of it back unchanged. */
async function exchange(): Promise<void> {
  const { machine } = one;
  const args = ['both', two.podIp, String(PORT), String(TCP_BYTES), ...SIZES.map(String)];
  const { tcp, udp } = (await machine.call('talk', POD_NETNS, args)) as { tcp: TcpReport; udp: UdpReport };
  expectThat(tcp.bytes === TCP_BYTES && tcp.sent === tcp.received, `TCP: ${JSON.stringify(tcp)}`);
  expectThat(
    udp.answers === SIZES.length,
    `UDP: ${udp.answers} of ${SIZES.length} datagrams came back whole`,
  );
  // On a busy host a machine may stall for seconds.
  const flags = ['-n', '-q', '-i', '0.02', '-W', '20', '-c', String(PINGS)];
  const { stdout } = await machine.call('tryRun', 'ping', [...flags, two.podIp], { netns: POD_NETNS });
  expectThat(stdout.includes(`${PINGS} packets transmitted, ${PINGS} received`), stdout);
}

const MAY_BE_ON_KERNEL_PATH = new RegExp(
  ' kernel_(fragment|not_ip|not_vxlan|other_mac|outside|from_peer|link_local|handshake|new_flow|unsettled|expired|old_epoch|learned|not_established|too_big)$',
);

/** Counters with their least movement; those with 0 must not move. */
type Least = Readonly<Record<string, number>>;

/**
 * An exchange that must move the nodes' counters so. Otherwise only fragments, ARP, the first packets and ends of flows,
 * and their first large packets may take the kernel path.
 */
async function exchangeMoves(first: Least, second = first): Promise<void> {
  for (const [i, counters] of (await counted(exchange)).entries()) {
    const expected = [first, second][i]!;
    const all = `${identities[i]!.name} counted ${JSON.stringify(counters)}`;
    for (const [name, least] of Object.entries(expected)) {
      const is = counters[name] ?? 0;
      expectThat(least === 0 ? is === 0 : is >= least, `${name} is ${is}, not ${least}: ${all}`);
    }
    expectThat(!all.includes(' drop_'), `packets were dropped: ${all}`);
    const strays = Object.entries(counters).filter(
      ([name]) => name.includes(' kernel_') && !MAY_BE_ON_KERNEL_PATH.test(name) && !(name in expected),
    );
    expectThat(strays.length === 0, `the kernel path has ${strays.join()}: ${all}`);
  }
}

/** The least number of packets of an exchange: the stream's frames, pings, and some unfragmented datagrams. */
const FRAMES = TCP_BYTES / 1398 + PINGS + 5;
/** The same, when the stream goes in super-packets of 64 KB. */
const PACKETS = TCP_BYTES / 65_536 + PINGS + 5;
const fast = { 'from_pod fast_encap': PACKETS, 'from_wire fast_decap': PACKETS };
const byXdp = { ...fast, 'xdp_from_wire fast_decap': FRAMES };
const byTc = { ...fast, 'xdp_from_wire fast_decap': 0 };
const direct = {
  'from_pod fast_direct': PACKETS,
  'from_wire fast_direct': PACKETS,
  'from_pod fast_encap': 0,
};

/** Move the nodes' addresses, and so their tunnels, to this device. */
async function moveUplink(device: string, ...make: readonly string[]): Promise<void> {
  await onBoth(({ machine, ip }) =>
    machine.call('ipBatch', [
      `address flush dev ${uplink}`,
      ...make,
      `address add ${ip}/24 dev ${device}`,
      `link set ${device} up`,
    ]),
  );
  uplink = device;
}

/** Change the MTU of the uplink and the pods, on both nodes. */
async function setMtu(mtu: number): Promise<void> {
  await onBoth(async (node) => {
    const { machine } = node;
    const podMtu = mtu - 50;
    await machine.call('ipBatch', [
      `link set ${uplink} mtu ${mtu}`,
      `link set ${vethOf(node)} mtu ${podMtu}`,
    ]);
    await machine.call('ipBatch', [`link set eth0 mtu ${podMtu}`], { netns: POD_NETNS });
  });
}

/** Unplug the cable of a NIC, or plug it in. */
async function plug(node: Node, nic: 'eth0' | 'eth1', state: 'on' | 'off'): Promise<void> {
  const monitor = connect(node.monitor);
  monitor.end(`set_link ${nic} ${state}\n`);
  monitor.resume();
  await once(monitor, 'close');
}

/** Send every packet of eth0 with a priority tag (VLAN 0), or stop doing so. */
async function tagPriority(node: Node, on: boolean): Promise<void> {
  const tc = (...args: string[]) => node.machine.call('run', 'tc', args);
  if (!on) return void (await tc('filter', 'del', 'dev', 'eth0', 'egress'));
  await node.machine.call('tryRun', 'tc', ['qdisc', 'add', 'dev', 'eth0', 'clsact']); // ripstop's may exist already
  const push = 'action vlan push id 0 priority 5'.split(' ');
  await tc('filter', 'add', 'dev', 'eth0', 'egress', 'matchall', ...push);
}

// ---- The story

const REFUSES_9000 = 'the driver of eth0 refuses XDP at an MTU of 9000 (EINVAL)';
const HAS_XDP = (device: string): string => `the driver of ${device} has XDP`;

const steps: readonly Step[] = [
  [
    'two machines with virtio-net, a node and a pod each',
    async () => {
      await layCable();
      [one, two] = await Promise.all([start(0), start(1)]);
      await onBoth(furnish);
      for (const text of await onBoth(({ machine }) => machine.call('run', 'ethtool', ['-i', 'eth0']))) {
        expectThat(text.includes('driver: virtio_net'), text);
      }
    },
  ],
  [
    '--ingress auto: XDP, in the driver',
    async () => {
      await startWith({}, 'xdp', HAS_XDP('eth0'));
      for (const mode of await onBoth(xdpModeOf)) expectThat(mode === XDP_ATTACHED_DRV, `XDP mode ${mode}`);
      await exchangeMoves(byXdp);
    },
  ],
  [
    'with priority tags from one node: XDP leaves those to tc, fast',
    async () => {
      await tagPriority(two, true);
      await exchangeMoves({ ...byTc, 'xdp_from_wire kernel_not_ip': FRAMES }, byXdp);
      await tagPriority(two, false);
    },
  ],
  [
    '--ingress tc: XDP is detached',
    async () => {
      await startWith({ ingress: 'tc' }, 'tc', '--ingress tc says so');
      for (const mode of await onBoth(xdpModeOf)) expectThat(mode === undefined, `XDP mode ${mode}`);
      await exchangeMoves(byTc);
    },
  ],
  [
    'direct routing: super-packets from the NIC, fast',
    async () => {
      await startWith({ ingress: 'tc', directRouting: true }, 'tc', '--ingress tc says so');
      await exchangeMoves(direct);
      await startWith({ directRouting: true }, 'xdp', HAS_XDP('eth0'));
      await exchangeMoves({ ...direct, 'xdp_from_wire kernel_not_vxlan': FRAMES });
    },
  ],
  [
    'MTU 9000, which XDP refuses: tc',
    async () => {
      await startWith({ ingress: 'tc' }, 'tc', '--ingress tc says so');
      await setMtu(9000);
      await startWith({}, 'tc', REFUSES_9000);
      await exchangeMoves(byTc);
      await startRefused(REFUSES_9000);
      await setMtu(1500);
      await startWith({}, 'xdp', HAS_XDP('eth0'));
    },
  ],
  [
    'MTU 9000 while XDP is attached: it is detached',
    async () => {
      const [major = 0, minor = 0] = kernel.release.split('.').map(Number);
      if (major < 6 || (major === 6 && minor < 3))
        return 'before Linux 6.3 virtio-net refuses to let XDP go at such an MTU, too';
      await setMtu(9000);
      await startWith({}, 'tc', REFUSES_9000);
      await exchangeMoves(byTc);
      await setMtu(1500);
      await startWith({}, 'xdp', HAS_XDP('eth0'));
      await setMtu(9000);
      await startRefused(REFUSES_9000);
      await exchangeMoves(byTc);
      await setMtu(1500);
      return undefined;
    },
  ],
  [
    'a NIC without checksums and segmentation',
    async () => {
      await moveUplink('eth1', 'link set eth0 down'); // otherwise it answers ARP for eth1's address too
      const offloads = await Promise.all(['eth0', 'eth1'].map((device) => offloadsOf(one, device)));
      const asWanted = offloads[0]?.join() === Object.keys(OFFLOADS).join() && offloads[1]?.length === 0;
      expectThat(asWanted, `offloads of eth0 and eth1: ${JSON.stringify(offloads)}`);
      await startWith({}, 'xdp', HAS_XDP('eth1'));
      await exchangeMoves(byXdp);
      await startWith({ ingress: 'tc' }, 'tc', '--ingress tc says so');
      await exchangeMoves(byTc);
    },
  ],
  [
    'over a VLAN: tc',
    async () => {
      await moveUplink(
        'eth0.10',
        'link set eth1 down',
        'link set eth0 up',
        'link add link eth0 name eth0.10 type vlan id 10',
      );
      await startWith({}, 'tc', 'eth0.10 is a vlan, not a NIC');
      await exchangeMoves(byTc);
      await startRefused('the driver of eth0.10 has no XDP');
      await exchangeMoves(byTc);
    },
  ],
  [
    'over a bond: tc, or XDP on request',
    async () => {
      await moveUplink(
        'bond1', // the module creates bond0
        'link del eth0.10',
        'link add bond1 type bond mode active-backup miimon 50',
        ...['eth0', 'eth1'].flatMap((name) => [`link set ${name} down`, `link set ${name} master bond1`]),
      );
      await startWith({}, 'tc', 'bond1 is a bond, not a NIC');
      await exchangeMoves(byTc);
      await startWith({ ingress: 'xdp' }, 'xdp', '--ingress xdp says so');
      await exchangeMoves(byXdp);
    },
  ],
  [
    'its cable is unplugged: the second NIC takes over',
    async () => {
      const { machine } = one;
      const hold = ['hold', two.podIp, String(PORT)];
      const talker = await machine.call('startTalker', POD_NETNS, 'holding', hold);
      await plug(two, 'eth0', 'off');
      await sleep(2000); // the bond checks its link every 50 ms of this slow machine's time
      const bond = await two.machine.call('run', 'ip', ['-details', 'link', 'show', 'bond1']);
      expectThat(bond.includes('active_slave eth1'), bond);
      await exchangeMoves(byXdp);
      const report = (await machine.call('endTalker', talker)) as HoldReport;
      expectThat(report.error === undefined && report.rounds > 10, `connection: ${JSON.stringify(report)}`);
    },
  ],
];

await tellStory(steps);
