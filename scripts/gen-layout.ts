// SPDX-License-Identifier: Apache-2.0
/**
 * bpf/types.h and bpf/maps.h → src/dataplane/layout.gen.ts, from the BTF in the compiled objects, so the layout is the
 * one that the kernel sees. `--check` writes nothing, and fails when the committed file is stale.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Btf, type MapDefinition, readBtf } from '../src/libbpf-ts/index.ts';

const root = join(import.meta.dirname, '..');
const file = join(root, 'src/dataplane/layout.gen.ts');

interface Field {
  offset: number;
  kind: string | { struct: string };
  enum?: string;
}

interface Layout {
  /** Counts the changes of any map's layout. */
  version: number;
  structs: Record<string, { size: number; fields: Record<string, Field> }>;
  enums: Record<string, Record<string, number>>;
  maps: Record<
    string,
    {
      type: string;
      key: Field['kind'];
      value: Field['kind'];
      maxEntries: number;
      flags: number;
      /** The version in which it last changed. */
      since: number;
    }
  >;
  globals: Record<string, { section: string; offset: number; struct: string }>;
}

/** Typedefs with a meaning beyond their size; see bpf/types.h. */
const typedefKinds: Record<string, string> = { __be32: 'be32', __be16: 'be16', net32: 'net32' };
const intKinds: Record<number, string> = { 1: 'u8', 2: 'u16', 4: 'u32', 8: 'u64' };

/** Collects the layout from the objects. Objects that share a header must agree. */
class Collector {
  readonly layout: Layout = { version: 0, structs: {}, enums: {}, maps: {}, globals: {} };

  add(btf: Btf): void {
    for (const map of btf.maps()) this.#addMap(btf, map);
    const rodata = btf.find('datasec', '.rodata');
    for (const { typeId, offset } of rodata?.variables ?? []) {
      const variable = btf.type(typeId);
      if (variable.kind !== 'var') continue;
      if (btf.resolve(variable.typeId).kind !== 'struct') continue;
      const kind = this.#kind(btf, variable.typeId);
      if (kind && typeof kind.kind === 'object') {
        this.#agree(this.layout.globals, variable.name, { section: '.rodata', offset, ...kind.kind });
      }
    }
  }

  #addMap(btf: Btf, { name, type, keyTypeId, valueTypeId, maxEntries, flags }: MapDefinition): void {
    const key = keyTypeId === undefined ? undefined : this.#kind(btf, keyTypeId);
    const value = valueTypeId === undefined ? undefined : this.#kind(btf, valueTypeId);
    if (!key || !value)
      throw new Error(`map ${name}: give it a __type(key) and a __type(value) of plain members`);
    this.#agree(this.layout.maps, name, {
      type,
      key: key.kind,
      value: value.kind,
      maxEntries,
      flags,
      since: 0,
    });
  }

  /** The codecs' kind of a type; undefined for an array without elements, which takes no bytes. */
  #kind(btf: Btf, typeId: number): Omit<Field, 'offset'> | undefined {
    const special = btf.typedefNames(typeId).find((name) => name in typedefKinds);
    if (special !== undefined) return { kind: typedefKinds[special]! };
    const type = btf.resolve(typeId);
    if (type.kind === 'int') return { kind: intKinds[type.size] ?? fail(`an integer of ${type.size} bytes`) };
    if (type.kind === 'enum') {
      this.#addEnum(btf, typeId);
      return { kind: 'u32', enum: type.name };
    }
    if (type.kind === 'struct') {
      if (type.name === 'mac' || type.name === 'address') return { kind: type.name };
      this.#addStruct(btf, typeId);
      return { kind: { struct: type.name } };
    }
    const { typeId: elementId, lengths } = btf.elements(typeId);
    if (lengths.includes(0)) {
      this.#kind(btf, elementId);
      return undefined;
    }
    return fail(`a member of kind ${type.kind}; use integers, enums and structs, or name it unused`);
  }

  #addEnum(btf: Btf, typeId: number): void {
    const type = btf.resolve(typeId);
    if (type.kind !== 'enum') return;
    const values = Object.fromEntries(type.values.map(({ name, value }) => [name, Number(value)]));
    this.#agree(this.layout.enums, type.name, values);
  }

  #addStruct(btf: Btf, typeId: number): void {
    const type = btf.resolve(typeId);
    if (type.kind !== 'struct') return;
    const fields: Record<string, Field> = {};
    for (const member of type.members) {
      if (member.name === 'unused') continue;
      const kind = this.#kind(btf, member.typeId);
      if (kind) fields[member.name] = { offset: member.bitOffset / 8, ...kind };
    }
    this.#agree(this.layout.structs, type.name, { size: type.size, fields });
  }

  #agree<T>(into: Record<string, T>, name: string, value: T): void {
    const before = into[name];
    if (before !== undefined && JSON.stringify(before) !== JSON.stringify(value)) {
      fail(`"${name}", which the objects define differently; rebuild with \`npm run build:bpf -- --force\``);
    }
    into[name] = value;
  }
}

function fail(what: string): never {
  throw new Error(`gen-layout cannot describe ${what}`);
}

/** The meaning of a map's bytes, as text. */
function meaning({ structs, enums, maps }: Layout, map: string): string {
  const { since: _, ...definition } = maps[map]!;
  const expand = (kind: Field['kind']): unknown => {
    if (typeof kind === 'string') return kind;
    const { size, fields } = structs[kind.struct]!;
    const members = Object.entries(fields).map(([name, { offset, kind: member, enum: of }]) => [
      name,
      offset,
      expand(member),
      of === undefined ? undefined : enums[of],
    ]);
    return [size, members];
  };
  return JSON.stringify([definition, expand(definition.key), expand(definition.value)]);
}

/** Set the layout's version: one more than the last one, if a map has been added, removed or changed. */
function number(layout: Layout, last: Layout): void {
  const names = Object.keys(layout.maps);
  const changed = names.filter((name) => !last.maps[name] || meaning(layout, name) !== meaning(last, name));
  const gone = Object.keys(last.maps).some((name) => !layout.maps[name]);
  layout.version = changed.length > 0 || gone ? last.version + 1 : last.version;
  for (const [name, map] of Object.entries(layout.maps))
    map.since = changed.includes(name) ? layout.version : last.maps[name]!.since;
}

/** Data as readable TypeScript: short objects are on one line. */
function print(value: unknown, indent = ''): string {
  if (typeof value !== 'object' || value === null)
    return typeof value === 'string' ? `'${value}'` : String(value);
  const members = Object.entries(value);
  const flat = `{ ${members.map(([name, member]) => `${name}: ${print(member)}`).join(', ')} }`;
  if (flat.length + indent.length < 100 && !flat.slice(2).includes('{ ')) return flat;
  if (flat.length + indent.length < 90 && indent.length >= 6) return flat;
  const inner = `${indent}  `;
  return `{\n${members.map(([name, member]) => `${inner}${name}: ${print(member, inner)},\n`).join('')}${indent}}`;
}

const collector = new Collector();
const objects = readdirSync(join(root, 'build')).filter((name) => name.endsWith('.bpf.o'));
for (const name of objects.sort()) collector.add(readBtf(join(root, 'build', name)));

const { layout: last } = (await import(file)) as { layout: Layout };
number(collector.layout, last);
// In an order that does not depend on which object names a map first: `ripstop maps` lists them so.
collector.layout.maps = Object.fromEntries(
  Object.entries(collector.layout.maps).sort(([a], [b]) => a.localeCompare(b)),
);

const text = `// SPDX-License-Identifier: Apache-2.0
// Generated by scripts/gen-layout.ts from the BTF of bpf/*.bpf.c. Do not edit: change bpf/types.h or bpf/maps.h and run
// \`npm run gen-layout\`.

/**
 * Structs, enums, maps and globals of the compiled objects. Sizes and offsets are in bytes. The version counts the
 * layouts of the maps; \`since\` is the version in which a map last changed.
 */
export const layout = ${print(collector.layout)} as const;
`;

if (process.argv.includes('--check')) {
  if (readFileSync(file, 'utf8') !== text) {
    console.error(
      'gen-layout: src/dataplane/layout.gen.ts does not match the BPF sources; run `npm run gen-layout`',
    );
    process.exit(1);
  }
} else {
  writeFileSync(file, text);
}
