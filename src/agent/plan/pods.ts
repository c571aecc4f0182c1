// SPDX-License-Identifier: Apache-2.0
/** The pods of this node: their routes, endpoints and programs. Pure. */
import type { Attachment } from '../../cni/attachments.ts';
import { desiredEndpoints, type Endpoint, endpointSlot } from '../../dataplane/desired.ts';
import { desiredLinks, type HookedInterface, type LinkState } from '../../dataplane/links.ts';
import type { Struct } from '../../dataplane/codec.ts';
import { findPodBridge, proxyKey } from '../../host/pod-bridge.ts';
import type { PodRoute } from '../../host/pod-routes.ts';
import { addressFamily, type Family, formatCidr, hostCidr } from '../../net/ip.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';

/** The pods as they were observed. */
export interface Pods {
  /** One for each address. */
  readonly endpoints: readonly Endpoint[];
  /** Host veths: name → ifindex. */
  readonly devices: ReadonlyMap<string, number>;
  /** Bridges of pods that flannel's plugin has attached, with the families that they serve. */
  readonly bridges: ReadonlyMap<string, readonly Family[]>;
  readonly revision: string;
}

/** The attached pods whose host veth is the one that they were given, and up: the kernel takes no route to it before. */
export function podsOf({ links, pods }: NodeSnapshot, { families }: PlanOptions): Pods {
  const endpoints = pods.value.flatMap((attachment) => {
    const link = links.value.get(attachment.hostIfname);
    if (link?.ifindex !== attachment.hostIfindex || !link.up) return [];
    const { kernelPath = false } = attachment;
    return attachment.ips.map((ip) => ({ ...attachment, ip, mtu: link.mtu, kernelPath }));
  });
  const bridges = new Map<string, Family[]>();
  for (const { family, podCidr } of families) {
    const bridge = findPodBridge(podCidr, links.value)?.name;
    if (bridge !== undefined) bridges.set(bridge, [...(bridges.get(bridge) ?? []), family]);
  }
  return {
    endpoints,
    devices: new Map(endpoints.map(({ hostIfname, hostIfindex }) => [hostIfname, hostIfindex])),
    bridges,
    revision: `${pods.revision}.${links.revision}`,
  };
}

export interface PodPlan {
  readonly podRoutes: Desired<PodRoute>;
  readonly proxies: Desired<true>;
  /** The rest is undefined as long as no programs are loaded. */
  readonly endpoints?: Desired<Struct<'endpoint'>>;
  readonly endpoints6?: Desired<Struct<'endpoint'>>;
  readonly podLinks?: Desired<LinkState>;
}

/** @param attaches whether programs may be attached: not before the maps that they read are filled. */
export function planPods(
  of: Outline,
  pods: Pods,
  node: NodeSnapshot,
  options: PlanOptions,
  attaches: boolean,
): PodPlan {
  const { revision } = pods;
  const whole = <V>(entries: () => ReadonlyMap<string, V>, more = ''): Desired<V> => ({
    revision: `${revision} ${more}`,
    entries,
    complete: true,
  });
  const kernelPath = {
    podRoutes: whole(() => podRoutes(pods, options)),
    proxies: whole(() => proxies(pods)),
  };
  const programs = node.programs;
  if (!programs.value) return kernelPath;
  const { ids } = programs.value;
  const loaded = `${programs.revision} ${of.revision}`;
  const endpoints = () => desiredEndpoints(of.settings, pods.endpoints);
  return {
    ...kernelPath,
    endpoints: whole(() => endpoints().endpoints, loaded),
    endpoints6: whole(() => endpoints().endpoints6, loaded),
    ...(attaches && { podLinks: whole(() => desiredLinks(ids, podHooks(pods)), String(programs.revision)) }),
  };
}

function podRoutes({ endpoints, bridges }: Pods, { families }: PlanOptions): Map<string, PodRoute> {
  const routes = new Map<string, PodRoute>(
    endpoints.map(({ ip, hostIfname }) => [hostCidr(ip), { dev: hostIfname }]),
  );
  const bridged = [...bridges.values()].flat();
  // As long as pods of flannel's plugin are there, the podCIDR is their bridge's connected route.
  for (const { family, podCidr } of families)
    if (!bridged.includes(family)) routes.set(formatCidr(podCidr), { unreachable: true });
  return routes;
}

/** To the pods of a bridge, the node answers for those that are not on it. */
function proxies({ endpoints, bridges }: Pods): Map<string, true> {
  return new Map(
    [...bridges].flatMap(([bridge, families]) =>
      endpoints
        .filter(({ ip }) => families.includes(addressFamily(ip) ?? 4))
        .map(({ ip }) => [proxyKey(bridge, ip), true] as const),
    ),
  );
}

/** to_pod comes first, on all: it counts translated flows, and from_pod asks for the count. */
function podHooks({ devices }: Pods): HookedInterface[] {
  return (['to_pod', 'from_pod'] as const).flatMap((hook) =>
    [...devices].map(([ifname, ifindex]) => ({ hook, ifname, ifindex })),
  );
}

/** The keys that one attachment stands for, by the target that they are keys of. */
export function podKeys({ ips }: Attachment, { settings }: Outline) {
  return {
    podRoutes: ips.map(hostCidr),
    endpoints: ips.map((ip) => String(endpointSlot(settings, ip))),
    endpoints6: ips,
  };
}
