// SPDX-License-Identifier: Apache-2.0
/** The outline of the plan: the node's uplink, its part of the cluster network, its VTEP devices. Pure. */
import { encapBytes, type FamilySettings, type NodeSettings } from '../../dataplane/desired.ts';
import { chooseUplink, type Uplink } from '../../host/uplink.ts';
import { type VtepDevice, vtepDeviceName } from '../../host/vtep-device.ts';
import { familyKey, hostCidr } from '../../net/ip.ts';
import { NO_MAC } from '../../net/mac.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { NodeFamily, PlanOptions } from './inputs.ts';

/** The basis of the rest of the plan. */
export interface Outline {
  readonly uplink: Uplink;
  /** The uplink's MTU, or less if net-conf.json says so, in bytes. */
  readonly mtu: number;
  readonly settings: NodeSettings;
  /** The settings as text, for revisions. */
  readonly revision: string;
  /** By name; none without tunnels. */
  readonly vteps: ReadonlyMap<string, VtepDevice>;
}

/** Choose the uplink and derive the settings. @throws RipstopError when there is no suitable interface. */
export function planOutline(node: NodeSnapshot, options: PlanOptions): Outline {
  const { agent, own, families, backend } = options;
  const request = {
    families: families.map(({ family }) => family),
    iface: agent.iface,
    ifaceRegex: agent.ifaceRegex,
    ifaceCanReach: agent.ifaceCanReach,
    // The annotations are for this node, the flags for all nodes: so the annotations take precedence.
    publicIps: { ...agent.publicIp, ...own.nodePublicIp },
    nodeIps: own.internalIp,
    podCidrs: families.map(({ podCidr }) => podCidr),
  };
  const links = node.links.value;
  const uplink = chooseUplink(request, { ...node.routes.value, links });
  const tunnel = backend.type === 'vxlan' ? backend : undefined;
  const mtu = Math.min(uplink.mtu, tunnel?.mtu ?? uplink.mtu);
  const vteps = new Map<string, VtepDevice>();
  const parts: { v4?: FamilySettings; v6?: FamilySettings } = {};
  for (const one of families) {
    const vtepIp = uplink.ips[familyKey(one.family)]!;
    const device = tunnel && vtepDevice(one, { ...tunnel, uplink, localIp: vtepIp, mtu }, node, options);
    if (device) vteps.set(device.name, device);
    const { network, podCidr } = one;
    parts[familyKey(one.family)] = { network, podCidr, vtepIp, vtepMac: device?.mac ?? NO_MAC };
  }
  const device = links.get(uplink.name)!;
  const settings: NodeSettings = {
    ...parts,
    ...(tunnel && { tunnel: { vni: tunnel.vni, port: tunnel.port } }),
    uplink: { ifindex: uplink.ifindex, mtu, mac: device.mac ?? NO_MAC, gsoMaxSegs: device.gsoMaxSegs },
    directRouting: tunnel?.directRouting ?? true,
    flowTableSize: agent.flowTableSize,
  };
  return { uplink, mtu, settings, revision: JSON.stringify(settings), vteps };
}

function vtepDevice(
  { family, podCidr }: NodeFamily,
  tunnel: { vni: number; port: number; uplink: Uplink; localIp: string; mtu: number },
  node: NodeSnapshot,
  { own, freshMac }: PlanOptions,
): VtepDevice {
  const { vni, port, uplink, localIp, mtu } = tunnel;
  const name = vtepDeviceName(family, vni);
  // The published MAC survives reboots and the deletion of the device, so that peers need not learn a new one.
  const mac =
    own.vtepMac[familyKey(family)] ?? node.links.value.get(name)?.mac ?? freshMac[familyKey(family)];
  return {
    name,
    vni,
    port,
    localIp,
    uplink: uplink.name,
    mtu: mtu - encapBytes[family],
    mac,
    address: hostCidr(podCidr.base),
  };
}
