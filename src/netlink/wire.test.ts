// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { NetlinkError } from './error.ts';
import { addRoute } from './route.ts';
import { Reader, Writer } from './wire.ts';

const read = (bytes: Uint8Array): Reader => new Reader(Buffer.from(bytes));

describe('attributes', () => {
  it('are written as linux/netlink.h says: length, type, value, padding', () => {
    expect([...new Writer().u32(15, 254).text(3, 'eth0').u8(2, true).be16(15, 8472).done()]).toEqual(
      [
        [8, 0, 15, 0, 254, 0, 0, 0],
        [9, 0, 3, 0, 0x65, 0x74, 0x68, 0x30, 0, 0, 0, 0],
        [5, 0, 2, 0, 1, 0, 0, 0],
        [6, 0, 15, 0, 0x21, 0x18, 0, 0],
      ].flat(),
    );
  });

  it('come back as they were written, nested ones too, behind a struct', () => {
    const bytes = new Writer()
      .struct([1, 2], [1, 24], [2, 0xffff], [4, 0xfffffff1])
      .address(1, '10.42.1.0')
      .address(2, 'fd00::1')
      .mac(3, '0a:00:00:00:00:01')
      .nest(18, (info) =>
        info.text(1, 'vxlan').nest(2, (data) => data.u32(1, 77).flag(23, true).flag(27, false)),
      )
      .u32(4, undefined)
      .done();
    const message = read(bytes);
    expect([message.u8(0), message.u8(1), message.u16(2), message.u32(4)]).toEqual([
      2, 24, 0xffff, 0xfffffff1,
    ]);
    const attributes = message.attributes(8);
    expect(attributes.address(1)).toBe('10.42.1.0');
    expect(attributes.address(2)).toBe('fd00::1');
    expect(attributes.mac(3)).toBe('0a:00:00:00:00:01');
    expect(attributes.has(4)).toBe(false);
    const info = attributes.nested(18);
    expect(info?.text(1)).toBe('vxlan');
    expect(info?.nested(2)?.u32(1)).toBe(77);
    expect([info?.nested(2)?.has(23), info?.nested(2)?.has(27)]).toEqual([true, false]);
    expect(Array.from(attributes, ([type]) => type)).toEqual([1, 2, 3, 18]);
  });

  it('outgrow the memory that a message begins with', () => {
    const writer = new Writer();
    for (let i = 0; i < 500; i++) writer.u32(i, i * 3);
    const attributes = read(writer.done()).attributes();
    expect([attributes.u32(0), attributes.u32(499)]).toEqual([0, 1497]);
  });

  it('that lie about their length end the row, and never lead out of the message', () => {
    const good = new Writer().u32(1, 5).done();
    for (const length of [0, 1, 3]) {
      const attributes = read(Uint8Array.of(...good, length, 0, 2, 0, 9, 9, 9, 9)).attributes();
      expect([attributes.u32(1), attributes.has(2)]).toEqual([5, false]);
    }
    expect(
      read(Uint8Array.of(200, 0, 2, 0, 1, 2))
        .attributes()
        .get(2)?.length,
    ).toBe(2);
  });

  it('of any bytes at all are read to an end', () => {
    const seed = 20_240_601;
    let state = seed;
    const random = (): number => (state = (state * 48_271) % 2_147_483_647);
    for (let round = 0; round < 2000; round++) {
      const bytes = Uint8Array.from({ length: random() % 64 }, () => random() % (round % 2 ? 256 : 12));
      const values = Array.from(read(bytes).attributes());
      const total = values.reduce((sum, [, value]) => sum + value.length, 0);
      expect(total, `seed ${seed}, round ${round}`).toBeLessThanOrEqual(bytes.length);
    }
  });
});

describe('a request', () => {
  it('is the bytes that iproute2 sends', () => {
    // ip route add 10.42.1.0/24 via 10.42.1.0 dev 5 onlink proto 82
    const route = { dst: '10.42.1.0/24', gateway: '10.42.1.0', ifindex: 5, onlink: true, protocol: 82 };
    expect(Buffer.from(addRoute(route).payload).toString('hex')).toBe(
      [
        '0218000000520001',
        '04000000',
        '080001000a2a0100',
        '08000f00fe000000',
        '0800040005000000',
        '080005000a2a0100',
      ].join(''),
    );
  });

  it.each([
    '10.42.1/24',
    'x/8',
    '/0',
    '10.42.1.0',
    '10.42.1.0/33',
    'fd00::/129',
    '10.42.1.0/',
    '10.42.1.0/x',
  ])('to %j is refused before it is sent', (dst) => {
    expect(() => addRoute({ dst, ifindex: 5 })).toThrow(/not an? (IP address|CIDR)/);
  });
});

describe('an error', () => {
  it('says what was asked, why not in the kernel’s words, and errno', () => {
    const error = new NetlinkError('add route 10.42.1.0/24', 101, 'Nexthop has invalid gateway.');
    expect(error.message).toBe('add route 10.42.1.0/24 failed: Nexthop has invalid gateway (ENETUNREACH)');
    expect(error).toMatchObject({ code: 'ENETUNREACH', errno: 101, reason: 'Nexthop has invalid gateway.' });
    expect(new NetlinkError('x', 17).message).toBe('x failed: File exists (EEXIST)');
    expect(new NetlinkError('x', 95).code).toBe('EOPNOTSUPP');
    expect(new NetlinkError('x', 524).message).toBe('x failed: Unknown error 524 (errno 524)');
  });
});
