// SPDX-License-Identifier: Apache-2.0
/** The pods of this node: their routes, endpoints and programs. Pure. */
import type { Attachment } from '../../cni/attachments.ts';
import { isPodDevice } from '../../cni/pod-device.ts';
import { desiredEndpoints, type Endpoint, endpointSlot } from '../../dataplane/desired.ts';
import { desiredLinks, type HookedInterface, type LinkState } from '../../dataplane/links.ts';
import type { Struct } from '../../dataplane/codec.ts';
import { findPodBridge, proxyKey } from '../../host/pod-bridge.ts';
import type { PodRoute } from '../../host/pod-routes.ts';
import { podVethSysctls, type Sysctl } from '../../host/sysctl.ts';
import { addressFamily, cidrContains, type Family, formatCidr, hostCidr } from '../../net/ip.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import { netkitsOf, type NodeSnapshot } from '../snapshot.ts';
import { lazily, type PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';

/** The observed pods. */
export interface Pods {
  /** One for each address, of pods with a routed veth, which ripstop's plugin attached. */
  readonly routed: readonly Endpoint[];
  /** The same, of pods on a bridge, which another plugin attached. */
  readonly bridged: readonly Endpoint[];
  /** The ports of bridges that lead to pods, also to those of which no address is known yet: name → ifindex. */
  readonly ports: ReadonlyMap<string, number>;
  /** Indexes of host veths whose packets somebody shapes: their endpoints are marked for the kernel path. */
  readonly shaped: readonly number[];
  /** Indexes of those that are no veths, but primaries of netkits. */
  readonly netkits: ReadonlySet<number>;
  /** Bridges of our podCIDRs, with their address families. */
  readonly bridges: ReadonlyMap<string, readonly Family[]>;
}

/** The same revision stands for the same {@link Pods}. */
export function podsRevision({ pods, bridged, links, shaped }: NodeSnapshot): string {
  return [pods, bridged, links, shaped].map(({ revision }) => revision).join('.');
}

/**
 * Of the attachments, those whose host veth is the one that ADD created, and up: the kernel refuses routes over
 * interfaces that are down.
 */
export function podsOf(node: NodeSnapshot, { families }: PlanOptions): Pods {
  const { links, pods, shaped } = node;
  const routed = pods.value.flatMap((attachment) => {
    const link = links.value.get(attachment.hostIfname);
    if (link?.ifindex !== attachment.hostIfindex || !link.up) return [];
    const kernelPath = attachment.kernelPath === true || shaped.value.includes(attachment.hostIfindex);
    return attachment.ips.map((ip) => ({ ...attachment, ip, mtu: link.mtu, kernelPath }));
  });
  const isRouted = new Set(routed.map(({ ip }) => ip));
  const bridges = new Map<string, Family[]>();
  for (const { family, podCidr } of families) {
    const bridge = findPodBridge(podCidr, links.value)?.name;
    if (bridge !== undefined) bridges.set(bridge, [...(bridges.get(bridge) ?? []), family]);
  }
  return {
    routed,
    bridged: bridgedEndpoints(node, families).filter(({ ip }) => !isRouted.has(ip)),
    ports: portsOf(node),
    shaped: shaped.value,
    netkits: netkitsOf(node),
    bridges,
  };
}

/** Pods on bridges, by their addresses in our podCIDRs. */
function bridgedEndpoints(
  { links, bridged, shaped }: NodeSnapshot,
  families: PlanOptions['families'],
): Endpoint[] {
  if (bridged.value.pods.length === 0) return [];
  const byIndex = new Map(links.value.values().map((link) => [link.ifindex, link]));
  return bridged.value.pods.flatMap(({ ip, podMac, bridge, port }) => {
    const [link, mac] = [byIndex.get(port), byIndex.get(bridge)?.mac];
    if (!link?.up || mac === undefined || !families.some(({ podCidr }) => cidrContains(podCidr, ip)))
      return [];
    const host = { hostIfname: link.name, hostIfindex: port, hostMac: mac };
    const kernelPath = [port, bridge].some((ifindex) => shaped.value.includes(ifindex));
    return [{ ip, ...host, podMac, mtu: link.mtu, kernelPath }];
  });
}

function portsOf({ links, bridged }: NodeSnapshot): Map<string, number> {
  const ports = new Set(bridged.value.ports);
  if (ports.size === 0) return new Map();
  const found = links.value.values().filter(({ ifindex, up }) => up && ports.has(ifindex));
  return new Map(found.map(({ name, ifindex }) => [name, ifindex]));
}

/** Host veths: name → ifindex. */
export function hostVeths(endpoints: readonly Endpoint[]): Map<string, number> {
  return new Map(endpoints.map(({ hostIfname, hostIfindex }) => [hostIfname, hostIfindex]));
}

/** The attachments whose host veth somebody has renamed, under its new name: the index and the MAC address stay. */
export function renamedPods({ links, pods }: NodeSnapshot): Attachment[] {
  const renamed = pods.value.filter(
    ({ hostIfname, hostIfindex }) => links.value.get(hostIfname)?.ifindex !== hostIfindex,
  );
  if (renamed.length === 0) return [];
  const byIndex = new Map(links.value.values().map((link) => [link.ifindex, link]));
  return renamed.flatMap((pod) => {
    const link = byIndex.get(pod.hostIfindex);
    return isPodDevice(link?.kind) && link?.mac === pod.hostMac ? [{ ...pod, hostIfname: link.name }] : [];
  });
}

export interface PodPlan {
  /** Undefined in boost mode: there flannel's plugin has made all that pods need on the kernel path. */
  readonly kernelPath?: {
    readonly podSysctls: Desired<Sysctl>;
    readonly podRoutes: Desired<PodRoute>;
    readonly proxies: Desired<true>;
  };
  /** The following are undefined as long as no programs are loaded. */
  readonly endpoints?: Desired<Struct<'endpoint'>>;
  readonly endpoints6?: Desired<Struct<'endpoint'>>;
  readonly podLinks?: Desired<LinkState>;
}

/**
 * @param podsAre as observed in `node`; computed only when a target is looked at.
 * @param attaches whether programs may be attached: only once the maps that they read are filled.
 */
export function planPods(
  outline: Outline,
  podsAre: () => Pods,
  node: NodeSnapshot,
  options: PlanOptions,
  attaches: boolean,
): PodPlan {
  const revision = podsRevision(node);
  const desired = <V>(entries: () => ReadonlyMap<string, V>, suffix = ''): Desired<V> => ({
    revision: `${revision} ${suffix}`,
    entries,
    // A pod of which nothing but its host veth is known keeps what it has.
    complete: !node.lostPods.some((hostIfname) => node.links.value.has(hostIfname)),
  });
  const plan: PodPlan =
    options.agent.mode === 'boost'
      ? {}
      : {
          kernelPath: {
            podSysctls: desired(() => podSysctls(podsAre(), options)),
            podRoutes: desired(() => podRoutes(podsAre(), options)),
            proxies: desired(() => proxies(podsAre())),
          },
        };
  const programs = node.programs;
  if (!programs.value) return plan;
  const { ids } = programs.value;
  const loaded = `${programs.revision} ${outline.revision}`;
  const endpoints = lazily(() => {
    const { routed, bridged } = podsAre();
    return desiredEndpoints(outline.settings, [...routed, ...bridged]);
  });
  return {
    ...plan,
    endpoints: desired(() => endpoints().endpoints, loaded),
    endpoints6: desired(() => endpoints().endpoints6, loaded),
    ...(attaches && {
      podLinks: desired(() => desiredLinks(ids, podHooks(podsAre(), options)), String(programs.revision)),
    }),
  };
}

function podSysctls({ routed }: Pods, { families }: PlanOptions): Map<string, Sysctl> {
  const used = families.map(({ family }) => family);
  const settings = [...hostVeths(routed).keys()].flatMap((name) => podVethSysctls(name, used));
  return new Map(settings.map((setting) => [setting.path, setting]));
}

function podRoutes({ routed, bridges }: Pods, { families }: PlanOptions): Map<string, PodRoute> {
  const routes = new Map<string, PodRoute>(
    routed.map(({ ip, hostIfname }) => [hostCidr(ip), { dev: hostIfname }]),
  );
  const bridged = [...bridges.values()].flat();
  // As long as there are pods of flannel's plugin, the podCIDR has the connected route of their bridge.
  for (const { family, podCidr } of families)
    if (!bridged.includes(family)) routes.set(formatCidr(podCidr), { unreachable: true });
  return routes;
}

/** On bridges, the node answers for the pods that are not on them. */
function proxies({ routed, bridges }: Pods): Map<string, true> {
  return new Map(
    [...bridges].flatMap(([bridge, families]) =>
      routed
        .filter(({ ip }) => families.includes(addressFamily(ip) ?? 4))
        .map(({ ip }) => [proxyKey(bridge, ip), true] as const),
    ),
  );
}

/**
 * A pod with an address outside our podCIDRs, of a previous podCIDR for example, gets no from_pod: it drops what comes
 * from addresses that the maps do not have. A shaped endpoint has nothing to learn, so it needs no to_pod. Nor has its
 * host veth always an egress hook: before tcx (Linux 6.6) there is none beside the ingress qdisc of the bandwidth plugin.
 */
function podHooks({ routed, ports, shaped, netkits }: Pods, { families }: PlanOptions): HookedInterface[] {
  const foreign = new Set(
    routed
      .filter(({ ip }) => !families.some(({ podCidr }) => cidrContains(podCidr, ip)))
      .map(({ hostIfname }) => hostIfname),
  );
  return (['from_pod', 'to_pod'] as const).flatMap((hook) =>
    [...hostVeths(routed), ...ports]
      .filter(([ifname, ifindex]) => (hook === 'to_pod' ? !shaped.includes(ifindex) : !foreign.has(ifname)))
      .map(([ifname, ifindex]) => ({
        hook,
        ifname,
        ifindex,
        ...(hook === 'from_pod' && netkits.has(ifindex) && { netkit: true }),
      })),
  );
}

/** The keys that belong to one attachment, by target. */
export function podKeys({ ips }: Attachment, { settings }: Outline) {
  return {
    podRoutes: ips.map(hostCidr),
    endpoints: ips.map((ip) => String(endpointSlot(settings, ip))),
    endpoints6: ips,
  };
}
