// SPDX-License-Identifier: Apache-2.0
/** The outline of the plan: the node's uplink, its part of the cluster network, its VTEP devices. Pure. */
import { encapBytes, type FamilySettings, type NodeSettings } from '../../dataplane/desired.ts';
import { RipstopError } from '../../errors.ts';
import type { Link, VxlanDetails } from '../../host/links.ts';
import { findPodBridges } from '../../host/pod-bridge.ts';
import { chooseUplink, type Uplink } from '../../host/uplink.ts';
import { type VtepDevice, vtepDeviceName } from '../../host/vtep-device.ts';
import { addressFamily, familyKey, hostCidr, partsOf, perFamily } from '../../net/ip.ts';
import { NO_MAC } from '../../net/mac.ts';
import { netkitsOf, type NodeSnapshot } from '../snapshot.ts';
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
  const tunnel = backend.type === 'vxlan' ? backend : undefined;
  const flannels = tunnel && agent.mode === 'boost' ? flannelDevices(tunnel.vni, node, families) : undefined;
  const uplink = flannels ? uplinkOf(flannels, node) : chooseUplink(request, { ...node.routes.value, links });
  const mtu = flannels
    ? flannels[0]!.mtu + encapBytes[families[0]!.family]
    : Math.min(uplink.mtu, tunnel?.mtu ?? uplink.mtu);
  const vteps = new Map<string, VtepDevice>();
  const parts: { v4?: FamilySettings; v6?: FamilySettings } = {};
  for (const [i, one] of families.entries()) {
    const vtepIp = uplink.ips[familyKey(one.family)]!;
    const device =
      flannels?.[i] ??
      (tunnel && vtepDevice(one, { ...tunnel, uplink, localIp: vtepIp, mtu }, node, options));
    if (device) vteps.set(device.name, device);
    const { network, podCidr } = one;
    parts[familyKey(one.family)] = { network, podCidr, vtepIp, vtepMac: device?.mac ?? NO_MAC };
  }
  const device = links.get(uplink.name)!;
  const settings: NodeSettings = {
    ...parts,
    ...(tunnel && { tunnel: { vni: tunnel.vni, port: flannels?.[0]?.port ?? tunnel.port } }),
    uplink: { ifindex: uplink.ifindex, mtu, mac: device.mac ?? NO_MAC, gsoMaxSegs: device.gsoMaxSegs },
    directRouting: tunnel?.directRouting ?? true,
    bridge: findPodBridges(
      families.map(({ podCidr }) => podCidr),
      links,
    )[0]?.ifindex,
    // flannel does not mind them. And the node must be able to hear of new nodes when our agent is gone.
    admitsStrangers: agent.mode === 'boost',
    netkit: agent.podDevice === 'netkit' || netkitsOf(node).size > 0,
    flowTableSize: agent.flowTableSize,
  };
  return { uplink, mtu, settings, revision: JSON.stringify(settings), vteps };
}

/** flannel's own devices, one for each family, as they are. @throws RipstopError when one is not there. */
function flannelDevices(vni: number, node: NodeSnapshot, families: readonly NodeFamily[]): VtepDevice[] {
  return families.map(({ family, podCidr }) => {
    const name = vtepDeviceName(family, vni);
    const { mtu, mac, vxlan } = node.links.value.get(name) ?? ({} as Partial<Link>);
    const { port, local, uplink } = vxlan ?? ({} as Partial<VxlanDetails>);
    if (
      mtu === undefined ||
      mac === undefined ||
      port === undefined ||
      local === undefined ||
      uplink === undefined
    ) {
      throw new RipstopError(
        `there is no ${name} that sends from an address of its own over an interface; flannel makes it: see whether it runs`,
      );
    }
    return { name, vni, port, localIp: local, uplink, mtu, mac, address: hostCidr(podCidr.base) };
  });
}

/** The interface over which flannel's devices send. */
function uplinkOf(devices: readonly VtepDevice[], { links }: NodeSnapshot): Uplink {
  const { name: device, uplink } = devices[0]!;
  const link = links.value.get(uplink);
  if (!link) throw new RipstopError(`there is no ${uplink}, over which ${device} sends`);
  const ips = perFamily(
    (family) => devices.find(({ localIp }) => addressFamily(localIp) === family)?.localIp,
  );
  return {
    name: uplink,
    ifindex: link.ifindex,
    ips,
    mtu: link.mtu,
    advertised: [],
    explanation: `${uplink} (${partsOf(ips).join(', ')}): ${device} sends from there`,
  };
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
