// SPDX-License-Identifier: Apache-2.0
/** The command line on a small cluster: what an operator sees on a node, and that reading changes nothing. */
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { BpfMap } from '#libbpf-ts';
import { buildAgent } from '../scripts/build-agent.ts';
import type { Overview } from '../src/agent/page/overview.ts';
import { requireAgent } from '../src/cli/ask-agent.ts';
import type { FlowRow } from '../src/cli/flows.ts';
import type { MapAudit } from '../src/cli/map-diff.ts';
import type { MapRow } from '../src/cli/maps.ts';
import type { PeerRow } from '../src/cli/rows.ts';
import type { Status } from '../src/cli/status.ts';
import { decode } from '../src/dataplane/codec.ts';
import { type Counter, readCounters } from '../src/dataplane/counters.ts';
import { layout } from '../src/dataplane/layout.gen.ts';
import { packetsBetweenPods } from '../src/dataplane/pod-traffic.ts';
import { mapNames, openTables, pinPaths } from '../src/dataplane/tables.ts';
import { listLinks } from '../src/dataplane/links.ts';
import { run, tryRun } from '../src/host/run.ts';
import { metricSpecs, PROCESS_PREFIX } from '../src/metrics/table.ts';
import { type NodeState, removePrograms, startAgent, stopAgent } from '../src/lab/index.ts';
import {
  askOverHttp,
  bpffsOf,
  bytesOf,
  inNetns,
  missingHere,
  ping,
  podOf,
  PORT,
  ripstop,
  ripstopJson,
  runDirOf,
  serveIn,
  startRipstop,
  talkTcp,
  useLab,
} from './cluster/support.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');
const SERVICE = '10.43.0.10';

const filesIn = (dir: string): Set<string> =>
  new Set(readdirSync(dir, { recursive: true, encoding: 'utf8' }));

const everyReading = ['status', 'peers', 'endpoints', 'flows', 'stats', 'maps'].concat(
  mapNames.flatMap((name) => [`maps ${name}`, `maps ${name} --raw`]),
  'maps config',
);

describe.skipIf(missingHere('iptables'))('the command, on two nodes with a pod each', () => {
  const here = useLab('cli', { nodes: 2, pods: 1 });
  let node: NodeState;

  beforeAll(async () => {
    node = here.nodes[0]!;
    const [pod, other] = [podOf(node), podOf(here.nodes[1])];
    await ping(pod, other.ip);
    // One connection through a service, so that there are translated flows to show.
    const rule = `-t nat -A PREROUTING -d ${SERVICE} -p tcp --dport ${PORT} -j DNAT --to-destination ${other.ip}`;
    await run('iptables', ['-w', ...rule.split(' ')], inNetns(node));
    await serveIn(other);
    await talkTcp(pod, SERVICE);
  });

  const json = <T>(command: string): Promise<T> => ripstopJson<T>(here.lab, node, ...command.split(' '));
  const lab = (...args: string[]) => tryRun(process.execPath, [CLI, 'lab', ...args]);

  async function tableOf(command: string): Promise<string[]> {
    const { code, stdout, stderr } = await ripstop(here.lab, node, ...command.split(' '));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).not.toMatch(/undefined|\[object|NaN|[ \t]$/m);
    return stdout.trimEnd().split('\n');
  }

  it.each(everyReading)('prints "%s" as a table and as JSON', async (command) => {
    const table = await tableOf(command);
    const value = await json<object>(command);
    if (command === 'status') return;
    expect(table[0]).toMatch(/^[A-Z][A-Z ]+$/);
    expect(value).toBeInstanceOf(Array);
    // A counter that is still zero may move between the two readings; everything else stays.
    if (!/stats|counters/.test(command)) expect(table.length - 1).toBe((value as []).length);
  });

  it('lists peers with the names that the agent knows', async () => {
    const [row, ...more] = await json<PeerRow[]>('peers');
    expect(more).toEqual([]);
    expect(row).toMatchObject({
      node: 'node2',
      podCidr: here.nodes[1]!.podCIDR,
      key: '1',
      vtepIp: here.nodes[1]!.ip,
      nextHop: here.nodes[1]!.ip,
      flags: ['present'],
      fastPath: true,
    });
    expect((await tableOf('peers'))[1]).toMatch(/^node2 +10\.42\.1\.0\/24 +172\.31\.0\.2 /);
    // All traffic so far was with this peer's pod, so its sums are the whole table's, and the pod's.
    const flows = await json<FlowRow[]>('flows');
    const sum = (of: 'packets' | 'bytes') => flows.reduce((total, one) => total + (one[of] ?? 0), 0);
    const live = { flows: flows.length, packets: sum('packets'), bytes: sum('bytes') };
    expect(live.packets).toBeGreaterThan(0);
    expect(await json('peers')).toMatchObject([{ live }]);
    expect(await json('endpoints')).toMatchObject([{ live }]);
    expect((await tableOf('peers -o wide'))[0]).toMatch(/ FLOWS +PACKETS +BYTES /);
  });

  it('lists pods, and the flow table', async () => {
    expect(await json('endpoints')).toMatchObject([
      { ip: podOf(node).ip, pod: 'default/pod1', mtu: 1450, flags: [] },
    ]);
    const own: unknown = expect.stringMatching(`^${podOf(node).ip}:\\d+$`);
    const [service, server] = [`${SERVICE}:${PORT}`, `${podOf(here.nodes[1]).ip}:${PORT}`];
    const rows = await json<{ protocol: string }[]>('flows');
    const ofTcp = rows.filter(({ protocol }) => protocol === 'tcp');
    expect(ofTcp).toHaveLength(2);
    expect(ofTcp).toContainEqual(
      expect.objectContaining({
        source: own,
        destination: service,
        translatedDestination: server,
        from: 'default/pod1',
      }),
    );
    expect(ofTcp).toContainEqual(
      expect.objectContaining({ source: server, translatedSource: service, destination: own, from: 'wire' }),
    );
  });

  it('shows the flows of a pod, a peer or a service, sorted, and those that are not learned', async () => {
    const flows = async (flags: string) => (await json<FlowRow[]>(`flows ${flags}`)).map(endsOf);
    const endsOf = ({ protocol, source, destination, to }: FlowRow) =>
      `${protocol.split(' ')[0]} ${source.split(':')[0]} ${destination.split(':')[0]} ${to}`;
    const [pod, other] = [podOf(node).ip, podOf(here.nodes[1]).ip];
    const through = [`tcp ${other} ${pod} default/pod1`, `tcp ${pod} ${SERVICE} node2`];
    expect((await flows(`--service ${SERVICE} --sort source`)).sort()).toEqual(through.sort());
    expect((await flows(`--service ${SERVICE}:${PORT}`)).length).toBe(2);
    expect(await flows(`--service ${SERVICE}:1`)).toEqual([]);
    const ofPod = await flows('--pod default/pod1');
    expect(ofPod).toEqual(expect.arrayContaining([...through, `icmp ${pod} ${other} node2`]));
    for (const flag of ['--pod pod1', `--pod ${other}`, '--peer node2', `--peer ${here.nodes[1]!.podCIDR}`])
      expect((await flows(flag)).sort()).toEqual(ofPod.toSorted());
    expect(await flows('--pod pod2')).toEqual([]);
    expect(await ripstop(here.lab, node, 'flows', '--peer', 'node7')).toMatchObject({
      code: 1,
      stderr: 'ripstop: the agent knows no peer "node7"; `ripstop peers` lists them\n',
    });
    const byBytes = (await json<FlowRow[]>('flows --sort bytes')).map(({ bytes }) => bytes ?? 0);
    expect(byBytes).toEqual(byBytes.toSorted((a, b) => b - a));
    expect(byBytes[0]).toBeGreaterThan(0);
    const ages = (await json<FlowRow[]>('flows')).map(({ ageSeconds }) => ageSeconds);
    expect(ages).toEqual(ages.toSorted((a, b) => a - b));
    // Nobody answers there, so there is nothing to learn of it.
    await tryRun('ping', ['-c', '1', '-W', '1', '192.0.2.1'], inNetns(podOf(node)));
    expect((await flows('--pod 192.0.2.1')).length).toBe(0);
    expect(await json('flows --pod 192.0.2.1 --all')).toMatchObject([{ state: 'not learned', to: 'wire' }]);
    expect((await tableOf('flows -o wide'))[0]).toMatch(/ STATE +EPOCH +MTU +TTL +DSCP +MARK +OUTER PORT$/);
  }, 180_000);

  it('counts in its status packets between pods alone, also of the last minute', async () => {
    const before = await json<Status>('status');
    // From a pod to its node, and from the node to the pod.
    await ping(podOf(node), node.ip, 5);
    await run('ping', ['-c', '5', '-i', '0.1', podOf(node).ip], inNetns(node));
    const between = await json<Status>('status');
    expect(between.packets).toEqual(before.packets);
    await ping(podOf(node), podOf(here.nodes[1]).ip, 5);
    const { packets } = await json<Status>('status');
    const carried = packets.fast + packets.kernel - between.packets.fast - between.packets.kernel;
    expect(carried).toBe(10);
    await expect
      .poll(async () => (await json<Status>('status')).agent?.recent?.seconds ?? 0, { timeout: 30_000 })
      .toBeGreaterThan(0);
  });

  it('shows what moves', async () => {
    const watching = startRipstop(here.lab, node, ...'stats -w --interval 0.3'.split(' '));
    await using _ = { [Symbol.asyncDispose]: async () => void (await watching.stop()) };
    await expect
      .poll(async () => {
        await ping(podOf(node), podOf(here.nodes[1]).ip);
        return watching.output();
      })
      .toMatch(/^HOOK .* PACKETS\/S +BYTES\/S +PACKETS +BYTES$[^]*^from_pod +fast +encap +\d+(\.\d)? /m);
  });

  it('shows the status on one screen', async () => {
    const status = await json<Status>('status');
    expect(status).toMatchObject({
      agent: { node: 'node1', ready: true, api: { connected: true, synced: true } },
      peers: 1,
      endpoints: 1,
      flows: expect.any(Number) as unknown,
    });
    expect(status.attached.map(({ hook, live }) => `${hook} ${live}`)).toEqual([
      'from_pod true',
      'from_vtep true',
      'from_wire true',
      'to_pod true',
      'to_vtep true',
      'to_wire true',
    ]);
    expect(status.packets.fast).toBeGreaterThanOrEqual(10);
    expect(status.fastPercent).toBeGreaterThan(0);
    expect((await tableOf('status')).length).toBeLessThan(25);
  });

  it('shows the same entry decoded and as bytes', async () => {
    const [decoded] = await json<{ key: number; value: object }[]>('maps peers');
    const [raw] = await json<{ key: string; value: string }[]>('maps peers --raw');
    expect(decoded).toMatchObject({
      key: 1,
      value: { head: { vtep_ip: '172.31.0.2', flags: ['present'] } },
    });
    expect(Buffer.from(raw!.key, 'hex')).toEqual(Buffer.of(1, 0, 0, 0));
    expect(raw!.value).toContain('ac1f0002');
    const [counter] = await json<{ value: string }[]>('maps counters --raw');
    expect(counter!.value).toMatch(/^([0-9a-f]{32})+$/);
  });

  it('shows a peer as a person reads it', async () => {
    const peer = (await tableOf('maps peers 10.42.1.0/24')).join('\n');
    for (const line of [
      'key: 1 (10.42.1.0/24)',
      'vtep_ip: 172.31.0.2',
      'type: IPv4 (0x0800)',
      'protocol: udp',
      'dst_port: 8472',
      'flags: VNI valid (0x08000000)',
      'vni: 1',
    ])
      expect(peer).toContain(line);
    expect(await json('maps peers 1')).toMatchObject({
      key: 1,
      value: { header: { inner_ether: { type: 0x0800 }, vxlan: { flags: 0x0800_0000, vni: 1 } } },
    });
    expect(await ripstop(here.lab, node, 'maps', 'peers', '7')).toMatchObject({
      code: 1,
      stderr: 'ripstop: peers has no entry 7\n',
    });
  });

  it('shows maps with their memory, and those of others by their pin or id', async () => {
    const maps = await json<MapRow[]>('maps');
    const peers = maps.find(({ name }) => name === 'peers')!;
    expect(peers).toMatchObject({ used: 1, maxEntries: 256, value: 'struct peer', layout: layout.version });
    expect(peers.memoryBytes).toBeGreaterThan(256 * 112);

    const below = join(bpffsOf(here.lab, node), 'foreign');
    mkdirSync(below);
    try {
      using map = BpfMap.create('hash', 'foreign', 4, 8, 10);
      map.update(Uint8Array.of(7, 0, 0, 0), Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
      map.pin(join(below, 'pin'));
      const entry = { key: 7, value: '0102030405060708' };
      expect(await json(`maps ${below}/pin`)).toEqual([entry]);
      expect(await json(`maps ${map.info.id} 7`)).toEqual(entry);
      expect(await json(`maps ${below}`)).toMatchObject([{ name: 'pin', used: 1, maxEntries: 10 }]);
    } finally {
      rmSync(below, { recursive: true });
    }
    const program = join(pinPaths(bpffsOf(here.lab, node)).programs, 'from_pod');
    const { code, stderr } = await ripstop(here.lab, node, 'maps', program);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: `ripstop: cannot open ${program}: ${program} is a bpf-prog, not a map\n`,
    });
  });

  it('finds in an audit what is not as the API server and the kernel have it, and nothing else', async () => {
    const diff = async () => {
      const { code, stdout } = await ripstop(here.lab, node, 'maps', 'diff', '-o', 'json');
      return { code, ...(JSON.parse(stdout) as MapAudit) };
    };
    const before = await diff();
    expect(before).toEqual({
      code: 0,
      checked: {
        peers: 1,
        peers6: 0,
        vteps: 2,
        endpoints: 1,
        endpoints6: 0,
        config: expect.any(Number) as unknown,
      },
      differences: [],
    });
    expect((await tableOf('maps diff'))[0]).toMatch(/^no difference: peers 1, /);

    // Lost writes, a wrong one, and a leftover. The agent has no event of them; its own audit comes within 25 s.
    using tables = openTables(bpffsOf(here.lab, node));
    const peer = tables.peers.get(1)!;
    const [slot, endpoint] = [...tables.endpoints.entries({ skipZero: true })][0]!;
    const wrong = { ...endpoint, pod_mac: '02:00:00:00:00:99' };
    const spoil = (): void => {
      tables.endpoints.set(slot, wrong);
      tables.vteps.delete('172.31.0.2');
      tables.peers.set(9, { ...peer, head: { ...peer.head, vtep_ip: '172.31.0.9' } });
    };
    /** Read them spoiled: once more if the agent's audit came in between, for the next one is not near. */
    const spoiled = async <T extends { code: number }>(read: () => Promise<T>): Promise<T> => {
      spoil();
      const seen = await read();
      if (seen.code === 3 && tables.endpoints.get(slot)?.pod_mac === wrong.pod_mac) return seen;
      spoil();
      return read();
    };
    const after = await spoiled(diff);
    const { stdout: table } = await spoiled(() => ripstop(here.lab, node, 'maps', 'diff'));
    tables.endpoints.set(slot, endpoint);
    tables.vteps.set('172.31.0.2', { flags: layout.enums.vtep_flags.VTEP_REMOTE, vtep_ip: '172.31.0.2' });
    tables.peers.set(9, decode({ struct: 'peer' }, new Uint8Array(200)));

    expect(after.code).toBe(3);
    expect(after.differences).toEqual([
      { map: 'peers', key: 9, problem: 'unexpected', value: expect.anything() as unknown },
      {
        map: 'vteps',
        key: '172.31.0.2',
        problem: 'missing',
        value: { flags: ['remote'], vtep_ip: '172.31.0.2' },
      },
      {
        map: 'endpoints',
        key: slot,
        problem: 'differs',
        members: [{ member: 'pod_mac', from: wrong.pod_mac, to: endpoint.pod_mac }],
      },
    ]);
    expect(table).toMatch(
      /^endpoints +2 \(10\.42\.0\.2\) +differs +pod_mac is 02:00:00:00:00:99, should be /m,
    );
    expect((await diff()).differences).toEqual([]);
  });

  it('exports the maps, and imports them into another node of a lab', async () => {
    const { stdout: dump } = await ripstop(here.lab, node, 'maps', 'export');
    const { maps } = JSON.parse(dump) as {
      maps: Record<string, { entries: { key: string; means: string }[] }>;
    };
    expect(maps['peers']!.entries).toMatchObject([
      { key: '01000000', means: expect.stringMatching(/^1 \(10\.42\.1\.0\/24\) .* vni=1/) as unknown },
    ]);
    const file = join(here.lab.dir, 'maps.json');
    writeFileSync(file, dump);

    const other = here.nodes[1]!;
    await stopAgent(here.lab, other);
    expect(bytesOf(bpffsOf(here.lab, other), 'peers')).not.toEqual(bytesOf(bpffsOf(here.lab, node), 'peers'));
    expect(await ripstop(here.lab, other, 'maps', 'import', file)).toMatchObject({ code: 0, stderr: '' });
    for (const name of ['peers', 'vteps', 'endpoints'] as const)
      expect(bytesOf(bpffsOf(here.lab, other), name)).toEqual(bytesOf(bpffsOf(here.lab, node), name));
    await startAgent(here.lab, other);

    expect(await tryRun(process.execPath, [CLI, 'maps', 'import', file])).toMatchObject({
      code: 2,
      stderr: 'ripstop: /sys/fs/bpf belongs to no lab: maps are imported into the node of a lab only\n',
    });
    writeFileSync(file, dump.replace('"layout": ', '"layout": 9'));
    const { stderr } = await ripstop(here.lab, node, 'maps', 'import', file);
    expect(stderr).toMatch(/^ripstop: the dump has maps of layout 9\d, and this node has layout \d+\n$/);
  });

  it('has colours on a terminal, and there only', async () => {
    await ping(podOf(node), podOf(here.nodes[1]).ip);
    const where = `--bpffs ${bpffsOf(here.lab, node)} --run-dir ${runDirOf(here.lab, node)}`;
    const command = `${process.execPath} ${CLI} flows ${where}`;
    // What else the environment says of colours (NO_COLOR, FORCE_COLOR, CI and more) is left out.
    const env = { PATH: process.env['PATH'], TERM: 'xterm' };
    const onTerminal = await run('script', ['-qec', command, '/dev/null'], { ...inNetns(node), env });
    expect(onTerminal).toContain('\u001B[32mvalid\u001B[39m');
    expect((await tableOf('flows')).join('\n')).not.toContain('\u001B');
  });

  it('answers in YAML, and by a jsonpath', async () => {
    expect((await tableOf('peers -o yaml'))[0]).toBe('- node: node2');
    expect(await tableOf('peers -o jsonpath={[*].vtepIp}')).toEqual(['172.31.0.2']);
    const template = ['-o', 'jsonpath={range [*]}{.name} {.maxEntries}{"\\n"}{end}'];
    const { stdout } = await ripstop(here.lab, node, 'maps', ...template);
    expect(stdout).toMatch(/^flows4 131072$/m);
  });

  it('shows what changes in a map, as it does', async () => {
    const watching = startRipstop(
      here.lab,
      node,
      ...'maps flows4 protocol=icmp -w --interval 0.1'.split(' '),
    );
    await using _ = { [Symbol.asyncDispose]: async () => void (await watching.stop()) };
    await expect
      .poll(async () => {
        await ping(podOf(node), podOf(here.nodes[1]).ip);
        return watching.output();
      })
      .toMatch(/^\d{4}-\S+Z \+ src=10\.42\.0\.2 dst=10\.42\.1\.2 .*protocol=icmp  head=\{/m);
  });

  /** Everything that is pinned, and its contents, except for the counters. */
  function everything(): unknown {
    const bpffs = bpffsOf(here.lab, node);
    using tables = openTables(bpffs);
    return {
      pins: filesIn(join(bpffs, 'ripstop')),
      run: filesIn(runDirOf(here.lab, node)),
      links: listLinks(pinPaths(bpffs).links),
      maps: mapNames
        // Flows end with their connections, whoever reads.
        .filter((name) => !layout.maps[name].type.startsWith('percpu') && !name.startsWith('flows'))
        .map((name) => [name, tables[name].map.info, tables[name].map.lookupBatch()]),
    };
  }

  it('changes nothing by reading', async () => {
    const before = everything();
    for (const command of everyReading) await tableOf(command);
    expect(everything()).toEqual(before);
  }, 180_000);

  it('needs less than 0.3 s of a CPU for an answer, as it is shipped', async () => {
    const program = await buildAgent();
    const where = ['--bpffs', bpffsOf(here.lab, node), '--run-dir', runDirOf(here.lab, node)];
    const timed = ['-c', 'TIMEFORMAT="%U %S"; time "$@" > /dev/null', 'bash', process.execPath, program];
    for (const command of ['status', 'peers', 'endpoints', 'flows', 'stats', 'maps', 'maps flows4']) {
      const argv = [...timed, ...command.split(' '), ...where];
      const { stderr } = await tryRun('bash', argv, inNetns(node));
      const [user, system] = stderr.trim().split(' ').map(Number) as [number, number];
      expect(user + system, command).toBeGreaterThan(0);
      expect(user + system, command).toBeLessThan(0.3);
    }
  }, 180_000);

  const get = (path: string) => askOverHttp(node, path);

  describe('for Prometheus and the kubelet', () => {
    it.each(['/healthz', '/readyz'])('answers %s', async (path) => {
      expect(await get(path)).toMatchObject({ status: 200, body: 'ok\n' });
    });

    it('has nothing elsewhere', async () => {
      expect(await get('/etc/passwd')).toMatchObject({ status: 404 });
    });

    it('has all its metrics', async () => {
      const { status, type, body } = await get('/metrics');
      expect({ status, type }).toEqual({
        status: 200,
        type: expect.stringMatching(/^text\/plain/) as unknown,
      });
      const types = Array.from(body.matchAll(/^# TYPE (\S+) (\S+)$/gm), ([, name, type]) => ({ name, type }));
      expect(types.filter(({ name }) => !name!.startsWith(PROCESS_PREFIX))).toEqual(
        metricSpecs.map(({ name, type }) => ({ name, type })),
      );
      expect(body).toMatch(/^ripstop_peers 1$/m);
      expect(body).toMatch(/^ripstop_endpoints 1$/m);
      expect(body).toMatch(/^ripstop_api_watch_connected 1$/m);
      expect(body).toMatch(/^ripstop_map_entries\{map="flows4"\} [1-9]/m);
    });

    it('counts what the maps count', async () => {
      const read = (): Counter[] => {
        using tables = openTables(bpffsOf(here.lab, node));
        return readCounters(tables).filter(({ packets }) => packets > 0);
      };
      // Packets may come at any time; the readings before and after are the same when none came in between.
      let exported = '';
      let counted: Counter[] = [];
      await expect
        .poll(async () => {
          counted = read();
          exported = (await get('/metrics')).body;
          return isDeepStrictEqual(counted, read());
        })
        .toBe(true);
      const lines = counted.flatMap(({ hook, verdict, reason, packets, bytes }) => {
        const labels = `{hook="${hook}",verdict="${verdict}",reason="${reason}"}`;
        return [`ripstop_bytes_total${labels} ${bytes}`, `ripstop_packets_total${labels} ${packets}`];
      });
      const found = exported.split('\n').filter((line) => /^ripstop_(packets|bytes)_total\{/.test(line));
      expect(found.sort()).toEqual(lines.sort());
    });
  });

  describe('for people, the page', () => {
    it('is one document that the browser may only run as it is', async () => {
      const { status, type, headers, body } = await get('/');
      expect({ status, type }).toEqual({ status: 200, type: 'text/html; charset=utf-8' });
      expect(body).toMatch(/^<!doctype html>[^]*<\/html>\s*$/);
      expect(headers).toMatchObject({
        'content-security-policy': expect.stringMatching(
          /^default-src 'none'; script-src 'sha256-/,
        ) as unknown,
        'x-content-type-options': 'nosniff',
        'cache-control': 'no-store',
      });
      expect(headers).not.toHaveProperty('set-cookie');
    });

    it('shows what the commands show', async () => {
      const [pod, other] = [podOf(node), podOf(here.nodes[1])];
      const read = async () =>
        (await requireAgent(runDirOf(here.lab, node), '/overview.json', 5000)) as Overview;
      await ping(pod, other.ip, 5);
      using tables = openTables(bpffsOf(here.lab, node));
      const counters = () => readCounters(tables);
      await expect.poll(async () => (await read()).betweenPods).toEqual(packetsBetweenPods(counters()));
      const { agent } = await json<Status>('status');
      const after = await read();
      expect(after).toMatchObject({
        node: 'node1',
        mode: 'cni',
        ready: true,
        podCidrs: [node.podCIDR],
        uplink: { name: agent?.uplink?.name, mtu: agent?.uplink?.mtu },
        problems: [],
        pods: { total: 1, kernelPath: 0, shown: [{ name: 'default/pod1', addresses: [pod.ip] }] },
        peers: { total: 1, kernelPath: 0, shown: [{ name: 'node2', addresses: [here.nodes[1]!.podCIDR] }] },
      });
      // Another counter may have moved for the first time in between.
      const moved = counters().filter(({ packets }) => packets > 0);
      const nameOf = ({ hook, verdict, reason }: Counter) => `${hook} ${verdict} ${reason}`;
      expect(moved.map(nameOf)).toEqual(expect.arrayContaining(after.counters.map(nameOf)));
      await expect
        .poll(async () => {
          await ping(pod, other.ip, 5);
          const { pods, peers } = await read();
          return Math.min(...[pods, peers].map(({ shown }) => shown[0]?.rate?.fastPerSecond ?? 0));
        })
        .toBeGreaterThan(1);
    });
  });

  describe('lab', () => {
    it('status has the shape that scripts rely on', async () => {
      const { code, stdout } = await lab('status', '-o', 'json', '--name', here.lab.name);
      expect(code).toBe(0);
      const pod = (name: string, ip: string) => [
        { name: 'pod1', netns: `${here.lab.name}-${name}-pod1`, ip },
      ];
      expect(JSON.parse(stdout)).toEqual({
        name: here.lab.name,
        kubeconfig: `/run/ripstop-lab/${here.lab.name}/kubeconfig`,
        nodes: [
          {
            name: 'node1',
            netns: `${here.lab.name}-node1`,
            ip: '172.31.0.1',
            podCIDR: '10.42.0.0/24',
            datapath: 'ripstop',
            mode: 'cni',
            pods: pod('node1', '10.42.0.2'),
          },
          {
            name: 'node2',
            netns: `${here.lab.name}-node2`,
            ip: '172.31.0.2',
            podCIDR: '10.42.1.0/24',
            datapath: 'ripstop',
            mode: 'cni',
            pods: pod('node2', '10.42.1.2'),
          },
        ],
      });
    });

    it('exec runs the command in its target, and returns its exit code', async () => {
      const exec = (target: string, ...argv: string[]) =>
        lab('exec', '--name', here.lab.name, target, '--', ...argv);
      const address = await exec('node1-pod1', 'ip', '-4', '-o', 'address', 'show', 'dev', 'eth0');
      expect(address).toMatchObject({ code: 0, stdout: expect.stringContaining('10.42.0.2') as unknown });
      expect(await exec('node2', 'sh', '-c', 'exit 7')).toMatchObject({ code: 7 });
      expect(await exec('underlay', 'ip', 'link', 'show', 'br0')).toMatchObject({ code: 0 });
      const nobody = await exec('node9', 'true');
      expect(nobody).toMatchObject({ code: 2, stdout: '' });
      expect(nobody.stderr).toMatch(/^ripstop: .*node9.*node1, node2\n$/);
    });

    it('exec gives ripstop on a node the node’s pins and agent', async () => {
      const { stdout } = await lab(
        'exec',
        '--name',
        here.lab.name,
        'node2',
        '--',
        'ripstop',
        'peers',
        '-o',
        'json',
      );
      expect(JSON.parse(stdout)).toMatchObject([{ node: 'node1', podCidr: '10.42.0.0/24' }]);
    });
  });

  describe('when the agent is gone', () => {
    beforeAll(() => stopAgent(here.lab, node, 'SIGKILL'));

    it('reads the maps, and shows a dash for what only an agent knows', async () => {
      const { code, stdout } = await ripstop(here.lab, node, 'status');
      expect(code).toBe(3);
      expect(stdout).toMatch(/^agent +NOT RUNNING \(the pinned programs forward without it\)$/m);
      expect((await tableOf('peers'))[1]).toMatch(/^- +- +172\.31\.0\.2 /);
      expect((await json<Status>('status')).agent).toBeUndefined();
    });

    it('and the pins too, fails with one line', async () => {
      await removePrograms(here.lab, node);
      for (const command of everyReading) {
        const { code, stdout, stderr } = await ripstop(here.lab, node, ...command.split(' '));
        expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
        expect(stderr).toMatch(/^ripstop: no ripstop maps are pinned below \S+; is the agent running .*\n$/);
      }
    }, 180_000);
  });
});
