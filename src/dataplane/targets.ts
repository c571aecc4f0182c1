// SPDX-License-Identifier: Apache-2.0
/** The data plane's targets: maps and links, each with list, upsert and remove. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfLink, type BpfProgram } from '#libbpf-ts';
import type { Struct } from './codec.ts';
import type { ProgramName } from './programs.ts';
import type { Tables } from './tables.ts';
import type { Target } from './target.ts';

/** An array map in which a zero first field means that the slot is empty. Keys are slot numbers as text. */
function slotTarget<V extends object>(
  name: string,
  table: { entries(): Iterable<[number, V]>; setMany(entries: Iterable<[number, V]>): void },
  isEmpty: (value: V) => boolean,
  empty: V,
): Target<V> {
  return {
    name,
    list: async () => {
      const found = new Map<string, V>();
      for (const [slot, value] of table.entries()) if (!isEmpty(value)) found.set(String(slot), value);
      return found;
    },
    upsert: async (entries) => table.setMany([...entries].map(([slot, value]) => [Number(slot), value])),
    remove: async (entries) => table.setMany([...entries.keys()].map((slot) => [Number(slot), empty])),
  };
}

const noMac = '00:00:00:00:00:00';

const emptyPeer: Struct<'peer'> = {
  header: {
    ether: { dst: noMac, src: noMac, type: 0 },
    ip: {
      version_ihl: 0,
      tos: 0,
      total_length: 0,
      id: 0,
      fragment: 0,
      ttl: 0,
      protocol: 0,
      checksum: 0,
      src: '0.0.0.0',
      dst: '0.0.0.0',
    },
    udp: { src_port: 0, dst_port: 0, length: 0, checksum: 0 },
    vxlan: { flags: 0, vni: 0 },
    inner_ether: { dst: noMac, src: noMac, type: 0 },
  },
  flags: 0,
  checksum_base: 0,
  vtep_ip: '0.0.0.0',
  next_hop: '0.0.0.0',
};

const emptyEndpoint: Struct<'endpoint'> = { ifindex: 0, flags: 0, pod_mac: noMac, host_mac: noMac, mtu: 0 };

export function peersTarget(tables: Tables): Target<Struct<'peer'>> {
  return slotTarget('peers', tables.peers, (peer) => peer.flags === 0, emptyPeer);
}

export function endpointsTarget(tables: Tables): Target<Struct<'endpoint'>> {
  return slotTarget('endpoints', tables.endpoints, (endpoint) => endpoint.ifindex === 0, emptyEndpoint);
}

/** Keys are addresses. */
export function vtepsTarget(tables: Tables): Target<Struct<'vtep'>> {
  return {
    name: 'vteps',
    list: async () => new Map(tables.vteps.entries()),
    upsert: async (entries) => tables.vteps.setMany(entries),
    remove: async (entries) => void tables.vteps.deleteMany(entries.keys()),
  };
}

/** A program on a device's hook. Its key, also the pin's name, is `from_pod@veth1234abcd`. */
export interface Attachment {
  /** The device; 0 when the link has lost it. */
  readonly ifindex: number;
  readonly programId: number;
}

const directions = {
  from_pod: 'ingress',
  from_wire: 'ingress',
  to_pod: 'egress',
  to_vtep: 'egress',
} as const;
export type HookName = keyof typeof directions;

/** bpffs allows no dots in names, and no interface has a colon in its own. */
export function linkKey(hook: HookName, ifname: string): string {
  return `${hook}@${ifname.replaceAll('.', ':')}`;
}

/** The inverse of {@link linkKey}. */
export function parseLinkKey(key: string): { hook: HookName; ifname: string } {
  const [hook, device = ''] = key.split('@');
  return { hook: hook as HookName, ifname: device.replaceAll(':', '.') };
}

/** The links that should be: every hook on its devices. */
export function desiredLinks(
  programs: Readonly<Record<ProgramName, BpfProgram>>,
  devices: readonly { hook: HookName; ifname: string; ifindex: number }[],
): Map<string, Attachment> {
  return new Map(
    devices.map(({ hook, ifname, ifindex }) => [
      linkKey(hook, ifname),
      { ifindex, programId: programs[hook].info.id },
    ]),
  );
}

/**
 * Pinned links. A link that is on the right device has its program replaced atomically, so no packet misses the hook; one
 * that lost its device (deleted, or created anew under the same name) is attached anew.
 */
export function linksTarget(
  pinDir: string,
  programs: Readonly<Record<ProgramName, BpfProgram>>,
): Target<Attachment> {
  return {
    name: 'links',
    list: async () => listLinks(pinDir),
    upsert: async (entries) => {
      for (const [key, wanted] of entries) {
        const { hook } = parseLinkKey(key);
        attachOrReplace(join(pinDir, key), programs[hook], wanted.ifindex, directions[hook]);
      }
    },
    remove: async (entries) => {
      for (const key of entries.keys()) rmSync(join(pinDir, key), { force: true });
    },
  };
}

/** The pinned links by pin name. */
export function listLinks(pinDir: string): Map<string, Attachment> {
  const found = new Map<string, Attachment>();
  if (!existsSync(pinDir)) return found;
  for (const key of readdirSync(pinDir)) {
    using link = BpfLink.openPinned(join(pinDir, key));
    const { ifindex, programId } = link.info();
    found.set(key, { ifindex: ifindex ?? 0, programId });
  }
  return found;
}

function attachOrReplace(
  pin: string,
  program: BpfProgram,
  ifindex: number,
  direction: 'ingress' | 'egress',
): void {
  if (existsSync(pin)) {
    using link = BpfLink.openPinned(pin);
    if (link.info().ifindex === ifindex) return link.update(program);
    rmSync(pin);
  }
  using link = BpfLink.attachTcx(program, ifindex, direction);
  link.pin(pin);
}
