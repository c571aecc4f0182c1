// SPDX-License-Identifier: Apache-2.0
import { readdir, readFile, rm, rmdir, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { runFiles } from '../agent/options.ts';
import type { ApiClient } from '../cluster/api-client.ts';
import type { EtcdOptions } from '../cluster/etcd-options.ts';
import { errorText, RipstopError } from '../errors.ts';
import type { SubnetEnv } from '../host/subnet-env.ts';
import { askAgent } from './ask-agent.ts';
import { addEtcdFlags, type EtcdFlags, withEtcd } from './etcd-flags.ts';
import { addNodeFlags, flag } from './options.ts';

export interface UninstallOptions {
  /** Subnets come from there, not from Kubernetes. */
  readonly etcd?: EtcdOptions;
  readonly restoreFlannel: boolean;
  readonly nodeName?: string;
  readonly kubeconfig?: string;
  readonly netConf: string;
  readonly kubeAnnotationPrefix: string;
  readonly bpffs: string;
  readonly runDir: string;
  readonly stateDir: string;
  readonly subnetFile: string;
  readonly ipamDir: string;
  readonly cniConfDir: string;
  readonly cniBinDir: string;
}

const ETCD_TIMEOUT_MS = 15_000;

/** One part of it. Each says what it did, a line each; nothing where there was nothing. */
interface Part {
  readonly what: string;
  readonly act: () => Promise<string[]>;
}

export function addUninstallCommand(program: Command): void {
  addEtcdFlags(addNodeFlags(program.command('uninstall')))
    .description('take ripstop off this node, whose agent has been stopped')
    .addOption(
      flag(
        '--restore-flannel',
        'leave the node as a flanneld that was stopped would, so that one can be started; pods keep talking',
      ).default(false),
    )
    .addOption(flag('--node-name <name>', "this node's name in the cluster", 'NODE_NAME'))
    .addOption(flag('--cni-bin-dir <path>', "the container runtime's plugins").default('/opt/cni/bin'))
    .action((flags: UninstallOptions & EtcdFlags) => uninstall(withEtcd(flags)));
}

/**
 * Take ripstop off the node, part by part; one that fails keeps none of the others from their turn.
 * @throws RipstopError when the agent runs, and when a part failed.
 */
export async function uninstall(
  options: UninstallOptions,
  say: (line: string) => void = console.log,
): Promise<void> {
  if (await askAgent(options.runDir)) {
    throw new RipstopError(
      `the agent of this node runs (${join(options.runDir, runFiles.agentSocket)} answers) and would put everything back; ` +
        'stop it first, e.g. kubectl -n kube-ripstop delete daemonset kube-ripstop-ds: pods go on talking without it',
    );
  }
  const parts = options.restoreFlannel ? restoringParts(options) : removingParts(options);
  let did = 0;
  const faults: string[] = [];
  for (const { what, act } of parts) {
    try {
      for (const line of await act()) {
        say(line);
        did++;
      }
    } catch (error) {
      faults.push(`${what}: ${errorText(error)}`);
    }
  }
  if (did + faults.length === 0) say('there is nothing of ripstop on this node');
  if (faults.length === 0) return;
  throw new RipstopError(
    `${faults.length} of ${parts.length} parts failed; run it again when that is mended: ${faults.join('; ')}`,
    { details: faults.join('\n') },
  );
}

/** Peers stop sending first; then the fast path goes, then what it falls back to. */
function removingParts(options: UninstallOptions): Part[] {
  return [
    { what: 'our Node', act: () => withdrawFromCluster(options) },
    { what: 'CNI configuration', act: async () => (await cni()).removeConflists(options.cniConfDir) },
    { what: 'CNI plugin', act: () => removeShim(options) },
    { what: 'programs', act: () => removePrograms(options) },
    // Now nothing leads to their addresses any more.
    { what: 'deferred DELs', act: () => carryOutDeferred(options) },
    { what: 'routes', act: async () => (await host()).removeRoutes() },
    { what: 'proxy neighbours', act: async () => (await host()).removeProxies() },
    { what: 'devices', act: async () => (await host()).removeVteps() },
    { what: 'rules', act: async () => (await host()).removeOurRules() },
    { what: 'subnet.env', act: () => removeFile(options.subnetFile) },
    { what: 'run directory', act: () => removeDir(options.runDir) },
    { what: 'state directory', act: () => removeState(options) },
  ];
}

/** What takes something over comes before what is taken away. */
function restoringParts(options: UninstallOptions): Part[] {
  return [
    { what: 'programs', act: () => removePrograms(options) },
    // Now nothing leads to their addresses any more.
    { what: 'deferred DELs', act: () => carryOutDeferred(options) },
    { what: 'rules', act: () => restoreRules(options) },
    { what: 'bridge', act: () => restoreBridge(options) },
    { what: "flannel's plugin", act: () => handPodsOver(options) },
    { what: 'CNI configuration', act: async () => (await cni()).restoreConflists(options.cniConfDir) },
    { what: 'CNI plugin', act: () => removeShim(options) },
    { what: 'our Node', act: () => removeOwnAnnotations(options) },
    { what: 'run directory', act: () => forgetAgent(options) },
    { what: 'state directory', act: () => removeState(options) },
  ];
}

const cni = () => import('../cni/conflist.ts');
const host = () => import('../host/uninstall.ts');

async function removePrograms({ bpffs }: UninstallOptions): Promise<string[]> {
  const { pinPaths } = await import('../dataplane/tables.ts');
  const paths = pinPaths(bpffs);
  const root = join(paths.maps, '..');
  if (!(await isThere(root))) return [];
  const { removePins } = await import('../dataplane/programs.ts');
  removePins(paths);
  await rm(root, { recursive: true, force: true });
  return [`took all programs off their devices, and removed ${root}`];
}

/** The DELs from after the agent ended: their addresses are free again, for whichever plugin comes next. */
async function carryOutDeferred({ stateDir, runDir, ipamDir }: UninstallOptions): Promise<string[]> {
  const { DeferredDels, deferredDir } = await import('../cni/deferred.ts');
  const { createCniOps } = await import('../cni/ops.ts');
  const { dispatch } = await import('../cni/plugin.ts');
  const { AttachmentStore } = await import('../cni/attachments.ts');
  const { pino } = await import('pino');
  const nothing = async (): Promise<void> => {};
  const ops = createCniOps(() => ({
    families: [],
    dataDir: ipamDir,
    store: new AttachmentStore(runDir),
    attach: nothing,
    detach: nothing,
    ready: () => ({ ok: false, reason: 'it is being uninstalled' }),
  }));
  const deferred = new DeferredDels({
    dir: deferredDir(stateDir),
    del: (request) => dispatch(request, ops),
    log: pino({ level: 'silent' }),
  });
  const { done, failed } = await deferred.carryOut();
  if (failed.length > 0) throw new RipstopError(failed.join('; '));
  return done === 0 ? [] : [`gave back the addresses of ${done} pods that were deleted without an agent`];
}

/** Not while there are addresses to give back: nobody would know of them any more. */
async function removeState({ stateDir }: UninstallOptions): Promise<string[]> {
  const { deferredDir } = await import('../cni/deferred.ts');
  const names = await readdir(deferredDir(stateDir)).catch(() => []);
  const left = names.filter((name) => name.includes(':'));
  if (left.length > 0) throw new RipstopError(`${stateDir} stays for ${left.length} deferred DELs`);
  return removeDir(stateDir);
}

async function restoreRules({ subnetFile, netConf, etcd, stateDir }: UninstallOptions): Promise<string[]> {
  const { etcdNetConfCopy } = await import('../agent/etcd-source.ts');
  const { networks, ipMasq } = await subnetEnv(subnetFile);
  const { replaceRules } = await host();
  const file = etcd ? etcdNetConfCopy(stateDir) : netConf;
  return replaceRules({ networks, masquerade: ipMasq, nftables: await usesNftables(file) });
}

async function restoreBridge(options: UninstallOptions): Promise<string[]> {
  const env = await subnetEnv(options.subnetFile);
  const { makeRoomForBridge, routedAddresses } = await host();
  const attached = await attachments(options);
  const ours = await routedAddresses(attached.flatMap(({ ips }) => ips));
  return makeRoomForBridge(env, ours);
}

/** Tell flannel's plugin of the pods that ripstop attached, so that its DEL gives their addresses back. */
async function handPodsOver(options: UninstallOptions): Promise<string[]> {
  const attached = await attachments(options);
  if (attached.length === 0) return [];
  const { networks, mtu, ipMasq } = await subnetEnv(options.subnetFile);
  const { formatCidr } = await import('../net/ip.ts');
  const { writeIfDifferent } = await import('../host/files.ts');
  const { flannelDataDir, flannelDelegate } = await cni();
  const dir = flannelDataDir(options.ipamDir);
  let written = 0;
  for (const { containerId, network } of attached) {
    const delegate = flannelDelegate({
      network,
      podCidrs: networks.map(({ podCidr }) => formatCidr(podCidr)),
      clusterNetworks: networks.map((one) => formatCidr(one.network)),
      mtu,
      ipMasq,
      dataDir: options.ipamDir,
    });
    if (await writeIfDifferent(join(dir, containerId), delegate, { mode: 0o600 })) written++;
  }
  return written === 0 ? [] : [`told flannel's plugin of ${written} pods, in ${dir}`];
}

async function attachments({ runDir }: UninstallOptions) {
  const { AttachmentStore } = await import('../cni/attachments.ts');
  return new AttachmentStore(runDir).list();
}

async function removeShim({ cniBinDir }: UninstallOptions): Promise<string[]> {
  return removeFile(join(cniBinDir, 'ripstop-cni'));
}

/** What this node has published goes: peers stop sending here. */
async function withdrawFromCluster(options: UninstallOptions): Promise<string[]> {
  if (options.etcd) return withdrawFromEtcd(options, options.etcd);
  return withNode(options, async (client, nodeName) => {
    const { fetchOwnNode, leaseSettings, readNetConf } = await import('../cluster/index.ts');
    const { withdrawLease } = await import('../cluster/own-lease.ts');
    const settings = leaseSettings(await readNetConf(options.netConf), options.kubeAnnotationPrefix);
    const own = await fetchOwnNode(client, nodeName, settings);
    const published = own.annotations[settings.keys.managed] !== undefined;
    await withdrawLease(client, own, settings);
    const done = published ? [`took the lease of node ${nodeName} back`] : [];
    return [...done, ...(await withoutOwnAnnotations(client, nodeName))];
  });
}

async function withdrawFromEtcd(options: UninstallOptions, etcd: EtcdOptions): Promise<string[]> {
  const { pino } = await import('pino');
  const { openEtcd } = await import('../agent/etcd-source.ts');
  const of = { ...options, nodeName: options.nodeName ?? hostname() };
  const source = await openEtcd(of, etcd, pino({ level: 'silent' }), AbortSignal.timeout(ETCD_TIMEOUT_MS));
  if (!source) throw new RipstopError(`etcd does not answer at ${etcd.endpoints.join(', ')}`);
  try {
    await source.subnets.withdraw();
    return ['took our lease in etcd back'];
  } finally {
    await source.subnets.stop();
  }
}

/** etcd knows only flannel's leases, and those stay. */
async function removeOwnAnnotations(options: UninstallOptions): Promise<string[]> {
  if (options.etcd) return [];
  return withNode(options, withoutOwnAnnotations);
}

async function withoutOwnAnnotations(client: ApiClient, nodeName: string): Promise<string[]> {
  const { removeRipstopAnnotations } = await import('../cluster/ripstop-annotations.ts');
  return (await removeRipstopAnnotations(client, nodeName)).map(
    (key) => `removed ${key} of node ${nodeName}`,
  );
}

/** Do it when there is a way to the API server: without one the Node stays as it is. */
async function withNode(
  { nodeName, kubeconfig }: UninstallOptions,
  act: (client: ApiClient, nodeName: string) => Promise<string[]>,
): Promise<string[]> {
  const reachable = kubeconfig !== undefined || process.env['KUBERNETES_SERVICE_HOST'] !== undefined;
  if (nodeName === undefined || !reachable) {
    return ['the annotations of our Node stay: that takes --node-name and --kubeconfig'];
  }
  const { ApiClient } = await import('../cluster/index.ts');
  const client = await ApiClient.open(kubeconfig === undefined ? {} : { kubeconfig });
  try {
    return await act(client, nodeName);
  } finally {
    client.close();
  }
}

/** The attachments stay: should ripstop come back, it finds the pods that it attached. */
async function forgetAgent({ runDir }: UninstallOptions): Promise<string[]> {
  const names = (await readdir(runDir).catch(() => [])).filter((name) => name !== 'endpoints');
  for (const name of names) await rm(join(runDir, name), { recursive: true, force: true });
  return names.map((name) => `removed ${join(runDir, name)}`);
}

async function removeDir(dir: string): Promise<string[]> {
  const names = await readdir(dir).catch(() => undefined);
  if (!names) return [];
  for (const name of names) await rm(join(dir, name), { recursive: true, force: true });
  // In a container it is a mount point, and stays.
  const gone = await rmdir(dir).then(
    () => true,
    () => false,
  );
  return gone || names.length > 0 ? [`removed ${dir}`] : [];
}

async function removeFile(path: string): Promise<string[]> {
  if (!(await isThere(path))) return [];
  await rm(path, { recursive: true });
  return [`removed ${path}`];
}

async function subnetEnv(path: string): Promise<SubnetEnv> {
  const { readSubnetEnv } = await import('../host/subnet-env.ts');
  const env = await readSubnetEnv(path);
  if (env) return env;
  throw new RipstopError(`there is no ${path}, which says what this node's part of the network is`);
}

/** flannel's own question to net-conf.json; ripstop itself has no use for the answer. */
async function usesNftables(netConf: string): Promise<boolean> {
  const json: unknown = JSON.parse(await readFile(netConf, 'utf8'));
  return Object.entries(json as object).some(
    ([key, value]) => key.toLowerCase() === 'enablenftables' && value === true,
  );
}

function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
