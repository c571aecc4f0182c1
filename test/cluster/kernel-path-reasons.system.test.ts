// SPDX-License-Identifier: Apache-2.0
/** Peers that the kernel path alone serves: `peers` and the metrics say which, and why. */
import { describe, expect, it } from 'vitest';
import type { PeerRow } from '../../src/cli/rows.ts';
import { tryRun } from '../../src/host/run.ts';
import {
  askOverHttp,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstop,
  ripstopJson,
  useLab,
} from './support.ts';

describe.skipIf(missingHere())('A ripstop node beside one of ripstop and one of flannel', () => {
  const cluster = useLab('reasons', { datapath: 'ripstop,ripstop,flannel', pods: 1, ipv6: true });
  const [here, there, flannel] = [0, 1, 2].map((i) => () => cluster.nodes[i]!) as [
    () => (typeof cluster.nodes)[number],
    () => (typeof cluster.nodes)[number],
    () => (typeof cluster.nodes)[number],
  ];

  const rows = () => ripstopJson<PeerRow[]>(cluster.lab, here(), 'peers');
  const rowOf = async (vtepIp: string) => (await rows()).find((row) => row.vtepIp === vtepIp);
  const ip = (...args: string[]) => tryRun('ip', args, inNetns(here()));

  /** The reasons of the metric that count any peer. */
  async function counted(): Promise<Record<string, number>> {
    const { body } = await askOverHttp(here(), '/metrics');
    const lines = body.matchAll(/^ripstop_peers_without_fast_path\{reason="(\w+)"\} ([1-9]\d*)$/gm);
    return Object.fromEntries(Array.from(lines, ([, reason, peers]) => [reason!, Number(peers)]));
  }

  /** How many packets of pings to the other ripstop node this one's programs have carried. */
  async function fastOfPings(): Promise<number> {
    await ping(podOf(here()), podOf(there()).ip); // so that the flow is learned
    const [carried] = await carriedDuring(cluster.lab, [here()], () =>
      ping(podOf(here()), podOf(there()).ip),
    );
    return carried!.fast;
  }

  it('says of each peer whether the fast path serves it: of flannel over IPv6 it does not', async () => {
    const byAddress = (await rows()).toSorted((a, b) => a.vtepIp.localeCompare(b.vtepIp));
    expect(byAddress).toEqual([
      expect.objectContaining({ node: 'node2', vtepIp: there().ip, fastPath: true }),
      expect.objectContaining({ node: 'node3', vtepIp: flannel().ip, fastPath: true }),
      expect.objectContaining({ node: 'node2', vtepIp: there().ip6, fastPath: true }),
      expect.objectContaining({ node: 'node3', vtepIp: flannel().ip6, fastPath: false, reason: 'checksum' }),
    ]);
    const { stdout } = await ripstop(cluster.lab, here(), 'peers');
    expect(stdout).toMatch(/^NODE .* FAST PATH$/m);
    expect(stdout.match(/ yes$/gm)).toHaveLength(3);
    expect(stdout).toMatch(/^node3 .* no: its VXLAN device requires UDP checksums over IPv6$/m);
    expect(await counted()).toEqual({ checksum: 1 });
    expect(await fastOfPings()).toBeGreaterThan(0);
  });

  it('names an IPsec policy, whose packets stay on the kernel path, until it is gone', async ({ skip }) => {
    // Where there are no keys, `level use` lets packets pass as they are.
    const selector = () => ['src', here().ip, 'dst', there().ip, 'dir', 'out'];
    const template = () => ['src', here().ip, 'dst', there().ip, 'proto', 'esp', 'mode', 'transport'];
    const added = await ip('xfrm', 'policy', 'add', ...selector(), 'tmpl', ...template(), 'level', 'use');
    if (/Protocol not supported/.test(added.stderr)) skip('this kernel has no IPsec');
    expect(added).toMatchObject({ code: 0 });
    await expect
      .poll(() => rowOf(there().ip))
      .toMatchObject({
        fastPath: false,
        reason: 'ipsec',
        why: `an IPsec policy concerns all packets to ${there().ip}`,
      });
    expect(await counted()).toEqual({ checksum: 1, ipsec: 1 });
    expect(await fastOfPings()).toBe(0);
    await ip('xfrm', 'policy', 'delete', ...selector());
    await expect.poll(async () => (await rowOf(there().ip))?.fastPath).toBe(true);
    expect(await counted()).toEqual({ checksum: 1 });
    await expect.poll(fastOfPings).toBeGreaterThan(0);
  });

  it('lists a peer without a route, of which the maps know nothing', async () => {
    await ip('route', 'add', 'unreachable', there().ip);
    await expect
      .poll(() => rowOf(there().ip))
      .toEqual({
        node: 'node2',
        podCidr: there().podCIDR,
        vtepIp: there().ip,
        fastPath: false,
        reason: 'no_route',
        why: `the kernel has no route to ${there().ip}`,
        flags: [],
      });
    expect(await counted()).toEqual({ checksum: 1, no_route: 1 });
    const { stdout } = await ripstop(cluster.lab, here(), 'status');
    expect(stdout).toMatch(/^peers +4, 2 of them on the kernel path alone$/m);
    await ip('route', 'delete', 'unreachable', there().ip);
    await expect.poll(async () => (await rowOf(there().ip))?.fastPath).toBe(true);
  });
});
