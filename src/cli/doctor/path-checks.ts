// SPDX-License-Identifier: Apache-2.0
/** Checks between nodes: what probes and counters say of the way to peers. */
import { type Check, check, code, fail, type Problem, some, warn } from './check.ts';
import type { ProbedPeer, Probes } from './facts.ts';

/** Bytes that VXLAN adds, by family of the outer packet. */
const overhead = (vtepIp: string): number => (vtepIp.includes(':') ? 70 : 50);

/** So many wrong checksums, and this share of what arrived, are no accident of the wire. */
const WRONG_MIN = 10;
const WRONG_SHARE = 1e-4;

const names = (probed: readonly ProbedPeer[]): string =>
  some(probed.map(({ name, vtepIp }) => (name === vtepIp ? name : `${name} (${vtepIp})`)));

const sampleText = ({ peers, probed }: Probes): string =>
  probed.length < peers ? `; ${probed.length} of ${peers} peers were asked` : '';

export const pathChecks: readonly Check[] = [
  check(
    'underlay',
    {
      ok: 'peers answer on their own addresses',
      needs: ['probes'],
      symptom: 'All pods of a node are unreachable, and the node too.',
      cause:
        'The node is down, there is no route to it, or a firewall drops ICMP (then pods may talk all the same).',
      cure: 'See whether the node runs, and whether `ping NODE` works from here.',
    },
    ({ probes }) => {
      const silent = probes.probed.filter(
        ({ underlay, tunnel }) => underlay !== 'answered' && tunnel !== 'answered',
      );
      if (silent.length === 0) return [];
      const isUnrouted = silent.every(({ underlay }) => underlay === 'unreachable');
      return [
        fail(
          `${names(silent)} ${silent.length === 1 ? 'does' : 'do'} not answer${sampleText(probes)}`,
          isUnrouted
            ? 'this node has no route there'
            : 'the node is down, or something on the way drops ICMP and VXLAN alike',
          `see the node, and from here: ${code(`ping ${silent[0]!.vtepIp}`)}`,
        ),
      ];
    },
  ),
  check(
    'tunnel',
    {
      ok: 'peers answer through the tunnel',
      needs: ['probes'],
      symptom: 'Nodes reach each other, and pods do not.',
      cause:
        "A firewall, a security group or a cloud's network drops UDP port 8472 on the way, or the peer has " +
        'no tunnel: its ' +
        'flannel.1 is missing, or it does not know this node.',
      cure:
        'Allow UDP 8472 (`Port` of net-conf.json) between all nodes, both ways. If that is so, run ' +
        '`ripstop doctor` on the ' +
        'peer. `tcpdump -ni UPLINK udp port 8472` on both shows how far packets come.',
    },
    ({ probes }) => {
      const asked = probes.probed.filter(({ tunnel }) => tunnel !== undefined);
      if (probes.probed.length > 0 && asked.length === 0) return { skipped: 'this node has no VXLAN device' };
      const silent = asked.filter(({ underlay, tunnel }) => underlay === 'answered' && tunnel !== 'answered');
      if (silent.length === 0) return [];
      const { base } = silent[0]!;
      const isUnrouted = silent.every(({ tunnel }) => tunnel === 'unreachable');
      return [
        fail(
          `${names(silent)} ${silent.length === 1 ? 'answers' : 'answer'}, but not through the tunnel${sampleText(probes)}`,
          isUnrouted
            ? `this node has no route to ${base}, the peer's address in the tunnel`
            : 'something on the way drops VXLAN (UDP port 8472), or the peer has no tunnel to this node',
          isUnrouted
            ? 'see the check peer-entries'
            : 'allow UDP port 8472 between the nodes, both ways; if it is, run `ripstop doctor` on the peer',
        ),
      ];
    },
  ),
  check(
    'path-mtu',
    {
      ok: "pods' largest packets pass to peers",
      needs: ['probes'],
      symptom: 'Connections open, and hang with the first large packet; `ping` works, `curl` does not.',
      cause:
        "The way between the nodes carries less than the uplink's MTU says: a VPN, a cloud's overlay, one " +
        'switch without jumbo frames.',
      cure:
        'Raise the MTU on the way, or set `"MTU"` of net-conf.json\'s Backend to what passes, as doctor ' +
        'computes it, and restart the pods.',
    },
    ({ probes }) => {
      const cut = probes.probed.filter(({ largest, podMtu }) => largest !== undefined && largest < podMtu);
      if (probes.probed.length > 0 && probes.probed.every(({ largest }) => largest === undefined))
        return { skipped: 'no peer answers through the tunnel' };
      return Object.values(Object.groupBy(cut, ({ largest }) => String(largest))).map((group): Problem => {
        const { largest = 0, podMtu, vtepIp } = group![0]!;
        const passes =
          largest === 0 ? 'and none of 576 (IPv6: 1280) or more does' : `and ${largest} bytes are the most`;
        return fail(
          `packets of ${podMtu} bytes do not pass to ${names(group!)}, ${passes}${sampleText(probes)}`,
          'a link on the way has a smaller MTU than the uplink, and tells nobody',
          largest === 0
            ? 'raise the MTU on the way between the nodes'
            : `raise the MTU on the way by ${podMtu - largest} bytes, or set "MTU": ${largest + overhead(vtepIp)} ` +
                'in the Backend of net-conf.json, and restart the pods',
        );
      });
    },
  ),
  check(
    'checksums',
    {
      ok: 'packets arrive with right checksums',
      needs: ['checksums'],
      symptom:
        'Connections from nodes to Services take 63 seconds, or 1, 3, 7, …; some NICs and virtual switches only.',
      cause:
        'A NIC or its driver computes the checksum of packets inside VXLAN wrongly, so the receiver drops them.',
      cure:
        'On the nodes that send: `ethtool -K flannel.1 tx-checksum-ip-generic off`; if that does not ' +
        'help, the same on the uplink.',
    },
    ({ checksums }) => {
      const bad = checksums.filter(
        ({ wrong, received }) => wrong >= WRONG_MIN && wrong > received * WRONG_SHARE,
      );
      if (bad.length === 0) return [];
      const { where, wrong } = bad[0]!;
      return [
        warn(
          `${bad
            .map((one) => one.where)
            .slice(0, 3)
            .join(', ')} got packets with wrong checksums: ${where} ${wrong} since its start`,
          "a sender's NIC computes checksums inside VXLAN wrongly, or the wire damages packets",
          'on the nodes that send: `ethtool -K flannel.1 tx-checksum-ip-generic off`. Run this again to see ' +
            'whether the count grows',
        ),
      ];
    },
  ),
];
