// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { readBtf } from './index.ts';
import { fixture, noCompiler } from './libbpf.support.ts';

describe.skipIf(noCompiler)(
  `the BTF of a compiled object${noCompiler ? ` (skipped: ${noCompiler})` : ''}`,
  () => {
    test('has the offset of each member, with typedefs that distinguish addresses from numbers', () => {
      const btf = readBtf(fixture('basic'));
      const peer = btf.find('struct', 'peer')!;
      const rows = peer.members.map(({ name, typeId, bitOffset, bitfieldSize }) => {
        const { typeId: element, lengths } = btf.elements(typeId);
        return [name, bitOffset / 8, bitfieldSize, btf.typedefNames(element)[0], lengths.join('×')];
      });
      expect(peer.size).toBe(32);
      expect(rows).toEqual([
        ['address', 0, 0, '__be32', ''],
        ['port', 4, 0, '__be16', ''],
        ['flags', 6, 3, '__u16', ''],
        ['age', 6.375, 13, '__u16', ''],
        ['state', 8, 0, undefined, ''],
        ['macs', 12, 0, '__u8', '2×6'],
        ['packets', 24, 0, '__u64', ''],
      ]);
      expect(btf.typedefNames(peer.members[0]!.typeId)).toEqual(['__be32', '__u32']);
      expect(btf.sizeOf(peer.members[5]!.typeId)).toBe(12);
      expect(btf.find('enum', 'peer_state')).toMatchObject({
        size: 4,
        signed: true,
        values: [
          { name: 'PEER_UNKNOWN', value: 0 },
          { name: 'PEER_UP', value: 1 },
          { name: 'PEER_LOST', value: -1 },
        ],
      });
    });

    test('has the maps with their declarations', () => {
      const maps = readBtf(fixture('basic')).maps();
      const rows = maps.map((m) => [m.name, m.type, m.keySize, m.valueSize, m.maxEntries, m.flags]);
      expect(rows.sort(([a], [b]) => String(a).localeCompare(String(b)))).toEqual([
        ['counters', 'array', 4, 8, 4, 0],
        ['events', 'ringbuf', 0, 0, 4096, 0],
        ['inner_map', 'array', 4, 2, 8, 0],
        ['outer', 'array_of_maps', 4, 4, 1, 0],
        ['peers', 'hash', 8, 32, 1024, 1],
        ['per_cpu', 'percpu_array', 4, 12, 2, 0],
      ]);
      expect(maps.find((m) => m.name === 'outer')?.inner).toMatchObject({ type: 'array', valueSize: 2 });
    });

    test('has global variables at the offsets of their symbols', () => {
      const btf = readBtf(fixture('basic'));
      const section = btf.find('datasec', '.rodata')!;
      const rows = section.variables.map(({ typeId, offset, size }) => {
        const variable = btf.type(typeId);
        return [variable.kind === 'var' ? variable.name : '', offset, size];
      });
      expect(section.size).toBe(14);
      expect(rows.slice(0, 2)).toEqual([
        ['udp_port', 0, 2],
        ['verdict', 4, 4],
      ]);
    });

    test.skipIf(!existsSync('/sys/kernel/btf/vmlinux'))('of the kernel itself is read too', () => {
      const btf = readBtf('/sys/kernel/btf/vmlinux');
      expect(btf.find('struct', 'sk_buff')?.members.length).toBeGreaterThan(10);
      expect(btf.sizeOf(btf.find('struct', 'iphdr')!.id)).toBe(20);
    });
  },
);
