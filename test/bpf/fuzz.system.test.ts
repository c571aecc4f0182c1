// SPDX-License-Identifier: Apache-2.0
/**
 * A short, seeded fuzz: packets that the fast path takes, with bytes changed, cut, repeated and put in. Whatever comes, a
 * program must give a verdict, and the fast path must take nothing whose headers are broken; what is sound is written
 * down here once more, from the RFCs, and not from the programs.
 */
import { expect, it } from 'vitest';
import { ipv4ToInt } from '../../src/net/ip.ts';
import { tcp, udp } from '../support/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, hexDump } from './fixtures.ts';
import { podFrame, wireFrame } from './frames.ts';
import { peers, pods, settings } from './node.ts';

const ROUNDS = 2000;

const u16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;
const address = (bytes: Uint8Array, at: number): string => bytes.subarray(at, at + 4).join('.');
const mac = (bytes: Uint8Array, at: number): string =>
  Buffer.from(bytes.subarray(at, at + 6)).toString('hex');

/** What is wrong with the IPv4 packet in `bytes` from `at` on, as far as a forwarder must know; undefined when nothing is. */
function ipv4Fault(bytes: Uint8Array, at: number): string | undefined {
  if (u16(bytes, at - 2) !== 0x0800) return 'another ethertype';
  if (bytes.length < at + 20) return 'a header cut off';
  if (bytes[at] !== 0x45) return 'another version, or options';
  if (u16(bytes, at + 2) < 20) return 'a length short of the header';
  if (u16(bytes, at + 2) > bytes.length - at) return 'a length beyond the packet';
  return undefined;
}

function podFault(bytes: Uint8Array): string | undefined {
  const fault = ipv4Fault(bytes, 14);
  if (fault) return fault;
  if (address(bytes, 26) !== pods.sender.ip) return 'another source';
  if (ipv4ToInt(address(bytes, 30)) >>> 16 !== ipv4ToInt(settings.network.base) >>> 16) return 'to no pod';
  return undefined;
}

function wireFault(bytes: Uint8Array): string | undefined {
  const outer = ipv4Fault(bytes, 14);
  if (outer) return `outer: ${outer}`;
  if (u16(bytes, 16) !== bytes.length - 14) return 'outer: a length that is not the packet’s';
  if ((u16(bytes, 20) & 0x3fff) !== 0) return 'an outer fragment';
  if (bytes[23] !== 17 || u16(bytes, 36) !== settings.port) return 'no VXLAN';
  if (u16(bytes, 38) !== bytes.length - 34) return 'a UDP length that is not the packet’s';
  if (address(bytes, 30) !== settings.uplink.ip) return 'for another node';
  if (Buffer.from(bytes.subarray(42, 50)).toString('hex') !== '0800000000000100')
    return 'another VXLAN header';
  if (mac(bytes, 50) !== settings.vtepMac.replaceAll(':', '')) return 'for another VTEP';
  const inner = ipv4Fault(bytes, 64);
  if (inner) return `inner: ${inner}`;
  if (bytes[72]! <= 1) return 'a TTL that ends here';
  // The peer behind NAT may come from anywhere, the others from their own address alone.
  const sender = Object.values(peers).find((peer) =>
    address(bytes, 76).startsWith(peer.podCidr.base.slice(0, -1)),
  );
  if (!sender || !(sender.behindNat || sender.vtepIp === address(bytes, 26))) return 'a spoofed source';
  if (!Object.values(pods).some((pod) => pod.ip === address(bytes, 80))) return 'for no pod';
  return undefined;
}

/** Bytes that headers are sensitive to. */
const INTERESTING = [0, 1, 0x44, 0x45, 0x46, 0x4f, 0x7f, 0x80, 0xff] as const;

function mutate(packet: Uint8Array, random: Random): Uint8Array {
  let bytes = [...packet];
  const changes = 1 + random.below(3);
  for (let change = 0; change < changes; change++) {
    const at = random.below(Math.min(bytes.length, 100));
    switch (random.below(5)) {
      case 0:
        bytes[at]! ^= 1 << random.below(8);
        break;
      case 1:
        bytes[at] = random.below(256);
        break;
      case 2:
        bytes[at] = random.pick(INTERESTING);
        break;
      case 3:
        bytes = bytes.slice(0, 34 + random.below(bytes.length - 33)); // no test run takes less
        break;
      default:
        bytes.splice(at, 0, ...bytes.slice(at, at + 1 + random.below(8)));
    }
  }
  return Uint8Array.from(bytes);
}

const payloads = [
  tcp({ src: 40000, dst: 80 }),
  udp({ src: 40000, dst: 53 }),
  tcp({ src: 1, dst: 2 }, new Uint8Array(600)),
];
const programs = [
  {
    program: 'from_pod',
    fault: podFault,
    seeds: payloads.flatMap((payload) => [podFrame({}, payload), podFrame({ dst: pods.near.ip }, payload)]),
  },
  {
    program: 'from_wire',
    fault: wireFault,
    seeds: payloads.flatMap((payload) => [
      wireFrame({}, payload),
      wireFrame({ outer: { src: '203.0.113.77' }, inner: { src: '10.42.9.7' } }, payload),
    ]),
  },
] as const;

describeOnNode('fuzzed', (node) => {
  it.each(programs)(`$program takes none of ${ROUNDS} broken packets`, ({ program, fault, seeds }) => {
    const random = new Random(0x7eed);
    const verdicts = new Map<string, number>();
    for (let round = 0; round < ROUNDS; round++) {
      const packet = mutate(random.pick(seeds), random);
      const outcome = node().run(program, packet);
      verdicts.set(outcome.verdict, (verdicts.get(outcome.verdict) ?? 0) + 1);
      const told = `round ${round}: ${outcome.counted}\n${hexDump(packet)}`;
      expect(outcome.counted, told).toMatch(new RegExp(`^${program}: ${outcome.verdict} \\w+$`));
      if (outcome.verdict === 'fast') expect(fault(packet), told).toBeUndefined();
      else expect(hexDump(outcome.packet), told).toBe(hexDump(packet));
    }
    // Both sides were met: a fuzz of which nothing gets through, or everything, tests nothing.
    expect(verdicts.get('fast')).toBeGreaterThan(ROUNDS / 20);
    expect(verdicts.get('stack')).toBeGreaterThan(ROUNDS / 5);
  });

  it('knows its seeds as sound', () => {
    for (const { program, fault, seeds } of programs)
      for (const seed of seeds)
        expect([fault(seed), node().run(program, seed).verdict]).toEqual([undefined, 'fast']);
  });
});
