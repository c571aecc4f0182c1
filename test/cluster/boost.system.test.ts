// SPDX-License-Identifier: Apache-2.0
/** Mode boost: ripstop beside a flannel that goes on owning the node. */
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AgentStatus } from '../../src/agent/status.ts';
import { readEndpoints } from '../../src/cli/rows.ts';
import { run, tryRun } from '../../src/host/run.ts';
import {
  addPod,
  boost,
  type Lab,
  netnsPath,
  nodeDir,
  type NodeState,
  type PodState,
  removePod,
  startAgent,
  stopAgent,
  unboost,
} from '../../src/lab/index.ts';
import { familyParts } from '../../src/lab/addresses.ts';
import { FLANNEL_ANNOTATION, FLANNEL_NAMES } from '../../src/lab/flannel.ts';
import { bridgeBatch, ipBatch, ipJson } from '../../src/lab/ip.ts';
import { patchNodeStatus } from '../../src/lab/kube.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import { ripstopCommand } from '../../src/lab/ripstop.ts';
import { type Family, parseCidr } from '../../src/net/ip.ts';
import { ethernet, fragments, ip, udp, vxlan } from '../../src/net/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import {
  addressesOf,
  addressOf,
  agentLog,
  bpffsOf,
  type Carried,
  carriedDuring,
  FAMILIES,
  inNetns,
  missingHere,
  nudge,
  ping,
  podOf,
  ripstopJson,
  runDirOf,
  serveIn,
  tagged,
  talkBoth,
  timeUntil,
  useLab,
} from './support.ts';
import { useTalkingLab } from './talking-lab.ts';

/** What a node has that boosting must leave as it was. Counters, ages and what the kernel learns by itself are left out. */
const STATE: Record<string, string> = {
  links: `ip -d -o link | sed -E 's/ [a-z_]*_timer +[^ ]+| (qlen|promiscuity|group) [^ ]+//g'`,
  addresses: 'ip -o addr | sed "s/valid_lft.*//"',
  routes: 'ip route show table all; ip -6 route show table all',
  rules: 'ip rule; ip -6 rule',
  neighbours: 'ip neigh show nud permanent; ip neigh show proxy',
  fdb: 'bridge fdb show | grep -E "permanent|self"',
  qdiscs: 'tc qdisc',
  iptables: 'iptables-save -t nat; iptables-save -t filter; ip6tables-save -t filter',
  nft: 'nft -s list ruleset',
  settings:
    'sysctl -a 2> /dev/null | grep "^net" | grep -vE "nf_conntrack_(count|max|buckets)|stable_secret|_time |random"',
};

async function stateOf(node: NodeState): Promise<Record<string, string[]>> {
  const parts = Object.entries(STATE).map(async ([name, command]) => {
    const text = (await run('sh', ['-c', command], inNetns(node))).replaceAll(/^#.*|\[\d+:\d+\]/gm, '');
    return [name, text.split('\n').toSorted()] as const;
  });
  return Object.fromEntries(await Promise.all(parts));
}

/** Addresses outside of the cluster (RFC 5737, RFC 3849). */
const OUTSIDE = { 4: '192.0.2.9', 6: '2001:db8::9' } as const;

/** More often with a real flannel: test/peers. */
const TIMES = 3;

const liberal = async (node: NodeState): Promise<string> =>
  (await run('sysctl', ['-n', 'net.netfilter.nf_conntrack_tcp_be_liberal'], inNetns(node))).trim();

describe.skipIf(missingHere('iptables-restore', 'tc'))('a boosted node', () => {
  const cluster = useLab('boost', { datapath: 'ripstop,flannel', mode: 'boost', pods: 2, ipv6: true });
  const node = () => cluster.nodes[0]!;
  const far = () => podOf(cluster.nodes[1]);
  const pod = (i: number) => podOf(node(), i);
  const during = async (work: () => Promise<unknown>): Promise<Carried> =>
    (await carriedDuring(cluster.lab, [node()], work))[0]!;
  const ips = async (): Promise<(string | undefined)[]> =>
    (await ripstopJson<{ ip?: string }[]>(cluster.lab, node(), 'endpoints')).map(({ ip }) => ip);

  beforeAll(async () => {
    for (const one of [pod(0), pod(1), far()]) await serveIn(one);
  });

  it('has the pods of flannel’s plugin as endpoints, in both families', async () => {
    for (const one of [pod(0), pod(1)])
      for (const family of FAMILIES) await ping(one, addressOf(far(), family));
    const wanted = [pod(0), pod(1)].flatMap((one) => FAMILIES.map((family) => addressOf(one, family)));
    await expect.poll(async () => new Set(await ips())).toEqual(new Set(wanted));
  });

  it.each(FAMILIES)(
    'carries their flows on the node fast, and like the bridge: the TTL stays, IPv%i',
    async (family) => {
      const [from, to] = [pod(0), addressOf(pod(1), family)];
      const { fast, forwarded } = await during(() => talkBoth(from, to));
      expect(fast).toBeGreaterThan(10 * forwarded);
      const { stdout } = await tryRun('ping', ['-c', '20', '-i', '0.01', to], inNetns(from));
      expect(new Set(stdout.match(/ttl=\d+/g))).toEqual(new Set(['ttl=64']));
    },
  );

  it('carries their flows to a flannel node fast, both ways', async () => {
    const { by, fast, forwarded } = await during(() => talkBoth(pod(0), far().ip));
    expect(fast).toBeGreaterThan(10 * forwarded);
    expect(by['from_pod fast_encap']).toBeGreaterThan(0);
    expect(by['from_wire fast_decap']).toBeGreaterThan(0);
  });

  it('serves a new pod fast within a second of its first packet', async () => {
    const added = await addPod(cluster.lab, node());
    await serveIn(added);
    const from = performance.now();
    await ping(added, pod(0).ip, 1);
    const fast = async (): Promise<boolean> =>
      ((await during(() => ping(added, pod(0).ip, 2))).by['from_pod fast_local'] ?? 0) > 0;
    await timeUntil(fast);
    expect(performance.now() - from).toBeLessThan(1000);
  });

  it('sees to pods that come and go alone, and looks at nothing else', async () => {
    const passes = async (): Promise<number> => {
      const { agent } = await ripstopJson<{ agent: AgentStatus }>(cluster.lab, node(), 'status');
      return agent.passes.count;
    };
    const known = async (): Promise<(string | undefined)[]> =>
      (await readEndpoints(bpffsOf(cluster.lab, node()), runDirOf(cluster.lab, node()))).map(({ ip }) => ip);
    const before = await passes();
    for (let i = 0; i < 3; i++) {
      const added = await addPod(cluster.lab, node());
      const afterItTalks = async () => {
        await ping(added, pod(0).ip, 1);
        return known();
      };
      await expect.poll(afterItTalks, { timeout: 5000 }).toContain(added.ip);
      await removePod(cluster.lab, node(), added);
      await expect.poll(known, { timeout: 5000 }).not.toContain(added.ip);
    }
    // An audit may be due meanwhile.
    expect((await passes()) - before).toBeLessThanOrEqual(1);
  });

  it('follows an address that another pod gets at once: no packet goes to the wrong pod', async () => {
    const old = node().pods.at(-1)!;
    await talkBoth(pod(0), old.ip);
    await removePod(cluster.lab, node(), old);
    // host-local gives out the address after the last one, unless it does not know that one.
    for (const family of FAMILIES.keys())
      rmSync(join(nodeDir(cluster.lab, node()), `ipam/cbr0/last_reserved_ip.${family}`), { force: true });
    const again = await addPod(cluster.lab, node());
    expect(again.ip).toBe(old.ip);
    await serveIn(again);
    // Until it speaks, pods have the MAC of the old one in their caches.
    await ping(again, pod(0).ip, 1);
    const { by } = await during(() => talkBoth(pod(0), again.ip));
    expect(by['from_pod drop_other_source']).toBeUndefined();
    await expect.poll(() => talksFast(again), { timeout: 5000 }).toBe(true);
  });

  const talksFast = async (to: PodState): Promise<boolean> => {
    const { fast, forwarded } = await during(() => talkBoth(pod(0), to.ip));
    return fast > 10 * forwarded;
  };

  it('carries flows on the node fast without br_netfilter, too', async () => {
    const filter = (value: 0 | 1) =>
      run('sysctl', ['-qw', `net.bridge.bridge-nf-call-iptables=${value}`], inNetns(node()));
    await filter(0);
    try {
      await expect.poll(() => talksFast(pod(1)), { timeout: 5000 }).toBe(true);
    } finally {
      await filter(1);
    }
  });

  it('drops what a pod sends from the address of another pod', async () => {
    await run('ip', ['address', 'add', `${pod(1).ip}/32`, 'dev', 'lo'], inNetns(pod(0)));
    try {
      const { by } = await during(() =>
        tryRun('ping', ['-c', '3', '-W', '0.2', '-i', '0.1', '-I', pod(1).ip, far().ip], inNetns(pod(0))),
      );
      expect(by['from_pod drop_other_source']).toBe(3);
    } finally {
      await run('ip', ['address', 'del', `${pod(1).ip}/32`, 'dev', 'lo'], inNetns(pod(0)));
    }
  });

  it('leaves its pods to the kernel path while somebody shapes their bridge', async () => {
    const fast = async (): Promise<boolean> =>
      ((await during(() => ping(pod(0), far().ip, 5))).by['from_pod fast_encap'] ?? 0) > 0;
    await expect.poll(fast, { timeout: 10_000 }).toBe(true);
    const shape = 'qdisc add dev cni0 root tbf rate 1gbit burst 1m latency 10ms';
    await run('tc', shape.split(' '), inNetns(node()));
    try {
      await expect.poll(fast, { timeout: 10_000 }).toBe(false);
      await talkBoth(pod(0), far().ip);
    } finally {
      await run('tc', ['qdisc', 'del', 'dev', 'cni0', 'root'], inNetns(node()));
    }
    await expect.poll(fast, { timeout: 10_000 }).toBe(true);
  });

  describe('drops what a pod', () => {
    const sockets = new DisposableStack();
    let out: RawSocket;
    let victims: RawSocket[];
    let bridge: string;

    beforeAll(async () => {
      out = sockets.use(new RawSocket(netnsPath(pod(0).netns), 'eth0'));
      victims = [pod(1), far()].map(({ netns }) => sockets.use(new RawSocket(netnsPath(netns), 'eth0')));
      for (const one of [pod(0), pod(1)])
        for (const address of addressesOf(far())) await ping(one, address, 1);
      const pods = [pod(0), pod(1)].flatMap(addressesOf);
      await timeUntil(async () => new Set(pods).isSubsetOf(new Set(await ips())));
      bridge = await macOf('cni0');
    });
    afterAll(() => sockets.dispose());

    const dropped = async (): Promise<number> =>
      (await ripstopJson<{ reason: string; packets: number }[]>(cluster.lab, node(), 'stats'))
        .filter(({ reason }) => reason === 'other_source')
        .reduce((sum, { packets }) => sum + packets, 0);
    const macOf = async (device: string): Promise<string> =>
      (await ipJson<{ address: string }>(['link', 'show', device], inNetns(node())))[0]!.address;

    /** Which of these texts have reached a pod, once the honest packet that is sent last has. */
    async function reached(texts: readonly string[]): Promise<string[]> {
      for (const to of [pod(1), far()]) out.send(frame(datagram(pod(0).ip, to.ip, 'the end')));
      const seen = new Set<string>();
      for (const victim of victims)
        await expect
          .poll(() => {
            for (let got = victim.receive(); got; got = victim.receive()) {
              const content = Buffer.from(got.frame).toString('latin1');
              for (const text of [...texts, 'the end']) if (content.includes(text)) seen.add(text);
              if (content.includes('the end')) return true;
            }
            return false;
          })
          .toBe(true);
      return texts.filter((text) => seen.has(text));
    }

    const frame = (packet: Uint8Array): Uint8Array =>
      ethernet({ dst: bridge, src: '02:00:00:00:00:66' }, packet);
    const datagram = (src: string, dst: string, text: string): Uint8Array =>
      ip({ src, dst }, udp({ src: 666, dst: 6666 }, Buffer.from(text)));
    const dresses = { plain: (bytes: Uint8Array) => bytes, tagged };

    it('sends from an address of others, also behind a tag of VLAN 0, which hides it from rules', async () => {
      const [lies, truths]: [string[], string[]] = [[], []];
      const send = (texts: string[], text: string, bytes: Uint8Array): void => {
        texts.push(text);
        expect(out.send(bytes)).toBeUndefined();
      };
      const before = await dropped();
      for (const family of FAMILIES)
        for (const [where, to] of [
          ['near', pod(1)],
          ['far', far()],
        ] as const) {
          const [own, dst] = [addressOf(pod(0), family), addressOf(to, family)];
          const others = [...[pod(1), far()].map((one) => addressOf(one, family)), OUTSIDE[family]];
          for (const [dress, put] of Object.entries(dresses)) {
            const text = `IPv${family} ${where} ${dress}.`;
            send(truths, `truth ${text}`, put(frame(datagram(own, dst, `truth ${text}`))));
            for (const src of others.filter((one) => one !== dst))
              send(lies, `lie ${src} ${text}`, put(frame(datagram(src, dst, `lie ${src} ${text}`))));
          }
          const twice = `lie twice IPv${family} ${where}.`;
          send(lies, twice, tagged(tagged(frame(datagram(addressOf(far(), family), dst, twice)))));
        }
      expect(await reached([...lies, ...truths])).toEqual(truths);
      expect((await dropped()) - before).toBe(lies.length);
    });

    it('sends as VXLAN, to whatever address of the node', async () => {
      const texts: string[] = [];
      const vtep = await macOf('flannel.1');
      const base = node().podCIDR.replace(/0\/24$/, '');
      await run('ip', ['address', 'add', '172.31.7.7/32', 'dev', 'lo'], inNetns(node()));
      try {
        const { by } = await during(async () => {
          for (const dst of [node().ip, '172.31.7.7', `${base}0`, `${base}1`, `${base}255`])
            for (const [dress, put] of Object.entries(dresses))
              for (const bytes of [0, 8, 48]) {
                const text = `VXLAN to ${dst} ${dress} in pieces of ${bytes}.`;
                texts.push(text);
                const inner = ethernet(
                  { dst: vtep, src: '02:00:00:00:00:66' },
                  datagram(far().ip, pod(1).ip, text),
                );
                const outer = udp({ src: 40_000, dst: 8472 }, vxlan({}, inner));
                const fields = { src: pod(0).ip, dst, id: texts.length };
                const packets = bytes === 0 ? [ip(fields, outer)] : fragments(fields, outer, bytes);
                for (const packet of packets) expect(out.send(put(frame(packet)))).toBeUndefined();
              }
          expect(await reached(texts)).toEqual([]);
        });
        expect(by['from_pod drop_vxlan_from_pod']).toBe(texts.length);
      } finally {
        await run('ip', ['address', 'del', '172.31.7.7/32', 'dev', 'lo'], inNetns(node()));
      }
    });
  });

  it('has programs on the uplink, on flannel’s VTEP devices and on the ports of pods only', async () => {
    const status = await ripstopJson<{ attached: { hook: string; device: string }[] }>(
      cluster.lab,
      node(),
      'status',
    );
    const others = status.attached.filter(({ device }) => !device.startsWith('veth'));
    expect(others.map(({ hook, device }) => `${hook} ${device}`).toSorted()).toEqual([
      'from_vtep flannel-v6.1',
      'from_vtep flannel.1',
      'from_wire eth0',
      'to_vtep flannel-v6.1',
      'to_vtep flannel.1',
      'to_wire eth0',
    ]);
  });

  it('says that it is boosted, and that flannel’s device was found', async () => {
    const status = await ripstopJson<{ agent: { mode: string; uplink: { explanation: string } } }>(
      cluster.lab,
      node(),
      'status',
    );
    expect(status.agent).toMatchObject({
      mode: 'boost',
      uplink: { explanation: 'eth0 (172.31.0.1, fd00:31::1): flannel.1 sends from there' },
    });
  });

  it('takes its peers from flannel’s own entries where it knows no API server', async () => {
    await stopAgent(cluster.lab, node());
    const command = ripstopCommand(cluster.lab, node(), 'agent');
    const [program, ...args] = command.toSpliced(command.indexOf('--kubeconfig'), 2);
    const agent = startIn(node().netns, program!, ...args, '--mode', 'boost');
    try {
      const peers = () => ripstopJson<{ node?: string; podCidr?: string }[]>(cluster.lab, node(), 'peers');
      const { ip, podCIDR } = cluster.nodes[1]!;
      await expect
        .poll(peers, { timeout: 15_000 })
        .toContainEqual(expect.objectContaining({ node: ip, podCidr: podCIDR, fastPath: true }));
      await expect.poll(() => talksFast(far()), { timeout: 5000 }).toBe(true);
    } finally {
      await agent.stop();
      await startAgent(cluster.lab, node());
    }
  }, 60_000);

  it('goes on while no agent runs: new pods take the kernel path, and nothing is lost', async () => {
    await stopAgent(cluster.lab, node(), 'SIGKILL');
    const added = await addPod(cluster.lab, node());
    await serveIn(added);
    for (const [from, to] of [
      [added, pod(0)],
      [pod(0), added],
      [far(), added],
      [added, far()],
    ] as const)
      await talkBoth(from, to.ip);
    await startAgent(cluster.lab, node());
    await expect.poll(() => talksFast(added), { timeout: 5000 }).toBe(true);
  });

  it('raises an alarm while host-local has leased a pod’s address to nobody', async () => {
    const { ip } = pod(1);
    const alarms = async () => {
      await nudge(node());
      const { agent } = await ripstopJson<{ agent: AgentStatus }>(cluster.lab, node(), 'status');
      return agent.alarms.map(({ reason }) => reason).filter((reason) => reason.includes(ip));
    };
    await ping(pod(1), far().ip, 1);
    expect(await alarms()).toEqual([]);
    const file = join(nodeDir(cluster.lab, node()), 'ipam/cbr0', ip);
    renameSync(file, `${file}.gone`);
    const why = expect.stringMatching(
      /^the kernel has .* host-local has leased that address to nobody$/,
    ) as string;
    await expect.poll(alarms, { timeout: 30_000, interval: 500 }).toEqual([why]);
    renameSync(`${file}.gone`, file);
    await expect.poll(alarms, { timeout: 30_000, interval: 500 }).toEqual([]);
  }, 90_000);

  it('follows flannel to another VNI without a restart, also where its former devices stay', async () => {
    const agent = node().agentPid;
    for (const [vni, leaves] of [
      [7, true],
      [9, false],
    ] as const) {
      for (const one of cluster.nodes) await renumber(cluster.lab, one, vni, leaves);
      await expect.poll(() => talksFast(far()), { timeout: 30_000 }).toBe(true);
      await talkBoth(pod(0), addressOf(far(), 6));
    }
    expect(node().agentPid).toBe(agent);
    expect(agentLog(cluster.lab, node())).toContain('"is":{"vni":9,"port":8472,"uplink":"eth0"}');
  }, 90_000);
});

/** What flannel does on a node that starts with another VNI: devices, entries of peers, and its annotations. */
async function renumber(lab: Lab, node: NodeState, vni: number, leavesFormer: boolean): Promise<void> {
  const others = lab.state.nodes.filter((one) => one !== node);
  const macOf = ({ family }: { family: number }, { name }: NodeState) => {
    const end = name.replace(/\D/g, '').padStart(2, '0');
    return `02:00:00:0${family}:${String(vni).padStart(2, '0')}:${end}`;
  };
  const peers = others.flatMap((other) =>
    familyParts(other).map((part) => ({ ...part, mac: macOf(part, other) })),
  );
  const deviceOf = (family: Family) => `flannel${family === 6 ? '-v6' : ''}.${vni}`;
  const links = await ipJson<{ ifname: string }>(['link', 'show', 'type', 'vxlan'], inNetns(node));
  const parts = familyParts(node);
  await ipBatch(
    [
      ...(leavesFormer ? [] : links.map(({ ifname }) => `link del ${ifname}`)),
      ...parts.flatMap((part) => {
        const device = deviceOf(part.family);
        return [
          `link add ${device} address ${macOf(part, node)} mtu 1450 type vxlan id ${vni} local ${part.ip} dev eth0 dstport 8472 nolearning`,
          `address add ${parseCidr(part.podCIDR).base} dev ${device}`,
          `link set ${device} up`,
        ];
      }),
      ...peers.map(
        ({ family, podCIDR, mac }) =>
          `neigh replace ${parseCidr(podCIDR).base} lladdr ${mac} dev ${deviceOf(family)} nud permanent`,
      ),
    ],
    inNetns(node),
  );
  const fdb = peers.map(({ family, ip, mac }) => `fdb replace ${mac} dev ${deviceOf(family)} dst ${ip}`);
  await bridgeBatch(fdb, inNetns(node));
  await ipBatch(
    peers.flatMap(({ family, podCIDR }) => {
      const route = `${podCIDR} via ${parseCidr(podCIDR).base} dev ${deviceOf(family)} onlink`;
      // Of IPv6 the kernel takes no route whose gateway another device leads to.
      return [...(family === 6 && leavesFormer ? [`route del ${podCIDR}`] : []), `route replace ${route}`];
    }),
    inNetns(node),
  );
  const data = parts.map((part) => [
    `${FLANNEL_ANNOTATION}/${FLANNEL_NAMES[part.family].backendData}`,
    JSON.stringify({ VNI: vni, VtepMAC: macOf(part, node) }),
  ]);
  await patchNodeStatus(lab, node.name, { metadata: { annotations: Object.fromEntries(data) as object } });
}

describe.skipIf(missingHere('iptables-restore'))(
  'a flannel node that is boosted several times, and left alone again',
  () => {
    const { cluster, during } = useTalkingLab('boosts', { datapath: 'flannel,ripstop' });
    const node = () => cluster.nodes[0]!;

    it('loses nothing, and is as before each time', async () => {
      // The kernel asks whether anybody has a new address.
      await expect
        .poll(() => run('ip', ['-6', 'address', 'show', 'tentative'], inNetns(node())), { timeout: 5000 })
        .toBe('');
      const before = await stateOf(node());
      await during(async () => {
        for (let i = 0; i < TIMES; i++) {
          await boost(cluster.lab, node());
          expect(await liberal(node())).toBe('1');
          await unboost(cluster.lab, node());
          expect(await stateOf(node())).toEqual(before);
        }
      });
    }, 120_000);
  },
);
