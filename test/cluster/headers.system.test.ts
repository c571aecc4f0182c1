// SPDX-License-Identifier: Apache-2.0
import { beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../../src/host/run.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { type NodeState, underlayNetns } from '../../src/lab/index.ts';
import { type Packet, type Tunnelled, captureDuring, tunnelled } from '../support/capture.ts';
import { addressesOf, inNetns, missingHere, podOf, serveIn, talkTcp, talkUdp, useLab } from './support.ts';

const EXPEDITED = 46 << 2; // a DSCP (RFC 3246), which nothing may change
const ECT_0 = 2;
const ECT_1 = 1;
const CE = 3;
const TCP = 6;
const UDP = 17;

describe.skipIf(missingHere('tcpdump', 'nft'))(
  'the headers between two ripstop nodes and a flannel node',
  () => {
    const cluster = useLab('headers', {
      datapath: 'ripstop,ripstop,flannel',
      pods: 2,
      wire: 'mtu',
      ipv6: true,
    });
    const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
    const underlay = () => ({ netns: underlayNetns(cluster.lab.name) });

    beforeAll(async () => {
      await Promise.all([pod(1, 1), pod(2), pod(3)].map((one) => serveIn(one)));
    });

    /** Ping with these options. Returns its output. */
    async function pinged(from: { netns: string }, address: string, ...options: string[]): Promise<string> {
      const { stdout } = await tryRun(
        'ping',
        ['-n', '-c', '1', '-W', '1', ...options, address],
        inNetns(from),
      );
      return stdout;
    }

    /** The packets on a node's cable, and to its first pod, during `work`. */
    async function seenAt(
      node: NodeState,
      work: () => Promise<unknown>,
    ): Promise<{ wire: Tunnelled[]; pod: Packet[] }> {
      const [wire, inPod] = await captureDuring(
        [
          { ...underlay(), device: node.name, filter: ['udp port 8472'] },
          { netns: podOf(node).netns, device: 'eth0', filter: ['-Q', 'in', 'ip or ip6'] },
        ],
        work,
      );
      return { wire: tunnelled(wire!), pod: inPod! };
    }

    /** All addresses of a node, including the gateways of its pods. */
    async function ownAddresses(node: NodeState): Promise<string[]> {
      const links = await ipJson<{ addr_info: { local: string }[] }>(['address'], inNetns(node));
      return links.flatMap(({ addr_info }) => addr_info.map(({ local }) => local));
    }

    it('count each node as one hop, also between its own pods (row 57)', async () => {
      for (const address of addressesOf(pod(1, 1)))
        expect(await pinged(pod(1), address, '-c', '3', '-i', '0.01')).toMatch(/(ttl=63 [^]*){3}/);
      for (const to of [pod(2), pod(3)]) {
        const { pod: received } = await seenAt(cluster.nodes[to === pod(2) ? 1 : 2]!, async () => {
          for (const address of addressesOf(to)) expect(await pinged(pod(1), address)).toContain('ttl=62 ');
        });
        const echoes = received.filter(({ src }) => addressesOf(pod(1)).includes(src));
        expect(echoes.map(({ family, ttl }) => ({ family, ttl }))).toEqual([
          { family: 4, ttl: 62 },
          { family: 6, ttl: 62 },
        ]);
      }
    });

    it('expire with time exceeded at the first node, and at the second (row 57)', async () => {
      const [one, two] = cluster.nodes;
      for (const address of addressesOf(pod(2))) {
        for (const [ttl, node] of [
          ['1', one!],
          ['2', two!],
        ] as const) {
          const answer = await pinged(pod(1), address, '-t', ttl);
          expect(answer).toMatch(/Time to live exceeded|Time exceeded: Hop limit/);
          expect(await ownAddresses(node)).toContain(/From (\S+) icmp_seq/.exec(answer)?.[1]);
        }
        expect(await pinged(pod(1), address, '-t', '3')).toContain('1 received');
      }
    });

    it.each([2, 3])(
      'are flannel’s on the way to and from node %i, whatever is inside (row 59)',
      async (node) => {
        const to = pod(node);
        const { wire, pod: received } = await seenAt(cluster.nodes[node - 1]!, async () => {
          for (const address of addressesOf(to)) {
            for (const tos of [0, EXPEDITED, EXPEDITED | ECT_0, ECT_1, EXPEDITED | CE])
              expect(await pinged(pod(1), address, '-Q', String(tos))).toContain('1 received');
          }
        });
        // The request and its answer, for each TOS in each family.
        expect(wire).toHaveLength(20);
        for (const { family, vni, ttl, tos, df, dstPort, inner } of wire) {
          expect({ vni, ttl, dstPort, family: inner.family }).toEqual({
            vni: 1,
            ttl: 64,
            dstPort: 8472,
            family,
          });
          if (family === 4) expect(df).toBe(false);
          // For a packet with CE the kernel's outer header has only ECT(0) (RFC 3168).
          const ecn = inner.tos & 3;
          expect(tos).toBe(ecn === CE ? ECT_0 : ecn);
          expect(inner.ttl).toBe(63);
        }
        const tosOf = (packets: Packet[]) => packets.map(({ tos }) => tos);
        const sent = [0, EXPEDITED, EXPEDITED | ECT_0, ECT_1, EXPEDITED | CE];
        expect(tosOf(received.filter(({ src }) => addressesOf(pod(1)).includes(src)))).toEqual([
          ...sent,
          ...sent,
        ]);
      },
    );

    it('tell the receiver of congestion on the wire, and are dropped when that is impossible (row 59, RFC 6040)', async () => {
      const [, two] = cluster.nodes;
      // A congested switch, in a netdev egress hook, where frames are complete.
      const table = `
      table netdev congestion {
        chain out { type filter hook egress device "node2" priority 0;
          ip protocol udp udp dport 8472 ip ecn set ce
          ip6 nexthdr udp udp dport 8472 ip6 ecn set ce
        }
      }`;
      await run('nft', ['-f', '-'], { ...inNetns(underlay()), stdin: table });
      try {
        for (const from of [pod(1), pod(3)]) {
          // The first of three takes the kernel path, the others the fast path.
          const three = ['-c', '3', '-i', '0.01'];
          const { pod: received } = await seenAt(two!, async () => {
            for (const address of addressesOf(pod(2))) {
              for (const ecn of [ECT_0, ECT_1])
                expect(await pinged(from, address, '-Q', String(EXPEDITED | ecn), ...three)).toContain(
                  '3 received',
                );
              expect(await pinged(from, address, '-Q', String(EXPEDITED), ...three)).toContain('0 received');
            }
          });
          const given = received.filter(({ src }) => addressesOf(from).includes(src));
          expect(given.map(({ tos }) => tos)).toEqual(Array(12).fill(EXPEDITED | CE));
        }
      } finally {
        await run('nft', ['delete', 'table', 'netdev', 'congestion'], inNetns(underlay()));
      }
    });

    it('have one outer source port for a flow, from the local range, and different ones for different flows', async () => {
      const [one, two] = cluster.nodes;
      const [low = 0, high = 0] = (await run('sysctl', ['-n', 'net.ipv4.ip_local_port_range'], inNetns(one!)))
        .trim()
        .split('\t')
        .map(Number);
      const { wire } = await seenAt(two!, async () => {
        for (const address of addressesOf(pod(2))) {
          await Promise.all(Array.from({ length: 4 }, () => talkTcp(pod(1), address, 200_000)));
          await Promise.all(Array.from({ length: 4 }, () => talkUdp(pod(1), address)));
        }
      });
      for (const family of [4, 6]) {
        for (const protocol of [TCP, UDP]) {
          for (const direction of [pod(1), pod(2)]) {
            const portsOf = new Map<string, Set<number>>();
            for (const { inner, srcPort } of wire) {
              if (
                inner.family !== family ||
                inner.protocol !== protocol ||
                !addressesOf(direction).includes(inner.src)
              )
                continue;
              const flow = `${inner.srcPort} ${inner.dstPort}`;
              portsOf.set(flow, (portsOf.get(flow) ?? new Set()).add(srcPort));
              expect(srcPort).toBeGreaterThanOrEqual(low);
              expect(srcPort).toBeLessThanOrEqual(high);
            }
            expect([...portsOf.values()].map(({ size }) => size)).toEqual([1, 1, 1, 1]);
            const distinct = new Set([...portsOf.values()].flatMap((ports) => [...ports]));
            expect(distinct.size).toBeGreaterThan(1);
          }
        }
      }
    });

    it('leave out the outer checksum where programs encapsulate, and only if the receiver does not require it', async () => {
      for (const [node, without] of [
        [2, { 4: [0.5, 1], 6: [0.5, 1] }],
        [3, { 4: [0.5, 1], 6: [0, 0] }],
      ] as const) {
        const to = pod(node);
        const { wire } = await seenAt(cluster.nodes[node - 1]!, async () => {
          for (const address of addressesOf(to)) {
            await talkTcp(pod(1), address, 200_000);
            await talkUdp(pod(1), address);
            await pinged(pod(1), address);
          }
        });
        const ours = wire.filter(({ src }) => addressesOf(cluster.nodes[0]!).includes(src));
        for (const family of [4, 6] as const) {
          const seen = ours.filter((packet) => packet.family === family);
          expect(seen.length).toBeGreaterThan(20);
          const share = seen.filter(({ udpChecksum }) => udpChecksum === 0).length / seen.length;
          expect(share).toBeGreaterThanOrEqual(without[family][0]);
          expect(share).toBeLessThanOrEqual(without[family][1]);
        }
      }
    });
  },
);
