// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { parseTypes, type BtfType } from './btf-types.ts';
import { isElf, readElf } from './elf.ts';
import { MAP_TYPES, nameOf } from './names.ts';

export type { BtfMember, BtfType } from './btf-types.ts';

type Kind = BtfType['kind'];
/** Struct and union are one variant of {@link BtfType}, with two kinds. */
type OfKind<K extends Kind, T = BtfType> = T extends { kind: Kind }
  ? K extends T['kind']
    ? T
    : never
  : never;
type NamedKind = Extract<BtfType, { name: string }>['kind'];

/** A map as the `.maps` section declares it, with the `__uint`, `__type` and `__array` macros of bpf_helpers.h. */
export interface MapDefinition {
  name: string;
  /** Such as `hash`. */
  type: string;
  /** Bytes; 0 where the map has no keys. */
  keySize: number;
  valueSize: number;
  maxEntries: number;
  flags: number;
  /** The BTF type; undefined where the definition has only a size. */
  keyTypeId: number | undefined;
  valueTypeId: number | undefined;
  /** Only for a map of maps. */
  inner: MapDefinition | undefined;
}

const POINTER_BYTES = 8;
const FD_BYTES = 4;
const MAPS_SECTION = '.maps';

/** The types of a BPF object, by their ids (Documentation/bpf/btf.rst of Linux). */
export class Btf {
  /** By id; the first is void. */
  readonly types: readonly BtfType[];

  constructor(types: readonly BtfType[]) {
    this.types = types;
  }

  /** @throws RangeError when there is no such id. */
  type(id: number): BtfType {
    const type = this.types[id];
    if (type === undefined) throw new RangeError(`BTF has no type ${id}`);
    return type;
  }

  /** The first type of this kind and name: `find('struct', 'peer')`, `find('datasec', '.rodata')`. */
  find<K extends NamedKind>(kind: K, name: string): OfKind<K> | undefined {
    return this.types.find(
      (type): type is OfKind<K> => type.kind === kind && 'name' in type && type.name === name,
    );
  }

  /** The type behind const, volatile, restrict and type tags; a typedef stays. */
  unqualified(id: number): BtfType {
    const type = this.type(id);
    return type.kind === 'modifier' ? this.unqualified(type.typeId) : type;
  }

  /** The type behind typedefs too. */
  resolve(id: number): BtfType {
    const type = this.unqualified(id);
    return type.kind === 'typedef' ? this.resolve(type.typeId) : type;
  }

  /** The typedef names of a type, outermost first: `['__be32', '__u32']`. */
  typedefNames(id: number): string[] {
    const type = this.unqualified(id);
    return type.kind === 'typedef' ? [type.name, ...this.typedefNames(type.typeId)] : [];
  }

  /**
   * The type of an array's elements, and its lengths: `[4, 6]` for `__u8 x[4][6]`, none for a type that is not an
   * array.
   */
  elements(id: number): { typeId: number; lengths: number[] } {
    const type = this.resolve(id);
    if (type.kind !== 'array') return { typeId: id, lengths: [] };
    const inner = this.elements(type.elementTypeId);
    return { typeId: inner.typeId, lengths: [type.length, ...inner.lengths] };
  }

  /** Bytes. @throws TypeError for what has no size, such as a function. */
  sizeOf(id: number): number {
    const type = this.resolve(id);
    switch (type.kind) {
      case 'int':
      case 'float':
      case 'struct':
      case 'union':
      case 'enum':
      case 'datasec':
        return type.size;
      case 'pointer':
        return POINTER_BYTES;
      case 'array':
        return type.length * this.sizeOf(type.elementTypeId);
      case 'var':
        return this.sizeOf(type.typeId);
      default:
        throw new TypeError(`BTF type ${id} (${type.kind}) has no size`);
    }
  }

  /** Every map of the object, in the order of the section. */
  maps(): MapDefinition[] {
    const section = this.find('datasec', MAPS_SECTION);
    return (section?.variables ?? []).map(({ typeId }) => {
      const variable = this.type(typeId);
      if (variable.kind !== 'var') throw new TypeError(`${MAPS_SECTION} holds a ${variable.kind}`);
      return this.#map(variable.name, variable.typeId);
    });
  }

  #map(name: string, typeId: number): MapDefinition {
    const struct = this.resolve(typeId);
    if (struct.kind !== 'struct') throw new TypeError(`map ${name} is a ${struct.kind}, not a struct`);
    const target = (member: string): number | undefined => {
      const found = struct.members.find((m) => m.name === member);
      const pointer = found && this.resolve(found.typeId);
      return pointer?.kind === 'pointer' ? pointer.typeId : undefined;
    };
    // __uint(name, n) is int (*name)[n].
    const number = (member: string): number | undefined => {
      const id = target(member);
      const array = id === undefined ? undefined : this.type(id);
      return array?.kind === 'array' ? array.length : undefined;
    };
    // __type(name, t) is t *name.
    const [keyTypeId, valueTypeId] = [target('key'), target('value')];
    const sizeOf = (id: number | undefined) => (id === undefined ? 0 : this.sizeOf(id));
    const inner = this.#innerMap(name, struct);
    return {
      name,
      type: nameOf(MAP_TYPES, number('type') ?? 0),
      keySize: number('key_size') ?? sizeOf(keyTypeId),
      // User space passes the inner map's fd to a map of maps.
      valueSize: number('value_size') ?? (inner ? FD_BYTES : sizeOf(valueTypeId)),
      maxEntries: number('max_entries') ?? 0,
      flags: number('map_flags') ?? 0,
      keyTypeId,
      valueTypeId,
      inner,
    };
  }

  /** __array(values, t) is t *values[]; in an array of programs t is a function. */
  #innerMap(name: string, struct: OfKind<'struct'>): MapDefinition | undefined {
    const values = struct.members.find((member) => member.name === 'values');
    const array = values && this.resolve(values.typeId);
    const pointer = array?.kind === 'array' ? this.resolve(array.elementTypeId) : undefined;
    if (pointer?.kind !== 'pointer' || this.resolve(pointer.typeId).kind !== 'struct') return undefined;
    return this.#map(`${name}.inner`, pointer.typeId);
  }
}

/**
 * Read BTF from an object file, by its path or bytes, or from the bytes of a `.BTF` section
 * (`/sys/kernel/btf/vmlinux`). In an object file the offsets of variables are left to the linker, so they are read from
 * the symbols.
 * @throws Error when there is no BTF in it
 */
export function readBtf(source: string | Uint8Array): Btf {
  const bytes = typeof source === 'string' ? readFileSync(source) : source;
  if (!isElf(bytes)) return new Btf(parseTypes(bytes));
  const elf = readElf(bytes);
  const section = elf.sections.find(({ name }) => name === '.BTF');
  if (section === undefined) throw new Error('the object has no BTF: compile it with -g');
  const types = parseTypes(section.bytes);
  for (const type of types) {
    if (type.kind !== 'datasec') continue;
    const home = elf.sections.find(({ name }) => name === type.name);
    if (home === undefined) continue;
    const places = new Map(
      elf.symbols.filter((s) => s.sectionIndex === home.index).map((s) => [s.name, s.offset] as const),
    );
    for (const variable of type.variables) {
      const target = types[variable.typeId];
      if (target?.kind === 'var') variable.offset = places.get(target.name) ?? variable.offset;
    }
    type.variables.sort((a, b) => a.offset - b.offset);
    type.size = home.size;
  }
  return new Btf(types);
}
