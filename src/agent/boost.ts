// SPDX-License-Identifier: Apache-2.0
/**
 * Mode `boost`: a flannel runs on this node and owns its network; ripstop carries the flows of its pods. What flannel is,
 * the kernel says; what it has not, flannel's own file subnet.env.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { type Backend, type NetConf, readNetConf } from '../cluster/index.ts';
import { errorText, RipstopError } from '../errors.ts';
import { readIfThere } from '../host/files.ts';
import { type Link, listLinks } from '../host/links.ts';
import { listNft, NFT_TABLE } from '../host/nft.ts';
import {
  devicesToPeers,
  findFlannelPrograms,
  findFlannelTunnel,
  type FlannelTunnel,
  hasDirectRoutes,
} from '../host/running-flannel.ts';
import { readSubnetEnv, type SubnetEnv } from '../host/subnet-env.ts';
import { LogOnce } from '../log-once.ts';
import { formatCidr } from '../net/ip.ts';
import { isSame } from '../reconcile/target.ts';
import type { AgentOptions, Mode } from './options.ts';

const RETRY_MS = 1000;

/** A mode, and why it is that one. */
export interface ChosenMode {
  readonly mode: Mode;
  readonly why: string;
}

/** What the choice of the mode depends on. */
export interface ModeFacts {
  /** The programs with a flannel that run here: `flanneld`, `k3s`. */
  readonly programs: readonly string[];
  /** Whether there is a VXLAN device of flannel's name. */
  readonly hasDevice: boolean;
  /** Whether ripstop has been the node's network: then the device is its own. */
  readonly isOurs: boolean;
}

/**
 * Choose how to run. Pure. k3s runs with and without its flannel (`--flannel-backend=none`), so there the device counts.
 */
export function chooseMode(
  asked: AgentOptions['mode'],
  { programs, hasDevice, isOurs }: ModeFacts,
): ChosenMode {
  if (asked !== 'auto') return { mode: asked, why: `--mode ${asked} asks for it` };
  if (programs.includes('flanneld')) return { mode: 'boost', why: 'flanneld runs on this node' };
  if (programs.includes('k3s') && hasDevice && !isOurs)
    return { mode: 'boost', why: 'k3s runs on this node with its flannel' };
  return { mode: 'cni', why: 'no flannel runs on this node' };
}

/** {@link chooseMode} with the facts as they are now. */
export async function findMode(asked: AgentOptions['mode']): Promise<ChosenMode> {
  if (asked !== 'auto') return chooseMode(asked, { programs: [], hasDevice: false, isOurs: false });
  const links = await listLinks();
  return chooseMode(asked, {
    programs: await findFlannelPrograms(),
    hasDevice: links.values().some(({ name, vxlan }) => vxlan && name.startsWith('flannel')),
    isOurs: await isOurs(),
  });
}

/** In mode cni, and only there, ripstop has rules in nftables. */
async function isOurs(): Promise<boolean> {
  return (await listNft(['table', ...NFT_TABLE])).length > 0;
}

/** The flannel that runs here. */
export interface RunningFlannel {
  /** As net-conf.json would have it. */
  readonly netConf: NetConf;
  readonly tunnel: FlannelTunnel | undefined;
  /** How net-conf.json contradicts the kernel, in sentences. */
  readonly contradictions: readonly string[];
}

/** What is known of the flannel that runs here. */
export interface FlannelFacts {
  readonly links: ReadonlyMap<string, Link>;
  /** The indexes of devices with routes to other nodes' pods. */
  readonly routed: ReadonlySet<number>;
  readonly subnetEnv: SubnetEnv | undefined;
  /** net-conf.json, or why it cannot be used; undefined without one. */
  readonly netConf: NetConf | RipstopError | undefined;
  readonly hasDirectRoutes: boolean;
  /** Whether ripstop is the node's network. */
  readonly isOurs: boolean;
}

/**
 * What flannel runs here. Pure.
 * @throws RipstopError when it is one that cannot be boosted, or is not there yet.
 */
export function describeFlannel(facts: FlannelFacts): RunningFlannel {
  const { links, subnetEnv, netConf } = facts;
  if (facts.isOurs) {
    throw new RipstopError(
      "ripstop is this node's network (mode cni), so there is no flannel to boost: " +
        'give the node back with "ripstop uninstall --restore-flannel", and start flannel',
    );
  }
  const tunnel = findFlannelTunnel(links, () => facts.routed);
  const conf = netConf instanceof RipstopError ? undefined : netConf;
  if (!tunnel && netConf instanceof RipstopError) throw netConf;
  if (!tunnel && conf?.backend.type !== 'host-gw') {
    throw new RipstopError(
      'there is no device flannel.<VNI> on this node; mode boost needs a flannel with the backend vxlan or host-gw: ' +
        'see whether it runs',
    );
  }
  const networks = subnetEnv?.networks.map(({ network }) => network) ?? networksOf(conf);
  if (networks.length === 0) {
    throw new RipstopError(
      "nothing says what the cluster network is: flannel's subnet.env (--subnet-file) is not there, nor is --net-conf",
    );
  }
  const [network, ipv6Network] = ([4, 6] as const).map((family) =>
    networks.find((one) => one.family === family),
  );
  const backend: Backend = tunnel
    ? { type: 'vxlan', vni: tunnel.vni, port: tunnel.port, directRouting: facts.hasDirectRoutes }
    : { type: 'host-gw' };
  const found: NetConf = {
    enableIpv4: network !== undefined,
    enableIpv6: ipv6Network !== undefined,
    ...(network && { network }),
    ...(ipv6Network && { ipv6Network }),
    backend,
  };
  const contradictions =
    netConf instanceof RipstopError ? [netConf.message] : conf ? compareNetConf(conf, found) : [];
  return { netConf: found, tunnel, contradictions };
}

function networksOf(conf: NetConf | undefined) {
  return [conf?.network, conf?.ipv6Network].filter((network) => network !== undefined);
}

/** Where net-conf.json says something else than flannel does. */
function compareNetConf(conf: NetConf, found: NetConf): string[] {
  const differences: string[] = [];
  const compare = (what: string, says: unknown, is: unknown): void => {
    if (says !== is)
      differences.push(`net-conf.json has ${what} ${String(says)}, and flannel uses ${String(is)}`);
  };
  compare('the backend', conf.backend.type, found.backend.type);
  if (conf.backend.type === 'vxlan' && found.backend.type === 'vxlan') {
    compare('the VNI', conf.backend.vni, found.backend.vni);
    compare('the port', conf.backend.port, found.backend.port);
  }
  compare('the network', networksOf(conf).map(formatCidr).join(), networksOf(found).map(formatCidr).join());
  return differences;
}

/**
 * Wait until a flannel runs here that can be boosted.
 * @returns undefined when the signal came first.
 */
export async function waitForFlannel(
  options: Pick<AgentOptions, 'netConf' | 'subnetFile'>,
  log: Logger,
  signal: AbortSignal,
): Promise<RunningFlannel | undefined> {
  const failure = new LogOnce(log, 'there is no flannel to boost yet; retrying');
  while (!signal.aborted) {
    try {
      return describeFlannel(await flannelFacts(options));
    } catch (error) {
      failure.met(error);
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}

/**
 * The tunnel of the flannel that runs here, when it is no longer this one; undefined while it is, and while there is none.
 */
export async function otherTunnel(
  known: FlannelTunnel | undefined,
  { subnetFile }: Pick<AgentOptions, 'subnetFile'>,
): Promise<FlannelTunnel | undefined> {
  const networks = (await readSubnetEnv(subnetFile))?.networks.map(({ network }) => network) ?? [];
  const now = findFlannelTunnel(await listLinks(), () => devicesToPeers(networks));
  return isSame(now, known) ? undefined : now;
}

async function flannelFacts({
  netConf: file,
  subnetFile,
}: Pick<AgentOptions, 'netConf' | 'subnetFile'>): Promise<FlannelFacts> {
  const links = await listLinks();
  const subnetEnv = await readSubnetEnv(subnetFile);
  const netConf =
    (await readIfThere(file)) === undefined ? undefined : await readNetConf(file).catch(asReason);
  const networks = subnetEnv?.networks.map(({ network }) => network) ?? [];
  const routed = devicesToPeers(networks);
  const uplink = links.get(findFlannelTunnel(links, () => routed)?.uplink ?? '');
  return {
    links,
    routed,
    subnetEnv,
    netConf,
    isOurs: await isOurs(),
    hasDirectRoutes: uplink !== undefined && hasDirectRoutes(networks, uplink.ifindex),
  };
}

function asReason(error: unknown): RipstopError {
  return error instanceof RipstopError ? error : new RipstopError(errorText(error), { cause: error });
}
