// SPDX-License-Identifier: Apache-2.0
import { type Stats, statSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errorText, RipstopError } from '../errors.ts';
import { listLinks, readLinkIfThere } from '../host/links.ts';
import { addressAt, cidrCovers, parseCidr } from '../net/ip.ts';
import type { Attachment, AttachmentStore } from './attachments.ts';
import { flannelDataDir } from './conflist.ts';
import type { HostLocalStore, Lease } from './host-local.ts';
import type {
  AddCall,
  Attached,
  AttachmentId,
  CheckCall,
  CniOps,
  DelCall,
  GcCall,
  PodAddress,
} from './plugin.ts';
import type { PodDevice } from './pod-device.ts';
import {
  configureVeth,
  createVeth,
  deleteRenamedVeth,
  deleteVeth,
  hostVethName,
  inspectVeth,
} from './pod-network.ts';
import { CniCode, CniError } from './spec.ts';
import { Steps } from './steps.ts';
import { findSuspects, isStale, type NetworkLease } from './sweep.ts';

/** One family of the pods' network. */
export interface CniFamily {
  /** This node's block, e.g. `10.42.1.0/24` or `fd00:42:0:1::/64`; its first address is the pods' gateway. */
  readonly podCidr: string;
  /** The cluster's block, e.g. `10.42.0.0/16`. */
  readonly clusterNetwork: string;
  /** MTU in bytes of this family's packets: the uplink's less the tunnel's headers. */
  readonly mtu: number;
}

/** What the agent gives the plugin's logic. Asked for anew at every call, so the agent may replace it as it learns. */
export interface CniContext {
  /** The families that every new pod gets an address of, IPv4 first; none before the node is ready. */
  families: readonly CniFamily[];
  /** What a new pod gets. Default: `veth`. */
  podDevice?: PodDevice;
  /** The pods' addresses. */
  addresses: HostLocalStore;
  store: AttachmentStore;
  /**
   * Make an endpoint of it: the node's route to it, programs, map entries. Packets may flow when the promise resolves.
   */
  attach(attachment: Attachment): Promise<void>;
  /** Undo that; called also after an `attach` that failed, so what is not there must be no error. */
  detach(attachment: Attachment): Promise<void>;
  /** Whether pods can be added now; if not, why, and whether it may concern pods that are there. */
  ready(): { ok: true } | { ok: false; reason: string; limited?: boolean };
  /** Path of the node's network namespace; the agent's own when left out. */
  netns?: string;
}

/**
 * The commands' work. An attachment is written to the store before anything that the agent derives from it (routes,
 * endpoints) is made, and is removed from the store first. So if the agent dies in between, the store is right when
 * the next one starts. The runtime sends DEL after a failed ADD, and that removes the rest.
 * Only ADD needs to know this node's part of the network: all others work from an agent's first moment.
 */
export function createCniOps(context: () => CniContext): CniOps & Sweeper {
  const serialised = keyedMutex();
  const ops: CniOps & Sweeper = {
    add: (call) => serialised(call.containerId, () => add(context(), call)),
    del: (call) => serialised(call.containerId, () => teardown(context(), call)),
    check: (call) => serialised(call.containerId, () => check(context(), call)),
    status: async () => status(context()),
    gc: (call) => gc(context(), call, (stale) => ops.del(stale)),
    sweep: async (minAgeMs, netnsDir) => {
      const swept: NetworkLease[] = [];
      for (const lease of await findSuspects(context(), minAgeMs)) {
        await serialised(lease.containerId, async () => {
          if (!(await isStale(context(), lease, netnsDir))) return;
          await teardown(context(), lease);
          swept.push(lease);
        });
      }
      return swept;
    },
  };
  return ops;
}

/** Does what a runtime's GC would, where a runtime calls none. */
export interface Sweeper {
  /**
   * Release the leases of pods that are gone, as a DEL would.
   * @param minAgeMs younger leases stay. @param netnsDir where the pods' network namespaces are.
   * @returns what was released.
   */
  sweep(minAgeMs: number, netnsDir?: string): Promise<NetworkLease[]>;
}

/**
 * Forget attachments that have neither a veth nor an address any more: another plugin, flannel's, has ended their pods
 * while ripstop was away. Of others whose veth has gone a DEL is still to come. To be called before the first ADD.
 * @returns those that were forgotten.
 */
export async function forgetGone({ store, netns, addresses }: CniContext): Promise<Attachment[]> {
  const links = await listLinks({ netns });
  const gone: Attachment[] = [];
  for (const attachment of await store.list()) {
    if (links.has(attachment.hostIfname)) continue;
    if (leasesOf(addresses, attachment.network, attachment).length > 0) continue;
    await store.remove(attachment);
    gone.push(attachment);
  }
  return gone;
}

async function add(context: CniContext, call: AddCall): Promise<Attached> {
  const steps = new Steps();
  const ready = context.ready();
  if (!ready.ok) {
    throw new CniError(CniCode.tryAgain, `the ripstop agent is not ready: ${ready.reason}; try again`);
  }
  await refuseDuplicate(context, call);
  steps.done('checks');
  const podCidrs = context.families.map(({ podCidr }) => podCidr);
  refuseOtherRanges(call.ranges ?? [], podCidrs);
  // Until here nothing is ours to undo, nor is an address that is refused because the attachment has one already.
  const ips = context.addresses.allocate(call.network, podCidrs, call, call.ips);
  steps.done('addresses');
  try {
    return await connect(context, call, ips, steps);
  } catch (thrown) {
    try {
      await teardown(context, call);
    } catch (undoing) {
      throw new CniError(CniCode.failed, `${errorText(thrown)}; and undoing it: ${errorText(undoing)}`, {
        cause: thrown,
      });
    }
    throw thrown;
  }
}

/** The addresses come from this node's blocks and no others. */
function refuseOtherRanges(ranges: readonly string[], podCidrs: readonly string[]): void {
  const blocks = podCidrs.map(parseCidr);
  const other = ranges.find((range) => !blocks.some((block) => cidrCovers(parseCidr(range), block)));
  if (other === undefined) return;
  throw new CniError(
    CniCode.ipam,
    `the runtime asks for an address of ${other}, but pods of this node have addresses of ${podCidrs.join(' and ')}`,
  );
}

/** The interface serves the family with the larger packets; the routes of the other one say less. */
function linkMtu({ families }: CniContext): number {
  return Math.max(...families.map(({ mtu }) => mtu));
}

/** Everything of ADD after the addresses. What it leaves behind when it throws, {@link teardown} finds. */
async function connect(
  context: CniContext,
  call: AddCall,
  ips: readonly string[],
  steps: Steps,
): Promise<Attached> {
  const { containerId, ifname, netns, network, podNamespace, podName } = call;
  const namespaces = { pod: netns, node: context.netns };
  const hostIfname = hostVethName(call);
  const mtu = linkMtu(context);
  const { podDevice: kind } = context;
  const veth = await createVeth(hostIfname, ifname, mtu, namespaces, { kind, podMac: call.mac });
  steps.done('veth');
  const addresses = context.families.map((family, i) => podAddress(family, ips[i]!, mtu));
  const attachment: Attachment = {
    containerId,
    ifname,
    netns,
    network,
    hostIfname,
    ...veth,
    ips,
    ...(podNamespace !== undefined && { podNamespace }),
    ...(podName !== undefined && { podName }),
  };
  context.store.put(attachment);
  steps.done('file');
  await configureVeth(hostIfname, ifname, addresses, namespaces, steps);
  await context.attach(attachment);
  steps.done('endpoint');
  return { hostIfname, hostMac: veth.hostMac, podMac: veth.podMac, addresses, stepsMs: steps.ms };
}

function podAddress({ podCidr, clusterNetwork, mtu }: CniFamily, ip: string, linkMtu: number): PodAddress {
  const block = parseCidr(podCidr);
  return {
    ip,
    gateway: addressAt(block, 1),
    // The cluster's own route stays when a later plugin moves the default route; flannel's pods have it too.
    routes: [clusterNetwork, block.family === 6 ? '::/0' : '0.0.0.0/0'],
    ...(mtu < linkMtu && { routeMtu: mtu }),
  };
}

async function refuseDuplicate(context: CniContext, call: AddCall): Promise<void> {
  refuseNodeNamespace(context, call.netns);
  const link = await readLinkIfThere(call.ifname, { netns: call.netns }).catch((error: unknown) => {
    throw new CniError(CniCode.environment, `cannot enter CNI_NETNS ${call.netns}: ${errorText(error)}`);
  });
  const what = link
    ? `the pod has an interface ${call.ifname} already`
    : (await context.store.get(call)) &&
      `container ${call.containerId} is attached as ${call.ifname} already`;
  if (what) throw new CniError(CniCode.exists, `${what}; the runtime must call DEL before another ADD`);
}

/** A pod of the host's network has nothing to be attached to, and its ADD would rewrite the node's own routes. */
function refuseNodeNamespace(context: CniContext, netns: string): void {
  const pod = statIfThere(netns);
  if (!pod) throw new CniError(CniCode.environment, `CNI_NETNS ${netns} does not exist`);
  if (isNodeNamespace(context, pod)) {
    throw new CniError(CniCode.environment, `CNI_NETNS ${netns} is the node's own network namespace`);
  }
}

function isNodeNamespace(context: CniContext, { ino, dev }: Stats): boolean {
  const node = statSync(context.netns ?? '/proc/self/ns/net');
  return ino === node.ino && dev === node.dev;
}

function statIfThere(path: string): Stats | undefined {
  return statSync(path, { throwIfNoEntry: false });
}

/**
 * Take away all there may be of an attachment. Idempotent, and works with nothing but the runtime's names; a step that
 * fails keeps none of the others from being done.
 */
async function teardown(context: CniContext, call: DelCall): Promise<void> {
  const faults: unknown[] = [];
  const step = <T>(work: Promise<T>): Promise<T | undefined> =>
    work.catch((thrown: unknown) => {
      faults.push(thrown);
      return undefined;
    });
  const attachment = await step(context.store.get(call));
  await step(context.store.remove(call));
  if (attachment) await step(context.detach(attachment));
  const isDeleted = await step(deleteVeth(hostVethName(call), context.netns));
  if (isDeleted === false && attachment) await step(deleteRenamedVeth(attachment, context.netns));
  // A pod that came from flannel, and one of ours that `uninstall --restore-flannel` has told flannel's plugin of.
  await step(rm(join(flannelDataDir(context.addresses.dataDir), call.containerId), { force: true }));
  if (!attachment) await step(detachFlannels(context, call));
  // Last, so that nobody gets the addresses while anything still leads to their old owner.
  await step(Promise.try(() => context.addresses.release(call.network, call)));
  if (faults.length === 0) return;
  const [first] = faults;
  if (faults.length === 1 && first instanceof RipstopError) throw first;
  throw new CniError(CniCode.failed, faults.map(errorText).join('; '), { cause: first });
}

/**
 * Take a pod off flannel's bridge, as its own plugin would: one that was attached before ripstop took the node over.
 * Its address is in the same pool as ours.
 */
async function detachFlannels(context: CniContext, call: DelCall): Promise<void> {
  const pod = call.netns === undefined ? undefined : statIfThere(call.netns);
  // The node's own devices must not be deleted; and when the pod's namespace is gone, so are its devices.
  if (!pod || isNodeNamespace(context, pod)) return;
  const link = await readLinkIfThere(call.ifname, { netns: call.netns! }).catch(() => undefined);
  if (link?.kind === 'veth') await deleteVeth(call.ifname, call.netns);
}

/**
 * A pod that was attached before ripstop took the node over: flannel's plugin has no CHECK, so what it must have is
 * little.
 */
async function checkFlannels(context: CniContext, call: CheckCall): Promise<void> {
  const leased = leasesOf(context.addresses, call.network, call);
  if (leased.length === 0) {
    throw new CniError(
      CniCode.unknownContainer,
      `container ${call.containerId} is not attached as ${call.ifname}`,
    );
  }
  const link = await readLinkIfThere(call.ifname, { netns: call.netns });
  const faults = leased
    .filter(({ ip }) => !link?.addresses.some((address) => address.ip === ip))
    .map(({ ip }) => `the pod's ${call.ifname} has lost ${ip}`);
  if (!link) faults.unshift(`the pod has no interface ${call.ifname}`);
  else if (!link.up) faults.unshift(`the pod's ${call.ifname} is down`);
  if (faults.length > 0) throw new CniError(CniCode.drifted, faults.join('; '));
}

async function check(context: CniContext, call: CheckCall): Promise<void> {
  const attachment = await context.store.get(call);
  if (!attachment) return checkFlannels(context, call);
  const promised = call.prevResult.interfaces.find(({ name, sandbox }) => name === call.ifname && sandbox);
  const faults = await inspectVeth(
    // A later plugin (tuning) may have changed the MAC address, and has said so in the result.
    { ...attachment, podMac: promised?.mac },
    { pod: call.netns, node: context.netns },
  );
  if (!promised) faults.unshift(`the prevResult has no interface ${call.ifname}`);
  const leased = leasesOf(context.addresses, call.network, call);
  for (const ip of attachment.ips) {
    if (!call.prevResult.ips.some(({ address }) => address.split('/')[0] === ip)) {
      faults.unshift(`the prevResult has no address ${ip}`);
    }
    if (!leased.some((lease) => lease.ip === ip)) faults.push(`there is no lease of ${ip} for it`);
  }
  if (faults.length > 0) throw new CniError(CniCode.drifted, faults.join('; '));
}

/**
 * Whether the agent is ready. That all addresses are taken is no failure of the plugin: runtimes would report the node
 * as not ready, and its pods would be evicted.
 */
function status(context: CniContext): void {
  const ready = context.ready();
  if (ready.ok) return;
  const code = ready.limited ? CniCode.limited : CniCode.notAvailable;
  throw new CniError(code, `the ripstop agent is not ready: ${ready.reason}`);
}

/** Delete what the runtime does not know: attachments, and leases whose attachment was lost. Goes on past errors. */
async function gc(context: CniContext, call: GcCall, del: (call: DelCall) => Promise<void>): Promise<void> {
  const { network } = call;
  const valid = new Set(call.validAttachments.map(keyOf));
  const known = [
    ...(await context.store.list()).filter((attachment) => attachment.network === network),
    ...context.addresses.list(network),
  ];
  const stale = new Map(known.filter((id) => !valid.has(keyOf(id))).map((id) => [keyOf(id), id]));
  const faults: string[] = [];
  for (const [name, { containerId, ifname }] of stale) {
    await del({ network, containerId, ifname }).catch((error: unknown) =>
      faults.push(`${name}: ${errorText(error)}`),
    );
  }
  if (faults.length > 0) {
    throw new CniError(
      CniCode.failed,
      `${faults.length} of ${stale.size} stale attachments stay: ${faults[0]}`,
      {
        details: faults.join('\n'),
      },
    );
  }
}

function leasesOf(addresses: HostLocalStore, network: string, id: AttachmentId): Lease[] {
  return addresses.list(network).filter((lease) => keyOf(lease) === keyOf(id));
}

function keyOf({ containerId, ifname }: AttachmentId): string {
  return `${containerId}/${ifname}`;
}

/** Runs work of one key in the order of arrival, and of different keys at the same time. */
function keyedMutex(): <T>(key: string, work: () => Promise<T>) => Promise<T> {
  const tails = new Map<string, Promise<unknown>>();
  return (key, work) => {
    const turn = (tails.get(key) ?? Promise.resolve()).then(work);
    // Whoever comes next waits for the end, not for success.
    const tail = turn
      .catch(() => {})
      .then(() => {
        if (tails.get(key) === tail) tails.delete(key);
      });
    tails.set(key, tail);
    return turn;
  };
}
