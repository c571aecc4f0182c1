// SPDX-License-Identifier: Apache-2.0
/** The node's own part of the plan: devices, sysctls, rules, files, programs. Pure. */
import { encapBytes, type NodeSettings } from '../../dataplane/desired.ts';
import { ProgramSet } from '../../dataplane/programs.ts';
import { CONNTRACK_MODULE } from '../../host/conntrack.ts';
import type { FileContent } from '../../host/files.ts';
import type { FlannelRule } from '../../host/flannel-rules.ts';
import { podBridgeSysctls } from '../../host/pod-bridge.ts';
import { RULES_KEY, type DesiredRules } from '../../host/rules.ts';
import { renderSubnetEnv } from '../../host/subnet-env.ts';
import { CONNTRACK_LIBERAL, nodeSysctls, type Sysctl, vtepSysctls } from '../../host/sysctl.ts';
import { type VtepDevice, vtepDeviceName } from '../../host/vtep-device.ts';
import { vxlanSenders } from '../../host/vtep-set.ts';
import { type Family, familyKey } from '../../net/ip.ts';
import type { NewRoute } from '#netlink';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import { always, type Peers, type PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';
import type { Pods } from './pods.ts';

export interface NodePlan {
  readonly kernelModules: Desired<true>;
  readonly sysctls: Desired<Sysctl>;
  /** Undefined in boost mode: there flannel has made it. */
  readonly kernelPath?: NodeKernelPath;
  readonly programs: Desired<NodeSettings>;
}

interface NodeKernelPath {
  readonly vtepDevices: Desired<VtepDevice>;
  readonly rules: Desired<DesiredRules>;
  readonly files: Desired<FileContent>;
  /** What a previous flanneld left, and is not needed once our own are in place: nothing of it is desired. */
  readonly flannelRoutes: Desired<NewRoute>;
  readonly flannelRules: Desired<FlannelRule>;
  /** flannel's bridges without pods: none is desired. */
  readonly idleBridges: Desired<true>;
}

export function planNode(
  outline: Outline,
  pods: Pods,
  peers: Peers,
  node: NodeSnapshot,
  options: PlanOptions,
): NodePlan {
  const { settings, revision } = outline;
  const plan = {
    kernelModules: always<true>(new Map([[CONNTRACK_MODULE, true]])),
    programs: { revision, entries: () => new Map([[ProgramSet.KEY, settings]]), complete: true },
  };
  if (options.agent.mode === 'boost')
    return { ...plan, sysctls: always(new Map([[CONNTRACK_LIBERAL.path, CONNTRACK_LIBERAL]])) };
  return {
    ...plan,
    sysctls: sysctls(outline, pods, node, options),
    kernelPath: kernelPathOf(outline, pods, peers, options),
  };
}

function kernelPathOf(outline: Outline, pods: Pods, peers: Peers, options: PlanOptions): NodeKernelPath {
  const { vteps, revision } = outline;
  const rules = desiredRules(outline, pods, peers, options);
  const strangers = rules.networks.map(({ strangers }) => strangers).join();
  return {
    vtepDevices: { revision: JSON.stringify([...vteps.values()]), entries: () => vteps, complete: true },
    rules: {
      revision: `${revision} ${strangers} ${rules.masquerade} ${rules.uplink} ${rules.bridges.join()}`,
      entries: () => new Map([[RULES_KEY, rules]]),
      complete: true,
    },
    files: subnetEnv(outline, options),
    flannelRoutes: always(new Map()),
    flannelRules: always(new Map()),
    idleBridges: always(new Map()),
  };
}

function sysctls(
  { uplink, settings }: Outline,
  { bridges }: Pods,
  node: NodeSnapshot,
  { families }: PlanOptions,
): Desired<Sysctl> {
  const { tunnel } = settings;
  const used = families.map(({ family }) => family);
  const vteps = tunnel ? used.map((family) => ({ family, name: vtepDeviceName(family, tunnel.vni) })) : [];
  // The uplink's settings must be made before forwarding is switched on.
  const all = [
    ...nodeSysctls(used, [uplink.name, ...uplink.advertised]),
    ...vteps.flatMap(({ family, name }) => vtepSysctls(name, family)),
    ...[...bridges].flatMap(([name, ofBridge]) => podBridgeSysctls(name, ofBridge)),
  ];
  // An interface that was created again has the kernel's defaults.
  const ifindexes = vteps.map(({ name }) => node.links.value.get(name)?.ifindex);
  return {
    revision: [...ifindexes, ...all.map(({ path }) => path)].join(' '),
    entries: () => new Map(all.map((setting) => [setting.path, setting])),
    complete: true,
  };
}

function desiredRules(
  { settings, uplink }: Outline,
  { bridges }: Pods,
  { peers, synced }: Peers,
  { agent, families }: PlanOptions,
): DesiredRules {
  const ofFamily = (family: Family) => peers.filter(({ podCidr }) => podCidr.family === family);
  return {
    networks: families.map(({ family, network, podCidr }) => ({
      network,
      podCidr,
      vtepIp: settings[familyKey(family)]!.vtepIp,
      ...vxlanSenders(ofFamily(family), synced),
    })),
    masquerade: agent.ipMasq,
    keepPorts: agent.ipMasqFullyRandomDisable ?? false,
    tunnel: settings.tunnel,
    uplink: uplink.name,
    bridges: [...bridges.keys()],
  };
}

function subnetEnv({ mtu, settings }: Outline, { agent, families }: PlanOptions): Desired<FileContent> {
  const overhead = Math.max(...families.map(({ family }) => (settings.tunnel ? encapBytes[family] : 0)));
  const text = renderSubnetEnv({ networks: families, mtu: mtu - overhead, ipMasq: agent.ipMasq });
  const hint = 'other CNI plugins need it: make its directory writable or set --subnet-file';
  return { revision: text, entries: () => new Map([[agent.subnetFile, { text, hint }]]), complete: true };
}
