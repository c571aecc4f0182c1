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
import { addNodeFlags, flag, fullyRandomDisableFlag } from './options.ts';

export interface UninstallOptions {
  /** Where subnets come from, if not from Kubernetes. */
  readonly etcd?: EtcdOptions;
  readonly restoreFlannel: boolean;
  readonly ipMasqFullyRandomDisable: boolean;
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

/** One part of the uninstallation. It returns a line for everything that it has done. */
interface Part {
  readonly name: string;
  readonly run: () => Promise<string[]>;
}

export function addUninstallCommand(program: Command): void {
  addEtcdFlags(addNodeFlags(program.command('uninstall')))
    .description('take ripstop off this node; stop the agent first')
    .addOption(
      flag(
        '--restore-flannel',
        'leave the node as a stopped flanneld leaves it, so that flanneld can be started; pods keep their network',
      ).default(false),
    )
    .addOption(fullyRandomDisableFlag())
    .addOption(flag('--node-name <name>', "this node's name in the cluster", 'NODE_NAME'))
    .addOption(flag('--cni-bin-dir <path>', "the container runtime's plugins").default('/opt/cni/bin'))
    .action((flags: UninstallOptions & EtcdFlags) => uninstall(withEtcd(flags)));
}

/**
 * Take ripstop off the node, part by part. When a part fails, the others still run.
 * @throws RipstopError when the agent runs, or when a part has failed
 */
export async function uninstall(
  options: UninstallOptions,
  say: (line: string) => void = console.log,
): Promise<void> {
  if (await askAgent(options.runDir)) {
    throw new RipstopError(
      `the agent of this node runs (${join(options.runDir, runFiles.agentSocket)} answers) ` +
        'and would restore everything; stop it first, for example with ' +
        '"kubectl -n kube-ripstop delete daemonset kube-ripstop-ds": pods keep their network without it',
    );
  }
  const parts = await partsFor(options);
  let done = 0;
  const failures: string[] = [];
  for (const { name, run } of parts) {
    try {
      for (const line of await run()) {
        say(line);
        done++;
      }
    } catch (error) {
      failures.push(`${name}: ${errorText(error)}`);
    }
  }
  if (done + failures.length === 0) say('there is nothing of ripstop on this node');
  if (failures.length === 0) return;
  throw new RipstopError(
    `${failures.length} of ${parts.length} parts failed; mend that and run it again: ${failures.join('; ')}`,
    { details: failures.join('\n') },
  );
}

async function partsFor(options: UninstallOptions): Promise<Part[]> {
  const { isBoosted } = await import('../host/boost-state.ts');
  if (await isBoosted(options.stateDir)) return boostingParts(options);
  return options.restoreFlannel ? restoringParts(options) : removingParts(options);
}

/** Flannel has been the node's network all the time. */
function boostingParts(options: UninstallOptions): Part[] {
  return [
    { name: 'programs', run: () => removePrograms(options) },
    {
      name: 'settings',
      run: async () => (await import('../host/boost-state.ts')).undoBoost(options.stateDir),
    },
    { name: 'run directory', run: () => forgetAgent(options) },
    { name: 'state directory', run: () => removeState(options) },
  ];
}

/** First peers are made to stop sending; then the fast path goes, then the kernel path. */
function removingParts(options: UninstallOptions): Part[] {
  return [
    { name: 'our Node', run: () => withdrawFromCluster(options) },
    { name: 'CNI configuration', run: async () => (await cni()).removeConflists(options.cniConfDir) },
    { name: 'CNI plugin', run: () => removeShim(options) },
    { name: 'programs', run: () => removePrograms(options) },
    // Now nothing leads to their addresses any more.
    { name: 'deferred DELs', run: () => carryOutDeferred(options) },
    { name: 'routes', run: async () => (await host()).removeRoutes() },
    { name: 'proxy neighbours', run: async () => (await host()).removeProxies() },
    { name: 'devices', run: async () => (await host()).removeVteps() },
    { name: 'rules', run: async () => (await host()).removeOurRules() },
    { name: 'subnet.env', run: () => removeFile(options.subnetFile) },
    { name: 'run directory', run: () => removeDir(options.runDir) },
    { name: 'state directory', run: () => removeState(options) },
  ];
}

/** What replaces a part is there before that part goes. */
function restoringParts(options: UninstallOptions): Part[] {
  return [
    { name: 'programs', run: () => removePrograms(options) },
    // Now nothing leads to their addresses any more.
    { name: 'deferred DELs', run: () => carryOutDeferred(options) },
    { name: 'rules', run: () => restoreRules(options) },
    { name: 'bridge', run: () => restoreBridge(options) },
    { name: "flannel's plugin", run: () => handPodsOver(options) },
    { name: 'CNI configuration', run: () => restoreConflists(options) },
    { name: 'CNI plugin', run: () => removeShim(options) },
    { name: 'our Node', run: () => removeOwnAnnotations(options) },
    { name: 'run directory', run: () => forgetAgent(options) },
    { name: 'state directory', run: () => removeState(options) },
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
  return [`detached all programs, and removed ${root}`];
}

/** Carry out the DELs that came after the agent ended, so that their addresses are free for the next plugin. */
async function carryOutDeferred({ stateDir, runDir, ipamDir }: UninstallOptions): Promise<string[]> {
  const { DeferredDels, deferredDir } = await import('../cni/deferred.ts');
  const { createCniOps } = await import('../cni/ops.ts');
  const { dispatch } = await import('../cni/plugin.ts');
  const { AttachmentStore } = await import('../cni/attachments.ts');
  const { HostLocalStore } = await import('../cni/host-local.ts');
  const { pino } = await import('pino');
  const nothing = async (): Promise<void> => {};
  const ops = createCniOps(() => ({
    families: [],
    addresses: new HostLocalStore(ipamDir),
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
  return done === 0 ? [] : [`released the addresses of ${done} pods that were deleted while no agent ran`];
}

/** Deferred DELs that have failed keep the directory: without it their addresses could never be released. */
async function removeState({ stateDir }: UninstallOptions): Promise<string[]> {
  const { deferredDir } = await import('../cni/deferred.ts');
  const names = await readdir(deferredDir(stateDir)).catch(() => []);
  const left = names.filter((name) => name.includes(':'));
  if (left.length > 0) throw new RipstopError(`${stateDir} stays for ${left.length} deferred DELs`);
  return removeDir(stateDir);
}

async function restoreRules(options: UninstallOptions): Promise<string[]> {
  const { subnetFile, netConf, etcd, stateDir, ipMasqFullyRandomDisable } = options;
  const { etcdNetConfCopy } = await import('../agent/etcd-source.ts');
  const { networks, ipMasq } = await subnetEnv(subnetFile);
  const { replaceRules } = await host();
  const file = etcd ? etcdNetConfCopy(stateDir) : netConf;
  return replaceRules({
    networks,
    masquerade: ipMasq,
    keepPorts: ipMasqFullyRandomDisable,
    nftables: await usesNftables(file),
  });
}

async function restoreBridge(options: UninstallOptions): Promise<string[]> {
  const env = await subnetEnv(options.subnetFile);
  const { prepareBridge, routedAddresses } = await host();
  const attached = await attachments(options);
  const ours = await routedAddresses(attached.flatMap(({ ips }) => ips));
  return prepareBridge(env, ours);
}

/** Hand the pods that ripstop attached over to flannel's plugin, so that its DEL releases their addresses. */
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
  return written === 0 ? [] : [`handed ${written} pods over to flannel's plugin, in ${dir}`];
}

async function attachments({ runDir }: UninstallOptions) {
  const { AttachmentStore } = await import('../cni/attachments.ts');
  return new AttachmentStore(runDir).list();
}

async function restoreConflists({ cniConfDir, stateDir }: UninstallOptions): Promise<string[]> {
  const { installedConflist, ...conflists } = await cni();
  return conflists.restoreConflists(cniConfDir, installedConflist(stateDir));
}

async function removeShim({ cniBinDir }: UninstallOptions): Promise<string[]> {
  return removeFile(join(cniBinDir, 'ripstop-cni'));
}

/** Withdraw what this node has published, so that peers stop sending here. */
async function withdrawFromCluster(options: UninstallOptions): Promise<string[]> {
  if (options.etcd) return withdrawFromEtcd(options, options.etcd);
  return withNode(options, async (client, nodeName) => {
    const { fetchOwnNode, leaseSettings, readNetConf } = await import('../cluster/index.ts');
    const { withdrawLease } = await import('../cluster/own-lease.ts');
    const settings = leaseSettings(await readNetConf(options.netConf), options.kubeAnnotationPrefix);
    const own = await fetchOwnNode(client, nodeName, settings);
    const published = own.annotations[settings.keys.managed] !== undefined;
    await withdrawLease(client, own, settings);
    const done = published ? [`withdrew the lease of node ${nodeName}`] : [];
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
    return ["withdrew this node's lease in etcd"];
  } finally {
    await source.subnets.stop();
  }
}

/** Ripstop has no annotations in etcd; the lease there is flannel's, and stays. */
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

/** Change the Node, if the API server is known: otherwise the Node stays as it is. */
async function withNode(
  { nodeName, kubeconfig }: UninstallOptions,
  act: (client: ApiClient, nodeName: string) => Promise<string[]>,
): Promise<string[]> {
  const reachable = kubeconfig !== undefined || process.env['KUBERNETES_SERVICE_HOST'] !== undefined;
  if (nodeName === undefined || !reachable) {
    return ["this node's annotations stay: to remove them, give --node-name and --kubeconfig"];
  }
  const { ApiClient } = await import('../cluster/index.ts');
  const client = await ApiClient.open(kubeconfig === undefined ? {} : { kubeconfig });
  try {
    return await act(client, nodeName);
  } finally {
    client.close();
  }
}

/** Attachments stay, so that a later ripstop finds the pods that this one attached. */
async function forgetAgent({ runDir }: UninstallOptions): Promise<string[]> {
  const names = (await readdir(runDir).catch(() => [])).filter((name) => name !== 'endpoints');
  for (const name of names) await rm(join(runDir, name), { recursive: true, force: true });
  return names.map((name) => `removed ${join(runDir, name)}`);
}

async function removeDir(dir: string): Promise<string[]> {
  const names = await readdir(dir).catch(() => undefined);
  if (!names) return [];
  for (const name of names) await rm(join(dir, name), { recursive: true, force: true });
  // In a container it is a mount point, which cannot be removed.
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
  throw new RipstopError(`there is no ${path}, so this node's podCIDR is unknown; give --subnet-file`);
}

/** Whether flannel writes its rules by nftables. Only flannel needs this setting. */
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
