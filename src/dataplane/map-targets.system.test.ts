// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { directSettings, nextHopTo, sides } from '../../test/bpf/node.ts';
import { testNode } from '../host/netns.support.ts';
import { fixture, noKernel, TemporaryBpffs } from '../libbpf-ts/libbpf.support.ts';
import { job, reconcile } from '../reconcile/reconcile.ts';
import { Reconciled } from '../reconcile/reconciled.ts';
import type { Target } from '../reconcile/target.ts';
import { desiredEndpoints, desiredPeers, desiredVteps, stateSlot } from './desired.ts';
import { mapTargets } from './map-targets.ts';
import { loadPrograms } from './programs.ts';
import { pinPaths } from './tables.ts';

/** What links.child.ts saw in a namespace of its own. */
async function watch(way: 'tcx' | 'clsact'): Promise<unknown> {
  await using node = await testNode();
  using bpffs = new TemporaryBpffs();
  const folder = mkdtempSync(join(tmpdir(), 'ripstop-links-'));
  try {
    const object = join(folder, 'basic.o');
    writeFileSync(object, fixture('basic'));
    mkdirSync(bpffs.file('links'));
    const child = join(import.meta.dirname, 'links.child.ts');
    return JSON.parse(await node.run(process.execPath, child, object, bpffs.file('links'), way));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe.skipIf(noKernel)(`programs on devices${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  it.each([
    ['tcx', ''],
    ['clsact', 'clsact:'],
  ] as const)('are attached, replaced, attached again and detached with %s', async (way, prefix) => {
    const seen = await watch(way);
    // A link keeps its program when its device has gone.
    const lost = way === 'tcx' ? 'next' : 'none';
    const on = (pod: number | undefined, program: string) => ({
      'from_wire@eth0': { ifindex: expect.any(Number) as number, program },
      ...(pod !== undefined && {
        'from_pod@veth:a': { ifindex: pod, program: pod === 0 ? lost : program },
        'to_pod@veth:a': { ifindex: pod, program: pod === 0 ? lost : program },
      }),
    });
    const pins = ['from_pod@veth:a', 'from_wire@eth0', 'to_pod@veth:a'].map((key) => prefix + key);
    const filters = (n: number) => (way === 'clsact' ? n : 0);
    const done = (upserts: number, removals: number) => ({ target: 'links', upserts, removals, failures: 0 });
    expect(seen).toEqual({
      attached: { ...done(3, 0), listed: on(20, 'first'), pins, filters: filters(3) },
      foreign: [[], [20]],
      again: { ...done(0, 0), listed: on(20, 'first'), pins, filters: filters(3) },
      restarted: { ...done(3, 0), listed: on(20, 'next'), pins, filters: filters(3) },
      deviceGone: { listed: on(0, 'next'), pins, filters: filters(1) },
      deviceAnew: { ...done(2, 0), listed: on(30, 'next'), pins, filters: filters(3) },
      podGone: {
        ...done(0, 2),
        listed: on(undefined, 'next'),
        pins: [`${prefix}from_wire@eth0`],
        filters: filters(1),
      },
      removed: { listed: {}, pins: [], filters: 0 },
    });
  });
});

describe.skipIf(noKernel)(`the maps${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  it('are right after one pass, so that the next one writes nothing, and are emptied', async () => {
    using bpffs = new TemporaryBpffs();
    using loaded = loadPrograms(directSettings, pinPaths(bpffs.path));
    let marked = 0;
    const targets = mapTargets(
      () => loaded.tables,
      () => marked++,
    );
    const everyPeer = sides.flatMap(({ peers }) => Object.values(peers));
    const everyPod = sides.flatMap(({ pods }) => Object.values(pods));

    const pass = async (peers: typeof everyPeer, pods: typeof everyPod) => {
      const indexed = desiredPeers(directSettings, peers, ({ vtepIp }) => nextHopTo(vtepIp, true));
      const { endpoints, endpoints6 } = desiredEndpoints(directSettings, pods);
      const one = <V>(target: Target<V>, entries: ReadonlyMap<string, V>) =>
        job(new Reconciled(target), { revision: '', entries: () => entries, complete: true });
      const outcomes = await reconcile([
        one(targets.peers, indexed.peers),
        one(targets.peers6, indexed.peers6),
        one(targets.vteps, desiredVteps(directSettings, peers, indexed)),
        one(targets.endpoints, endpoints),
        one(targets.endpoints6, endpoints6),
      ]);
      expect(outcomes.filter(({ failures }) => failures > 0)).toEqual([]);
      return outcomes.map(({ target, upserts, removals }) => [target, upserts, removals]);
    };

    expect(await pass(everyPeer, everyPod)).toEqual([
      ['peers', 4, 0],
      ['peers6', 4, 0],
      ['vteps', 17, 0],
      ['endpoints', 5, 0],
      ['endpoints6', 5, 0],
    ]);
    expect(marked, 'times that marked endpoints were written, in both families').toBe(2);
    const { endpoint_state } = loaded.tables;
    const slots = sides.map(({ pods }) => stateSlot(directSettings, pods.sender.ip)!);
    for (const slot of slots) endpoint_state.set(slot, { forwards: 1 });
    const forwards = () => slots.map((slot) => endpoint_state.get(slot)?.forwards);
    expect(await pass(everyPeer, everyPod)).toEqual(
      ['peers', 'peers6', 'vteps', 'endpoints', 'endpoints6'].map((target) => [target, 0, 0]),
    );
    expect(await pass([], [])).toEqual([
      ['peers', 0, 4],
      ['peers6', 0, 4],
      ['vteps', 0, 15], // our own two stay
      ['endpoints', 0, 5],
      ['endpoints6', 0, 5],
    ]);
    expect(marked).toBe(2);
    expect(forwards(), 'what the programs keep of pods that stay, or have gone').toEqual([1, 1]);
    await pass([], everyPod);
    expect(forwards(), 'and of those that have come since').toEqual([0, 0]);
  });
});
