// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { type FlannelRules, flannelRulesTarget, writeFlannelRules } from './flannel-rules.ts';
import { testNetns, type TestNetns, whyNoNetns } from './netns.support.ts';
import { tryRun } from './run.ts';

const noLegacy = await tryRun('iptables-legacy', ['--version']).then(
  () => undefined,
  () => 'iptables-legacy is not installed',
);
const skip = (await whyNoNetns()) ?? noLegacy;
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

const DESIRED: FlannelRules = {
  networks: [
    { network: parseCidr('10.42.0.0/16'), podCidr: parseCidr('10.42.1.0/24') },
    { network: parseCidr('fd00:42::/56'), podCidr: parseCidr('fd00:42:0:1::/64') },
  ],
  masquerade: true,
  nftables: false,
};
const PROGRAMS = ['iptables', 'ip6tables'] as const;

/** Rules of another program around flannel's, in both families. */
async function addOthers(node: TestNetns, suffix = ''): Promise<void> {
  for (const program of PROGRAMS) {
    await node.run(`${program}${suffix}`, '-t', 'nat', '-N', 'KUBE-POSTROUTING');
    await node.run(`${program}${suffix}`, '-t', 'nat', '-I', 'POSTROUTING', '-j', 'KUBE-POSTROUTING');
    await node.run(`${program}${suffix}`, '-I', 'FORWARD', '-m', 'mark', '--mark', '7', '-j', 'DROP');
  }
}

/** All rules of both families, without counters. */
async function saved(node: TestNetns, suffix = ''): Promise<string[]> {
  const texts = await Promise.all(
    PROGRAMS.flatMap((program) =>
      ['nat', 'filter'].map((table) => node.run(`${program}${suffix}`, '-t', table, '-S')),
    ),
  );
  return texts.flatMap((text) => text.trim().split('\n'));
}

/** Clear flannel's rules as the agent does: what went, and what stays, by key. */
async function clear(node: TestNetns): Promise<{ removed: string[]; kept: readonly string[] }> {
  let kept: readonly string[] = [];
  const target = flannelRulesTarget((needed) => (kept = needed), node.options);
  const found = await target.list();
  await target.remove(found);
  return { removed: [...found.keys()], kept };
}

describe.skipIf(skip)(title("flannel's rules on a node"), () => {
  it.each(['', '-legacy'])('are removed, and rules of other programs stay: iptables%s', async (suffix) => {
    await using node = await testNetns();
    await addOthers(node, suffix);
    const before = await saved(node, suffix);
    await writeFlannelRules(DESIRED, node.options);
    // It uses the backend of the other rules.
    expect((await saved(node, suffix)).filter((rule) => rule.includes('FLANNEL'))).toHaveLength(24);
    const { removed, kept } = await clear(node);
    expect({ removed: removed.length, kept }).toEqual({ removed: 4, kept: [] });
    expect(await saved(node, suffix)).toEqual(before);
    expect(await clear(node)).toEqual({ removed: [], kept: [] });
  });

  it.each(['', '-legacy'])('stay in FORWARD where it drops without them: iptables%s', async (suffix) => {
    await using node = await testNetns();
    await addOthers(node, suffix);
    await writeFlannelRules(DESIRED, node.options);
    await node.run(`iptables${suffix}`, '-P', 'FORWARD', 'DROP');
    const { removed, kept } = await clear(node);
    expect(removed).toHaveLength(3);
    expect(kept).toEqual([
      `FLANNEL-FWD in ${suffix ? 'iptables-legacy' : 'ip'} filter: FORWARD drops what nothing in it accepts`,
    ]);
    const left = (await saved(node, suffix)).filter((rule) => rule.includes('FLANNEL'));
    expect(left).toHaveLength(4);
  });

  it('are tables in its nftables mode, which are removed as a whole', async () => {
    await using node = await testNetns();
    await addOthers(node);
    const before = await saved(node);
    expect(await writeFlannelRules({ ...DESIRED, nftables: true }, node.options)).toEqual([
      'table ip flannel-ipv4',
      'table ip6 flannel-ipv6',
    ]);
    const { removed } = await clear(node);
    expect(removed).toEqual(['table ip flannel-ipv4', 'table ip6 flannel-ipv6']);
    expect(await node.run('nft', 'list', 'tables')).not.toContain('flannel');
    expect(await saved(node)).toEqual(before);
  });

  it('are those that flanneld recognizes, and are there once when written twice', async () => {
    await using node = await testNetns();
    await addOthers(node);
    await writeFlannelRules(DESIRED, node.options);
    const once = await saved(node);
    await writeFlannelRules(DESIRED, node.options);
    expect(await saved(node)).toEqual(once);
    const masq = ['-m', 'comment', '--comment', 'flanneld masq', '-j'];
    await node.run('iptables', '-t', 'nat', '-C', 'POSTROUTING', ...masq, 'FLANNEL-POSTRTG');
    const pods = ['-s', '10.42.0.0/16', '!', '-d', '224.0.0.0/4'];
    await node.run(
      'iptables',
      '-t',
      'nat',
      '-C',
      'FLANNEL-POSTRTG',
      ...pods,
      ...masq,
      'MASQUERADE',
      '--random-fully',
    );
  });

  it('that another rule refers to stay, and the error says so', async () => {
    await using node = await testNetns();
    await writeFlannelRules(DESIRED, node.options);
    await node.run('iptables', '-N', 'MINE');
    await node.run('iptables', '-A', 'MINE', '-j', 'FLANNEL-FWD');
    await expect(clear(node)).rejects.toThrow(/nft .*failed/);
    expect((await saved(node)).filter((rule) => rule.includes('FLANNEL'))).toHaveLength(25);
  });
});
