// SPDX-License-Identifier: Apache-2.0
/** `trace` and `route get` on a small cluster: what they say is what happens to the next packet, and changes nothing. */
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { RouteAnswer } from '../src/cli/route.ts';
import type { Hop, Trace } from '../src/cli/trace.ts';
import { openTables } from '../src/dataplane/tables.ts';
import { run, tryRun } from '../src/host/run.ts';
import { labExecEnvironment, type NodeState } from '../src/lab/index.ts';
import { startIn } from '../src/lab/lab.support.ts';
import {
  bpffsOf,
  carriedDuring,
  holdFrom,
  inNetns,
  markForKernelPath,
  missingHere,
  podOf,
  PORT,
  released,
  ripstop,
  ripstopJson,
  runDirOf,
  serveIn,
  useLab,
} from './cluster/support.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');
/** What `lab exec` finds as `ripstop`. */
const RIPSTOP = join(import.meta.dirname, '../scripts/ripstop');
const SERVICE = '10.43.0.10';

describe.skipIf(missingHere('iptables'))('trace, on two nodes with two pods each', () => {
  const here = useLab('trace', { nodes: 2, pods: 2, ipv6: true });
  let node: NodeState;
  let far: string;
  /** The identifier of ping's packets. */
  let id = 5000;

  beforeAll(async () => {
    node = here.nodes[0]!;
    far = podOf(here.nodes[1]).ip;
    const rule = `-t nat -A PREROUTING -d ${SERVICE} -p tcp --dport ${PORT} -j DNAT --to-destination ${far}`;
    await run('iptables', ['-w', ...rule.split(' ')], inNetns(node));
    await serveIn(podOf(here.nodes[1]));
  });

  /** For traces that must fall into the 5 s of a flow. On a busy machine a command takes some seconds. */
  const patient = { timeout: 40_000 };

  const trace = (...args: string[]) => ripstopJson<Trace>(here.lab, node, 'trace', ...args);
  const ping = (to: string, count: number) =>
    run('ping', ['-n', '-q', '-e', String(id), '-i', '0.05', '-c', String(count), to], inNetns(podOf(node)));
  const traceEcho = (to: string, ...args: string[]) =>
    trace('--from', `default/pod1:${id}`, '--to', to, '--proto', 'icmp', ...args);
  const told = ({ hook, verdict, reason }: Hop): string => `${hook} ${verdict}_${reason}`;

  /** What a trace says of the next packet; beside it what is counted when that one comes, if it is something else. */
  async function saidAndDone(to: string): Promise<string> {
    const said = told((await traceEcho(to)).hops[0]!);
    const [carried] = await carriedDuring(here.lab, [node], () => ping(to, 1));
    // Both pods of one node pass from_pod: the answer of the other one may be counted alike.
    const times = to === podOf(node, 1).ip ? [1, 2] : [1];
    return times.includes(carried!.by[said] ?? 0) ? said : `${said}, but done ${JSON.stringify(carried!.by)}`;
  }

  /** Ping all the time, so that the flow is learned anew whenever its 5 s are over. */
  async function whilePinging(to: string, work: () => Promise<void>): Promise<void> {
    const pinging = startIn(podOf(node).netns, 'ping', '-n', '-e', String(id), '-i', '0.05', to);
    await pinging.prints(/icmp_seq=5 /);
    try {
      await work();
    } finally {
      await pinging.stop();
    }
  }

  /** A trace of these pings, when the flow's 5 s are not over. */
  async function traceFast(...args: string[]): Promise<Trace> {
    let traced: Trace | undefined;
    await expect.poll(async () => (traced = await traceEcho(far, ...args)).hops[0]!.verdict).toBe('fast');
    return traced!;
  }

  it(
    'says what happens to the next packet of a flow, from the first one on',
    { timeout: 120_000 },
    async () => {
      for (const to of [far, podOf(here.nodes[1]).ip6!, podOf(node, 1).ip]) {
        id++;
        expect(await saidAndDone(to)).toBe('from_pod kernel_new_flow');
        const fast = to === podOf(node, 1).ip ? 'from_pod fast_local' : 'from_pod fast_encap';
        // On a busy machine the flow's 5 s may be over between the two.
        const afterPing = () => ping(to, 5).then(() => saidAndDone(to));
        await expect.poll(afterPing, patient).toBe(fast);
        await run('ip', ['rule', 'add', 'to', '192.0.2.0/24', 'lookup', '99'], inNetns(node));
        await run('ip', ['rule', 'del', 'to', '192.0.2.0/24', 'lookup', '99'], inNetns(node));
        await expect.poll(async () => told((await traceEcho(to)).hops[0]!)).toBe('from_pod kernel_old_epoch');
        expect(await saidAndDone(to)).toBe('from_pod kernel_old_epoch');
      }
      await markForKernelPath(here.lab, node, podOf(node), true);
      expect(await saidAndDone(far)).toBe('from_pod kernel_marked');
      await markForKernelPath(here.lab, node, podOf(node), false);
      expect(told((await trace('--from', 'pod1', '--to', far, '--ttl', '9')).hops[0]!)).toBe(
        'from_pod kernel_new_flow',
      );
    },
  );

  it('shows the lookups, the outer header and the bytes, and the kernel path beside it', async () => {
    id++;
    let traced!: Trace;
    await whilePinging(far, async () => {
      traced = await traceFast('--size', '100', '--ecn', 'ect0');
    });
    const [hop] = traced.hops;
    expect(hop).toMatchObject({ hook: 'from_pod', verdict: 'fast', reason: 'encap' });
    expect(hop!.lookups.map(({ map }) => map)).toEqual(['endpoints', 'flows4', 'peers']);
    expect(hop!.lookups[2]).toMatchObject({ key: '1', says: expect.stringContaining('node2') as unknown });
    expect(hop!.goes).toMatch(/^redirect to eth0, next hop 172\.31\.0\.2 \(MAC ..:/);
    expect(hop!.leaves).toContain(
      `172.31.0.2.8472: VXLAN vni 1: IP ${podOf(node).ip} > ${far}: ICMP echo request`,
    );
    const frame = Buffer.from(hop!.frame, 'hex');
    expect(frame).toHaveLength(14 + 50 + 100);
    // ECN, outside and inside.
    expect([frame[15], frame[65]]).toEqual([2, 2]);
    expect(traced.kernel).toMatchObject({
      route: { type: 'unicast', device: 'flannel.1', table: 254 },
      tunnel: { vtepIp: '172.31.0.2', outer: { device: 'eth0' } },
      connection: { original: { src: podOf(node).ip, srcPort: id } },
    });
    const overIpv6 = await trace('--from', 'pod1', '--to', podOf(here.nodes[1]).ip6!, '--proto', 'udp');
    expect(overIpv6.kernel).toMatchObject({
      route: { device: 'flannel-v6.1' },
      tunnel: { vtepIp: 'fd00:31::2' },
    });
    expect(overIpv6.hops[0]!.lookups.map(({ map }) => map)).toEqual(['endpoints6', 'flows6', 'peers6']);
    expect(traced.kernel!.rules).toEqual(['32766: from all lookup main']);
    expect(traced.kernel!.chains).toContainEqual(expect.stringMatching(/^forward: inet ripstop forward/));
  });

  it('shows a translated flow as it leaves, and both ways of the kernel path', async () => {
    const held = await holdFrom(podOf(node), SERVICE);
    try {
      const to = ['--from', podOf(node).ip, '--to', `${SERVICE}:${PORT}`];
      let traced!: Trace;
      const reason = async () => (traced = await trace(...to)).hops[0]!.reason;
      await expect.poll(reason).toBe('encap');
      expect(traced.knownFlows).toHaveLength(1);
      expect(traced.hops[0]!.leaves).toMatch(new RegExp(`> ${far}\\.${PORT}: Flags`));
      expect(traced.kernel).toMatchObject({
        destination: far,
        connection: { state: 'established', original: { dst: SERVICE }, reply: { src: far } },
      });
      // A SYN of this flow would remove it from the table, and its next packet would be a new flow's.
      const [carried] = await carriedDuring(here.lab, [node], async () => {
        expect((await trace(...to, '--tcp-flags', 'syn')).hops[0]!.reason).toBe('handshake');
      });
      expect(carried!.by['from_pod fast_encap']).toBeGreaterThan(0);
      expect(carried!.by).not.toHaveProperty('from_pod kernel_new_flow');
    } finally {
      expect((await released(held)).error).toBeUndefined();
    }
  });

  it('changes nothing: neither counters, nor notes, nor flows', async () => {
    id++;
    await ping(far, 5);
    const state = () => {
      using tables = openTables(bpffsOf(here.lab, node));
      const arrivals = Array.from({ length: 1024 }, (_, slot) => tables.arrivals.getPerCpu(slot));
      const own = [...tables.flows4.entries()].filter(([flow]) => flow.src_port === id);
      return {
        own,
        ids: tables.ip_ids.getPerCpu(0),
        arrivals: arrivals.flat().filter((note) => note?.flow.src_port === id),
      };
    };
    const before = state();
    expect(before.own).toHaveLength(2);
    const [carried] = await carriedDuring(here.lab, [node], async () => {
      await traceEcho(far);
      await trace('--from', 'pod1', '--to', far);
      await ripstop(here.lab, node, 'route', 'get', far, '--from', 'pod1');
    });
    expect(state()).toEqual(before);
    expect(Object.keys(carried!.by).filter((name) => /encap|new_flow/.test(name))).toEqual([]);
  });

  it('shows the other node’s side in a lab, and elsewhere says how to see it', async () => {
    id++;
    const argv = ['--from', `pod1:${id}`, '--to', far, '--proto', 'icmp'];
    const env = labExecEnvironment(here.lab, node.name);
    const traceInLab = async (): Promise<Trace | undefined> => {
      const { stdout } = await tryRun(RIPSTOP, ['trace', ...argv, '-o', 'json'], { ...inNetns(node), env });
      return (JSON.parse(stdout) as { there?: Trace }).there;
    };
    await whilePinging(far, async () => {
      let there: Trace | undefined;
      await expect.poll(async () => (there = await traceInLab())?.hops[0]!.verdict, patient).toBe('fast');
      const [hop] = there!.hops;
      expect(hop).toMatchObject({ hook: 'from_wire', device: 'eth0', reason: 'decap' });
      expect(hop!.goes).toMatch(/^redirect into the pod of default\/pod1 \(veth/);
      expect(hop!.leaves).toMatch(/^IP 10\.42\.0\.\d+ > 10\.42\.1\.\d+: ICMP echo request/);
      const howTo =
        /on (node2|172\.31\.0\.2): its agent cannot be reached from here; see there with: ripstop trace --frame [0-9a-f]+\n$/;
      await expect
        .poll(async () => (await ripstop(here.lab, node, 'trace', ...argv)).stdout, patient)
        .toMatch(howTo);
    });
  });

  it('follows the real packets of a translated flow through both paths', async () => {
    const held = await holdFrom(podOf(node), SERVICE);
    const where = ['--bpffs', bpffsOf(here.lab, node), '--run-dir', runDirOf(here.lab, node)];
    const ends = ['--from', 'pod1', '--to', `${SERVICE}:${PORT}`];
    const live = startIn(node.netns, process.execPath, CLI, 'trace', '--live', ...ends, ...where);
    try {
      const [own, service, server] = [podOf(node).ip, `${SERVICE}.${PORT}`, `${far}.${PORT}`];
      await live.prints(
        new RegExp(`^[0-9:.]+ from_pod \\S+ fast encap: .*: IP ${own}\\.\\d+ > ${server}: Flags`, 'm'),
      );
      await live.prints(new RegExp(`^[0-9:.]+ from_wire eth0 fast decap: IP ${service} > ${own}`, 'm'));
      // Every 5 s a packet takes the kernel path.
      await live.prints(
        new RegExp(`^[0-9:.]+ from_pod \\S+ kernel expired: IP ${own}\\.\\d+ > ${service}: Flags`, 'm'),
      );
      await live.prints(
        new RegExp(`^ {2}\\+\\d+ µs to_wire eth0 kernel learned: .*: IP ${own}\\.\\d+ > ${server}`, 'm'),
      );
      expect(live.output()).not.toMatch(/ICMP|ARP|\.6443[ :]/);
    } finally {
      await live.stop();
      expect((await released(held)).error).toBeUndefined();
    }
  });

  it('takes packets as large as a test-run does, and says so of others', async () => {
    const ofSize = (size: string) =>
      ripstop(here.lab, node, 'trace', '--from', 'pod1', '--to', far, '--proto', 'udp', '--size', size);
    expect((await ofSize('3500')).stdout).toContain('(3500 bytes)');
    expect((await ofSize('60000')).stderr).toMatch(
      /^ripstop: the kernel's test-run takes no frame of 60014 bytes/,
    );
  });

  it('gets the route of both paths', async () => {
    const get = (...args: string[]) => ripstopJson<RouteAnswer>(here.lab, node, 'route', 'get', ...args);
    expect(await get(far, '--from', 'pod1')).toMatchObject({
      fastPath: [{ map: 'endpoints' }, { map: 'peers', key: '1' }],
      flows: expect.arrayContaining([expect.objectContaining({ map: 'flows4' })]) as unknown,
      kernel: { route: { device: 'flannel.1' } },
    });
    expect(await get('10.42.0.1', '--from', 'pod1')).toMatchObject({ kernel: { route: { type: 'local' } } });
    const { stdout } = await ripstop(here.lab, node, 'route', 'get', '8.8.8.8', '--from', 'default/pod2');
    expect(stdout).toMatch(
      /^fast path\n {2}endpoints .*\n {2}flows +none: .*\n\nkernel path\n(.*\n)+ {2}route +8\.8\.8\.8 /,
    );
  });

  it.each([
    ['trace', /give --from POD and --to IP/],
    ['trace --from nobody --to 10.42.1.2', /has no pod "nobody"; its pods are: .*default\/pod1/],
    ['trace --from pod1 --to web', /"web" is no address/],
    ['trace --from pod1 --to 10.42.1.2 --size 3', /a tcp packet has 40 to 65535 bytes, not 3/],
    ['trace --from pod1 --to 10.42.1.2 --ecn 7', /Give one of not-ect/],
    ['trace --frame zz', /--frame takes a frame in hex digits/],
    ['route get web --from pod1', /"web" is no address/],
    ['route get 10.42.1.2 --from web', /has no pod "web"/],
  ])('refuses "%s" in one line', async (command, why) => {
    const { code, stdout, stderr } = await ripstop(here.lab, node, ...command.split(' '));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^ripstop: [^\n]*\n$/);
    expect(stderr).toMatch(why);
  });
});
