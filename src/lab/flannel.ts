// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { ipBatch, ipJson } from './ip.ts';
import { writeAtomically } from '../host/files.ts';
import { run } from '../host/run.ts';
import { renderSubnetEnv } from '../host/subnet-env.ts';
import { type Family, parseCidr } from '../net/ip.ts';
import { type FamilyPart, clusterNetwork, familiesOf, familyParts } from './addresses.ts';
import { CNI_PLUGINS, type CniPlugin } from './cni.ts';
import { patchNodeStatus } from './kube.ts';
import { netnsPath, setSysctls } from './netns.ts';
import type { LabOptions } from './options.ts';
import { type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The kernel path that flanneld builds on a node with the VXLAN backend, and the bridge plugin that its CNI plugin
 * calls. ripstop is compared with this and falls back to it, so it does all that the real flannel does.
 */

/** The names that flannel uses for each family. */
interface FamilyNames {
  device: string;
  /** The annotations of a lease, without their prefix. */
  publicIp: string;
  backendData: string;
}

export const FLANNEL_ANNOTATION = 'flannel.alpha.coreos.com';
export const FLANNEL_NAMES: Record<Family, FamilyNames> = {
  4: { device: 'flannel.1', publicIp: 'public-ip', backendData: 'backend-data' },
  6: { device: 'flannel-v6.1', publicIp: 'public-ipv6', backendData: 'backend-v6-data' },
};

const PORT = 8472;
/** Ethernet 14, IPv4 20, UDP 8, VXLAN 8. flannel does not count the 20 more of IPv6; the kernel corrects that. */
const OVERHEAD_BYTES = 50;

/** The cluster's net-conf.json. */
export function flannelNetConf(options: LabOptions): object {
  return {
    Network: clusterNetwork(options, 4),
    ...(options.ipv6 && { EnableIPv6: true, IPv6Network: clusterNetwork(options, 6) }),
    Backend: { Type: options.backend, ...(options.directRouting && { DirectRouting: true }) },
  };
}

/** Set up devices, rules and sysctls of the node, and publish its lease. `syncFlannel` adds its peers. */
export async function setUpFlannel(lab: Lab, node: NodeState): Promise<void> {
  const netns = netnsPath(node.netns);
  const parts = familyParts(node);
  await ipBatch(
    parts.flatMap((part) => createDevice(lab, part)),
    { netns },
  );
  await setSysctls(node.netns, {
    'bridge.bridge-nf-call-iptables': 1,
    ...(lab.state.options.ipv6 && { 'bridge.bridge-nf-call-ip6tables': 1 }),
  });
  for (const part of parts) {
    const restore = part.family === 4 ? 'iptables-restore' : 'ip6tables-restore';
    await run(restore, ['--noflush'], { netns, stdin: flannelRules(lab.state.options, part) });
  }
  await writeSubnetEnv(lab, parts, join(nodeDir(lab, node), 'subnet.env'));
  const leases = await Promise.all(parts.map((part) => leaseOf(part, netns)));
  const lease = Object.assign(
    { 'kube-subnet-manager': 'true', 'backend-type': 'vxlan' },
    ...leases,
  ) as object;
  const annotations = Object.entries(lease).map(([key, value]) => [`${FLANNEL_ANNOTATION}/${key}`, value]);
  await patchNodeStatus(lab, node.name, { metadata: { annotations: Object.fromEntries(annotations) } });
}

async function writeSubnetEnv(lab: Lab, parts: readonly FamilyPart[], path: string): Promise<void> {
  const networks = parts.map(({ family, podCIDR }) => ({
    network: parseCidr(clusterNetwork(lab.state.options, family)),
    podCidr: parseCidr(podCIDR),
  }));
  await writeAtomically(path, renderSubnetEnv({ networks, mtu: podMtu(lab), ipMasq: true }));
}

function createDevice(lab: Lab, { family, ip, podCIDR }: FamilyPart): string[] {
  const { device } = FLANNEL_NAMES[family];
  return [
    // When the device is created, the kernel lowers a too large MTU; later it would refuse it.
    `link add ${device} mtu ${podMtu(lab)} type vxlan id 1 local ${ip} dev eth0 dstport ${PORT} nolearning`,
    `address add ${parseCidr(podCIDR).base} dev ${device}`,
    `link set ${device} up`,
  ];
}

/** The annotations for one family: the VTEP's address, and the MAC address that the kernel chose for its device. */
async function leaseOf({ family, ip }: FamilyPart, netns: string): Promise<Record<string, string>> {
  const { device, publicIp, backendData } = FLANNEL_NAMES[family];
  const [link] = await ipJson<{ address: string }>(['link', 'show', 'dev', device], { netns });
  return { [backendData]: `{"VNI":1,"VtepMAC":"${link!.address}"}`, [publicIp]: ip };
}

/** The plugin that flannel's CNI plugin calls: bridge, with host-local addresses from the node's podCIDRs. */
export function flannelPlugin(lab: Lab, node: NodeState): CniPlugin {
  return {
    plugin: join(CNI_PLUGINS, 'bridge'),
    config: {
      cniVersion: '1.0.0',
      name: 'cbr0',
      type: 'bridge',
      bridge: 'cni0',
      isGateway: true,
      isDefaultGateway: true,
      hairpinMode: true,
      ipMasq: false,
      mtu: podMtu(lab),
      ipam: {
        type: 'host-local',
        ranges: familyParts(node).map(({ podCIDR }) => [{ subnet: podCIDR }]),
        routes: familiesOf(lab.state.options).map((family) => ({
          dst: clusterNetwork(lab.state.options, family),
        })),
        dataDir: join(nodeDir(lab, node), 'ipam'),
      },
    },
  };
}

function podMtu(lab: Lab): number {
  return lab.state.options.mtu - OVERHEAD_BYTES;
}

/** flanneld's chains, for iptables-restore. The FORWARD policy is DROP, as Docker and hardened hosts set it. */
function flannelRules(options: LabOptions, { family, podCIDR }: FamilyPart): string {
  const cluster = clusterNetwork(options, family);
  const multicast = family === 4 ? '224.0.0.0/4' : 'ff00::/8';
  const postrtg = [
    '-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
    `-s ${podCIDR} -d ${cluster} -m comment --comment "flanneld masq" -j RETURN`,
    `-s ${cluster} -d ${podCIDR} -m comment --comment "flanneld masq" -j RETURN`,
    `! -s ${cluster} -d ${podCIDR} -m comment --comment "flanneld masq" -j RETURN`,
    `-s ${cluster} ! -d ${multicast} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
    `! -s ${cluster} -d ${cluster} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
  ];
  const forward = [
    `-s ${cluster} -m comment --comment "flanneld forward" -j ACCEPT`,
    `-d ${cluster} -m comment --comment "flanneld forward" -j ACCEPT`,
  ];
  return [
    '*nat',
    ':FLANNEL-POSTRTG - [0:0]',
    '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
    ...postrtg.map((rule) => `-A FLANNEL-POSTRTG ${rule}`),
    'COMMIT',
    '*filter',
    ':FORWARD DROP [0:0]',
    ':FLANNEL-FWD - [0:0]',
    '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
    ...forward.map((rule) => `-A FLANNEL-FWD ${rule}`),
    'COMMIT',
    '',
  ].join('\n');
}
