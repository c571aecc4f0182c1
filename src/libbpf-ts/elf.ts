// SPDX-License-Identifier: Apache-2.0

/** A section of an ELF file. */
export interface ElfSection {
  index: number;
  name: string;
  /** In memory; `.bss` has a size but no bytes in the file. */
  size: number;
  bytes: Uint8Array;
}

/** The parts of a 64-bit ELF file that BTF needs: its sections, and the offsets of symbols in them. */
export interface Elf {
  littleEndian: boolean;
  sections: ElfSection[];
  symbols: { name: string; sectionIndex: number; offset: number }[];
}

const SHT_SYMTAB = 2;
const SHT_NOBITS = 8;

export function isElf(bytes: Uint8Array): boolean {
  return bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

/**
 * Read the section table and the symbols (elf(5)).
 * @throws RangeError when the file is cut short; Error when it is not 64-bit.
 */
export function readElf(bytes: Uint8Array): Elf {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes[4] !== 2) throw new Error('not a 64-bit ELF file');
  const littleEndian = bytes[5] === 1;
  const u16 = (at: number) => view.getUint16(at, littleEndian);
  const u32 = (at: number) => view.getUint32(at, littleEndian);
  const u64 = (at: number) => Number(view.getBigUint64(at, littleEndian));

  const [tableOffset, headerSize, count, namesIndex] = [u64(0x28), u16(0x3a), u16(0x3c), u16(0x3e)];
  const headers = Array.from({ length: count }, (_, index) => {
    const at = tableOffset + index * headerSize;
    const type = u32(at + 4);
    const [offset, size] = [u64(at + 24), u64(at + 32)];
    const content = type === SHT_NOBITS ? bytes.subarray(0, 0) : bytes.subarray(offset, offset + size);
    return { index, type, nameOffset: u32(at), offset, size, link: u32(at + 40), content };
  });
  const names = headers[namesIndex]?.content ?? bytes.subarray(0, 0);
  const symbols = headers
    .filter((header) => header.type === SHT_SYMTAB)
    .flatMap((table) => {
      const strings = headers[table.link]?.content ?? bytes.subarray(0, 0);
      return Array.from({ length: Math.floor(table.size / 24) }, (_, index) => {
        const at = table.offset + index * 24;
        return { name: cString(strings, u32(at)), sectionIndex: u16(at + 6), offset: u64(at + 8) };
      });
    });
  return {
    littleEndian,
    sections: headers.map(({ index, nameOffset, size, content }) => ({
      index,
      name: cString(names, nameOffset),
      size,
      bytes: content,
    })),
    symbols,
  };
}

/** A zero-terminated string in a string table. */
export function cString(table: Uint8Array, offset: number): string {
  const end = table.indexOf(0, offset);
  return Buffer.from(table.subarray(offset, end < 0 ? table.length : end)).toString('utf8');
}
