// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from 'vitest';
import { readBtf } from './index.ts';

/** A `.BTF` section with these types, each an array of 32-bit words. A string in it becomes the offset of that name. */
function section(types: (number | string)[][], little: boolean): Uint8Array {
  let names = '\0';
  const place = (name: string) => {
    const at = names.length;
    names += `${name}\0`;
    return at;
  };
  const words = types.flat().map((word) => (typeof word === 'string' ? place(word) : word));
  const bytes = new Uint8Array(24 + words.length * 4 + names.length);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 0xeb9f, little);
  view.setUint8(2, 1);
  const header = [24, 0, words.length * 4, words.length * 4, names.length];
  for (const [index, word] of [...header, ...words].entries()) view.setUint32(4 + index * 4, word, little);
  bytes.set(Buffer.from(names, 'latin1'), 24 + words.length * 4);
  return bytes;
}

const kind = (number: number, count = 0, flag = 0): number => ((flag << 31) | (number << 24) | count) >>> 0;

describe.each([true, false])('BTF (little-endian: %s)', (little) => {
  test('is read kind by kind', () => {
    const btf = readBtf(
      section(
        [
          ['int', kind(1), 4, 0x0100_0020],
          ['__be32', kind(8), 1],
          [0, kind(10), 2],
          ['s', kind(4, 2, 1), 8, 'a', 3, 0, 'b', 1, (5 << 24) | 32],
          ['big', kind(19, 2), 8, 'top', 0xffff_ffff, 0xffff_ffff, 'one', 1, 0],
          [0, kind(3), 0, 1, 1, 3],
          [0, kind(2), 4],
        ],
        little,
      ),
    );
    expect(btf.type(1)).toEqual({ kind: 'int', id: 1, name: 'int', size: 4, bits: 32, encoding: 'signed' });
    expect(btf.typedefNames(3)).toEqual(['__be32']);
    expect(btf.resolve(3)).toBe(btf.type(1));
    expect(btf.find('struct', 's')?.members).toEqual([
      { name: 'a', typeId: 3, bitOffset: 0, bitfieldSize: 0 },
      { name: 'b', typeId: 1, bitOffset: 32, bitfieldSize: 5 },
    ]);
    expect(btf.find('enum', 'big')?.values).toEqual([
      { name: 'top', value: 0xffff_ffff_ffff_ffffn },
      { name: 'one', value: 1 },
    ]);
    expect([btf.sizeOf(6), btf.sizeOf(7), btf.elements(6)]).toEqual([12, 8, { typeId: 1, lengths: [3] }]);
    expect(btf.maps()).toEqual([]);
  });

  test('of an unknown kind is refused', () => {
    expect(() => readBtf(section([['new', kind(30), 0]], little))).toThrow('type 1 has kind 30');
  });
});

test('what is not BTF is refused', () => {
  expect(() => readBtf(new Uint8Array(100))).toThrow('this is not BTF');
  expect(() => readBtf(new Uint8Array(3))).toThrow('this is not BTF');
});
