// SPDX-License-Identifier: Apache-2.0
import { addAddress, addLink, setLink } from '#netlink';
import { allDone } from '../reconcile/target.ts';
import { addressAt, addressFamily, hostCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import { type FlannelRules, writeFlannelRules } from './flannel-rules.ts';
import { listLinks } from './links.ts';
import { ifindexes, openNetlink } from './netlink.ts';
import { listNft, NFT_TABLE } from './nft.ts';
import { findPodBridge, podBridgeSysctls, proxyKey, proxyTarget } from './pod-bridge.ts';
import { podRouteTarget } from './pod-routes.ts';
import { removeRules, RULES_KEY } from './rules.ts';
import type { RunOptions } from './run.ts';
import type { SubnetEnv } from './subnet-env.ts';
import { ensureSysctls } from './sysctl.ts';
import { isVtepDevice, removeVxlan } from './vtep-device.ts';
import { peerRouteTarget } from './vxlan-target.ts';

/*
 * The parts of uninstalling ripstop from a node. Each returns a description of what it did: nothing when there was
 * nothing to do, as in a second call.
 */

/** The name that flannel gives the bridge of its pods. */
const BRIDGE = 'cni0';

/** Remove all our routes: those to peers and pods, and the one that makes the podCIDR unreachable. */
export async function removeRoutes(options: RunOptions = {}): Promise<string[]> {
  const done: string[] = [];
  for (const target of [peerRouteTarget(options), podRouteTarget(options)]) {
    const present = await target.list();
    allDone(await target.remove(present));
    if (present.size > 0) done.push(`removed ${present.size} ${target.name}`);
  }
  return done;
}

/** Remove our proxy neighbours: the node no longer answers for our pods on bridges. */
export async function removeProxies(options: RunOptions = {}): Promise<string[]> {
  const proxies = proxyTarget(options);
  const present = await proxies.list();
  allDone(await proxies.remove(present));
  return present.size > 0 ? [`removed ${present.size} proxy neighbours`] : [];
}

/** Remove the VTEP devices, and with them the peers' neighbours and FDB entries. */
export async function removeVteps(options: RunOptions = {}): Promise<string[]> {
  const devices = [...(await listLinks(options)).values()].filter(isVtepDevice);
  for (const { name } of devices) await removeVxlan(name, options);
  return devices.map(({ name }) => `removed ${name}`);
}

async function hasRules(options: RunOptions): Promise<boolean> {
  return (await listNft(['table', ...NFT_TABLE], options)).some(({ chain, set }) => chain ?? set);
}

/** Remove our nft table. */
export async function removeOurRules(options: RunOptions = {}): Promise<string[]> {
  if (!(await hasRules(options))) return [];
  await removeRules(options);
  return [`removed the nft table ${RULES_KEY}`];
}

/** Write flannel's rules, and only then remove ours, so that there are rules for pods at any moment. */
export async function replaceRules(desired: FlannelRules, options: RunOptions = {}): Promise<string[]> {
  if (!(await hasRules(options))) return [];
  const written = await writeFlannelRules(desired, options);
  return [`wrote ${written.join(', ')}`, ...(await removeOurRules(options))];
}

/**
 * Prepare the node for pods that flannel's plugin will attach, beside our pods, which keep their routes. flannel's pods
 * need a bridge with the podCIDR's connected route, on which the node answers for our pods. The plugin uses a bridge
 * that exists; on one that it creates itself, the node would not answer. Without pods of ours no bridge is created.
 * @param ours addresses of the pods that ripstop attached.
 */
export async function prepareBridge(
  { networks, mtu }: SubnetEnv,
  ours: readonly string[],
  options: RunOptions = {},
): Promise<string[]> {
  const done: string[] = [];
  const links = await listLinks(options);
  const missing = networks.filter(({ podCidr }) => !findPodBridge(podCidr, links));
  if (ours.length > 0 && missing.length > 0) {
    using socket = openNetlink(options);
    // With an explicit MAC: else the MAC changes with the bridge's ports, while pods have the old one in their caches.
    if (!links.has(BRIDGE)) socket.write(addLink({ name: BRIDGE, kind: 'bridge', mtu, mac: randomMac() }));
    const ifindex = ifindexes(socket)(BRIDGE);
    socket.write(
      ...missing.map(({ podCidr }) =>
        addAddress({
          ifindex,
          address: addressAt(podCidr, 1),
          length: podCidr.length,
          nodad: podCidr.family === 6,
        }),
      ),
      setLink(ifindex, { up: true }),
    );
    done.push(
      `created ${BRIDGE} for the pods of flannel's plugin, beside ${ours.length} addresses of our pods`,
    );
  }
  for (const { podCidr } of networks) {
    const bridge = findPodBridge(podCidr, await listLinks(options));
    if (!bridge) continue;
    await ensureSysctls(podBridgeSysctls(bridge.name, [podCidr.family]), options);
    const mine = ours.filter((ip) => addressFamily(ip) === podCidr.family);
    allDone(await proxyTarget(options).upsert(new Map(mine.map((ip) => [proxyKey(bridge.name, ip), true]))));
  }
  const podRoutes = podRouteTarget(options);
  const unreachable = new Map([...(await podRoutes.list())].filter(([, route]) => 'unreachable' in route));
  allDone(await podRoutes.remove(unreachable));
  return [...done, ...[...unreachable.keys()].map((dst) => `left ${dst} to the bridge of flannel's plugin`)];
}

/** Those of these addresses to which one of our routes leads. */
export async function routedAddresses(
  addresses: readonly string[],
  options: RunOptions = {},
): Promise<string[]> {
  const routes = await podRouteTarget(options).list();
  return addresses.filter((ip) => routes.has(hostCidr(ip)));
}
