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
import { removeRules } from './rules.ts';
import type { RunOptions } from './run.ts';
import type { SubnetEnv } from './subnet-env.ts';
import { ensureSysctls } from './sysctl.ts';
import { isVtepDevice, removeVxlan } from './vtep-device.ts';
import { peerRouteTarget } from './vxlan-target.ts';

/*
 * How a node gets rid of ripstop, part by part. Each part says what it did in words, and says nothing where there was
 * nothing: a second call is quiet.
 */

/** flannel's name for the bridge of its pods. */
const BRIDGE = 'cni0';

/** Remove all of our routes: to peers, to pods, and the one that says that the podCIDR is nowhere else. */
export async function removeRoutes(options: RunOptions = {}): Promise<string[]> {
  const done: string[] = [];
  for (const target of [peerRouteTarget(options), podRouteTarget(options)]) {
    const present = await target.list();
    allDone(await target.remove(present));
    if (present.size > 0) done.push(`removed ${present.size} ${target.name}`);
  }
  return done;
}

/** Answer no more for our pods on any bridge. */
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
  return [`removed the nft table ${NFT_TABLE.join(' ')}`];
}

/** Write flannel's rules, and only then remove ours: at no moment are pods without any. */
export async function replaceRules(wanted: FlannelRules, options: RunOptions = {}): Promise<string[]> {
  if (!(await hasRules(options))) return [];
  const written = await writeFlannelRules(wanted, options);
  return [`wrote ${written.join(', ')}`, ...(await removeOurRules(options))];
}

/**
 * Make room for the pods that flannel's plugin will attach, beside ours, which keep their routes. Those need a bridge that
 * has the podCIDR's connected route, and that answers for ours. The plugin takes the one that is there; made by itself, it
 * would not answer. Without pods of ours it can do as it likes.
 * @param ours addresses of the pods that ripstop attached.
 */
export async function makeRoomForBridge(
  { networks, mtu }: SubnetEnv,
  ours: readonly string[],
  options: RunOptions = {},
): Promise<string[]> {
  const done: string[] = [];
  const links = await listLinks(options);
  const missing = networks.filter(({ podCidr }) => !findPodBridge(podCidr, links));
  if (ours.length > 0 && missing.length > 0) {
    using socket = openNetlink(options);
    // A MAC of its own: without one it changes with its ports, and pods remember it.
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
    done.push(`made ${BRIDGE} for the pods of flannel's plugin, beside ${ours.length} addresses of ours`);
  }
  for (const { podCidr } of networks) {
    const bridge = findPodBridge(podCidr, await listLinks(options));
    if (!bridge) continue;
    await ensureSysctls(podBridgeSysctls(bridge.name, [podCidr.family]), options);
    const mine = ours.filter((ip) => addressFamily(ip) === podCidr.family);
    allDone(await proxyTarget(options).upsert(new Map(mine.map((ip) => [proxyKey(bridge.name, ip), true]))));
  }
  const podRoutes = podRouteTarget(options);
  const nowhere = new Map([...(await podRoutes.list())].filter(([, route]) => 'unreachable' in route));
  allDone(await podRoutes.remove(nowhere));
  return [...done, ...[...nowhere.keys()].map((dst) => `left ${dst} to the bridge of flannel's plugin`)];
}

/** The pods' addresses that our routes lead to now, of those given. */
export async function routedAddresses(
  addresses: readonly string[],
  options: RunOptions = {},
): Promise<string[]> {
  const routes = await podRouteTarget(options).list();
  return addresses.filter((ip) => routes.has(hostCidr(ip)));
}
