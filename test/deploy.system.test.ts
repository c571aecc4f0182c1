// SPDX-License-Identifier: Apache-2.0
import {
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type * as k8s from '@kubernetes/client-node';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { errorText } from '../src/errors.ts';
import { run, tryRun } from '../src/host/run.ts';
import { CNI_PLUGINS } from '../src/lab/cni.ts';
import { addPod, nodeDir, removePod, stopAgent } from '../src/lab/index.ts';
import { signalProcess } from '../src/lab/netns.ts';
import { kubeconfigOf } from '../src/lab/state.ts';
import { type Background, startIn } from '../src/lab/lab.support.ts';
import { bpffsOf, cniStatus, inNetns, missingHere, ping, useLab } from './cluster/support.ts';
import { type Contained, inContainer } from './support/container.ts';
import { manifest, parseManifest, rendered, rollBackEdit } from './support/manifest.ts';

/*
 * The manifest's containers, with exactly the capabilities, the read-only root and the volumes that it gives them, on a
 * node of the lab: these suffice, and something fails without any of them.
 */

const { config, daemonSet } = parseManifest(manifest);
/** A user such as kubespray's `kube`. */
const SOMEBODY = 1000;
/** flannel's CNI configuration. */
const FLANNELS = 'as flannel had it';
/** The time for an agent to be ready, or to say why it is not, on a busy machine. */
const START_MS = 40_000;

function containerOf({ spec }: k8s.V1DaemonSet, name: string): k8s.V1Container {
  const { initContainers = [], containers } = spec!.template.spec!;
  return structuredClone([...initContainers, ...containers].find((one) => one.name === name)!);
}

const capabilitiesOf = (name: string): string[] =>
  containerOf(daemonSet, name).securityContext?.capabilities?.add ?? [];

function withoutCapability(name: string, container: k8s.V1Container): k8s.V1Container {
  const capabilities = container.securityContext!.capabilities!;
  capabilities.add = capabilities.add!.filter((one) => one !== name);
  return container;
}

const missing = missingHere('setpriv', 'iptables-legacy') ?? (await lacking());

/** What the kernel lacks for these stories, in one line. */
async function lacking(): Promise<string | undefined> {
  const legacy = await tryRun('unshare', ['--net', 'iptables-legacy', '-t', 'nat', '-S']);
  const lacks = [
    ...(readFileSync('/proc/filesystems', 'utf8').includes('\toverlay\n')
      ? []
      : ['overlay (modprobe overlay)']),
    ...(legacy.code === 0 ? [] : ["iptables-legacy's tables"]),
  ];
  if (lacks.length === 0) return undefined;
  return `this kernel lacks ${lacks.join(' and ')}`;
}

const title = (text: string): string => (missing ? `${text} (skipped: ${missing})` : text);

describe.skipIf(missing)(title('a node with the privileges of the manifest'), () => {
  const cluster = useLab('deploy', { nodes: 1, pods: 0 });
  const node = () => cluster.nodes[0]!;
  const dir = (name: string) => join(nodeDir(cluster.lab, node()), name);
  const conflist = () => join(dir('net.d'), '10-flannel.conflist');
  const flannelRules = async () =>
    (await run('iptables-legacy-save', [], inNetns(node()))).match(/:FLANNEL\S*/g) ?? [];
  let agent: Background | undefined;

  beforeAll(async () => {
    await stopAgent(cluster.lab, node());
    for (const name of ['scratch', 'state', 'run-flannel', 'cni-state', 'net.d', 'cni-bin', 'config'])
      mkdirSync(dir(name), { recursive: true });
    for (const name of ['net.d', 'cni-bin']) chownSync(dir(name), SOMEBODY, SOMEBODY);
    for (const [key, text] of Object.entries(config.data!)) writeFileSync(join(dir('config'), key), text);
    writeFileSync(join(dir('config'), 'net-conf.json'), readFileSync(join(cluster.lab.dir, 'net-conf.json')));
    writeFileSync(dir('xtables.lock'), '');
    writeFileSync(conflist(), FLANNELS);
    copyFileSync(join(CNI_PLUGINS, 'portmap'), join(dir('cni-bin'), 'portmap'));
  });
  afterEach(() => agent?.stop());

  /** The container on this node, with kubelet's additions. */
  function onNode(container: k8s.V1Container, left: string[] = []): [string, ...string[]] {
    const volumes: Record<string, string> = {
      run: dir('run'),
      state: dir('state'),
      'run-flannel': dir('run-flannel'),
      bpffs: dir('bpf'),
      'run-netns': '/run/netns',
      'cni-state': dir('cni-state'),
      'xtables-lock': dir('xtables.lock'),
      'cni-conf': dir('net.d'),
      'cni-bin': dir('cni-bin'),
      config: dir('config'),
      account: kubeconfigOf(cluster.lab, node()),
    };
    container.volumeMounts!.push({ name: 'account', mountPath: '/etc/kubeconfig' });
    const given: Contained = {
      container,
      volumes: Object.fromEntries(Object.entries(volumes).filter(([name]) => !left.includes(name))),
      env: {
        RIPSTOP_NODE_NAME: node().name,
        RIPSTOP_MODE: config.data!['mode']!,
        RIPSTOP_KUBECONFIG: '/etc/kubeconfig',
      },
      scratch: dir('scratch'),
    };
    return inContainer(given);
  }

  /** Wait until the agent has printed this, long enough for a busy machine. */
  const says = ({ output }: Background, words: RegExp) =>
    expect.poll(output, { timeout: START_MS }).toMatch(words);

  /** Start the agent on a node without state of ripstop, but with flannel's rules and CNI configuration. */
  async function start(
    container = containerOf(daemonSet, 'ripstop'),
    left: string[] = [],
  ): Promise<Background> {
    rmSync(join(bpffsOf(cluster.lab, node()), 'ripstop'), { recursive: true, force: true });
    writeFileSync(conflist(), FLANNELS);
    await tryRun('iptables-legacy', ['-t', 'nat', '-N', 'FLANNEL-POSTRTG'], inNetns(node()));
    expect(await flannelRules()).toContain(':FLANNEL-POSTRTG');
    agent = startIn(node().netns, ...onNode(container, left));
    return agent;
  }

  /** Start it and wait until it can serve pods. */
  async function startReady(left: string[] = []): Promise<Background> {
    const started = await start(undefined, left);
    const why = async () => {
      const answer = await cniStatus(cluster.lab, node());
      return answer && `${answer}\n${started.output()}`;
    };
    await expect.poll(why, { timeout: START_MS }).toBe(undefined);
    return started;
  }

  const pinned = () => existsSync(join(bpffsOf(cluster.lab, node()), 'ripstop'));

  it('gets its CNI plugin into a directory of another user, for which DAC_OVERRIDE is needed', async () => {
    expect(capabilitiesOf('install-cni')).toEqual(['DAC_OVERRIDE']);
    const install = (container: k8s.V1Container) => tryRun(...split(onNode(container)), inNetns(node()));
    const refused = await install(withoutCapability('DAC_OVERRIDE', containerOf(daemonSet, 'install-cni')));
    expect(refused.stderr).toMatch(/\/host\/opt\/cni\/bin\/.*: Permission denied/);
    expect(await install(containerOf(daemonSet, 'install-cni'))).toMatchObject({ code: 0 });
    expect(existsSync(join(dir('cni-bin'), 'ripstop-cni'))).toBe(true);
  });

  it('has an agent that is ready, has taken over from flannel, and attaches pods', async () => {
    const { output, stop } = await startReady();
    expect(await flannelRules()).toEqual([]);
    // Debian 12's portmap lacks 1.1.0, as the agent has learned from it.
    const shipped = JSON.parse(config.data!['cni-conf.json']!) as object;
    await expect
      .poll(() => JSON.parse(readFileSync(conflist(), 'utf8')) as object)
      .toEqual({ ...shipped, cniVersions: ['1.0.0'] });
    expect(readFileSync(`${conflist()}.ripstop-saved`, 'utf8')).toBe(FLANNELS);
    const pod = await addPod(cluster.lab, node());
    await ping(node(), pod.ip);
    await removePod(cluster.lab, node(), pod);
    expect(pinned()).toBe(true);
    await expect.poll(() => existsSync(join(dir('state'), 'last-known.json'))).toBe(true);
    expect(output()).not.toMatch(/EROFS|EACCES|EPERM|ermission denied|not permitted/);
    await stop();
  });

  it('is given back to flannel, for which DAC_OVERRIDE is needed again', async () => {
    const back = parseManifest(await rendered(rollBackEdit)).daemonSet;
    const refused = withoutCapability('DAC_OVERRIDE', containerOf(back, 'ripstop'));
    await says(
      (agent = startIn(node().netns, ...onNode(refused))),
      /1 of \d+ parts failed.*CNI configuration: EACCES/,
    );
    agent = startIn(node().netns, ...onNode(containerOf(back, 'ripstop')));
    await says(agent, /put back .*10-flannel.conflist/);
    expect(readFileSync(conflist(), 'utf8')).toBe(FLANNELS);
  });

  /** What is printed without each capability. */
  const incapable: Record<string, RegExp> = {
    NET_ADMIN: /cannot watch the node's network for changes: .*Operation not permitted.*CAP_NET_ADMIN/,
    NET_RAW: /"flannel-rules".*iptables-legacy-save.*Permission denied/,
    SYS_ADMIN: /bpf_object__load failed: EPERM/,
    DAC_OVERRIDE: /cannot write \/etc\/cni\/net.d\/.*EACCES.*the CNI configuration is not in place/,
  };

  it.each(capabilitiesOf('ripstop'))('needs for the agent the capability %s', async (name) => {
    await says(await start(withoutCapability(name, containerOf(daemonSet, 'ripstop'))), incapable[name]!);
  });

  it.each([
    ['run', /(ENOENT|EROFS).*\/run\/ripstop/],
    ['config', /cannot read the network configuration \/etc\/kube-flannel\/net-conf.json/],
    ['run-flannel', /cannot write \/run\/flannel\/subnet.env/],
  ])('needs for the agent the volume %s', async (name, complaint) => {
    await says(await start(undefined, [name]), complaint);
  });

  it('needs the volumes state, xtables-lock and run-netns for the agent', async () => {
    const started = await startReady(['state', 'xtables-lock', 'run-netns']);
    await says(started, /cannot write \/var\/lib\/ripstop\/last-known.json/);
    await says(started, /"flannel-rules".*xtables\.lock/);
    const answer = await addPod(cluster.lab, node()).then(String, errorText);
    expect(answer).toMatch(/CNI_NETNS .* does not exist/);
  });

  it('needs the volumes cni-state and bpffs for the agent: without bpffs the pins end with it', async () => {
    await startReady(['cni-state', 'bpffs']);
    expect(pinned()).toBe(false);
    const answer = await addPod(cluster.lab, node()).then(String, errorText);
    expect(answer).toMatch(/cannot allocate an address in \/var\/lib\/cni\/networks/);
  });
});

/** A command as {@link run} takes it. */
function split([program, ...args]: [string, ...string[]]): [string, string[]] {
  return [program, args];
}

describe.skipIf(missing)(title('a host whose mounts are private and that has no BPF file system'), () => {
  const cluster = useLab('prepare', { nodes: 1, datapath: 'host' });
  let scratch: string;
  let host: Background | undefined;
  let pid: string;

  beforeAll(async () => {
    scratch = mkdtempSync(join(tmpdir(), 'ripstop-prepare-'));
    const script = `
      read -r pid rest < /proc/self/stat
      mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; mkdir /run/netns
      echo "host $pid"; exec sleep infinity`;
    const unshare = ['--mount', '--propagation=private', '--pid', '--fork', '--kill-child'];
    host = startIn(cluster.nodes[0]!.netns, 'unshare', ...unshare, 'sh', '-c', script);
    await host.prints(/host \d+/);
    pid = /host (\d+)/.exec(host.output())![1]!;
  });
  afterAll(async () => {
    rmSync(scratch, { recursive: true });
    // Its parent ends only together with it.
    signalProcess(Number(pid), 'SIGKILL');
    await host?.stop();
  });

  const there = (...command: string[]): [string, string[]] => [
    'nsenter',
    ['--target', pid, '--mount', '--pid', '--', ...command],
  ];
  const onHost = (script: string): Promise<string> => run(...there('sh', '-c', script));

  const prepare = (): Promise<string> =>
    run(
      ...there(
        ...inContainer({
          container: containerOf(daemonSet, 'prepare-node'),
          volumes: { 'host-proc': '/proc' },
          scratch,
        }),
      ),
    );

  /** Whether a running container sees the namespace of a pod that starts later. */
  async function laterPod(name: string): Promise<string> {
    const path = `/run/netns/${name}`;
    await onHost(`touch ${path}`);
    const agent = containerOf(daemonSet, 'ripstop');
    agent.command = ['sh', '-c'];
    agent.args = [`echo up; until [ -e ${path}-is-there ]; do sleep 0.02; done; stat -f -c %T ${path}`];
    const [program, args] = there(
      ...inContainer({ container: agent, volumes: { 'run-netns': '/run/netns' }, scratch }),
    );
    const looking = startIn(cluster.nodes[0]!.netns, program, ...args);
    await looking.prints(/up/);
    await onHost(`mount --bind /proc/self/ns/net ${path}; touch ${path}-is-there`);
    await looking.prints(/up\n\w+/);
    return (await looking.stop()).trim().split('\n').at(-1)!;
  }

  it('is unsuitable for the agent: it would not see later pods, and has no file system for pins', async () => {
    expect(await laterPod('one')).toBe('tmpfs');
    expect(await onHost('stat -f -c %T /sys/fs/bpf')).toBe('sysfs\n');
  });

  it('is made suitable by prepare-node, which does it only once', async () => {
    await prepare();
    expect(await laterPod('two')).toBe('nsfs');
    expect(await onHost('stat -f -c %T /sys/fs/bpf')).toBe('bpf_fs\n');
    const before = await onHost('cat /proc/1/mountinfo');
    expect(before.match(/ shared:/g)).toHaveLength(2);
    await prepare();
    expect(await onHost('cat /proc/1/mountinfo')).toBe(before);
  });
});
