// SPDX-License-Identifier: Apache-2.0
/** Dissecting, reassembling and recognizing frames. */
import { describe, expect, it } from 'vitest';
import { ethernet, ip, ipv4, udp, vxlan } from '../../src/net/packets.ts';
import { dissect, TCP, UDP } from './dissect.ts';
import { cut, isComplete, reassemble } from './reassemble.ts';
import { finished, icmpMessage, numberedTcp } from './segments.ts';
import { SEGMENTS_PORT, Tagger, tagOfCase, tagSequence } from './tags.ts';

const ends = { src: '10.42.0.2', dst: '10.42.1.2' };
const ends6 = { src: 'fd00:42:0:1::2', dst: 'fd00:42:0:2::2' };
const macs = { dst: '02:00:00:00:00:02', src: '02:00:00:00:00:01' };
const names = { of: (mac: string) => mac, address: (ip: string) => ip, masked: (hex: string) => hex };
const payload = Uint8Array.from({ length: 100 }, (_, i) => i);
const datagram = finished({ ...ends, protocol: UDP }, udp({ src: 4000, dst: 53 }, payload));
const frameOf = (packet: Uint8Array) => ethernet(macs, packet);
const arrival = (frame: Uint8Array, gsoSize?: number) =>
  ({ place: 'n2p1', isAnswer: false, received: { frame, ...(gsoSize && { gsoSize }) } }) as const;

/** The datagram in fragments of these sizes. */
function pieces(...sizes: number[]): Uint8Array[] {
  let at = 0;
  return sizes.map((size) => {
    const part = datagram.subarray(at, at + size);
    const fragment = (at + size < datagram.length ? 0x2000 : 0) | (at >>> 3);
    at += size;
    return frameOf(ipv4({ ...ends, id: 7, fragment }, part));
  });
}

describe('dissect', () => {
  it('names the field of every byte that differs', () => {
    const tunnel = udp({ src: 40000, dst: 8472 }, vxlan({}, frameOf(ipv4({ ...ends, ttl: 63 }, datagram))));
    const frame = frameOf(ipv4({ src: '172.31.0.1', dst: '172.31.0.2', options: [1, 1, 1, 0] }, tunnel));
    const fields = JSON.stringify(dissect({ frame }, names));
    for (let at = 0; at < frame.length; at++) {
      const changed = frame.slice();
      changed[at]! ^= 0x10;
      expect(JSON.stringify(dissect({ frame: changed }, names)), `byte ${at}`).not.toBe(fields);
    }
  });

  it('names fields of IPv6 that differ, in extension headers and fragment headers too', () => {
    const inner = ip({ ...ends6, fragment: 0x2000, id: 9 }, datagram);
    const tunnel = udp({ src: 40000, dst: 8472 }, vxlan({}, frameOf(inner)));
    const behind = Uint8Array.from([17, 0, 1, 4, 0, 0, 0, 0, ...tunnel]);
    const frame = frameOf(ip({ src: 'fd00:31::1', dst: 'fd00:31::2', protocol: 60 }, behind));
    const fields = dissect({ frame }, names);
    expect(fields).toMatchObject({ 'inner ip id': '9', 'inner ip flags': '1', 'vxlan vni': '1' });
    for (let at = 0; at < frame.length; at++) {
      const changed = frame.slice();
      changed[at]! ^= 0x10;
      expect(JSON.stringify(dissect({ frame: changed }, names)), `byte ${at}`).not.toBe(
        JSON.stringify(fields),
      );
    }
  });

  it('shows the error of a checksum', () => {
    const wrong = datagram.slice();
    wrong[20]! ^= 1;
    expect(dissect({ frame: frameOf(ipv4(ends, datagram)) }, names)).toMatchObject({
      'ip checksum': 'right',
      'udp checksum': 'right',
    });
    expect(dissect({ frame: frameOf(ipv4(ends, wrong)) }, names)['udp checksum']).toBe('wrong by 0x0100');
  });
});

describe('reassemble', () => {
  const whole = arrival(frameOf(ipv4({ ...ends, id: 7 }, datagram)));

  it('reassembles fragments in any order, with repetitions', () => {
    const [a, b, c] = pieces(8, 64, 36) as [Uint8Array, Uint8Array, Uint8Array];
    for (const order of [
      [a, b, c],
      [c, a, b],
      [c, b, b, a],
    ])
      expect(reassemble(order.map((frame) => arrival(frame)))).toEqual([
        { ...whole, fragments: [8, 64, 36] },
      ]);
  });

  it('reassembles fragments of IPv6 with any ids', () => {
    const part = (offset: number, end: number, id: number) => {
      const fragment = (end < datagram.length ? 0x2000 : 0) | (offset >>> 3);
      return arrival(frameOf(ip({ ...ends6, flowLabel: 5, id, fragment }, datagram.subarray(offset, end))));
    };
    const joined = arrival(frameOf(ip({ ...ends6, flowLabel: 5 }, datagram)));
    for (const id of [1, 2])
      expect(reassemble([part(64, 108, id), part(0, 64, id)])).toEqual([{ ...joined, fragments: [64, 44] }]);
    expect(reassemble([part(64, 108, 1), part(0, 64, 2)])).toHaveLength(2);
  });

  it('does not change incomplete datagrams, and whole ones', () => {
    const some = pieces(8, 64, 36)
      .slice(1)
      .map((frame) => arrival(frame));
    expect(reassemble(some)).toEqual(some);
    expect(reassemble([whole])).toEqual([whole]);
  });

  it('knows whether fragments are missing', () => {
    const all = pieces(8, 100);
    expect(isComplete(all)).toBe(true);
    expect(isComplete(all.slice(0, 1))).toBe(false);
    expect(isComplete([...all, all[0]!])).toBe(false);
  });
});

it('segments a super-packet like a device', () => {
  const fields = { ...ends, protocol: TCP, id: 100 };
  const segment = (seq: number, flags: number, data: Uint8Array) =>
    finished(fields, numberedTcp({ src: 1, dst: 2, seq, flags }, data));
  const packets = cut(arrival(frameOf(ipv4(fields, segment(5, 0x18, payload))), 60));
  expect(packets.map(({ received }) => received.frame)).toEqual([
    frameOf(ipv4(fields, segment(5, 0x10, payload.subarray(0, 60)))),
    frameOf(ipv4({ ...fields, id: 101 }, segment(65, 0x18, payload.subarray(60)))),
  ]);
});

describe('tags', () => {
  const tag = tagOfCase(41);
  const own = ipv4({ ...ends, id: tag }, datagram);
  const back = { src: ends.dst, dst: ends.src, id: 999 };
  const told = (packet: Uint8Array) => {
    const { tag, isAnswer } = new Tagger().tagOf(frameOf(packet))!;
    return { tag, isAnswer };
  };

  it.each([
    ['a packet', own],
    ['a packet in a tunnel', ipv4(ends, udp({ src: 40000, dst: 8472 }, vxlan({}, frameOf(own))))],
    [
      'a TCP segment',
      ipv4(
        { ...ends, protocol: TCP, id: tag + 3 },
        numberedTcp({ src: 1, dst: 2, seq: tagSequence(tag, 9) + 4000 }),
      ),
    ],
    ['a segment of UDP', ipv4({ ...ends, id: tag + 5 }, udp({ src: tag, dst: SEGMENTS_PORT }))],
  ])('tells whose %s is', (_, packet) => {
    expect(told(packet)).toEqual({ tag, isAnswer: false });
  });

  it.each([
    ['an ICMP error', ipv4({ ...back, protocol: 1 }, icmpMessage({ type: 3 }, own.subarray(0, 28), ends))],
    ['an echo reply', ipv4({ ...back, protocol: 1 }, icmpMessage({ type: 0, rest: tag }, payload, ends))],
    [
      'a reset',
      ipv4(
        { ...back, id: 0, protocol: TCP },
        numberedTcp({ src: 2, dst: 1, flags: 0x14, ack: tagSequence(tag, 9) + 1 }),
      ),
    ],
  ])('tells what %s is about', (_, packet) => {
    expect(told(packet)).toEqual({ tag, isAnswer: true });
  });

  const own6 = ip({ ...ends6, flowLabel: tag }, datagram);
  const back6 = { src: ends6.dst, dst: ends6.src };
  it.each([
    ['a packet', own6, false],
    ['a packet in a tunnel', ip(ends6, udp({ src: 40000, dst: 8472 }, vxlan({}, frameOf(own6)))), false],
    ['an error', ip({ ...back6, protocol: 58 }, icmpMessage({ type: 1 }, own6, back6)), true],
    [
      'an echo reply',
      ip({ ...back6, protocol: 58 }, icmpMessage({ type: 129, rest: tag }, payload, back6)),
      true,
    ],
    [
      'a reset',
      ip(
        { ...back6, protocol: TCP },
        numberedTcp({ src: 2, dst: 1, flags: 0x14, ack: tagSequence(tag, 9) + 1 }),
      ),
      true,
    ],
  ])('tells whose %s of IPv6 is', (_, packet, isAnswer) => {
    expect(told(packet)).toEqual({ tag, isAnswer });
  });

  it('recognizes later fragments of an answer by the first', () => {
    const reply = icmpMessage({ type: 0, rest: tag }, payload, ends);
    const tagger = new Tagger();
    const part = (fragment: number, bytes: Uint8Array) =>
      tagger.tagOf(frameOf(ipv4({ ...back, protocol: 1, fragment }, bytes)))?.tag;
    expect(part(0x2000, reply.subarray(0, 64))).toBe(tag);
    expect(part(8, reply.subarray(64))).toBe(tag);
  });

  it('takes no later fragment for neighbour discovery, whatever it begins with', () => {
    const solicitation = Uint8Array.from({ length: 24 }, (_, i) => (i === 0 ? 135 : i));
    const isBackground = (fragment?: number) =>
      new Tagger().tagOf(
        frameOf(ip({ ...ends6, protocol: 58, id: 9, ...(fragment && { fragment }) }, solicitation)),
      )?.isBackground;
    expect([isBackground(), isBackground(8)]).toEqual([true, false]);
  });
});
