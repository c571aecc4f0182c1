// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { addressAt, type Family, parseCidr } from '../net/ip.ts';
import { testNetns, whyNoNetns } from './netns.support.ts';
import { vtepSetTarget } from './vtep-set.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

const setOf = (...addresses: string[]): Map<string, true> => new Map(addresses.map((ip) => [ip, true]));

describe(title('the set of VTEPs'), { skip: skip !== undefined }, () => {
  it.each([
    ['IPv4', setOf('172.31.0.1', '172.31.0.2'), setOf('172.31.0.2', '172.31.0.3')],
    ['IPv6', setOf('fd00:31::1', '::ffff:ac1f:2'), setOf('::ffff:ac1f:2', '2001:db8::3')],
    ['both', setOf('172.31.0.1', 'fd00:31::1'), setOf('fd00:31::1', '172.31.0.3')],
  ])('of %s holds what was added and not removed, also for the next agent', async (_, first, second) => {
    await using node = await testNetns();
    const target = vtepSetTarget(node.options);
    const sizes: number[] = [];
    for (const act of [
      () => target.upsert(first),
      () => target.upsert(first),
      () => target.upsert(second),
      () => target.remove(first),
      () => target.remove(first),
    ]) {
      await act();
      const found = await vtepSetTarget(node.options).list();
      expect(await target.list()).toEqual(found);
      sizes.push(found.size);
    }
    expect(sizes).toEqual([2, 2, 3, 1, 1]);
  });

  it('is empty before there is a set', async () => {
    await using node = await testNetns();
    expect(await vtepSetTarget(node.options).list()).toEqual(new Map());
  });

  it('shows changes by others, and is repaired', async () => {
    await using node = await testNetns();
    const target = vtepSetTarget(node.options);
    await target.upsert(setOf('172.31.0.1'));
    await node.run('nft', 'add element inet ripstop vteps4 { 203.0.113.66 }');
    expect(await target.list()).toEqual(setOf('172.31.0.1', '203.0.113.66'));
    await node.run('nft', 'flush ruleset');
    expect(await target.list()).toEqual(new Map());
    await target.upsert(setOf('172.31.0.1'));
    expect(await target.list()).toEqual(setOf('172.31.0.1'));
  });

  it('fails when there is another set with its name, and does not adopt its elements', async () => {
    await using node = await testNetns();
    const target = vtepSetTarget(node.options);
    await node.run(
      'nft',
      'add table inet ripstop; add set inet ripstop vteps4 { type ipv6_addr; elements = { fd00::1 }; }',
    );
    await expect(target.upsert(setOf('172.31.0.2'))).rejects.toThrow(/nft -f - failed/);
    expect(await target.list()).toEqual(new Map());
  });

  it.each([
    [4, '10.0.0.0/8'],
    [6, 'fd00:31::/64'],
  ] as [Family, string][])('takes 15,000 of IPv%i in one go', async (family, network) => {
    await using node = await testNetns();
    const all = setOf(...Array.from({ length: 15_000 }, (_, i) => addressAt(parseCidr(network), i + 1)));
    const target = vtepSetTarget(node.options);
    const took: Record<string, number> = {};
    const timed = async <T>(what: string, act: () => Promise<T>): Promise<T> => {
      const begun = performance.now();
      const result = await act();
      took[what] = Math.round(performance.now() - begun);
      return result;
    };
    await timed('all put in', () => target.upsert(all));
    expect(await timed('listed', () => target.list())).toEqual(all);
    const one = setOf([...all.keys()][0]!);
    await timed('one taken out', () => target.remove(one));
    await timed('one put in', () => target.upsert(one));
    await timed('all taken out', () => target.remove(all));
    expect(await target.list()).toEqual(new Map());
    console.log(`IPv${family}, ms: ${JSON.stringify(took)}`);
    for (const ms of Object.values(took)) expect(ms).toBeLessThan(5000);
  });
});
