// SPDX-License-Identifier: Apache-2.0
/**
 * Tunnels: the programs carry the outer packets of what the kernel path decides about, as the kernel path would. Each flow
 * here is new, so that the kernel path takes its first packet, and a tunnel may carry it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { PeerRow } from '../../src/cli/rows.ts';
import { run, tryRun } from '../../src/host/run.ts';
import {
  gatewayAddress,
  giveBack,
  type Lab,
  netnsPath,
  type NodeState,
  setServices,
  startAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { addressToBytes, type Family } from '../../src/net/ip.ts';
import {
  ethernet,
  fragments,
  icmp,
  ip,
  ipv6Extension,
  protocols,
  readIp,
  sealed,
  udp,
  vxlan,
} from '../../src/net/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import { type Arrived, begin, Station } from './new-flows.ts';
import {
  addressesOf,
  addressOf,
  type Carried,
  carriedDuring,
  FAMILIES,
  inNetns,
  missingHere,
  podOf,
  PORT,
  ripstopJson,
  serveIn,
  serviceOf,
  talk,
  useLab,
} from './support.ts';
import type { ShortReport } from './talker.ts';
import { inUnderlay } from './underlay.ts';

/** Of the outer packets of so many new flows the kernel's VXLAN devices carry only a few: those that show it anew. */
const MANY = 40;
const A_FEW = 8;

const sumOf = (by: Carried['by'], hook: string): number =>
  Object.entries(by).reduce((sum, [name, packets]) => sum + (name.startsWith(`${hook} `) ? packets : 0), 0);

/** How long agents may take until they have heard of the last changes on a busy machine. */
const PATIENCE_MS = 5000;

/**
 * Expects that all new flows arrive and are answered, each time; and that tunnels carry them, but for a few packets, once
 * the nodes' agents have heard of the last changes.
 */
async function tunnelsCarry(
  lab: Lab,
  nodes: readonly NodeState[],
  from: Station,
  to: Station,
): Promise<void> {
  const flows = MANY * addressesOf(to.pod).length;
  const deadline = performance.now() + PATIENCE_MS;
  let most: number;
  do {
    const carried = await carriedDuring(lab, nodes, async () => {
      expect(await begin(from, to, { count: MANY })).toEqual({ there: flows, back: flows });
    });
    most = Math.max(...carried.map(({ vtep }) => vtep));
  } while (most >= 2 * A_FEW && performance.now() < deadline);
  expect(most, 'packets through the kernel’s VXLAN devices').toBeLessThan(2 * A_FEW);
}

/** An nft table of counters: of outer packets out and in, and of inner ones. */
const COUNTERS = `table inet seen {
  counter out { }; counter in { }; counter inner { };
  chain output { type filter hook output priority 0; udp dport 8472 counter name out; };
  chain input { type filter hook input priority 0; udp dport 8472 counter name in; };
  chain forward { type filter hook forward priority 0; udp dport ${PORT} counter name inner; udp sport ${PORT} counter name inner; }; }`;

interface Seen {
  readonly out: number;
  readonly in: number;
  readonly inner: number;
}

/** What rules of a node have seen during `work`. The tunnels are shown anew, for the rules are. */
async function seenBy(node: NodeState, work: () => Promise<unknown>): Promise<Seen> {
  await run('nft', [COUNTERS], inNetns(node));
  try {
    await work();
    const list = await run('nft', ['-j', 'list', 'counters', 'table', 'inet', 'seen'], inNetns(node));
    const { nftables } = JSON.parse(list) as { nftables: { counter?: { name: string; packets: number } }[] };
    const counters = nftables.flatMap(({ counter }) =>
      counter ? [[counter.name, counter.packets] as const] : [],
    );
    return Object.fromEntries(counters) as unknown as Seen;
  } finally {
    await run('nft', ['delete', 'table', 'inet', 'seen'], inNetns(node));
  }
}

/** How long a rule may go unnoticed of which the kernel tells a running agent. It takes a few ms. */
const TOLD_MS = 700;

/** Wait until new flows get no further than this. From then on it stays so. */
async function stops(from: Station, to: Station, there = 0, withinMs = TOLD_MS): Promise<void> {
  const stopped = { there, back: 0 };
  await expect
    .poll(() => begin(from, to, { none: true }), { timeout: withinMs, interval: 10 })
    .toEqual(stopped);
  expect(await begin(from, to, { none: true })).toEqual(stopped);
}

/** Rules against the outer packets from node 1 to node 2, as shell commands for one family. */
interface Stop {
  readonly says: string;
  readonly on: 1 | 2;
  /** A command that fails where the kernel knows no such rules. */
  readonly needs?: string;
  readonly add: string;
  readonly remove: string;
}

const nftDrop = (says: string, on: 1 | 2, hook: string): Stop => ({
  says,
  on,
  add: `nft "table $IP own { chain own { ${hook}; $IP ${on === 1 ? 'daddr $NODE2' : 'saddr $NODE1'} udp dport 8472 drop; }; }"`,
  remove: 'nft delete table $IP own',
});

const iptablesDrop = (says: string, on: 1 | 2, table: string, chain: string): Stop => {
  const rule = `${chain} -p udp --dport 8472 ${on === 1 ? '-d $NODE2' : '-s $NODE1'} -j DROP`;
  return {
    says,
    on,
    add: `$IPTABLES -t ${table} -I ${rule}`,
    remove: `$IPTABLES -t ${table} -D ${rule}`,
  };
};

const STOPS: Stop[] = [
  nftDrop('nft at output', 1, 'type filter hook output priority 0'),
  nftDrop('nft at input, on the other node', 2, 'type filter hook input priority 0'),
  iptablesDrop('iptables’ mangle POSTROUTING', 1, 'mangle', 'POSTROUTING'),
  iptablesDrop('iptables’ raw PREROUTING, on the other node', 2, 'raw', 'PREROUTING'),
  {
    says: 'a route that leads nowhere, for what a rule at output has marked',
    on: 1,
    add: `nft "table $IP own { chain own { type route hook output priority 0; $IP daddr $NODE2 udp dport 8472 meta mark set 7; }; }"
      ip $FLAG route add blackhole default table 77
      ip $FLAG rule add fwmark 7 table 77`,
    remove: `ip $FLAG rule del fwmark 7 table 77
      ip $FLAG route del blackhole default table 77
      nft delete table $IP own`,
  },
  ...(['out', 'in'] as const).map((direction): Stop => {
    const policy = `src $NODE1 dst $NODE2 dir ${direction}`;
    return {
      says: `an IPsec policy ${direction}, for which there is no key`,
      on: direction === 'out' ? 1 : 2,
      needs: 'ip xfrm policy list',
      add: `ip xfrm policy add ${policy} tmpl src $NODE1 dst $NODE2 proto esp mode transport level required`,
      remove: `ip xfrm policy delete ${policy}`,
    };
  }),
];

describe.skipIf(missingHere('nft', 'iptables', 'tcpdump', 'tc'))('tunnels', () => {
  const cluster = useLab('tunnels', { nodes: 2, pods: 2, ipv6: true, kubeProxy: 'iptables' });
  const node = (n: number): NodeState => cluster.nodes[n - 1]!;
  const stations = new DisposableStack();
  let [here, beside, far] = [] as unknown as [Station, Station, Station];

  beforeAll(async () => {
    const pods = [podOf(node(1)), podOf(node(1), 1), podOf(node(2))] as const;
    await Promise.all(pods.map((pod) => serveIn(pod)));
    const opened = await Promise.all(pods.map((pod, i) => Station.of(pod, pods[i === 2 ? 0 : 2])));
    [here, beside, far] = opened.map((station) => stations.use(station)) as [Station, Station, Station];
  });
  afterAll(() => stations.dispose());

  const all = (count: number): Arrived => ({ there: 2 * count, back: 2 * count });

  /** Run commands on a node, for each family. */
  async function command(on: number, commands: string): Promise<void> {
    for (const family of FAMILIES) {
      const env = {
        ...process.env,
        NODE1: addressOf(node(1), family),
        NODE2: addressOf(node(2), family),
        HERE: addressOf(here.pod, family),
        BESIDE: addressOf(beside.pod, family),
        FAR: addressOf(far.pod, family),
        IPTABLES: family === 4 ? 'iptables' : 'ip6tables',
        IP: family === 4 ? 'ip' : 'ip6',
        FLAG: `-${family}`,
        TTL: family === 4 ? 'ip ttl' : 'ip6 hoplimit',
        // The inner source, in bits from the outer UDP header on, and the second pod's as a number.
        INNER_SOURCE: family === 4 ? '@th,336,32' : '@th,304,128',
        BESIDE_NUMBER: `0x${Buffer.from(addressToBytes(addressOf(beside.pod, family))).toString('hex')}`,
      };
      await run('sh', ['-euc', commands], { ...inNetns(node(on)), env });
    }
  }

  const carriesNewFlows = (from = here, to = far): Promise<void> =>
    tunnelsCarry(cluster.lab, cluster.nodes, from, to);

  it('carry new flows: rules see a few outer packets, and each inner one', async () => {
    await carriesNewFlows();
    for (const one of cluster.nodes) {
      const seen = await seenBy(one, async () => {
        expect(await begin(here, far)).toEqual(all(10));
        expect(await begin(here, far, { count: MANY })).toEqual(all(MANY));
      });
      // There and back, in both families.
      expect(seen.inner).toBe(4 * (10 + MANY));
      for (const outer of [seen.out, seen.in]) {
        expect(outer).toBeGreaterThan(0);
        expect(outer).toBeLessThan(2 * (10 + A_FEW));
      }
    }
  });

  it.for(STOPS)(
    'stop at once by $says and carry again without it',
    async ({ on, needs, add, remove }, { skip }) => {
      if (needs && (await tryRun('sh', ['-c', needs], inNetns(node(on)))).code !== 0)
        skip(`this kernel cannot: ${needs}`);
      await carriesNewFlows();
      await command(on, add);
      try {
        await stops(here, far);
      } finally {
        await command(on, remove);
      }
      await carriesNewFlows();
    },
  );

  /** Have commands in force on a node during `work`. */
  async function withRules(
    on: number,
    add: string,
    remove: string,
    work: () => Promise<unknown>,
  ): Promise<void> {
    await command(on, add);
    try {
      await sleep(TOLD_MS);
      await work();
    } finally {
      await command(on, remove);
    }
  }

  it('do not take another way than a routing rule sends the mark of outer packets', async () => {
    const gateway = { 4: gatewayAddress('172.31.0.0/16'), 6: gatewayAddress('fd00:31::/64') };
    const add = `nft "table $IP own { chain own { type route hook output priority -1; $IP daddr $NODE2 udp dport 8472 meta mark set 7; }; }"
      case $FLAG in -4) via=${gateway[4]};; *) via=${gateway[6]};; esac
      ip $FLAG route add default via $via dev eth0 table 77
      ip $FLAG rule add fwmark 7 table 77`;
    const remove = `ip $FLAG rule del fwmark 7 table 77
      ip $FLAG route flush table 77
      nft delete table $IP own`;
    const forward = (value: 0 | 1) =>
      run(
        'sysctl',
        ['-qw', `net.ipv4.ip_forward=${value}`, `net.ipv6.conf.all.forwarding=${value}`],
        inUnderlay(cluster.lab),
      );
    await forward(1);
    try {
      await withRules(1, add, remove, async () => {
        const { out } = await seenBy(node(1), async () => {
          expect(await begin(here, far, { count: MANY })).toEqual(all(MANY));
        });
        // Beside them, errors about the answers: nobody listens for those.
        expect(out).toBeGreaterThanOrEqual(2 * MANY);
      });
    } finally {
      await forward(0);
    }
    await carriesNewFlows();
  });

  it('are told apart by the mark that rules give to inner packets', async () => {
    const add = `nft "table $IP own {
      chain forward { type filter hook forward priority 0;
        $IP saddr $HERE meta mark set 0x10; $IP saddr $BESIDE meta mark set 0x20; };
      chain output { type filter hook output priority 0; udp dport 8472 meta mark 0x20 counter drop; }; }"`;
    await carriesNewFlows(beside);
    await withRules(1, add, 'nft delete table $IP own', async () => {
      for (let i = 0; i < 2; i++) {
        await carriesNewFlows();
        await stops(beside, far);
      }
    });
    await carriesNewFlows(beside);
  });

  it.each([
    [1, 'output'],
    [2, 'input'],
  ] as const)('are told apart by the addresses inside (node %i, %s)', async (on, hook) => {
    const add = `nft "table $IP own { chain own { type filter hook ${hook} priority 0;
      udp dport 8472 $INNER_SOURCE $BESIDE_NUMBER counter drop; }; }"`;
    await withRules(on, add, 'nft delete table $IP own', async () => {
      await carriesNewFlows();
      await stops(beside, far);
    });
    await carriesNewFlows(beside);
  });

  describe('let nobody in whom the kernel path keeps out:', () => {
    let wire: RawSocket;
    let number = 0;

    beforeAll(() => {
      wire = stations.use(new RawSocket(netnsPath(node(2).netns), 'eth0'));
    });

    const macOf = async (device: string): Promise<string> => {
      const [link] = await ipJson<{ address: string }>(['link', 'show', device], inNetns(node(1)));
      return link!.address;
    };

    /** Whether a datagram in VXLAN, from an outer and an inner source, reaches the pod. */
    async function arrives(
      family: Family,
      outer: string,
      inner: string,
      { ttl = 64, mac = '02:00:00:00:00:c8' } = {},
    ): Promise<boolean> {
      const text = `forged ${++number}.`;
      const datagram = udp({ src: 666, dst: 6000 + number }, Buffer.from(text));
      const packet = sealed(ip({ src: inner, dst: addressOf(here.pod, family) }, datagram));
      const dst = await macOf(family === 4 ? 'flannel.1' : 'flannel-v6.1');
      const encapsulated = vxlan({}, ethernet({ dst, src: '02:00:00:00:00:66' }, packet));
      const around = ip(
        { src: outer, dst: addressOf(node(1), family), ttl },
        udp({ src: 40_000 + number, dst: 8472 }, encapsulated),
      );
      here.received();
      expect(wire.send(ethernet({ dst: await macOf('eth0'), src: mac }, around))).toBeUndefined();
      await sleep(50);
      return here.received().some((got) => Buffer.from(got).toString('latin1').includes(text));
    }

    it('strangers, and an inner source that is not the sender’s', async () => {
      await carriesNewFlows();
      const stranger = { 4: '172.31.0.200', 6: 'fd00:31::200' };
      const [carried] = await carriedDuring(cluster.lab, [node(1)], async () => {
        for (const family of FAMILIES) {
          const [pod, own, peer] = [far.pod, beside.pod, node(2)].map((one) => addressOf(one, family));
          expect(await arrives(family, peer!, pod!)).toBe(true);
          expect(await arrives(family, peer!, own!)).toBe(false);
          expect(await arrives(family, stranger[family], pod!)).toBe(false);
          expect(await arrives(family, stranger[family], own!)).toBe(false);
        }
      });
      const drops = Object.entries(carried!.by).filter(([name]) => name.includes('drop'));
      expect(Object.fromEntries(drops)).toEqual({
        'from_wire drop_spoofed_source': 2,
        'from_wire drop_unknown_peer': 4,
      });
      await carriesNewFlows();
    });

    it('who forges the address of a peer, where rules go by the TTL or the MAC address', async () => {
      const [link] = await ipJson<{ address: string }>(['link', 'show', 'eth0'], inNetns(node(2)));
      const mac = link!.address;
      const add = `nft "table $IP own { chain own { type filter hook input priority 0;
        udp dport 8472 $IP saddr $NODE2 $TTL != 64 drop; udp dport 8472 $IP saddr $NODE2 ether saddr != ${mac} drop; }; }"`;
      await withRules(1, add, 'nft delete table $IP own', async () => {
        await carriesNewFlows();
        for (const family of FAMILIES) {
          const [outer, inner] = [node(2), far.pod].map((one) => addressOf(one, family)) as [string, string];
          expect(await arrives(family, outer, inner, { mac })).toBe(true);
          expect(await arrives(family, outer, inner, { mac, ttl: 63 })).toBe(false);
          expect(await arrives(family, outer, inner)).toBe(false);
        }
      });
    });
  });

  /** What the far pod gets of packets from here, without their Ethernet headers. */
  async function gotOf(packets: readonly Uint8Array[]): Promise<string[]> {
    far.received();
    for (const packet of packets) here.send(packet);
    const from = FAMILIES.map((family) => addressOf(here.pod, family));
    const got: string[] = [];
    for (const deadline = performance.now() + 500; performance.now() < deadline; await sleep(5)) {
      for (const frame of far.received())
        if (from.includes(readIp(frame).src) && !isNeighbourDiscovery(frame))
          got.push(Buffer.from(frame.subarray(14)).toString('hex'));
      if (got.length >= packets.length) break;
    }
    return got;
  }
  const isNeighbourDiscovery = (frame: Uint8Array): boolean => {
    const { protocol } = readIp(frame);
    return protocol === protocols.icmpv6 && frame[54]! >= 133 && frame[54]! <= 137;
  };

  /** Packets that are of no flow, by what they are. */
  const oddPackets = (family: Family): Record<string, Uint8Array[]> => {
    const fields = {
      src: addressOf(here.pod, family),
      dst: addressOf(far.pod, family),
      id: 4711,
      flowLabel: 4711,
    };
    const unknown = { ...fields, protocol: 253 };
    const datagram = udp({ src: 666, dst: 6666 }, Buffer.from('x'.repeat(200)));
    const embedded = sealed(
      ip({ ...fields, src: fields.dst, dst: fields.src }, udp({ src: 6666, dst: 666 }, Buffer.from('x'))),
    );
    const error = icmp(family === 4 ? 3 : 1, Uint8Array.of(0, 0, 0, 0, ...embedded));
    return {
      fragments: fragments(fields, datagram, 104),
      'a protocol that nobody knows': [ip(unknown, Buffer.from('y'.repeat(50)))],
      'no payload': [ip(unknown, new Uint8Array(0))],
      'DSCP and ECN': [ip({ ...unknown, tos: 0xc1 }, Buffer.from('x'))],
      congestion: [ip({ ...unknown, tos: 3 }, Buffer.from('x'))],
      'an ICMP error': [
        sealed(ip({ ...fields, protocol: family === 4 ? protocols.icmp : protocols.icmpv6 }, error)),
      ],
      options:
        family === 4
          ? [ip({ ...fields, options: [1, 1, 1, 0] }, udp({ src: 670, dst: 6670 }, Buffer.from('x')))]
          : [
              ip(
                { ...fields, protocol: protocols.destinationOptions },
                ipv6Extension(protocols.udp, sealed(ip(fields, datagram)).slice(40)),
              ),
            ],
    };
  };

  it.each(FAMILIES)('carry what is of no flow as the kernel path does, IPv%i', async (family) => {
    const kinds = Object.entries(oddPackets(family));
    const byKernel: Record<string, string[]> = {};
    const byTunnels: Record<string, string[]> = {};
    const carried: Record<string, number> = {};
    for (const [kind, packets] of kinds) {
      // In a new epoch, the kernel's devices carry the first packets.
      await nudgeEpoch();
      byKernel[kind] = await gotOf(packets);
      expect(byKernel[kind].length, kind).toBeGreaterThan(0);
    }
    // What comes late of those changes could end the tunnels meanwhile: then once more.
    for (const [kind, packets] of kinds)
      for (let tries = 0; tries < 5 && !carried[kind]; tries++) {
        await carriesNewFlows();
        const [moved] = await carriedDuring(cluster.lab, [node(1)], async () => {
          byTunnels[kind] = await gotOf(packets);
        });
        carried[kind] = sumOf(moved!.by, 'to_vtep');
      }
    expect(Object.entries(carried).filter(([, packets]) => packets === 0)).toEqual([]);
    expect(byTunnels).toEqual(byKernel);
  });

  /** Change the rules of both nodes, and back. */
  async function nudgeEpoch(): Promise<void> {
    for (const one of cluster.nodes)
      await run('nft', ['table ip nothing { }; delete table ip nothing'], inNetns(one));
  }

  it('carry short connections and datagrams of pods and of the node, also through a Service', async () => {
    const COUNT = 20;
    const service = '10.43.0.7';
    await setServices(cluster.lab, node(1), serviceOf('far', service, PORT, far.pod.ip));
    const ways = [here.pod, node(1)].flatMap((from) =>
      [...addressesOf(far.pod), service].map((address) => ({ from, address })),
    );
    for (const { from, address } of ways) {
      const carries = async (): Promise<boolean> => {
        let report: ShortReport | undefined;
        const [carried] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
          report = await talk<ShortReport>(from, 'short', address, PORT, COUNT);
        });
        expect(report).toEqual({ tcp: COUNT, udp: COUNT });
        // Of each connection at least the SYN and the ACK, and a datagram; as many come back.
        return sumOf(carried!.by, 'to_vtep') > 2 * COUNT && carried!.vtep < 2 * COUNT;
      };
      expect((await carries()) || (await carries())).toBe(true);
    }
  });

  it.each([
    ['a queueing discipline', ['qdisc add dev flannel.1 root tbf rate 1gbit burst 1m latency 10ms']],
    [
      'somebody’s filter',
      [
        'qdisc add dev flannel.1 clsact',
        // Nothing on lo takes a packet with these MAC addresses.
        'filter add dev flannel.1 egress protocol ip u32 match u32 0 0 action mirred egress redirect dev lo',
      ],
    ],
  ])('leave all to the kernel while flannel.1 has %s', async (what, commands) => {
    const tc = (args: string) => run('tc', args.split(' '), inNetns(node(1)));
    const reasons = async () => {
      const rows = await ripstopJson<PeerRow[]>(cluster.lab, node(1), 'peers');
      return rows.flatMap(({ reason }) => reason ?? []);
    };
    const addresses = [far.pod.ip];
    await carriesNewFlows();
    try {
      for (const one of commands) await tc(one);
      await expect.poll(reasons).toEqual(['shaped']);
      const [carried] = await carriedDuring(cluster.lab, [node(1)], async () => {
        const passes = what === 'a queueing discipline';
        const arrived = passes ? { there: MANY, back: MANY } : { there: 0, back: 0 };
        expect(await begin(here, far, { count: MANY, addresses, none: !passes })).toEqual(arrived);
      });
      expect(sumOf(carried!.by, 'to_vtep')).toBe(0);
    } finally {
      await tc(`qdisc del dev flannel.1 ${what === 'a queueing discipline' ? 'root' : 'clsact'}`);
    }
    await expect.poll(reasons).toEqual([]);
    await carriesNewFlows();
  });

  /**
   * Begin new flows, one after the other, while something happens and until one is answered afterwards.
   * @param patienceMs how long each may take
   * @returns how many flows there were, how many were not answered, and for how long none was
   */
  async function beginDuring(
    patienceMs: number,
    work: () => Promise<unknown>,
  ): Promise<{ flows: number; lost: number; silenceMs: number }> {
    const over = new AbortController();
    const result = { flows: 0, lost: 0, silenceMs: 0 };
    let last = performance.now();
    const talking = (async () => {
      for (; !over.signal.aborted; result.flows++, await sleep(5)) {
        const { back } = await begin(here, far, { count: 1, addresses: [far.pod.ip], patienceMs });
        if (back === 0) {
          result.lost++;
          continue;
        }
        result.silenceMs = Math.max(result.silenceMs, performance.now() - last);
        last = performance.now();
      }
    })();
    try {
      await work();
      const done = performance.now();
      await expect.poll(() => last, { timeout: 10_000, interval: 10 }).toBeGreaterThan(done);
    } finally {
      over.abort();
      await talking;
    }
    return result;
  }

  it.each([
    ['set down and up', 'ip link set flannel.1 down; sleep 0.1; ip link set flannel.1 up'],
    ['deleted', 'ip link del flannel.1'],
  ])('heal when somebody has flannel.1 %s', async (_, commands) => {
    for (const one of cluster.nodes) {
      await carriesNewFlows();
      const { silenceMs } = await beginDuring(50, () => run('sh', ['-c', commands], inNetns(one)));
      expect(silenceMs).toBeLessThan(2000);
    }
    await carriesNewFlows();
  });

  describe('lose nothing while', () => {
    async function unharmed(work: () => Promise<unknown>): Promise<void> {
      const { flows, lost } = await beginDuring(2000, work);
      expect(lost).toBe(0);
      expect(flows).toBeGreaterThan(5);
    }

    it('an agent is killed, there is none, and the next one starts', async () => {
      await unharmed(async () => {
        await stopAgent(cluster.lab, node(1), 'SIGKILL');
        await sleep(100);
      });
      await carriesNewFlows();
      await unharmed(() => startAgent(cluster.lab, node(1)));
      await carriesNewFlows();
    });

    it('a node is uninstalled, and given back to flannel', async () => {
      await unharmed(() => giveBack(cluster.lab, node(1)));
      expect(await begin(here, far)).toEqual(all(10));
    });
  });
});

describe.skipIf(missingHere('iptables-restore'))('tunnels of a boosted node', () => {
  const cluster = useLab('tunboost', { datapath: 'ripstop,flannel', mode: 'boost', pods: 1 });
  const node = () => cluster.nodes[0]!;
  const stations = new DisposableStack();
  let [here, far] = [] as unknown as [Station, Station];

  beforeAll(async () => {
    const pods = cluster.nodes.map((one) => podOf(one));
    await Promise.all(pods.map((pod) => serveIn(pod)));
    const opened = await Promise.all(pods.map((pod, i) => Station.of(pod, pods[1 - i]!)));
    [here, far] = opened.map((station) => stations.use(station)) as [Station, Station];
  });
  afterAll(() => stations.dispose());

  const carriesNewFlows = (): Promise<void> => tunnelsCarry(cluster.lab, [node()], here, far);

  it('carry new flows to and from a flannel node', carriesNewFlows);

  it.each(['output', 'input'])('stop at once by nft at %s and carry again without it', async (hook) => {
    await carriesNewFlows();
    const chain = `chain own { type filter hook ${hook} priority 0; udp dport 8472 drop; };`;
    await run('nft', [`table ip own { ${chain} }`], inNetns(node()));
    try {
      await stops(here, far, hook === 'output' ? 0 : 10);
    } finally {
      await run('nft', ['delete', 'table', 'ip', 'own'], inNetns(node()));
    }
    await carriesNewFlows();
  });
});
