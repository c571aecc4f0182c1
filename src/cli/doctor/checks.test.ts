// SPDX-License-Identifier: Apache-2.0
/**
 * Judges by facts: what cannot be broken in a network namespace, such as the clock and the kernel. The rest is broken
 * for real in test/cli-doctor.system.test.ts.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { AgentStatus } from '../../agent/status.ts';
import { parseNetConf } from '../../cluster/net-conf.ts';
import { ownPodCidrs } from '../../cluster/own-lease.ts';
import { link } from '../../host/links.support.ts';
import { parseCidr } from '../../net/ip.ts';
import { redact } from './bundle.ts';
import { check, fail, type Finding, some, warn } from './check.ts';
import { checks } from './checks.ts';
import type { Facts, PeerFacts } from './facts.ts';
import { chooseChecks, isIll, renderFindings } from './index.ts';
import { renderTroubleshooting } from './troubleshooting.ts';

const ROOT = join(import.meta.dirname, '../../..');

/** What a check finds by these facts. */
function judge(name: string, facts: Partial<Facts>): Finding[] {
  const [one] = chooseChecks([name]);
  const known = Object.fromEntries(Object.entries(facts).map(([fact, is]) => [fact, { is }]));
  return one!.judge(known);
}

const STATUS: AgentStatus = {
  node: 'node1',
  mode: 'cni',
  ready: true,
  families: [],
  api: { connected: true, synced: true },
  peers: [],
  alarms: [],
  targets: [],
  passes: { count: 1, errors: 0, lastDurationMs: 1, lastErrors: [] },
};

const agentWith = (status: Partial<AgentStatus>): Facts['agent'] => ({
  runDir: '/run/ripstop',
  status: { ...STATUS, ...status },
});

const NODE: Facts['node'] = {
  mode: 'cni',
  families: [
    {
      family: 4,
      network: parseCidr('10.42.0.0/16'),
      podCidr: parseCidr('10.42.0.0/24'),
      vtepIp: '192.0.2.1',
      vtep: { device: 'flannel.1', mac: '02:00:00:00:00:01' },
    },
  ],
  tunnel: { vni: 1, port: 8472 },
  isDirect: false,
  uplink: 'eth0',
};

const peer = (n: number, rest: Partial<PeerFacts> = {}): PeerFacts => ({
  node: `node${n}`,
  podCidr: parseCidr(`10.42.${n}.0/24`),
  vtepIp: `192.0.2.${n}`,
  fastPath: true,
  isDirect: false,
  flags: [],
  ...rest,
});

const HOST: Facts['requirements'] = {
  uid: 0,
  kernelRelease: '6.12.1',
  btf: true,
  programs: new Set(['nft']),
};

const DAY = 24 * 3600 * 1000;

/** Why a Node without a podCIDR has none, as the agent says it. */
function withoutPodCidr(): string {
  const netConf = parseNetConf(JSON.stringify({ Network: '10.42.0.0/16', Backend: { Type: 'vxlan' } }));
  try {
    ownPodCidrs(
      {
        name: 'node1',
        uid: '',
        podCidrs: [],
        annotations: {},
        vtepMac: {},
        internalIp: {},
        nodePublicIp: {},
      } as never,
      netConf,
    );
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('a Node without a podCIDR was accepted');
}

const probed = (rest: Partial<Facts['probes']['probed'][number]>): Facts['probes']['probed'][number] => ({
  name: 'node2',
  vtepIp: '192.0.2.2',
  base: '10.42.2.0',
  underlay: 'answered',
  tunnel: 'answered',
  podMtu: 1450,
  largest: 1450,
  ...rest,
});

type Row = readonly [
  check: string,
  what: string,
  facts: Partial<Facts>,
  state: Finding['state'],
  sees: RegExp,
];

const rows: readonly Row[] = [
  [
    'requirements',
    'an old kernel',
    { requirements: { ...HOST, kernelRelease: '5.15.0' } },
    'fail',
    /Linux 5\.15\.0 is too old/,
  ],
  [
    'privileges',
    'a read-only /proc/sys',
    { privileges: { missing: [], isSysWritable: false } },
    'fail',
    /\/proc\/sys is read-only/,
  ],
  [
    'clock',
    'a clock that nobody keeps',
    { clock: { now: 2 * DAY, builtAt: DAY, isSynchronized: false } },
    'warn',
    /nothing keeps the clock right/,
  ],
  [
    'clock',
    'a clock in the past',
    { clock: { now: 0, builtAt: 3 * DAY, isSynchronized: true } },
    'fail',
    /1970-01-01.* before this ripstop was made/,
  ],
  [
    'clock',
    'a right clock',
    { clock: { now: 2 * DAY, builtAt: DAY, isSynchronized: true } },
    'ok',
    /synchronized/,
  ],
  [
    'agent',
    'an agent that is not ready',
    { agent: agentWith({ ready: false, notReady: 'no uplink' }) },
    'fail',
    /not ready.*no uplink/,
  ],
  [
    'agent',
    'a missing podCIDR, which has its own check',
    { agent: agentWith({ ready: false, notReady: withoutPodCidr() }) },
    'ok',
    /./,
  ],
  [
    'pod-cidr',
    'a missing podCIDR',
    { agent: agentWith({ ready: false, notReady: withoutPodCidr() }) },
    'fail',
    /node node1 has no podCIDR.*--allocate-node-cidrs=true --cluster-cidr=10\.42\.0\.0\/16/,
  ],
  [
    'api-server',
    'a last-known state',
    { agent: agentWith({ api: { connected: true, synced: false, lastKnownAgeMs: 61_000 } }) },
    'warn',
    /last-known state, 61 s old/,
  ],
  ['api-server', 'no agent', { agent: { runDir: '/run/ripstop' } }, 'skipped', /no agent runs/],
  [
    'subnet-env',
    'another podCIDR',
    {
      agent: agentWith({
        families: [{ network: '10.42.0.0/16', podCidr: '10.42.7.0/24', vtep: { ip: '192.0.2.1' } }],
      }),
      subnetEnv: {
        path: '/run/flannel/subnet.env',
        content: {
          networks: [{ network: parseCidr('10.42.0.0/16'), podCidr: parseCidr('10.42.3.0/24') }],
          mtu: 1450,
          ipMasq: true,
        },
      },
    },
    'fail',
    /for another podCIDR than this node's 10\.42\.7\.0\/24.*10\.42\.3\.0\/24/,
  ],
  [
    'leases',
    'a podCIDR that is used up',
    { leases: { dir: '/leases', used: 253, size: 253, leaked: [] } },
    'fail',
    /253 of 253 addresses are leased/,
  ],
  [
    'uplink',
    'an uplink that is gone',
    { node: { ...NODE, uplink: undefined } as never, links: new Map(), peers: [] },
    'fail',
    /the uplink is gone/,
  ],
  [
    'uplink',
    'a device over another interface',
    {
      node: NODE,
      links: new Map([
        ['eth0', link('eth0')],
        ['flannel.1', link('flannel.1', { vxlan: { uplink: 'eth1' } as never })],
      ]),
      peers: [],
    },
    'fail',
    /flannel\.1 sends over eth1, and the programs over eth0/,
  ],
  [
    'forwarding',
    'IPv6',
    {
      node: { ...NODE, families: [{ ...NODE.families[0]!, family: 6 }] },
      settings: new Map([['net/ipv6/conf/all/forwarding', '0']]),
    },
    'fail',
    /net\.ipv6\.conf\.all\.forwarding is 0/,
  ],
  [
    'forward-policy',
    'iptables-legacy',
    { node: NODE, forward: [{ name: 'iptables-legacy filter FORWARD', accepts: ['172.17.0.0/16'] }] },
    'fail',
    /`iptables-legacy -I FORWARD -s 10\.42\.0\.0\/16 -j ACCEPT;/,
  ],
  [
    'forward-policy',
    'firewalld',
    { node: NODE, forward: [{ name: 'inet firewalld filter_FORWARD', accepts: [] }] },
    'fail',
    /`nft insert rule inet firewalld filter_FORWARD ip saddr 10\.42\.0\.0\/16 accept; /,
  ],
  [
    'forward-policy',
    'a chain that accepts a larger network',
    { node: NODE, forward: [{ name: 'ip filter FORWARD', accepts: ['10.0.0.0/8'] }] },
    'ok',
    /./,
  ],
  [
    'forward-policy',
    'a chain of the other family',
    { node: NODE, forward: [{ name: 'ip6 filter FORWARD', accepts: [] }] },
    'ok',
    /./,
  ],
  [
    'rp-filter',
    'strict filtering with direct routes',
    {
      node: { ...NODE, isDirect: true },
      links: new Map([['flannel.1', link('flannel.1')]]),
      settings: new Map([['net/ipv4/conf/all/rp_filter', '1']]),
    },
    'fail',
    /flannel\.1 filters strictly/,
  ],
  [
    'bridge-netfilter',
    'a module that is not loaded',
    { node: NODE, links: new Map([['veth1', link('veth1', { master: 'cni0' })]]), settings: new Map() },
    'fail',
    /`modprobe br_netfilter && sysctl -w net\.bridge\.bridge-nf-call-iptables=1`/,
  ],
  [
    'owners',
    'left-over rules',
    {
      node: NODE,
      owners: {
        flannels: [],
        flannelRules: ['FLANNEL-FWD in ip filter'],
        legacyTables: [],
        nftTables: [],
        otherChains: [],
      },
    },
    'warn',
    /rules of a flannel are here: FLANNEL-FWD in ip filter/,
  ],
  [
    'owners',
    'k3s, which runs without its flannel',
    {
      node: NODE,
      owners: { flannels: ['k3s'], flannelRules: [], legacyTables: [], nftTables: [], otherChains: [] },
    },
    'ok',
    /./,
  ],
  [
    'subnet-env',
    'a malformed file',
    {
      agent: agentWith({}),
      subnetEnv: { path: '/run/flannel/subnet.env', malformed: 'line 1: "x" is not KEY=value' },
    },
    'fail',
    /subnet\.env is malformed.*line 1/,
  ],
  [
    'underlay',
    'a sample',
    { probes: { peers: 9000, probed: [probed({ underlay: 'silent', tunnel: 'silent' })] } },
    'fail',
    /node2 \(192\.0\.2\.2\) does not answer; 1 of 9000 peers were asked/,
  ],
  [
    'underlay',
    'a node that drops ICMP to itself alone',
    { probes: { peers: 1, probed: [probed({ underlay: 'silent' })] } },
    'ok',
    /./,
  ],
  [
    'path-mtu',
    'a way for nothing large',
    { probes: { peers: 1, probed: [probed({ largest: 0 })] } },
    'fail',
    /do not pass to node2 .*, and none of 576/,
  ],
  [
    'checksums',
    'some accidents of the wire',
    { checksums: [{ where: 'this node', wrong: 12, received: 10_000_000 }] },
    'ok',
    /./,
  ],
  [
    'peers',
    'peers by reason',
    { peers: [peer(2), peer(3, { fastPath: false, reason: 'checksum', why: 'it requires checksums' })] },
    'warn',
    /alone serves node3 \| it requires checksums/,
  ],
  ['epoch', 'one change', { epoch: { seconds: 1, moves: 2, commits: { nft: 1 }, others: {} } }, 'ok', /./],
  [
    'changes',
    'refused programs',
    { changes: { watched: [], isTracingAllowed: false } },
    'warn',
    /lets no program trace its functions/,
  ],
  [
    'changes',
    'programs that were not attached',
    { changes: { watched: [], isTracingAllowed: true } },
    'warn',
    /the agent has not attached/,
  ],
  [
    'changes',
    'traced functions',
    { changes: { watched: ['nf_tables_commit'], isTracingAllowed: true } },
    'ok',
    /at once/,
  ],
  [
    'conntrack',
    'a table that fills up',
    { settings: conntrack(850, 1000) },
    'warn',
    /850 of 1000 connections/,
  ],
  [
    'conntrack',
    'a full table',
    { settings: conntrack(1000, 1000) },
    'fail',
    /`sysctl -w net\.netfilter\.nf_conntrack_max=2000`/,
  ],
  ['conntrack', 'a table with room', { settings: conntrack(10, 1000) }, 'ok', /./],
  ['conntrack', 'no conntrack', { settings: new Map() }, 'skipped', /conntrack is not loaded/],
  [
    'receive-counters',
    'Linux 6.1.90',
    { requirements: { ...HOST, kernelRelease: '6.1.90-amd64' } },
    'warn',
    /does not count/,
  ],
  ['receive-counters', 'Linux 6.1.120', { requirements: { ...HOST, kernelRelease: '6.1.120' } }, 'ok', /./],
];

function conntrack(count: number, max: number): Map<string, string> {
  return new Map([
    ['net/netfilter/nf_conntrack_count', String(count)],
    ['net/netfilter/nf_conntrack_max', String(max)],
  ]);
}

describe('the checks', () => {
  it.each(rows)('%s judges %s', (name, _, facts, state, sees) => {
    const findings = judge(name, facts);
    expect(findings.map((one) => one.state)).toContain(state);
    expect(findings.map(({ what, why, cure }) => `${what} | ${why} | ${cure}`).join('\n')).toMatch(sees);
  });

  it('judge the entries of 15,000 peers in well under a second of the CPU', () => {
    const peers = Array.from({ length: 15_000 }, (_, n) => {
      const [high, low] = [n >> 8, n & 255];
      return peer(low, {
        node: `node${n}`,
        podCidr: parseCidr(`10.${high}.${low}.0/24`),
        vtepIp: `172.16.${high}.${low}`,
        vtepMac: `02:00:00:00:${high.toString(16).padStart(2, '0')}:${low.toString(16).padStart(2, '0')}`,
        key: String(n),
      });
    });
    const device = 'flannel.1';
    const entries: Facts['entries'] = {
      routes: peers.map(({ podCidr: { base } }) => ({ dst: `${base}/24`, gateway: base, device })),
      neighbours: peers.map(({ podCidr: { base }, vtepMac }) => ({ address: base, mac: vtepMac!, device })),
      fdb: peers.slice(1).map(({ vtepMac, vtepIp }) => ({ mac: vtepMac!, dst: vtepIp, device })),
    };
    const before = process.cpuUsage();
    const findings = judge('peer-entries', { node: NODE, peers, entries, agent: { runDir: '' } });
    const { user } = process.cpuUsage(before);
    expect(user / 1000).toBeLessThan(1000);
    expect(findings).toMatchObject([{ state: 'fail', what: 'the kernel lacks entries for node0' }]);
  });

  it('have names of their own, and are all made to find something in a test', () => {
    const names = checks.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    const stories = readFileSync(join(ROOT, 'test/cli-doctor.system.test.ts'), 'utf8');
    const finding = new Set(
      rows.filter(([, , , state]) => state === 'warn' || state === 'fail').map(([name]) => name),
    );
    const isBroken = (name: string): boolean =>
      finding.has(name) ||
      stories.includes(`check: '${name}'`) ||
      stories.includes(`doctor('${name}'`) ||
      stories.includes(`'doctor', '${name}'`);
    expect(names.filter((name) => !isBroken(name))).toEqual([]);
  });

  it('close each command that they open', () => {
    const texts = rows
      .flatMap(([name, , facts]) => judge(name, facts))
      .flatMap(({ why = '', cure = '' }) => [why, cure]);
    const guides = checks.flatMap(({ guide }) => [guide.symptom, guide.cause, guide.cure]);
    for (const text of [...texts, ...guides]) expect(text.split('`').length % 2, text).toBe(1);
  });

  it('are skipped, with the reason, where facts are unknown', () => {
    const one = check(
      'one',
      { ok: 'fine', needs: ['links', 'peers'], symptom: '', cause: '', cure: '' },
      () => [],
    );
    expect(one.judge({ links: { is: new Map() }, peers: { unknown: 'no maps' } })).toEqual([
      { check: 'one', state: 'skipped', what: 'fine', why: 'no maps' },
    ]);
  });
});

describe('the answer', () => {
  const findings: Finding[] = [
    { check: 'a', state: 'ok', what: 'fine' },
    { check: 'b', ...warn('slow', 'so it is', 'none') },
    { check: 'c', ...fail('broken\u001b[2J\nnow', 'it fell', '`mend it`') },
    { check: 'd', state: 'skipped', what: 'fine', why: 'no agent runs' },
    { check: 'e', state: 'skipped', what: 'fine', why: 'no agent runs' },
  ];

  it('has problems first, then what was skipped, then the count of what is in order', () => {
    expect(renderFindings(findings)).toBe(
      [
        'fail  c: broken [2J now',
        '      why   it fell',
        '      cure  `mend it`',
        'warn  b: slow',
        '      why   so it is',
        '      cure  none',
        'skipped  d, e: no agent runs',
        '1 of 5 checks find all in order',
        '',
      ].join('\n'),
    );
  });

  it('is a table of all with -o wide', () => {
    const lines = renderFindings(findings, true).split('\n');
    expect(lines[0]).toMatch(/^CHECK +STATE +WHAT +WHY +CURE$/);
    expect(lines.slice(1, -1).map((line) => line[0])).toEqual(['c', 'b', 'd', 'e', 'a']);
  });

  it('is ill only with what a person must look at', () => {
    expect(isIll(findings)).toBe(true);
    expect(isIll(findings.filter(({ state }) => state !== 'fail'))).toBe(false);
  });

  it('names some of many', () => {
    expect(some(['a', 'b', 'c', 'd'])).toBe('a, b, c, d');
    expect(some(['a', 'b', 'c', 'd', 'e'])).toBe('a, b, c and 2 more');
  });
});

describe('the bundle', () => {
  it.each([
    ['authorization: Bearer abcdefgh12345', 'authorization: Bearer [left out]'],
    ['comment "token=abcdefgh"', 'comment "token=[left out]"'],
    ['"password": "hunter22",', '"password": "[left out]",'],
    ['https://user:hunter22@etcd:2379/', 'https://user:[left out]@etcd:2379/'],
    ['abcdef.0123456789abcdef', '[left out]'],
    ['-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----', '[left out]'],
    ['tcp dport 8472 10.42.0.0/16', 'tcp dport 8472 10.42.0.0/16'],
  ])('says %j as %j', (text, redacted) => {
    expect(redact(text)).toBe(redacted);
  });
});

describe('deploy/TROUBLESHOOTING.md', () => {
  it('has a section for each check, from the same table', async () => {
    await expect(renderTroubleshooting()).toMatchFileSnapshot(join(ROOT, 'deploy/TROUBLESHOOTING.md'));
  });
});
