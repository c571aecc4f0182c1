// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { describeFrame, dissect, flowOf, hexDump } from './dissect.ts';
import { ethernet, icmp, ip, protocols, sealed, tcp, udp, vxlan } from './packets.ts';

const macs = { dst: '0a:00:00:00:00:02', src: '0a:00:00:00:00:01' };
const v4 = { src: '10.42.0.2', dst: '10.42.1.2' };
const v6 = { src: 'fd00:42::2', dst: 'fd00:42:0:1::2' };
const told = (frame: Uint8Array): string => describeFrame(dissect(frame, 8472));

describe('a frame', () => {
  const segment = ip(
    { ...v4, protocol: protocols.tcp },
    tcp({ src: 40000, dst: 80, flags: 0x18 }, new Uint8Array(5)),
  );

  it('is told on one line, as tcpdump does', () => {
    expect(told(ethernet(macs, segment))).toBe('IP 10.42.0.2.40000 > 10.42.1.2.80: Flags [P.], length 5');
    expect(told(ethernet(macs, ip(v6, udp({ src: 53, dst: 1024 }))))).toBe(
      'IP6 fd00:42::2.53 > fd00:42:0:1::2.1024: UDP, length 8',
    );
    const echo = icmp(8, Uint8Array.of(0, 7, 0, 1, 0, 0, 0, 0));
    expect(told(ethernet(macs, sealed(ip({ ...v4, protocol: protocols.icmp }, echo))))).toBe(
      'IP 10.42.0.2 > 10.42.1.2: ICMP echo request, id 7, seq 1, length 12',
    );
    expect(told(ethernet({ ...macs, type: 0x88cc }, new Uint8Array(46)))).toBe('ethertype 0x88cc, length 60');
  });

  it('in VXLAN is told behind the outer one', () => {
    const outer = ip(
      { src: '172.31.0.1', dst: '172.31.0.2' },
      udp({ src: 4, dst: 8472 }, vxlan({}, ethernet(macs, segment))),
    );
    expect(told(ethernet(macs, outer))).toBe(
      'IP 172.31.0.1.4 > 172.31.0.2.8472: VXLAN vni 1: IP 10.42.0.2.40000 > 10.42.1.2.80: Flags [P.], length 5',
    );
    expect(flowOf(dissect(ethernet(macs, outer), 8472).inner!)).toEqual({
      ...v4,
      srcPort: 40000,
      dstPort: 80,
      protocol: protocols.tcp,
    });
  });

  it('may be cut off anywhere', () => {
    const frame = ethernet(macs, ip(v4, udp({ src: 4, dst: 8472 }, vxlan({}, ethernet(macs, segment)))));
    for (let bytes = 0; bytes <= frame.length; bytes++)
      expect(describeFrame(dissect(frame.subarray(0, bytes), 8472, frame.length))).not.toMatch(
        /undefined|NaN/,
      );
  });

  it('is dumped as tcpdump -XX does', () => {
    expect(hexDump(Uint8Array.from({ length: 17 }, (_, i) => i))).toEqual([
      '0x0000:  0001 0203 0405 0607 0809 0a0b 0c0d 0e0f',
      '0x0010:  10',
    ]);
  });
});
