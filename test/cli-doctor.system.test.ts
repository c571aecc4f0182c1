// SPDX-License-Identifier: Apache-2.0
/**
 * `ripstop doctor` on two nodes: what is broken for real is named, and the cure that is printed mends it. What is
 * independent of each other is broken at once, so that a run of the command serves many stories.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { askAgent } from '../src/cli/ask-agent.ts';
import type { Finding } from '../src/cli/doctor/check.ts';
import { checks } from '../src/cli/doctor/checks.ts';
import { DEFAULT_ANNOTATION_PREFIX as PREFIX } from '../src/cluster/annotations.ts';
import { AttachmentStore } from '../src/cni/attachments.ts';
import { linkKey } from '../src/dataplane/links.ts';
import { openTables, pinPaths } from '../src/dataplane/tables.ts';
import { run, tryRun } from '../src/host/run.ts';
import { type NodeState, netnsPath, nodeDir, startAgent, stopAgent } from '../src/lab/index.ts';
import { type Background, startIn } from '../src/lab/lab.support.ts';
import { createKubeNode, deleteKubeNode, patchNodeStatus } from '../src/lab/kube.ts';
import { ethernet, ip, protocols, tcp } from '../src/net/packets.ts';
import { underlayNetns } from '../src/lab/state.ts';
import {
  bpffsOf,
  inNetns,
  markForKernelPath,
  missingHere,
  ping,
  podOf,
  ripstop,
  runDirOf,
  useLab,
} from './cluster/support.ts';
import { RawSocket } from './support/raw-socket.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');
const FLOWS = 1024;
/** What this machine itself may lack. */
const OF_MACHINE = ['clock', 'changes', 'receive-counters'];

const ALL = checks.map(({ name }) => name);

interface Story {
  readonly check: string;
  readonly state: 'warn' | 'fail';
  /** In the finding's texts. */
  readonly sees: RegExp;
  readonly breaks: () => unknown;
  /** Default: the commands of the printed cure are run on the node. */
  readonly mends?: () => unknown;
}

describe.skipIf(missingHere('iptables', 'tc'))('doctor, on two nodes with a pod each', () => {
  // So that it can be filled in a moment.
  const before = process.env['RIPSTOP_FLOW_TABLE_SIZE'];
  process.env['RIPSTOP_FLOW_TABLE_SIZE'] = String(FLOWS);
  afterAll(() => {
    if (before === undefined) delete process.env['RIPSTOP_FLOW_TABLE_SIZE'];
    else process.env['RIPSTOP_FLOW_TABLE_SIZE'] = before;
  });
  const here = useLab('doctor', { nodes: 2, pods: 1 });
  let node: NodeState;
  let other: NodeState;
  /** The host veth of the node's pod. */
  let veth: string;

  beforeAll(async () => {
    [node, other] = here.nodes as [NodeState, NodeState];
    const [pod] = await new AttachmentStore(runDirOf(here.lab, node)).list();
    veth = pod!.hostIfname;
    await ping(podOf(node), podOf(other).ip);
  });

  const dir = () => nodeDir(here.lab, node);
  const places = () => ['--subnet-file', join(dir(), 'subnet.env'), '--ipam-dir', join(dir(), 'ipam')];
  const sh = (command: string, on: { netns: string } = node) => run('sh', ['-c', command], inNetns(on));

  async function doctor(...checks: string[]): Promise<Finding[]> {
    const { code, stdout, stderr } = await ripstop(
      here.lab,
      node,
      'doctor',
      ...checks,
      ...places(),
      '-o',
      'json',
    );
    const findings = JSON.parse(stdout) as Finding[];
    expect({ code, stderr }).toEqual({
      code: findings.some(({ state }) => state === 'fail') ? 3 : 0,
      stderr: '',
    });
    return findings;
  }

  /** The names of checks that have found something. */
  const complaints = (findings: readonly Finding[]): string[] => [
    ...new Set(
      findings.filter(({ state }) => state === 'warn' || state === 'fail').map(({ check }) => check),
    ),
  ];

  const complaintsOfNode = (findings: readonly Finding[]): string[] =>
    complaints(findings).filter((check) => !OF_MACHINE.includes(check));

  const commandsIn = (text: string): string[] => Array.from(text.matchAll(/`([^`]+)`/g), ([, one]) => one!);

  /** Stories that are told by one run of doctor, and mended before a second one. */
  function together(
    title: string,
    stories: readonly Story[],
    {
      consequences = [],
      setUp,
      tearDown,
    }: {
      /** Checks that complain too. */
      readonly consequences?: readonly string[];
      readonly setUp?: () => Promise<unknown>;
      readonly tearDown?: () => Promise<unknown>;
    } = {},
  ): void {
    describe(title, () => {
      let found: Finding[] = [];
      let after: Finding[] = [];

      it('is told at once, and mended by the printed cures', async () => {
        await setUp?.();
        for (const { breaks } of stories) await breaks();
        // Watching the epoch takes a second.
        const names = ALL.filter((name) => name !== 'epoch' || stories.some(({ check }) => check === name));
        const unseen = async (): Promise<string[]> => {
          found = await doctor(...names);
          const seen = complaints(found);
          return stories.map(({ check }) => check).filter((check) => !seen.includes(check));
        };
        // On a busy machine an agent may not answer in time.
        await expect.poll(unseen, { timeout: 20_000 }).toEqual([]);
        for (const { check, mends } of stories) {
          const [finding] = found.filter((one) => one.check === check && one.cure !== undefined);
          if (mends) await mends();
          else for (const command of commandsIn(finding?.cure ?? '')) await sh(command);
        }
        await tearDown?.();
        await expect
          .poll(async () => complaintsOfNode((after = await doctor(...names))), { timeout: 20_000 })
          .toEqual([]);
      }, 120_000);

      it.each(stories.map((story) => [story.check, story] as const))('names %s', (check, { state, sees }) => {
        const findings = found.filter((one) => one.check === check);
        const texts = findings.map(({ what, why, cure }) => `${what} | ${why} | ${cure}`);
        expect(texts.join('\n')).toMatch(sees);
        expect(findings.map((one) => one.state)).toContain(state);
        for (const { why, cure } of findings) expect([why, cure]).not.toContain('');
      });

      it('names nothing else', () => {
        const expected = [...stories.map(({ check }) => check), ...consequences];
        expect(complaintsOfNode(found).filter((check) => !expected.includes(check))).toEqual([]);
      });

      it('finds all in order once it is mended', () => {
        expect(after.filter(({ state }) => state === 'skipped')).toEqual([]);
        expect(complaintsOfNode(after)).toEqual([]);
      });
    });
  }

  /** What nobody may find changed, but the agent itself. */
  const stateOfNode = (): Promise<string> =>
    sh(
      [
        "ip -d -o link | sed -E 's/ [a-z_]*_timer +[^ ]+//g'",
        'ip -o address | sed "s/valid_lft.*//"',
        'ip route show table all; ip rule; ip neigh show nud permanent; bridge fdb; tc qdisc; nft -s list ruleset',
        'cat /proc/self/net/ip_tables_names; ip xfrm policy',
        'sysctl -a 2> /dev/null | grep ^net | grep -vE "nf_conntrack_(count|max|buckets)|stable_secret|_time |random"',
        `cd ${dir()}; find run ipam subnet.env bpf | sort`,
      ].join('\n'),
    );

  it('finds nothing on a sound node, within 3 s, and changes nothing', async () => {
    const state = await stateOfNode();
    let findings: Finding[] = [];
    const secondsOfRun = async (): Promise<number> => {
      const begunAt = performance.now();
      findings = await doctor();
      return (performance.now() - begunAt) / 1000;
    };
    await expect.poll(secondsOfRun, { timeout: 30_000 }).toBeLessThan(3);
    const file = join(here.lab.dir, 'nothing-changes.tar.gz');
    await ripstop(here.lab, node, 'doctor', 'agent', ...places(), '--bundle', file);
    expect(findings.filter(({ state, check }) => state !== 'ok' && !OF_MACHINE.includes(check))).toEqual([]);
    expect((await stateOfNode()).split('\n')).toEqual(state.split('\n'));
  });

  it('makes only the checks that it is told', async () => {
    const one = await ripstop(here.lab, node, 'doctor', 'forwarding', 'mtu', ...places());
    expect(one).toEqual({ code: 0, stdout: '2 of 2 checks find all in order\n', stderr: '' });
    const wrong = await ripstop(here.lab, node, 'doctor', 'weather', ...places());
    expect(wrong).toMatchObject({ code: 2, stdout: '' });
    expect(wrong.stderr).toMatch(/^ripstop: there is no check "weather"; the checks are requirements, /);
  });

  let flanneld: ChildProcess | undefined;

  together(
    'while no agent runs',
    [
      {
        check: 'agent',
        state: 'fail',
        sees: /no agent answers in .*run \|/,
        breaks: () => {},
        mends: () => {},
      },
      {
        check: 'subnet-env',
        state: 'fail',
        sees: /subnet\.env does not exist \| .*no agent runs to write it/,
        breaks: () => rmSync(join(dir(), 'subnet.env')),
        mends: () => {},
      },
      {
        check: 'leases',
        state: 'warn',
        sees: /1 addresses are leased and no pod has them: cbr0\/10\.42\.0\.222 \|/,
        breaks: () => {
          const file = join(dir(), 'ipam/cbr0/10.42.0.222');
          writeFileSync(file, 'gone\r\neth0');
          utimesSync(file, new Date(Date.now() - 3600_000), new Date(Date.now() - 3600_000));
        },
      },
      {
        check: 'forwarding',
        state: 'fail',
        sees: /net\.ipv4\.ip_forward is 0/,
        breaks: () => sh('sysctl -qw net.ipv4.ip_forward=0'),
      },
      {
        check: 'rp-filter',
        state: 'warn',
        sees: /flannel\.1 filters strictly/,
        breaks: () => sh('sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.flannel/1.rp_filter=1'),
      },
      {
        check: 'conntrack-liberal',
        state: 'fail',
        sees: /tcp_be_liberal is 0/,
        breaks: () => sh('sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0'),
      },
      {
        check: 'forward-policy',
        state: 'fail',
        sees: /ip filter FORWARD drops packets of pods: it does not accept 10\.42\.0\.0\/16/,
        breaks: () => sh('iptables -w -P FORWARD DROP'),
      },
      {
        check: 'iptables-backends',
        state: 'warn',
        sees: /both backends .*: iptables-legacy filter; .*ip filter/,
        breaks: () => sh('iptables-legacy -w -A INPUT -j ACCEPT'),
        mends: () => sh('iptables-legacy -w -F'),
      },
      {
        check: 'bridge-netfilter',
        state: 'fail',
        sees: /net\.bridge\.bridge-nf-call-iptables is 0/,
        breaks: async () => {
          await sh(
            'ip link add cni0 type bridge; ip link add port0 type veth peer name port1; ip link set port0 master cni0',
          );
          await sh('sysctl -qw net.bridge.bridge-nf-call-iptables=0');
        },
      },
      {
        check: 'bridge-address',
        state: 'warn',
        sees: /cni0 has 10\.42\.9\.1\/24, and this node's gateway is 10\.42\.0\.1\/24/,
        breaks: () => sh('ip address add 10.42.9.1/24 dev cni0'),
      },
      {
        check: 'owners',
        state: 'fail',
        sees: /flanneld runs beside ripstop/,
        breaks: async () => {
          const program = join(here.lab.dir, 'flanneld');
          copyFileSync('/bin/sleep', program);
          const mode = ['-c', `chmod +x ${program}; exec ${program} 600`];
          flanneld = spawn('nsenter', [`--net=${netnsPath(node.netns)}`, '--', 'sh', ...mode]);
          const named = () => readFileSync(`/proc/${flanneld!.pid}/comm`, 'utf8');
          await expect.poll(named).toBe('flanneld\n');
        },
        mends: () => flanneld?.kill(),
      },
      {
        check: 'other-networks',
        state: 'warn',
        sees: /another network plugin was here: weave, cali-FORWARD/,
        breaks: () => sh('ip link add weave type bridge; iptables -w -N cali-FORWARD'),
        mends: () => sh('ip link delete weave; iptables -w -X cali-FORWARD'),
      },
      {
        check: 'programs',
        state: 'fail',
        sees: /programs are not attached: from_pod veth/,
        breaks: () => rmSync(join(pinPaths(bpffsOf(here.lab, node)).links, linkKey('from_pod', veth))),
        mends: () => {},
      },
      {
        check: 'shaping',
        state: 'warn',
        sees: /somebody shapes or filters packets on veth\w+: tbf \(qdisc\)/,
        breaks: () => sh(`tc qdisc add dev ${veth} root tbf rate 1gbit burst 1mb latency 10ms`),
      },
      {
        check: 'other-programs',
        state: 'warn',
        sees: /programs of others are on the uplink eth0: .*\(tc egress\)/,
        breaks: () => {
          const pinned = join(pinPaths(bpffsOf(here.lab, node)).programs, 'to_wire');
          return sh(
            `tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress bpf direct-action object-pinned ${pinned}`,
          );
        },
        mends: () => sh('tc qdisc delete dev eth0 clsact'),
      },
      ...(existsSync('/proc/net/xfrm_stat')
        ? [
            {
              check: 'ipsec',
              state: 'warn',
              sees: /IPsec policies concern all packets to 172\.31\.0\.2 \|/,
              breaks: () =>
                sh(
                  'ip xfrm policy add src 172.31.0.1 dst 172.31.0.2 dir out ' +
                    'tmpl src 172.31.0.1 dst 172.31.0.2 proto esp mode transport level use',
                ),
              mends: () => sh('ip xfrm policy flush'),
            } as const,
          ]
        : []),
      {
        check: 'flow-table',
        state: 'warn',
        sees: /flows4 is full: \d+ of 1024 flows .* --flow-table-size 2048/,
        breaks: () => {
          using tables = openTables(bpffsOf(here.lab, node));
          const [[flow, learned] = []] = tables.flows4.entries();
          for (let i = 0; i < FLOWS; i++) tables.flows4.set({ ...flow!, src_port: 1 + i }, learned!);
        },
        mends: () => {
          using tables = openTables(bpffsOf(here.lab, node));
          tables.flows4.deleteMany([...tables.flows4.keys()]);
        },
      },
      {
        check: 'vtep-mac',
        state: 'fail',
        sees: /flannel\.1 has the MAC 02:00:00:00:00:77, and peers send to /,
        breaks: () => sh('ip link set flannel.1 address 02:00:00:00:00:77'),
      },
      {
        check: 'node-address',
        state: 'fail',
        sees: /no interface has 172\.31\.0\.1, to which peers send/,
        breaks: () => sh('ip address delete 172.31.0.1/16 dev eth0; ip address add 172.31.0.77/16 dev eth0'),
        mends: () =>
          sh(
            'ip address delete 172.31.0.77/16 dev eth0; ip address add 172.31.0.1/16 dev eth0;' +
              'ip route replace default via 172.31.255.254',
          ),
      },
      {
        check: 'mtu',
        state: 'fail',
        sees: /flannel\.1 has MTU 1450, and eth0 takes only 1350 bytes in a tunnel/,
        breaks: () => sh('ip link set eth0 mtu 1400'),
        mends: () => sh('ip link set eth0 mtu 1500'),
      },
      {
        check: 'peer-entries',
        state: 'fail',
        sees: /of 172\.31\.0\.2: [^|]*no FDB entry [^]*entries for nodes that are none: route 10\.42\.77\.0\/24/,
        breaks: async () => {
          const { stdout } = await tryRun('bridge', ['fdb', 'show', 'dev', 'flannel.1'], inNetns(node));
          const mac = /^(\S+) dst 172\.31\.0\.2 /m.exec(stdout)![1]!;
          await sh(`bridge fdb delete ${mac} dev flannel.1 dst 172.31.0.2`);
          await sh('ip route add 10.42.77.0/24 via 10.42.77.0 dev flannel.1 onlink');
        },
        mends: () => sh('ip route delete 10.42.77.0/24'),
      },
    ],
    {
      setUp: () => stopAgent(here.lab, node),
      // Without its address the node reaches nobody.
      consequences: ['tunnel', 'underlay'],
      tearDown: async () => {
        await sh('ip link delete port0; ip link delete cni0 2> /dev/null; iptables -w -P FORWARD ACCEPT');
        await startAgent(here.lab, node);
      },
    },
  );

  let rewriting: ChildProcess | undefined;
  let holder: Background | undefined;

  together(
    'while an agent runs',
    [
      {
        check: 'alarms',
        state: 'fail',
        sees: /alarm \w+ about broken \|/,
        breaks: async () => {
          const state = { index: 99, netns: '', datapath: 'host', pods: [] } as const;
          await createKubeNode(here.lab, {
            ...state,
            name: 'broken',
            ip: '172.31.0.99',
            podCIDR: '10.42.9.0/24',
            pods: [],
          });
          const annotations = {
            [`${PREFIX}/kube-subnet-manager`]: 'true',
            [`${PREFIX}/backend-type`]: 'vxlan',
            [`${PREFIX}/backend-data`]: '{',
            [`${PREFIX}/public-ip`]: '172.31.0.99',
          };
          await patchNodeStatus(here.lab, 'broken', { metadata: { annotations } });
        },
        mends: () => deleteKubeNode(here.lab, 'broken'),
      },
      {
        check: 'endpoints',
        state: 'warn',
        sees: /the kernel path alone serves default\/pod1 \|/,
        breaks: () => markForKernelPath(here.lab, node, podOf(node), true),
        mends: () => markForKernelPath(here.lab, node, podOf(node), false),
      },
      {
        check: 'epoch',
        state: 'warn',
        sees: /the epoch moved \d+ times .*nft changed nftables \d+ times/,
        breaks: () => {
          const loop = 'while :; do nft add table ip x; nft delete table ip x; sleep 0.02; done';
          rewriting = spawn('nsenter', [`--net=${netnsPath(node.netns)}`, '--', 'sh', '-c', loop]);
        },
        mends: () => rewriting?.kill(),
      },
      {
        check: 'peers',
        state: 'fail',
        sees: /the kernel path alone serves node2 \| the route to 172\.31\.0\.2 leads over port0, not eth0 \|/,
        breaks: () =>
          sh(
            'ip link add port0 type veth peer name port1; ip link set port0 up; ip link set port1 up;' +
              'ip route add 172.31.0.2 dev port0',
          ),
        mends: () => sh('ip link delete port0'),
      },
      {
        check: 'uplink',
        state: 'fail',
        sees: /most peers are not reached over eth0: node2 \|/,
        breaks: () => {},
        mends: () => {},
      },
      {
        check: 'vxlan-port',
        state: 'fail',
        sees: /UDP port 8472 is taken: the process "node[^"]*" \(PID \d+\) has it/,
        breaks: async () => {
          process.kill(node.agentPid!, 'SIGSTOP');
          await sh('ip link delete flannel.1');
          const script = "require('dgram').createSocket('udp4').bind(8472, () => console.log('bound'))";
          holder = startIn(node.netns, process.execPath, '-e', script);
          await holder.prints(/bound/);
          process.kill(node.agentPid!, 'SIGCONT');
          await expect
            .poll(async () => JSON.stringify((await askAgent(runDirOf(here.lab, node)))?.targets), {
              timeout: 20_000,
            })
            .toContain('has it');
        },
        mends: () => holder?.stop(),
      },
      {
        check: 'vtep-device',
        state: 'fail',
        sees: /(there is no flannel\.1|flannel\.1: it is down) \|/,
        breaks: () => {},
        mends: () => {},
      },
      {
        check: 'targets',
        state: 'fail',
        sees: /vtep-devices: flannel\.1 \| .* has it; stop that/,
        breaks: () => {},
        mends: () => {},
      },
    ],
    { consequences: ['underlay', 'agent', 'peer-entries', 'tunnel'] },
  );

  describe('on the way to the other node', () => {
    const ways = () => doctor('underlay', 'tunnel', 'path-mtu');
    const underlay = () => ({ netns: underlayNetns(here.lab.name) });

    it('tells the largest size that passes', async () => {
      await sh(`ip link set ${other.name} mtu 1400`, underlay());
      const findings = await ways();
      await sh(`ip link set ${other.name} mtu 1500`, underlay());
      const [finding] = findings.filter(({ state }) => state !== 'ok');
      expect(finding).toMatchObject({
        check: 'path-mtu',
        state: 'fail',
        // A veth takes 4 bytes more than its MTU, for a VLAN tag.
        what: 'packets of 1450 bytes do not pass to node2 (172.31.0.2), and 1354 bytes are the most',
        cure: expect.stringContaining('by 96 bytes, or set "MTU": 1404 in') as string,
      });
    });

    it('names a tunnel whose packets are filtered', async () => {
      const chain = 'add chain inet wall in { type filter hook prerouting priority -400; }';
      await sh(`nft 'add table inet wall; ${chain}; add rule inet wall in udp dport 8472 drop'`, other);
      const findings = await ways();
      await sh('nft delete table inet wall', other);
      expect(findings).toMatchObject([
        { check: 'underlay', state: 'ok' },
        {
          check: 'tunnel',
          state: 'fail',
          what: 'node2 (172.31.0.2) answers, but not through the tunnel',
          why: expect.stringContaining('UDP port 8472') as string,
        },
        { check: 'path-mtu', state: 'skipped' },
      ]);
    });

    it('names a node that does not answer', async () => {
      await sh('ip link set eth0 down', other);
      const findings = await ways();
      await sh('ip link set eth0 up; ip route replace default via 172.31.255.254', other);
      expect(findings.filter(({ state }) => state === 'fail')).toMatchObject([
        { check: 'underlay', what: 'node2 (172.31.0.2) does not answer' },
      ]);
      await expect.poll(async () => complaints(await ways()), { timeout: 20_000 }).toEqual([]);
    });
  });

  describe('where its process lacks something', () => {
    /** Run doctor in another way than usual. */
    async function doctorBy(argv: readonly string[], check: string, env = process.env): Promise<Finding[]> {
      const where = ['--bpffs', bpffsOf(here.lab, node), '--run-dir', runDirOf(here.lab, node), '-o', 'json'];
      const [program, ...args] = [...argv, process.execPath, CLI, 'doctor', check, ...where];
      const { stdout } = await tryRun(program!, args, { ...inNetns(node), env });
      return JSON.parse(stdout) as Finding[];
    }

    it('names a missing program', async () => {
      const empty = join(here.lab.dir, 'no-programs');
      mkdirSync(empty);
      expect(await doctorBy(['/usr/bin/env', `PATH=${empty}`], 'requirements')).toMatchObject([
        { state: 'fail', what: 'nft not found on PATH', cure: 'install the package nftables' },
      ]);
    });

    it('names a missing capability', async () => {
      const without = ['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin'];
      expect(await doctorBy(without, 'privileges')).toMatchObject([
        { state: 'fail', what: 'this process lacks NET_ADMIN' },
      ]);
    });

    it('says why it cannot ask peers', async () => {
      const without = ['setpriv', '--bounding-set=-net_raw', '--inh-caps=-net_raw'];
      expect(await doctorBy(without, 'tunnel')).toMatchObject([
        { state: 'skipped', why: expect.stringContaining('give it CAP_NET_RAW') as string },
      ]);
    });

    it('names a missing BPF file system', async () => {
      const { stdout } = await ripstop(here.lab, node, 'doctor', 'bpffs', '-o', 'json');
      expect(JSON.parse(stdout)).toMatchObject([{ state: 'ok' }]);
      const elsewhere = ['doctor', 'bpffs', '--bpffs', here.lab.dir, '-o', 'json'];
      const missing = await tryRun(process.execPath, [CLI, ...elsewhere], inNetns(node));
      expect(JSON.parse(missing.stdout)).toMatchObject([
        { state: 'fail', cure: `\`mount -t bpf bpf ${here.lab.dir}\`` },
      ]);
    });

    it('names maps of another version', async () => {
      const { maps } = pinPaths(bpffsOf(here.lab, node));
      const target = readlinkSync(maps);
      const pointTo = (to: string): void => {
        symlinkSync(to, `${maps}:test`);
        renameSync(`${maps}:test`, maps);
      };
      pointTo('maps:7:1');
      const findings = await doctor('versions', 'flow-table');
      pointTo(target);
      expect(findings).toMatchObject([
        {
          check: 'versions',
          state: 'fail',
          what: expect.stringMatching(/^the pinned maps have layout 7, /) as string,
        },
        { check: 'flow-table', state: 'skipped' },
      ]);
    });
  });

  it('names pods that get packets with wrong checksums', async () => {
    const [pod] = await new AttachmentStore(runDirOf(here.lab, node)).list();
    using socket = new RawSocket(netnsPath(node.netns), veth);
    const packet = ip(
      { src: podOf(other).ip, dst: podOf(node).ip, protocol: protocols.tcp },
      tcp({ src: 1, dst: 2 }),
    );
    const frame = ethernet({ dst: pod!.podMac, src: pod!.hostMac }, packet);
    for (let i = 0; i < 50; i++) expect(socket.send(frame)).toBeUndefined();
    expect(await doctor('checksums')).toMatchObject([
      {
        state: 'warn',
        what: expect.stringMatching(/^default\/pod1 got packets with wrong checksums: .* 50 since/) as string,
      },
    ]);
  });

  it('packs what a bug report needs, without secrets', async () => {
    const secret = 's3cret-0123456789abcdef';
    const jwt = 'eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlLW9mLXRoaXM';
    writeFileSync(join(runDirOf(here.lab, node), 'token'), secret);
    await sh(
      `nft 'add table ip note; add chain ip note x; add rule ip note x counter comment "token=${jwt.slice(0, 90)}"'`,
    );
    const file = join(here.lab.dir, 'bundle.tar.gz');
    const env = { ...process.env, KUBE_TOKEN: secret, RIPSTOP_ETCD_PASSWORD: secret };
    const argv = [CLI, 'doctor', 'agent', '--bundle', file, ...places()];
    const where = ['--bpffs', bpffsOf(here.lab, node), '--run-dir', runDirOf(here.lab, node)];
    const { code, stderr } = await tryRun(process.execPath, [...argv, ...where], { ...inNetns(node), env });
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: expect.stringMatching(/^wrote \d+ files to /) as string,
    });
    const content = join(here.lab.dir, 'bundle');
    mkdirSync(content);
    await run('tar', ['-xzf', file, '-C', content]);
    await sh('nft delete table ip note');

    const read = (name: string) => readFileSync(join(content, 'ripstop-doctor', name), 'utf8');
    const names = readdirSync(join(content, 'ripstop-doctor'));
    expect(names.filter((name) => name.endsWith('.error'))).toEqual([]);
    expect(JSON.parse(read('agent-status.json'))).toMatchObject({ node: 'node1', ready: true });
    expect(JSON.parse(read('peers.json'))).toMatchObject([{ node: 'node2' }]);
    expect(JSON.parse(read('facts.json'))).toMatchObject({
      settings: { is: { 'net/ipv4/ip_forward': '1' } },
    });
    expect(read('routes.json')).toContain('10.42.1.0/24');
    expect(read('nft.txt')).toContain('table inet ripstop');
    expect(read('nft.txt')).toContain('[left out]');
    const all = names.map(read).join('');
    const kubeconfig = readFileSync(join(here.lab.dir, 'node.kubeconfig'), 'utf8');
    const [, token = 'none'] = /token: "?([^"\s]+)/.exec(kubeconfig) ?? [];
    expect(token).not.toBe('none');
    for (const one of [secret, jwt.slice(0, 60), token]) expect(all).not.toContain(one);
  });

  it('names an API server that is gone', async () => {
    process.kill(here.lab.state.apiServerPid!, 'SIGKILL');
    await expect
      .poll(async () => await doctor('api-server'), { timeout: 20_000 })
      .toMatchObject([{ state: 'fail', what: 'the agent is not connected to the API server' }]);
  });
});

describe.skipIf(missingHere('iptables'))('doctor, beside a flannel', () => {
  const here = useLab('doctorb', { nodes: 2, pods: 1, mode: 'boost' });

  it('names what flannel does not notice, and finds nothing before', async () => {
    const node = here.nodes[0]!;
    const dir = nodeDir(here.lab, node);
    const places = ['--subnet-file', join(dir, 'subnet.env'), '--ipam-dir', join(dir, 'ipam')];
    const complaints = async (): Promise<Record<string, string>> => {
      const names = ALL.filter((name) => name !== 'epoch');
      const { stdout } = await ripstop(here.lab, node, 'doctor', ...names, ...places, '-o', 'json');
      const findings = JSON.parse(stdout) as Finding[];
      return Object.fromEntries(
        findings
          .filter(({ state, check }) => state !== 'ok' && !OF_MACHINE.includes(check))
          .map(({ check, what, cure }) => [check, `${what} | ${cure}`]),
      );
    };
    await ping(podOf(node), podOf(here.nodes[1]).ip);
    // A pod's programs follow its first packets.
    await expect.poll(complaints, { timeout: 20_000 }).toEqual({});
    const commands = [
      'iptables -w -F FLANNEL-FWD',
      'sysctl -qw net.bridge.bridge-nf-call-iptables=0',
      'ip address add 10.42.9.1/24 dev cni0',
      'ip address delete 10.42.0.1/24 dev cni0',
      'ip neigh flush dev flannel.1 nud permanent',
    ];
    await run('sh', ['-c', commands.join('; ')], inNetns(node));
    await expect.poll(complaints, { timeout: 20_000 }).toMatchObject({
      'forward-policy': expect.stringContaining('ip filter FORWARD drops packets of pods') as string,
      'bridge-netfilter': expect.stringContaining('net.bridge.bridge-nf-call-iptables is 0') as string,
      'bridge-address': expect.stringContaining(
        "cni0 has 10.42.9.1/24, and this node's gateway is",
      ) as string,
      'peer-entries': expect.stringMatching(/lacks entries for node2 .*restart flannel/) as string,
    });
  });
});
