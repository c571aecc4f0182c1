// SPDX-License-Identifier: Apache-2.0
/** The programs on hooks as targets: tcx links, clsact filters before Linux 6.6, netkit links and XDP links. */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { attachTc, BpfError, BpfLink, type BpfProgram, ifindexOf, programsAt, TcFilter } from '#libbpf-ts';
import { errorText } from '../errors.ts';
import { type Failures, noFailures, type Target } from '../reconcile/target.ts';

const places = {
  from_pod: 'ingress',
  from_wire: 'ingress',
  from_vtep: 'ingress',
  to_pod: 'egress',
  to_vtep: 'egress',
  to_wire: 'egress',
  xdp_from_wire: 'xdp',
} as const;
export type HookName = keyof typeof places;

/** A program on an interface's hook. Its key, also the link's name in bpffs, is `from_pod@veth1234abcd`. */
export interface LinkState {
  /** The interface's index; 0 when the interface is gone, and with it the link or filter. */
  readonly ifindex: number;
  readonly programId: number;
  /** XDP only: the interface's MTU when the driver accepted the program; 0 when another process attached it. */
  readonly mtu?: number;
  /** `from_pod` only: it hangs at the hook of the netkit's peer, not at tc ingress. */
  readonly netkit?: true;
}

/** A link's key. bpffs allows no dots in file names, and interface names have no colons. */
export function linkKey(hook: HookName, ifname: string): string {
  return `${hook}@${ifname.replaceAll('.', ':')}`;
}

/** The inverse of {@link linkKey}. */
export function parseLinkKey(key: string): { hook: HookName; ifname: string } {
  const [hook, device = ''] = key.split('@');
  return { hook: hook as HookName, ifname: device.replaceAll(':', '.') };
}

/** An interface's hook that should have its program. */
export interface HookedInterface {
  readonly hook: HookName;
  readonly ifname: string;
  readonly ifindex: number;
  /** XDP only. */
  readonly mtu?: number;
  /** `from_pod` only: the interface is the primary of a netkit. */
  readonly netkit?: boolean;
}

/** The ids of the loaded programs, by hook; of `from_pod` also the one for netkits, when it is loaded. */
export type ProgramIds = Readonly<Record<HookName, number>> & { readonly from_netkit?: number };

/** The desired links. Without the program for netkits, none at their hooks. */
export function desiredLinks(
  programIds: ProgramIds,
  hooked: readonly HookedInterface[],
): Map<string, LinkState> {
  const links = new Map<string, LinkState>();
  for (const { hook, ifname, ifindex, mtu, netkit } of hooked) {
    const programId = netkit ? programIds.from_netkit : programIds[hook];
    if (programId === undefined) continue;
    const rest = { ...(mtu !== undefined && { mtu }), ...(netkit && { netkit }) };
    links.set(linkKey(hook, ifname), { ifindex, programId, ...rest });
  }
  return links;
}

/**
 * The answers of drivers to attaching XDP. Only attaching shows up to which MTU a driver supports XDP (virtio-net
 * accepts it and drops larger packets), and it resets a NIC's queues. So it is tried once for each interface and MTU.
 */
export class XdpAnswers {
  readonly #refusals = new Map<string, string>();
  readonly #acceptedMtus = new Map<string, number>();

  /** Why drivers refused XDP, by {@link xdpKey}. */
  get refusals(): ReadonlyMap<string, string> {
    return new Map(this.#refusals);
  }

  /** The MTU at which the driver accepted the program; undefined when this process did not attach it. */
  acceptedMtu({ name, ifindex }: Omit<XdpInterface, 'mtu'>): number | undefined {
    return this.#acceptedMtus.get(`${name} ${ifindex}`);
  }

  accepted({ name, ifindex, mtu }: XdpInterface): void {
    this.#acceptedMtus.set(`${name} ${ifindex}`, mtu);
  }

  refused(uplink: XdpInterface, why: string): void {
    this.#refusals.set(xdpKey(uplink), why);
  }
}

export interface XdpInterface {
  readonly name: string;
  readonly ifindex: number;
  readonly mtu: number;
}

/** The key of a refusal: an interface at an MTU. */
export function xdpKey({ name, ifindex, mtu }: XdpInterface): string {
  return `${name} ${ifindex} ${mtu}`;
}

/**
 * Before tcx (Linux 6.6) programs are attached by clsact filters, which are not links and cannot be pinned. Instead the
 * program is pinned, under this prefix, to record which interfaces have a filter of ours. The pin does not keep it
 * attached.
 */
const filterPin = 'clsact:';
/** Handle ("rips" in ASCII) and priority of our filters: they run before filters that were added without a priority. */
export const filterPlace = { handle: 0x72697073, priority: 100 };

export interface LinkTargetOptions {
  readonly name: string;
  /** The hooks that this target maintains; it leaves the others alone. */
  readonly hooks: readonly HookName[];
  readonly pinDir: string;
  /** The loaded program of a hook; called at each use, since programs may be loaded again. */
  readonly program: (hook: HookName | 'from_netkit') => BpfProgram;
  readonly xdp?: XdpAnswers;
  /** Attaches a program. Default: by tcx where the kernel has it, else by clsact. */
  readonly attach?: typeof attachTc;
}

/**
 * The programs on interfaces. A program on the right interface is replaced atomically, so no packet misses the hook. If
 * the interface was deleted, and perhaps created again with the same name, the program is attached again.
 */
export function linksTarget(options: LinkTargetOptions): Target<LinkState> {
  const { name, hooks, pinDir, program, xdp = new XdpAnswers(), attach = attachTc } = options;
  const keep = (key: string): boolean => hooks.includes(parseLinkKey(key).hook);
  /** Interfaces by key, as listed and written since: where a link with another name may hang. */
  let held = new Map<string, number>();
  return {
    name,
    list: async () => {
      const found = listLinks(pinDir, keep, xdp);
      held = new Map(found.entries().map(([key, { ifindex }]) => [key, ifindex]));
      return found;
    },
    upsert: async (entries) => {
      const failures = new Map<string, string>();
      for (const [key, { ifindex, mtu = 0, netkit = false }] of entries) {
        const { hook, ifname } = parseLinkKey(key);
        try {
          followRename(pinDir, key, ifindex, held);
          if (hook === 'xdp_from_wire')
            attachXdp(pinDir, key, program(hook), { name: ifname, ifindex, mtu }, xdp);
          else if (netkit) await attachToNetkit(join(pinDir, key), program('from_netkit'), ifindex);
          else await attachOrReplace(pinDir, key, program(hook), ifindex, attach);
          held.set(key, ifindex);
        } catch (error) {
          failures.set(key, errorText(error));
        }
      }
      return failures;
    },
    remove: async (entries): Promise<Failures> => {
      for (const key of entries.keys()) {
        detach(pinDir, key);
        held.delete(key);
      }
      return noFailures;
    },
  };
}

/** The attached programs, by key. Filters are searched in the network namespace of this process. */
export function listLinks(
  pinDir: string,
  keep: (key: string) => boolean = () => true,
  xdp = new XdpAnswers(),
): Map<string, LinkState> {
  const found = new Map<string, LinkState>();
  for (const pin of listPins(pinDir)) {
    const key = keyOf(pin);
    if (!keep(key)) continue;
    if (pin.startsWith(filterPin)) {
      const filter = findFilter(key);
      found.set(key, { ifindex: filter?.ifindex ?? 0, programId: filter?.programId() ?? 0 });
      continue;
    }
    using link = BpfLink.openPinned(join(pinDir, pin));
    const { ifindex = 0, programId, type } = link.info();
    const { hook, ifname } = parseLinkKey(key);
    if (type === 'netkit') {
      const primary = indexIfThere(ifname);
      found.set(key, { ifindex: hangsAtNetkit(link, primary) ? primary : 0, programId, netkit: true });
      continue;
    }
    const mtu = hook === 'xdp_from_wire' ? { mtu: xdp.acceptedMtu({ name: ifname, ifindex }) ?? 0 } : {};
    found.set(key, { ifindex, programId, ...mtu });
  }
  return found;
}

/** A link at the hook of a netkit's peer tells the index that the peer has in the pod. So the hook is asked. */
function hangsAtNetkit(link: BpfLink, primary: number): boolean {
  const { type, ifindex, programId } = link.info();
  return type === 'netkit' && ifindex !== 0 && programsAt(primary, 'netkit_peer').includes(programId);
}

/** The keys of all pins, whether still attached or not. */
export function listLinkKeys(pinDir: string): Set<string> {
  return new Set(listPins(pinDir).map(keyOf));
}

/** Those of the interfaces that have tcx programs of others. */
export function withForeignTcx(pinDir: string, ifindexes: readonly number[]): number[] {
  const ours = new Set([...listLinks(pinDir).values()].map(({ programId }) => programId));
  return ifindexes.filter((ifindex) =>
    (['tcx_ingress', 'tcx_egress'] as const).some((hook) =>
      programsAt(ifindex, hook).some((id) => !ours.has(id)),
    ),
  );
}

function keyOf(pin: string): string {
  return pin.startsWith(filterPin) ? pin.slice(filterPin.length) : pin;
}

function listPins(pinDir: string): string[] {
  return existsSync(pinDir) ? readdirSync(pinDir) : [];
}

/** Detach all programs. XDP goes first, since the frames that it passes on need from_wire. */
export function removeLinks(pinDir: string): void {
  const isXdp = (key: string): number => (places[parseLinkKey(key).hook] === 'xdp' ? 0 : 1);
  for (const key of [...listLinkKeys(pinDir)].sort((a, b) => isXdp(a) - isXdp(b))) detach(pinDir, key);
}

/**
 * An interface that was renamed keeps its links, which have its old name. The kernel attaches no program twice.
 * @param held the interface of each link that may be it; 0 of a netkit whose name is gone.
 */
function followRename(pinDir: string, key: string, ifindex: number, held: ReadonlyMap<string, number>): void {
  if (existsSync(join(pinDir, key))) return;
  const { hook } = parseLinkKey(key);
  for (const [pin, heldBy] of held) {
    if ((heldBy !== ifindex && heldBy !== 0) || !existsSync(join(pinDir, pin))) continue;
    const old = parseLinkKey(pin);
    if (old.hook !== hook || indexIfThere(old.ifname) > 0) continue;
    using link = BpfLink.openPinned(join(pinDir, pin));
    const { type, ifindex: at } = link.info();
    if (type === 'netkit' ? hangsAtNetkit(link, ifindex) : at === ifindex)
      return renameSync(join(pinDir, pin), join(pinDir, key));
  }
}

/** 0 when there is no such device. */
function indexIfThere(ifname: string): number {
  try {
    return ifindexOf(ifname);
  } catch {
    return 0;
  }
}

async function attachOrReplace(
  pinDir: string,
  key: string,
  program: BpfProgram,
  ifindex: number,
  attach: typeof attachTc,
): Promise<void> {
  const pin = join(pinDir, key);
  const place = places[parseLinkKey(key).hook];
  if (place === 'xdp') throw new Error(`${key} is no tc hook`);
  if (existsSync(pin)) {
    using link = BpfLink.openPinned(pin);
    const { ifindex: at, type } = link.info();
    if (at === ifindex && type !== 'netkit') return link.update(program);
    rmSync(pin);
  }
  // A clsact filter replaces the previous one at the same place.
  using attached = await attach(program, ifindex, place, filterPlace);
  if (attached instanceof BpfLink) return attached.pin(pin);
  const record = join(pinDir, `${filterPin}${key}`);
  rmSync(record, { force: true });
  program.pin(record);
}

/**
 * The link has the key that it would have at tc ingress. So a version that knows no netkits finds it, sees that it is not
 * where it should be, and puts its own in its place; and this one does so with that of such a version. At no time do two
 * programs of ours judge the packets that a pod sends, but for the moment between attaching the one and detaching the other.
 */
async function attachToNetkit(pin: string, program: BpfProgram, primary: number): Promise<void> {
  using old = existsSync(pin) ? BpfLink.openPinned(pin) : undefined;
  if (old && hangsAtNetkit(old, primary)) return old.update(program);
  using link = await BpfLink.attachNetkit(program, primary, 'netkit_peer');
  if (old?.info().ifindex) old.detach(); // at once; unpinning alone would detach it a moment later
  rmSync(pin, { force: true });
  link.pin(pin);
}

/** @throws Error with the driver's refusal, which is also noted in `answers`. */
function attachXdp(
  pinDir: string,
  key: string,
  program: BpfProgram,
  uplink: XdpInterface,
  answers: XdpAnswers,
): void {
  const pin = join(pinDir, key);
  try {
    if (!replaceXdp(pin, program, uplink, answers)) {
      using link = BpfLink.attachXdp(program, uplink.ifindex, 'native');
      link.pin(pin);
    }
  } catch (error) {
    if (!(error instanceof BpfError)) throw error;
    const refusal = refusalOf(uplink, error.code);
    answers.refused(uplink, refusal);
    throw new Error(refusal, { cause: error });
  }
  answers.accepted(uplink);
}

/**
 * Replace the program of the existing link.
 * @returns false when it must be attached again: then nothing is attached.
 */
function replaceXdp(
  pin: string,
  program: BpfProgram,
  { name, ifindex, mtu }: XdpInterface,
  answers: XdpAnswers,
): boolean {
  if (!existsSync(pin)) return false;
  using link = BpfLink.openPinned(pin);
  const acceptedMtu = answers.acceptedMtu({ name, ifindex }) ?? mtu;
  try {
    if (link.info().ifindex === ifindex && acceptedMtu === mtu) {
      link.update(program);
      return true;
    }
  } catch {
    // The new MTU is too large for XDP: the driver refuses only now, and drops frames that are too large for it.
  }
  link.detach(); // at once; unpinning alone would detach it a moment later
  rmSync(pin);
  return false;
}

function refusalOf({ name, mtu }: XdpInterface, code: string): string {
  if (code === 'EBUSY') return `${name} has another XDP program`;
  if (code === 'EOPNOTSUPP') return `the driver of ${name} has no XDP`;
  return `the driver of ${name} refuses XDP at an MTU of ${mtu} (${code})`;
}

function detach(pinDir: string, key: string): void {
  rmSync(join(pinDir, key), { force: true });
  const record = join(pinDir, `${filterPin}${key}`);
  if (!existsSync(record)) return;
  findFilter(key)?.detach();
  rmSync(record);
}

/** Our filter of this key; undefined when the interface or the filter is gone. */
function findFilter(key: string): TcFilter | undefined {
  const { hook, ifname } = parseLinkKey(key);
  const place = places[hook];
  if (place === 'xdp') return undefined;
  try {
    return TcFilter.find(ifindexOf(ifname), place, filterPlace);
  } catch (error) {
    if (error instanceof BpfError && error.code === 'ENODEV') return undefined;
    throw error;
  }
}
