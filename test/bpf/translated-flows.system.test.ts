// SPDX-License-Identifier: Apache-2.0
/**
 * Flows that the kernel path was seen to translate, for a Service or by masquerading: the fast path writes the same
 * addresses and ports, and keeps every checksum right.
 */
import { describe, expect, it } from 'vitest';
import { ip, protocols, sealed, tcp, udp } from '../../src/net/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import { chosenOf, delivered, encapsulated, ipBytes, podFrame, tunnelled } from './frames.ts';
import { directSettings, type Flow, type Side, sides } from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;

interface Ends {
  readonly src: string;
  readonly dst: string;
  readonly src_port: number;
  readonly dst_port: number;
}

/** How the checksum of a datagram begins: right, or none at all. */
type Checksum = 'sealed' | 'none';

/** An IP packet between these ends. */
function packetOf(
  { src, dst, src_port, dst_port }: Ends,
  protocol: number,
  data: Uint8Array,
  { ttl = 64, tos = 0, checksum = 'sealed' }: { ttl?: number; tos?: number; checksum?: Checksum } = {},
): Uint8Array {
  const port = { src: src_port, dst: dst_port };
  const payload = protocol === TCP ? tcp(port, data) : udp(port, data);
  const packet = ip({ src, dst, protocol, ttl, tos, id: 77 }, payload);
  return checksum === 'sealed' ? sealed(packet) : packet;
}

const odd = Uint8Array.of(1, 2, 3, 4, 5);

/** A direction of a connection as it comes in, what it leaves as, and where it leads. */
interface Case {
  readonly says: string;
  readonly comes: Ends;
  readonly leaves: Ends;
}

function casesOf({ podOf, pods, service }: Side) {
  const { sender, near } = pods;
  const far = podOf(1, 7);
  const client = { src_port: 40000, dst_port: 80 };
  const answer = { src_port: 8080, dst_port: 40000 };
  return {
    toFar: [
      {
        says: 'through a Service to another node',
        comes: { src: sender.ip, dst: service, ...client },
        leaves: { src: sender.ip, dst: far, src_port: 40000, dst_port: 8080 },
      },
      {
        says: 'of an answer through a Service of the other node',
        comes: { src: sender.ip, dst: far, ...answer },
        leaves: { src: service, dst: far, src_port: 80, dst_port: 40000 },
      },
      {
        says: 'of all four: addresses and ports',
        comes: { src: sender.ip, dst: service, ...client },
        leaves: { src: podOf(3, 0), dst: far, src_port: 61000, dst_port: 8080 },
      },
      {
        says: 'of the port alone',
        comes: { src: sender.ip, dst: far, ...client },
        leaves: { src: sender.ip, dst: far, src_port: 40000, dst_port: 8080 },
      },
      {
        says: 'of the address alone',
        comes: { src: sender.ip, dst: service, ...client },
        leaves: { src: sender.ip, dst: far, ...client },
      },
    ] satisfies Case[],
    toNear: [
      {
        says: 'through a Service to a pod of this node',
        comes: { src: sender.ip, dst: service, ...client },
        leaves: { src: sender.ip, dst: near.ip, src_port: 40000, dst_port: 8080 },
      },
      {
        says: 'of an answer of a pod of this node',
        comes: { src: sender.ip, dst: podOf(3, 30), ...answer },
        leaves: { src: service, dst: near.ip, src_port: 80, dst_port: 40000 },
      },
    ] satisfies Case[],
    fromFar: [
      {
        says: 'of an answer through a Service',
        comes: { src: far, dst: near.ip, ...answer },
        leaves: { src: service, dst: near.ip, src_port: 80, dst_port: 40000 },
      },
      {
        says: 'of an answer to what was masqueraded',
        comes: { src: far, dst: podOf(3, 0), src_port: 80, dst_port: 61000 },
        leaves: { src: far, dst: near.ip, src_port: 80, dst_port: 40000 },
      },
      {
        says: 'through a Service of this node',
        comes: { src: far, dst: service, ...client },
        leaves: { src: far, dst: near.ip, src_port: 40000, dst_port: 8080 },
      },
    ] satisfies Case[],
  };
}

/** What the flow table says of a case. */
const learnedOf = ({ comes, leaves }: Case, protocol: number) => {
  const flow: Flow = { ...comes, protocol };
  return [{ flow, out: leaves }];
};

interface Kind {
  readonly says: string;
  readonly protocol: number;
  readonly checksum: Checksum;
  readonly data: Uint8Array;
}
const kinds: readonly Kind[] = [
  { says: 'TCP', protocol: TCP, checksum: 'sealed', data: odd },
  { says: 'UDP', protocol: UDP, checksum: 'sealed', data: odd },
  { says: 'UDP without a checksum, which stays without,', protocol: UDP, checksum: 'none', data: odd },
];

/** Each case with each kind of packet. */
const each = (cases: readonly Case[], fixture: (one: Case, kind: Kind) => Omit<Fixture, 'says'>): Fixture[] =>
  cases.flatMap((one) =>
    kinds.map((kind) => ({ says: `rewrites ${kind.says} ${one.says}`, ...fixture(one, kind) })),
  );

const ipPart = (packet: Uint8Array): Uint8Array => packet.subarray(14);
const frameFromPod = (side: Side, packet: Uint8Array): Uint8Array =>
  Uint8Array.from([...podFrame(side).subarray(0, 14), ...packet]);

for (const side of sides) {
  const { toFar, toNear, fromFar } = casesOf(side);
  const { near } = side.pods;
  const { one } = side.peers;
  const title = `IPv${side.family}, translation`;

  runFixtures('from_pod', title, {
    'to another node': each(toFar, (each, { protocol, data, ...kind }) => ({
      packet: frameFromPod(side, packetOf(each.comes, protocol, data, { ...kind, tos: 2 })),
      flows: learnedOf(each, protocol),
      verdict: 'fast encap',
      out: (packet) =>
        encapsulated(side, one, packetOf(each.leaves, protocol, data, { ...kind, ttl: 63, tos: 2 }), {
          ...chosenOf(packet),
          ecn: 2,
        }),
    })),
    'on this node': each(toNear, (each, { protocol, data, ...kind }) => ({
      packet: frameFromPod(side, packetOf(each.comes, protocol, data, kind)),
      flows: learnedOf(each, protocol),
      verdict: 'fast local',
      out: delivered(near, packetOf(each.leaves, protocol, data, kind)),
    })),
  });

  runFixtures(
    'from_pod',
    title,
    {
      'to a peer on our L2': each(toFar, (each, { protocol, data, ...kind }) => ({
        packet: frameFromPod(side, packetOf(each.comes, protocol, data, kind)),
        flows: learnedOf(each, protocol),
        verdict: 'fast direct',
        out: frameFromPod(side, packetOf(each.leaves, protocol, data, { ...kind, ttl: 63 })),
      })),
    },
    directSettings,
  );

  runFixtures('from_wire', title, {
    'from another node': each(fromFar, (each, { protocol, data, ...kind }) => ({
      packet: tunnelled(side, one, packetOf(each.comes, protocol, data, { ...kind, ttl: 63, tos: 2 }), {
        outer: { tos: 3 },
      }),
      flows: learnedOf(each, protocol),
      verdict: 'fast decap',
      out: delivered(near, packetOf(each.leaves, protocol, data, { ...kind, ttl: 62, tos: 3 })),
    })),
  });
}

describeOnNode('translation, packet by packet', (node) => {
  describe.each(sides)('IPv$family', (side) => {
    const [example] = casesOf(side).toNear;
    const rewrite = (protocol: number, data: Uint8Array): Uint8Array => {
      const frame = frameFromPod(side, packetOf(example!.comes, protocol, data));
      return ipPart(node().run('from_pod', frame).packet);
    };
    const checksumOf = (packet: Uint8Array): number => {
      const at = ipBytes[side.family] + 6;
      return (packet[at]! << 8) | packet[at + 1]!;
    };

    it('writes a UDP checksum that comes out as zero as all ones, and takes all ones for zero', () => {
      using _ = node().learn(learnedOf(example!, UDP));
      const found = { comes: 0, leaves: 0 };
      for (let word = 0; word < 65536; word++) {
        const data = Uint8Array.of(word >>> 8, word & 255);
        const expected = packetOf(example!.leaves, UDP, data);
        const isComing = checksumOf(packetOf(example!.comes, UDP, data)) === 0xffff;
        const isLeaving = checksumOf(expected) === 0xffff;
        if (!isComing && !isLeaving) continue;
        expect(rewrite(UDP, data)).toEqual(expected);
        found.comes += Number(isComing);
        found.leaves += Number(isLeaving);
      }
      expect(found).toEqual({ comes: 1, leaves: 1 });
    });

    it('writes right checksums for random packets', () => {
      const random = new Random(1071);
      for (let round = 0; round < 300; round++) {
        const protocol = random.pick([TCP, UDP]);
        const comes = { ...example!.comes, src_port: random.below(65536), dst_port: random.below(65536) };
        const leaves = { ...example!.leaves, src_port: random.below(65536), dst_port: random.below(65536) };
        const data = Uint8Array.from({ length: random.below(64) }, () => random.below(256));
        using _ = node().learn(learnedOf({ says: '', comes, leaves }, protocol));
        const frame = frameFromPod(side, packetOf(comes, protocol, data));
        const { verdict, packet } = node().run('from_pod', frame);
        expect({ round, verdict, packet: ipPart(packet) }).toEqual({
          round,
          verdict: 'fast',
          packet: packetOf(leaves, protocol, data),
        });
      }
    });
  });
});
