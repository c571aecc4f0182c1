// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { settings, v4 } from '../../test/bpf/node.ts';
import { supportsPrograms } from '../libbpf-ts/index.ts';
import { fixture, noKernel, TemporaryBpffs } from '../libbpf-ts/libbpf.support.ts';
import { parseCidr } from '../net/ip.ts';
import { layout } from './layout.gen.ts';
import { readInvalidations, watchedFunctions } from './changes.ts';
import { type LoadedPrograms, loadPrograms, objectDir, removePins } from './programs.ts';
import { mapNames, openTables, pinPaths, type PinPaths } from './tables.ts';

describe.skipIf(noKernel)(`maps of a node${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  let bpffs: TemporaryBpffs;
  let paths: PinPaths;
  let started: DisposableStack;
  beforeEach(() => {
    bpffs = new TemporaryBpffs();
    paths = pinPaths(bpffs.path);
    started = new DisposableStack();
  });
  afterEach(() => {
    started.dispose();
    bpffs[Symbol.dispose]();
  });

  const load = (given = settings, directory = objectDir): LoadedPrograms =>
    started.use(loadPrograms(given, paths, directory));
  const ids = ({ tables }: LoadedPrograms) =>
    Object.fromEntries(mapNames.map((name) => [name, tables[name].map.info.id]));
  const directories = () => readdirSync(dirname(paths.maps)).filter((name) => name.startsWith('maps'));
  const current = `maps:${layout.version}:1`;
  /** A cluster network twice as large, so there are twice as many peers. */
  const wider = { ...settings, v4: { ...v4.settings, network: parseCidr('10.42.0.0/15') } };

  it('are adopted with their content', () => {
    const first = load();
    expect(first.pending).toBeUndefined();
    first.tables.vteps.set('192.168.0.1', { flags: 2, vtep_ip: '192.168.0.1' });
    const second = load();
    expect(second.pending).toBeUndefined();
    expect(ids(second)).toEqual(ids(first));
    expect(directories().toSorted()).toEqual(['maps', current]);
  });

  it('of another capacity are created beside those in use, which readers see until the takeover', () => {
    const before = load();
    before.tables.vteps.set('192.168.0.1', { flags: 2, vtep_ip: '192.168.0.1' });
    const after = load(wider);
    expect(after.pending).toEqual({ kept: mapNames.filter((name) => name !== 'peers') });
    const { peers: old, ...kept } = ids(before);
    const { peers: fresh, ...same } = ids(after);
    expect(same).toEqual(kept);
    expect(after.tables.peers.map.info.maxEntries).toBe(2 * before.tables.peers.map.info.maxEntries);
    const seen = () => {
      using tables = openTables(bpffs.path);
      return tables.peers.map.info.id;
    };
    expect(seen()).toBe(old);
    after.takeOver();
    expect(after.pending).toBeUndefined();
    expect(seen()).toBe(fresh);
    expect(directories().toSorted()).toEqual(['maps', `maps:${layout.version}:2`]);
  });

  it('that were never taken over are created again by the next agent, while the old ones stay', () => {
    const before = load();
    load(wider);
    const again = load(wider);
    expect(again.pending).toBeDefined();
    expect(directories().toSorted()).toEqual(['maps', current, `maps:${layout.version}:2`]);
    expect(ids(load())).toEqual(ids(before));
  });

  it('are completed when one was unpinned by hand', () => {
    const before = load();
    unlinkSync(join(paths.maps, 'counters'));
    const after = load();
    expect(after.pending?.kept).toEqual(mapNames.filter((name) => name !== 'counters'));
    const { counters: _old, ...kept } = ids(before);
    expect(ids(after)).toMatchObject(kept);
  });

  it('of a later layout stay as they are, and the error names the differences', () => {
    load();
    const later = `maps:${layout.version + 1}:1`;
    renameSync(join(dirname(paths.maps), current), join(dirname(paths.maps), later));
    unlinkSync(paths.maps);
    symlinkSync(later, paths.maps);
    unlinkSync(join(paths.maps, 'vteps'));
    const before = readdirSync(paths.programs).toSorted();
    expect(() => load(wider)).toThrow(
      /have layout \d+, .*, which is older, .*peers: max entries is 256, the object wants 512; vteps: does not exist/,
    );
    expect(() => openTables(bpffs.path)).toThrow(/use the ripstop of the agent that runs on this node/);
    expect(directories().toSorted()).toEqual(['maps', later]);
    expect(readdirSync(paths.programs).toSorted()).toEqual(before);
  });

  it('stay when the objects for new ones cannot be loaded', () => {
    const before = load();
    const broken = mkdtempSync(join(tmpdir(), 'ripstop-objects-'));
    try {
      cpSync(objectDir, broken, { recursive: true });
      writeFileSync(join(broken, 'pod.bpf.o'), fixture('refused'));
      expect(() => load(wider, broken)).toThrow();
      rmSync(join(broken, 'wire.bpf.o'));
      expect(() => load(wider, broken)).toThrow();
    } finally {
      rmSync(broken, { recursive: true });
    }
    expect(directories().toSorted()).toEqual(['maps', current]);
    expect(ids(load())).toEqual(ids(before));
  });

  it('from before there were generations are taken over like others', () => {
    const before = load();
    unlinkSync(paths.maps);
    renameSync(join(dirname(paths.maps), current), paths.maps);
    const { version }: { version: number } = layout;
    if (version === 0) expect(ids(load())).toEqual(ids(before));
    const after = load(wider);
    after.takeOver();
    expect(readlinkSync(paths.maps)).toMatch(/^maps:\d+:\d+$/);
    expect(directories()).toHaveLength(2);
  });

  it('have an epoch, which each change moves by one, and count the causes', () => {
    const programs = load();
    for (const cause of ['network', 'flannel_rules', 'network'] as const) programs.moveEpoch(cause);
    expect(programs.tables.epoch.get(0)).toBe(3);
    expect(readInvalidations(programs.tables).filter(({ times }) => times > 0)).toEqual([
      { by: 'event', cause: 'network', times: 2 },
      { by: 'event', cause: 'flannel_rules', times: 1 },
    ]);
  });

  it('have links to functions of the kernel where it lets programs trace it, else a reason why not', async () => {
    const { watched, refused, missing } = await load().watchChanges();
    expect(watchedFunctions(paths.changes)).toEqual(watched.toSorted());
    if (supportsPrograms('tracing'))
      expect([refused, watched]).toEqual([{}, expect.arrayContaining(['fib6_add'])]);
    else
      expect({ watched, refused, missing }).toEqual({
        watched: [],
        refused: { '*': expect.any(String) as string },
        missing: [],
      });
  });

  it('are removed without a trace', async () => {
    load();
    await load(wider).watchChanges();
    removePins(paths);
    expect(execFileSync('find', [dirname(paths.maps)], { encoding: 'utf8' }).trim()).toBe(
      dirname(paths.maps),
    );
    removePins(paths);
  });
});
