// SPDX-License-Identifier: Apache-2.0
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Conflist } from '../../src/cni/conflist.ts';
import { listLinks } from '../../src/host/links.ts';
import { run, tryRun } from '../../src/host/run.ts';
import {
  labDown,
  labUp,
  type Lab,
  netnsPath,
  nodeDir,
  openLab,
  parseLabOptions,
  pluginOf,
  restartAgent,
  startAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import { CNI_PLUGINS, resultAddresses } from '../../src/lab/cni.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { type Background, startIn, tracesOf } from '../../src/lab/lab.support.ts';
import { addNetns, deleteNetns } from '../../src/lab/netns.ts';
import { agentLog, carriedDuring, inNetns, podOf, serveIn, talkBoth, talkTcp } from '../cluster/support.ts';
import { manifest, parseManifest } from '../support/manifest.ts';
import { peerPath, type ProgramName } from '../support/peer-programs.ts';
import { labNameFor } from './support.ts';

const NAME = labNameFor('cni');
const POD = 'chained';

/**
 * The plugin as cnitool calls it, by libcni, in the network configuration that the agent has installed, with the
 * reference plugins chained to it.
 */
describe('two ripstop nodes, whose pods cnitool and the chained plugins make', () => {
  let lab: Lab;
  const [node, other] = [() => lab.state.nodes[0]!, () => lab.state.nodes[1]!];
  const dir = (...path: string[]): string => join(nodeDir(lab, node()), ...path);
  const conflist = (): string => dir('net.d', '10-flannel.conflist');
  const pod = (): { netns: string } => ({ netns: `${node().netns}-${POD}` });
  const shipped = JSON.parse(parseManifest(manifest).config.data!['cni-conf.json']!) as Conflist;

  beforeAll(async () => {
    await labUp(
      parseLabOptions({ name: NAME, nodes: 2, pods: 1, datapath: 'ripstop', kubeProxy: 'iptables' }),
    );
    lab = openLab(NAME);
    await serveIn(podOf(other()));
    for (const name of ['net.d', 'cni-bin', 'var-lib/cni']) mkdirSync(dir(name), { recursive: true });
  });
  afterEach(async () => {
    await cnitool('del');
    await deleteNetns(pod().netns);
  });
  afterAll(async () => {
    await labDown(NAME);
    expect(await tracesOf(NAME)).toEqual([]);
  });

  /** Start the node's agent with this configuration, in reach of these plugins, and wait for it to be in place. */
  async function withConflist(given: object, plugins: Readonly<Record<string, string>>): Promise<Conflist> {
    await stopAgent(lab, node());
    rmSync(dir('cni-bin'), { recursive: true });
    mkdirSync(dir('cni-bin'));
    const { plugin } = pluginOf(lab, node());
    for (const [name, path] of Object.entries({ 'ripstop-cni': plugin, ...plugins }))
      symlinkSync(path, dir('cni-bin', name));
    writeFileSync(dir('cni-conf.json'), JSON.stringify(given));
    Object.assign(process.env, {
      RIPSTOP_CNI_CONF: dir('cni-conf.json'),
      RIPSTOP_CNI_CONF_DIR: dir('net.d'),
      RIPSTOP_CNI_PLUGINS: dir('cni-bin'),
    });
    rmSync(conflist(), { force: true });
    await startAgent(lab, node());
    await expect.poll(() => existsSync(conflist())).toBe(true);
    return installed();
  }

  const installed = (): Conflist => JSON.parse(readFileSync(conflist(), 'utf8')) as Conflist;
  const real = (...names: ProgramName[]): Record<string, string> =>
    Object.fromEntries(names.map((name) => [name, peerPath(name)]));

  /** Run cnitool on the node, which has a /var/lib of its own for libcni's notes. */
  async function cnitool(
    command: 'add' | 'check' | 'del' | 'gc' | 'status',
    {
      tool = 'cnitool',
      args = {},
      netns = pod().netns,
    }: { tool?: ProgramName; args?: object; netns?: string } = {},
  ): Promise<{ code: number; stdout: string; stderr: string }> {
    const { env } = pluginOf(lab, node());
    const script = 'mount --bind "$0" /var/lib && exec "$@"';
    const argv = [dir('var-lib'), peerPath(tool), command, 'cbr0', netnsPath(netns)];
    return tryRun('unshare', ['--mount', 'sh', '-c', script, ...argv], {
      ...inNetns(node()),
      env: {
        PATH: process.env['PATH'] ?? '',
        ...env,
        NETCONFPATH: dir('net.d'),
        CNI_PATH: dir('cni-bin'),
        CAP_ARGS: JSON.stringify(args),
      },
    });
  }

  /** The containers of libcni's notes. */
  const noted = (): string[] => {
    try {
      return readdirSync(dir('var-lib/cni/results'));
    } catch {
      return [];
    }
  };
  const leases = (): string[] => readdirSync(dir('ipam/cbr0')).filter((name) => /^\d/.test(name));
  const calls = (command: string): number => agentLog(lab, node()).split(`"command":"${command}"`).length - 1;

  /** Make the pod, with what the runtime asks of the chain. */
  async function add(
    args: object = {},
    tool: ProgramName = 'cnitool',
  ): Promise<{ ip: string; version: string }> {
    await addNetns(pod().netns);
    const { code, stdout, stderr } = await cnitool('add', { tool, args });
    // sbr tells on stderr what it does.
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout) as { cniVersion: string };
    return { ip: resultAddresses(result).ip, version: result.cniVersion };
  }

  const succeeds = expect.objectContaining({ code: 0, stdout: '' });

  it.each([
    ['containerd 2', 'cnitool', 'of today', '1.1.0', ['1.0.0', '1.1.0']],
    ['containerd 2', 'cnitool', 'of Debian 12', '1.0.0', ['1.0.0']],
    ['containerd 1.7', 'old-cnitool', 'of today', '1.0.0', ['1.0.0', '1.1.0']],
  ] as const)(
    'the shipped configuration: libcni of %s (%s) with a portmap %s speaks %s',
    async (_, tool, age, version, offered) => {
      const portmap = age === 'of today' ? peerPath('portmap') : join(CNI_PLUGINS, 'portmap');
      expect(await withConflist(shipped, { portmap })).toEqual({ ...shipped, cniVersions: offered });
      expect((await add({ portMappings: [] }, tool)).version).toBe(version);
      expect(await cnitool('check', { tool })).toEqual(succeeds);
      expect(await cnitool('del', { tool })).toEqual(succeeds);
      expect(await cnitool('del', { tool })).toEqual(succeeds);
      expect([leases().length, noted()]).toEqual([1, []]);
      // Only in 1.1.0 is the plugin asked, which says that the agent is away. containerd 1.7's libcni cannot ask.
      if (tool === 'old-cnitool') return;
      expect(await cnitool('status')).toEqual(succeeds);
      await stopAgent(lab, node());
      expect(await cnitool('status')).toMatchObject({ code: version === '1.1.0' ? 1 : 0 });
    },
  );

  it('STATUS fails with 50 and the reason while the agent is away, and GC removes what libcni knows', async () => {
    await withConflist(shipped, real('portmap'));
    await add();
    await stopAgent(lab, node());
    const { code, stderr } = await cnitool('status');
    expect([code, stderr]).toEqual([1, expect.stringMatching(/gave no answer at .*cni\.sock/)]);
    await startAgent(lab, node());
    const before = calls('GC');
    expect(await cnitool('gc')).toEqual(succeeds);
    await expect.poll(() => calls('GC') - before).toBe(1);
    expect([leases().length, noted()]).toEqual([1, []]);
  });

  it('20 pods at a time, while the agent is killed: libcni’s notes are those of the pods', async () => {
    await withConflist(shipped, real('portmap'));
    const all = Array.from({ length: 20 }, (_, i) => `${node().netns}-storm${i}`);
    await addNetns(...all);
    try {
      // As a runtime: an ADD that fails is followed by a DEL, and tried again.
      const start = async (netns: string): Promise<void> => {
        while ((await cnitool('add', { netns })).code !== 0) {
          expect(await cnitool('del', { netns })).toEqual(succeeds);
          await sleep(200);
        }
      };
      const killed = sleep(500).then(() => restartAgent(lab, node(), 'SIGKILL'));
      await Promise.all(all.map(start));
      await killed;
      expect([leases().length, noted().length]).toEqual([21, 20]);
      const killedAgain = sleep(500).then(() => restartAgent(lab, node(), 'SIGKILL'));
      await Promise.all(all.map(async (netns) => expect(await cnitool('del', { netns })).toEqual(succeeds)));
      await killedAgain;
      await expect.poll(() => [leases().length, noted()]).toEqual([1, []]);
    } finally {
      await deleteNetns(...all);
    }
  });

  it('portmap, bandwidth, tuning, firewall and sbr each do their work, pass CHECK and leave nothing', async () => {
    const MAC = '02:00:00:00:12:34';
    const chain = [
      { type: 'ripstop-cni' },
      { type: 'portmap', capabilities: { portMappings: true } },
      {
        type: 'bandwidth',
        ingressRate: 80_000_000,
        ingressBurst: 800_000,
        egressRate: 80_000_000,
        egressBurst: 800_000,
      },
      {
        type: 'tuning',
        dataDir: dir('tuning'),
        sysctl: { 'net.core.somaxconn': '500' },
        mac: MAC,
        mtu: 1400,
      },
      { type: 'firewall', backend: 'iptables' },
      { type: 'sbr' },
    ];
    const { plugins, ...offered } = await withConflist(
      { ...shipped, plugins: chain },
      real('portmap', 'bandwidth', 'tuning', 'firewall', 'sbr'),
    );
    expect([plugins, offered]).toMatchObject([chain, { cniVersions: ['1.0.0', '1.1.0'] }]);
    const rulesBefore = await rules();
    const portMappings = [{ hostPort: 8080, containerPort: 7777, protocol: 'tcp' }];
    const { ip } = await add({ portMappings });
    await serveIn(pod(), '::', 7777);

    // tuning
    const [eth0] = [...(await listLinks(inNetns(pod()))).values()].filter(({ name }) => name === 'eth0');
    expect(eth0).toMatchObject({ mac: MAC, mtu: 1400 });
    expect(await run('cat', ['/proc/sys/net/core/somaxconn'], inNetns(pod()))).toBe('500\n');
    // portmap, by the node's address and port
    await talkTcp(podOf(other()), node().ip, 10_000, 8080);
    // firewall
    expect(await rules()).toMatch(new RegExp(`CNI-FORWARD .*${ip}`));
    // sbr: in a table of its own is what comes from the pod's address
    expect(await ipJson(['rule'], inNetns(pod()))).toContainEqual(expect.objectContaining({ src: ip }));
    // bandwidth: 10 MiB take a second at 80 Mbit/s, there and back at once; ripstop leaves shaped pods to the kernel path.
    const startedAtMs = performance.now();
    const [carried] = await carriedDuring(lab, [node()], () => talkTcp(podOf(other()), ip, 10 << 20, 7777));
    expect(performance.now() - startedAtMs).toBeGreaterThan(900);
    expect(carried!.by['from_pod fast_encap'] ?? 0).toBe(0);

    expect(await cnitool('check', { args: { portMappings } })).toEqual(succeeds);
    expect(await cnitool('del', { args: { portMappings } })).toEqual(succeeds);
    expect([leases().length, noted()]).toEqual([1, []]);
    expect(await rules()).not.toContain(ip);
    expect((await rules()).split('\n').length - rulesBefore.split('\n').length).toBeLessThan(20);
    const links = [...(await listLinks(inNetns(node()))).keys()];
    expect(links.filter((name) => /^(veth|bwp|ifb)/.test(name))).toHaveLength(1);
  });

  const rules = (): Promise<string> => run('iptables-save', [], inNetns(node()));

  it('a pod whose MAC address tuning has changed is on the fast path', async () => {
    const mac = '02:00:00:00:56:78';
    await withConflist(
      { ...shipped, plugins: [{ type: 'ripstop-cni' }, { type: 'tuning', dataDir: dir('tuning'), mac }] },
      real('tuning'),
    );
    const { ip } = await add();
    await serveIn(pod());
    const [carried] = await carriedDuring(lab, [node()], () => talkBoth(podOf(other()), ip));
    expect(carried!.by['from_pod fast_encap']).toBeGreaterThan(40);
    expect(carried!.by['from_wire fast_decap']).toBeGreaterThan(40);
    await cnitool('del');
  });

  /**
   * Istio's CNI agent, with this node's directories in place of the host's, until it is stopped. It appends its plugin to
   * the first configuration that it finds, watches it, and appends it anew when it is gone.
   */
  function startIstio(): Background {
    const root = dir('istio');
    const account = join(root, 'var/run/secrets/kubernetes.io/serviceaccount');
    const folders = ['bin', 'opt/cni/bin', 'host/etc/cni/net.d', 'host/opt/cni/bin', 'var/run/istio-cni'];
    for (const folder of [account, ...folders.map((one) => join(root, one))])
      mkdirSync(folder, { recursive: true });
    copyFileSync(peerPath('install-cni'), join(root, 'bin/install-cni'));
    copyFileSync(peerPath('istio-cni'), join(root, 'opt/cni/bin/istio-cni'));
    for (const name of ['token', 'ca.crt']) writeFileSync(join(account, name), 'not asked for');
    const script =
      'mount --bind "$1" "$0/host/etc/cni/net.d" && mount --bind "$2" "$0/host/opt/cni/bin" && ' +
      'exec env -i PATH="$PATH" KUBERNETES_SERVICE_HOST=10.43.0.1 KUBERNETES_SERVICE_PORT=443 REPAIR_ENABLED=false ' +
      'chroot "$0" /bin/install-cni';
    const argv = ['--mount', 'sh', '-c', script, root, dir('net.d'), dir('cni-bin')];
    return startIn(node().netns, 'unshare', ...argv);
  }

  it('istio-cni appends itself to the configuration, and neither rewrites what the other has written', async () => {
    await withConflist(shipped, real('portmap'));
    const types = (): string[] => installed().plugins.map(({ type }) => type);
    const stamp = (): string => `${statSync(conflist()).ino} ${statSync(conflist()).mtimeMs}`;
    /** Whether nobody writes the file for a while, in which an agent that starts is ready. */
    const rests = async (): Promise<void> => {
      const before = stamp();
      await sleep(3000);
      expect(stamp()).toBe(before);
    };
    const istio = startIstio();
    try {
      await expect.poll(types).toEqual(['ripstop-cni', 'portmap', 'istio-cni']);
      const before = [stamp(), installed()];
      await restartAgent(lab, node());
      await rests();
      expect([stamp(), installed()]).toEqual(before);
      // Another ConfigMap.
      const tuning = { type: 'tuning', dataDir: dir('tuning') };
      symlinkSync(peerPath('tuning'), dir('cni-bin/tuning'));
      writeFileSync(
        dir('cni-conf.json'),
        JSON.stringify({ ...shipped, plugins: [...shipped.plugins, tuning] }),
      );
      await restartAgent(lab, node());
      await expect.poll(types).toEqual(['ripstop-cni', 'portmap', 'tuning', 'istio-cni']);
      await rests();
      // Once, at its start.
      expect(istio.output().match(/Wrote CNI config to/g)).toHaveLength(1);
    } finally {
      await istio.stop();
    }
    expect(types()).toEqual(['ripstop-cni', 'portmap', 'tuning']);
    await rests();
  });
});
