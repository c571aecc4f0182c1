// SPDX-License-Identifier: Apache-2.0
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Random } from '../../test/support/random.ts';
import { tryRun } from '../host/run.ts';
import { CNI_PLUGINS } from '../lab/cni.ts';
import { HostLocalStore } from './host-local.ts';
import { CniError } from './spec.ts';

/** Addresses are allocated as host-local does, in its store, and beside it: the real one is the other party here. */

const missing = existsSync(`${CNI_PLUGINS}/host-local`)
  ? undefined
  : 'needs host-local (package containernetworking-plugins)';

const network = 'cbr0';
const IPV4 = '10.42.1.0/24';
const IPV6 = 'fd00:42:0:1::/64';

let dataDir: string;
let store: HostLocalStore;
beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), 'ripstop-host-local-'));
  store = new HostLocalStore(dataDir);
});
afterEach(() => rmSync(dataDir, { recursive: true }));

const pod = (containerId: string, ifname = 'eth0') => ({ containerId, ifname });
const fileOf = (name: string, of = dataDir): string => join(of, network, name);
const ours = (container: string, blocks: readonly string[] = [IPV4]): string[] =>
  store.allocate(network, blocks, pod(container));
const owners = (): Record<string, string> =>
  Object.fromEntries(store.list(network).map(({ ip, containerId }) => [ip, containerId]));

/** Execute the real host-local. @returns its addresses; none when it says that there are none. */
async function theirs(
  command: 'ADD' | 'DEL',
  container: string,
  blocks: readonly string[] = [IPV4],
  dir = dataDir,
): Promise<string[]> {
  const ipam = { type: 'host-local', dataDir: dir, ranges: blocks.map((subnet) => [{ subnet }]) };
  const { code, stdout } = await tryRun(`${CNI_PLUGINS}/host-local`, [], {
    env: {
      CNI_COMMAND: command,
      CNI_CONTAINERID: container,
      CNI_IFNAME: 'eth0',
      CNI_NETNS: '/run/netns/none',
      CNI_PATH: CNI_PLUGINS,
    },
    stdin: JSON.stringify({ cniVersion: '1.0.0', name: network, type: 'bridge', ipam }),
  });
  if (code === 0) {
    const { ips } = JSON.parse(stdout || '{"ips":[]}') as { ips: { address: string }[] };
    return ips.map(({ address }) => address.split('/')[0]!);
  }
  expect(stdout).toContain('no IP addresses available');
  return [];
}

/** Our allocation, in the words of {@link theirs}. */
function oursOrNone(of: HostLocalStore, container: string, blocks: readonly string[]): string[] {
  try {
    return of.allocate(network, blocks, pod(container));
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(CniError);
    expect(String(thrown)).toMatch(/all addresses of .* are taken; delete pods/);
    return [];
  }
}

describe('addresses', () => {
  it('are allocated in turn, without base, gateway and broadcast, until the block is exhausted', () => {
    const block = '10.42.1.8/29';
    expect(['a', 'b', 'c', 'd', 'e'].flatMap((name) => ours(name, [block]))).toEqual(
      [10, 11, 12, 13, 14].map((n) => `10.42.1.${n}`),
    );
    expect(() => ours('f', [block])).toThrow(
      `all addresses of ${block} are taken; ` +
        `delete pods on this node, or see whether ${dataDir}/cbr0 has leases of pods that are gone`,
    );
    store.release(network, pod('a'));
    store.release(network, pod('d'));
    expect(ours('f', [block])).toEqual(['10.42.1.10']);
    expect(ours('g', [block])).toEqual(['10.42.1.13']);
  });

  it('of both families are allocated together or not at all', () => {
    expect(ours('a', [IPV4, IPV6])).toEqual(['10.42.1.2', 'fd00:42:0:1::2']);
    const tiny = 'fd00:42:0:2::/126';
    expect(ours('b', [IPV4, tiny])).toEqual(['10.42.1.3', 'fd00:42:0:2::2']);
    expect(ours('c', [IPV4, tiny])).toEqual(['10.42.1.4', 'fd00:42:0:2::3']);
    expect(() => ours('d', [IPV4, tiny])).toThrow(`all addresses of ${tiny} are taken`);
    expect(Object.values(owners())).not.toContain('d');
  });

  it('that are asked for are given, the others are free ones', () => {
    const add = (container: string, asked: readonly string[], blocks = [IPV4, IPV6]): string[] =>
      store.allocate(network, blocks, pod(container), asked);
    expect(add('a', ['10.42.1.77'])).toEqual(['10.42.1.77', 'fd00:42:0:1::2']);
    expect(add('b', ['fd00:42:0:1::77', '10.42.1.9'])).toEqual(['10.42.1.9', 'fd00:42:0:1::77']);
    expect(owners()).toMatchObject({ '10.42.1.77': 'a', '10.42.1.9': 'b', 'fd00:42:0:1::77': 'b' });
    const before = owners();
    expect(() => add('c', ['10.42.1.77'])).toThrow(
      '10.42.1.77 that the runtime asks for is that of container "a"',
    );
    expect(() => add('c', ['10.42.1.5', 'fd00:42:0:1::77'])).toThrow('that of container "b"');
    expect(() => add('c', ['10.42.2.5'])).toThrow(
      `asks for the address 10.42.2.5, which is not in ${IPV4} or`,
    );
    expect(() => add('c', ['fd00:42:0:1::5'], [IPV4])).toThrow(`which is not in ${IPV4}`);
    expect(() => add('c', ['10.42.1.5', '10.42.1.6'])).toThrow(`a pod has one address of ${IPV4}`);
    for (const ip of ['10.42.1.0', '10.42.1.1', '10.42.1.255', 'fd00:42:0:1::', 'fd00:42:0:1::1'])
      expect(() => add('c', [ip]), ip).toThrow(`asks for the address ${ip}, which no pod can have`);
    writeFileSync(fileOf('10.42.1.6'), '');
    expect(() => add('c', ['10.42.1.6'])).toThrow('asks for is in use; see ');
    expect(owners()).toEqual(before);
    store.release(network, pod('a'));
    expect(add('c', ['10.42.1.77'], [IPV4])).toEqual(['10.42.1.77']);
  });

  it('are refused to an interface that already has one of the block, but not to another of the container', () => {
    ours('a');
    expect(() => ours('a')).toThrow(
      'container a already has the address 10.42.1.2 for eth0; the runtime must call DEL',
    );
    expect(() => ours('a', [IPV6, IPV4])).toThrow('already');
    expect(store.allocate(network, [IPV4], pod('a', 'net1'))).toEqual(['10.42.1.3']);
    expect(ours('a', ['10.42.2.0/24'])).toEqual(['10.42.2.2']);
    store.release(network, pod('a'));
    expect(store.list(network)).toMatchObject([{ ip: '10.42.1.3', ...pod('a', 'net1') }]);
  });

  it('whose file is empty, foreign, a directory or a link count as taken, and are not removed', () => {
    mkdirSync(fileOf('10.42.1.4'), { recursive: true });
    symlinkSync(fileOf('10.42.1.6'), fileOf('10.42.1.6'));
    writeFileSync(fileOf('10.42.1.2'), '');
    writeFileSync(fileOf('10.42.1.3'), 'of another program\n');
    expect(ours('a')).toEqual(['10.42.1.5']);
    expect(owners()).toEqual({ '10.42.1.5': 'a' });
    expect(store.malformed(network)).toEqual([]); // Somebody may be about to fill them.
    for (const ip of ['10.42.1.2', '10.42.1.3', '10.42.1.4', '10.42.1.5']) utimesSync(fileOf(ip), 1, 1);
    expect(store.malformed(network).map((why) => why.slice(dataDir.length))).toEqual(
      [2, 3, 4].map(
        (n) =>
          `/cbr0/10.42.1.${n} names no container, so nobody can use 10.42.1.${n}; remove it if no pod has that address`,
      ),
    );
    store.release(network, pod('a'));
    expect(readdirSync(join(dataDir, network)).filter((name) => name.startsWith('10.'))).toEqual([
      '10.42.1.2',
      '10.42.1.3',
      '10.42.1.4',
      '10.42.1.6',
    ]);
  });

  it('are seen as soon as a file that was empty is filled', () => {
    mkdirSync(join(dataDir, network), { recursive: true });
    writeFileSync(fileOf('10.42.1.2'), '');
    expect(owners()).toEqual({});
    writeFileSync(fileOf('10.42.1.2'), 'a\r\neth0');
    expect(owners()).toEqual({ '10.42.1.2': 'a' });
  });

  it('that an old host-local leased to the container, without an interface, are released', () => {
    mkdirSync(join(dataDir, network), { recursive: true });
    writeFileSync(fileOf('10.42.1.9'), 'old');
    expect(() => ours('old')).toThrow('already');
    store.release(network, pod('old'));
    expect(readdirSync(join(dataDir, network))).toEqual([]);
  });

  it('start at the beginning where the last one is unreadable or of another block', () => {
    mkdirSync(join(dataDir, network), { recursive: true });
    for (const [n, text] of [
      '',
      'rubbish',
      '10.9.9.9',
      '10.42.1.0',
      '10.42.1.255',
      '10.42.1.254',
    ].entries()) {
      writeFileSync(fileOf('last_reserved_ip.0'), text);
      expect(ours(`p${n}`), text).toEqual([`10.42.1.${n + 2}`]);
    }
    rmSync(fileOf('last_reserved_ip.0'));
    symlinkSync(fileOf('last_reserved_ip.0'), fileOf('last_reserved_ip.0'));
    expect(ours('link')).toEqual(['10.42.1.8']);
    rmSync(fileOf('last_reserved_ip.0'));
    mkdirSync(fileOf('last_reserved_ip.0'));
    expect(ours('last')).toEqual(['10.42.1.9']);
  });

  it('can be released and listed before there is any', () => {
    store.release(network, pod('a'));
    expect(store.list(network)).toEqual([]);
    expect(readdirSync(dataDir)).toEqual([]);
  });

  it('cannot be allocated when the directory cannot be written, and the error says so', () => {
    writeFileSync(join(dataDir, network), 'a file');
    expect(() => ours('a')).toThrow(/^cannot allocate an address in .*cbr0: E(EXIST|NOTDIR)/);
    expect(() => store.release(network, pod('a'))).toThrow(
      /^cannot release the addresses of container a in /,
    );
  });
});

describe.skipIf(missing)(`beside host-local${missing ? ` (skipped: ${missing})` : ''}`, () => {
  it('writes the same files, with the same contents and modes', async () => {
    const other = mkdtempSync(join(tmpdir(), 'ripstop-host-local-'));
    try {
      const blocks = [IPV4, IPV6];
      for (const container of ['a', 'b']) {
        expect(await theirs('ADD', container, blocks, other)).toEqual(ours(container, blocks));
      }
      await theirs('DEL', 'a', blocks, other);
      store.release(network, pod('a'));
      const contents = (of: string): object[] =>
        readdirSync(join(of, network))
          // Only host-local locks.
          .filter((name) => name !== 'lock')
          .map((name) => ({
            name,
            mode: statSync(fileOf(name, of)).mode,
            text: readFileSync(fileOf(name, of), 'latin1'),
          }));
      expect(contents(dataDir)).toEqual(contents(other));
      expect(statSync(join(dataDir, network)).mode).toBe(statSync(join(other, network)).mode);
    } finally {
      rmSync(other, { recursive: true });
    }
  });

  it.each([1, 2, 3])('hands out what host-local would have, call for call (seed %i)', async (seed) => {
    const random = new Random(seed);
    const other = mkdtempSync(join(tmpdir(), 'ripstop-host-local-'));
    const blocks = random.pick([['10.42.1.0/29'], ['10.42.1.0/30', IPV6], [IPV4, 'fd00:42:0:1::/125']]);
    const there: string[] = [];
    try {
      for (let n = 0; n < 40; n++) {
        if (there.length > 0 && random.below(5) < 2) {
          const [container] = there.splice(random.below(there.length), 1);
          await theirs('DEL', container!, blocks, other);
          store.release(network, pod(container!));
        } else {
          const expected = await theirs('ADD', `p${n}`, blocks, other);
          expect(oursOrNone(store, `p${n}`, blocks), `call ${n} of seed ${seed}`).toEqual(expected);
          if (expected.length > 0) there.push(`p${n}`);
        }
      }
    } finally {
      rmSync(other, { recursive: true });
    }
  });

  it.each([11, 12])(
    'shares one store with it, by turns, and each releases what the other leased (seed %i)',
    async (seed) => {
      const random = new Random(seed);
      const block = '10.42.1.0/28';
      const expected = new Map<string, string>();
      for (let n = 0; n < 60; n++) {
        const leased = expected.size > 0 && random.below(3) === 0 ? random.pick([...expected]) : undefined;
        if (leased) {
          const [ip, container] = leased;
          if (random.below(2) === 0) store.release(network, pod(container));
          else await theirs('DEL', container, [block]);
          expected.delete(ip);
        } else {
          const [ip] =
            random.below(2) === 0
              ? oursOrNone(store, `p${n}`, [block])
              : await theirs('ADD', `p${n}`, [block]);
          // All addresses but base, gateway and broadcast are handed out, by either.
          expect(ip === undefined, `call ${n} of seed ${seed}`).toBe(expected.size === 13);
          if (ip === undefined) continue;
          expect(expected.has(ip), `call ${n} of seed ${seed}: ${ip}`).toBe(false);
          expected.set(ip, `p${n}`);
        }
        expect(owners(), `call ${n} of seed ${seed}`).toEqual(Object.fromEntries(expected));
      }
    },
  );

  it('notices that an address has another owner, although its file has the same name', async () => {
    const block = '10.42.1.0/30';
    ours('a', [block]);
    expect(owners()).toEqual({ '10.42.1.2': 'a' });
    await theirs('DEL', 'a');
    expect(await theirs('ADD', 'b', [block])).toEqual(['10.42.1.2']);
    store.release(network, pod('a'));
    expect(owners()).toEqual({ '10.42.1.2': 'b' });
    expect(ours('b', [IPV6])).toHaveLength(1);
    store.release(network, pod('b'));
    expect(owners()).toEqual({});
  });

  it('allocates no address twice while both allocate and release at once', async () => {
    const block = '10.42.1.0/27';
    /** Addresses by pod. */
    const held = new Map<string, string>();
    const calls = { ours: 0, theirs: 0 };
    const hold = (container: string, ip: string | undefined): void => {
      if (ip === undefined) return;
      expect([...held.values()], `${ip}, given to ${container}`).not.toContain(ip);
      held.set(container, ip);
    };
    /** A pod to delete. It goes before its address is released, since that may be given anew at once. */
    const pick = (whose: string): string | undefined => {
      const container = [...held.keys()].find((name) => name.startsWith(whose));
      if (container !== undefined) held.delete(container);
      return container;
    };
    const until = performance.now() + 1500;
    const call = async (): Promise<void> => {
      while (performance.now() < until) {
        const n = calls.theirs++;
        hold(`theirs-${n}`, (await theirs('ADD', `theirs-${n}`, [block]))[0]);
        // Each also deletes what the other has added, as when a node changes over.
        const gone = pick(n % 3 === 0 ? 'ours' : 'theirs');
        if (gone !== undefined) await theirs('DEL', gone, [block]);
      }
    };
    const workers = [call(), call(), call()];
    while (performance.now() < until) {
      const n = calls.ours++;
      hold(`ours-${n}`, oursOrNone(store, `ours-${n}`, [block])[0]);
      await new Promise((resolve) => setTimeout(resolve, n % 3));
      const gone = pick(n % 3 === 0 ? 'theirs' : 'ours');
      if (gone !== undefined) store.release(network, pod(gone));
    }
    await Promise.all(workers);
    const expected = Object.fromEntries([...held].map(([container, ip]) => [ip, container]));
    expect(owners()).toEqual(expected);
    expect(Math.min(calls.ours, calls.theirs)).toBeGreaterThan(20);
    for (const container of held.keys()) store.release(network, pod(container));
    expect(owners()).toEqual({});
  });
});
