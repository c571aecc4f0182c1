// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { leaseGrant, leaseKeepAlive, prefixEnd, range, txn, watch } from './etcd-wire.ts';

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex');

// The bytes are by hand from the encoding's definition; the system tests ask a real etcd.
describe('messages on the wire', () => {
  it('numbers are varints, and zeros are left out', () => {
    expect(leaseGrant.encode({ ttl: 86_400 })).toEqual(hex('08 80a305'));
    expect(leaseKeepAlive.encode({ id: 0x694d_8543_30fc_5110n })).toEqual(hex('08 90a2f187b3a8e1a669'));
    expect(range.encode({ key: 'a', rangeEnd: '', limit: 0 })).toEqual(hex('0a 01 61'));
  });

  it('conditions of a range, and the change that they guard', () => {
    const conditions = [{ key: 'a', rangeEnd: 'b', createRevision: 7, is: 'less' as const }];
    expect(txn.encode({ conditions, put: { key: 'k', value: 'v', lease: 1n } })).toEqual(
      hex('0a0d 0802 1001 1a0161 2807 820401 62 120a 1208 0a016b 120176 1801'),
    );
  });

  it('fields that are unknown are skipped, whatever their type', () => {
    const known = hex('0a02 1803');
    const unknown = hex('f801 05 f901 0102030405060708 fa01 03 616263 fd01 01020304');
    const answer = range.decode(Buffer.concat([unknown, known, unknown]));
    expect(answer).toEqual({ header: { clusterId: 0n, revision: 3 }, kvs: [], more: false });
  });

  it('negative numbers and IDs above 2^53 survive', () => {
    expect(leaseKeepAlive.decode(hex('10 ffffffffffffffff7f 18 ffffffffffffffffff01'))).toEqual({
      id: 2n ** 63n - 1n,
      ttl: -1,
    });
  });

  it('a message that is cut anywhere is refused or shorter, and never runs over', () => {
    const whole = hex('0a02 1803 1000 1801 5a0b 0801 1207 0a0161 1007 1809');
    expect(watch.decode(whole)).toMatchObject({
      created: true,
      events: [{ type: 'delete', kv: { key: 'a', modRevision: 9 } }],
    });
    for (let length = 0; length < whole.length; length++) {
      const cut = whole.subarray(0, length);
      try {
        expect(watch.decode(cut).events).toEqual([]);
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError);
      }
    }
  });

  it('the end of a prefix', () => {
    expect(prefixEnd('/a/')).toBe('/a0');
    expect(prefixEnd('/a/10.42.1.0-')).toBe('/a/10.42.1.0.');
  });
});
