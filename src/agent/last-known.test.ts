// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { dualStack, flannelNode } from '../cluster/nodes.support.ts';
import { parseNode, PeerTable } from '../cluster/index.ts';
import { parseOwnNode } from '../cluster/own-lease.ts';
import { parseCidr } from '../net/ip.ts';
import { decodeLastKnown, encodeLastKnown, type LastKnown, LastKnownFile } from './last-known.ts';

const scope = { nodeName: 'node-1', lease: dualStack };

/** A cluster as the agent of node 1 sees it. */
function known(nodes: number, changes: Record<string, string | null> = {}): LastKnown {
  const parsed = Array.from({ length: nodes }, (_, i) => {
    const n = i + 2;
    const hex = n
      .toString(16)
      .padStart(4, '0')
      .replace(/..(?=.)/, '$&:');
    const vtep = {
      'public-ip': `192.168.${1 + (n >> 8)}.${n & 255}`,
      'public-ipv6': `2001:db8::${n.toString(16)}`,
      'backend-data': `{"VNI":1,"VtepMAC":"0a:00:00:04:${hex}"}`,
      'backend-v6-data': `{"VNI":1,"VtepMAC":"0a:00:00:06:${hex}"}`,
    };
    const node = flannelNode(
      1,
      { ...vtep, ...(n === 2 && changes) },
      {
        uid: `uid-${n}`,
        podCIDRs: [`10.${64 + (n >> 8)}.${n & 255}.0/24`, `fd00:42:0:${n.toString(16)}::/64`],
      },
    );
    node.metadata.name = `node-${n}`;
    return parseNode(node, {
      ...dualStack,
      network: parseCidr('10.0.0.0/8'),
      ipv6Network: parseCidr('fd00:42::/32'),
    });
  });
  return {
    own: parseOwnNode(flannelNode(1), dualStack),
    peers: new PeerTable().update(parsed, { name: 'node-1', podCidrs: [] }).nodes,
  };
}

const textOf = (...what: Parameters<typeof encodeLastKnown>): string =>
  [...encodeLastKnown(...what)].join('');

describe('the last-known state', () => {
  it('is read as it was written', () => {
    const state = known(300, {
      'backend-v6-data': null,
      'public-ipv6': null,
      'public-ip-overwrite': '8.8.8.8',
    });
    expect(state.peers.find(({ name }) => name === 'node-2')).toMatchObject({ v4: { behindNat: true } });
    expect(state.peers.find(({ name }) => name === 'node-2')).not.toHaveProperty('v6');
    expect(decodeLastKnown(textOf(state, scope), scope)).toEqual(state);
  });

  it('is refused by a node of another name, network or backend', () => {
    const text = textOf(known(2), scope);
    const { ipv6Network: _v6, ...single } = dualStack;
    for (const [other, why] of [
      [{ ...scope, nodeName: 'node-2' }, 'its node is "node-1", and ours is "node-2"'],
      [{ ...scope, lease: { ...dualStack, vni: 7 } }, 'its vni is 1, and ours is 7'],
      [{ ...scope, lease: { ...dualStack, backend: 'host-gw' as const } }, 'its backend is "vxlan"'],
      [{ ...scope, lease: single }, 'its ipv6Network is "fd00:42::/56", and ours is null'],
    ] as const)
      expect(() => decodeLastKnown(text, other)).toThrow(why);
  });

  it('is refused when it is cut off anywhere, and when any value is invalid', () => {
    const text = textOf(known(2), scope);
    for (let end = 0; end < text.length - 2; end += 7)
      expect(() => decodeLastKnown(text.slice(0, end), scope)).toThrow('it is not JSON');
    for (const [from, to, why] of [
      ['"format":2', '"format":1', 'it is not of format 2'],
      ['"format":2', '"version":2', 'it is not of format 2'],
      ['"vtepIp":"192.168.1.2"', '"vtepIp":"192.168.1"', 'is no address'],
      ['"vtepMac":"0a:00:00:04:00:02"', '"vtepMac":"$(reboot)"', 'is no MAC address'],
      ['"podCidr":"10.64.2.0/24"', '"podCidr":"10.64.2.1/24"', 'peers.0.v4.podCidr'],
      ['"behindNat":false', '"behindNat":0', 'behindNat'],
    ] as const) {
      expect(text).toContain(from);
      expect(() => decodeLastKnown(text.replace(from, to), scope)).toThrow(why);
    }
    for (const other of ['null', '[]', '7', '{}'])
      expect(() => decodeLastKnown(other, scope)).toThrow('it is not of format 2');
  });

  it('of 15,000 peers is a few megabytes, written and read in well under a second', () => {
    const { own, peers } = known(1);
    const peer = peers[0]!;
    const podCidr = (i: number) => parseCidr(`10.${64 + (i >> 8)}.${i & 255}.0/24`);
    const state: LastKnown = {
      own,
      peers: Array.from({ length: 15_000 }, (_, i) => ({
        ...peer,
        name: `node-${i}`,
        v4: { ...peer.v4!, podCidr: podCidr(i) },
      })),
    };
    const [writing, text] = timed(() => textOf(state, scope));
    const [reading, back] = timed(() => decodeLastKnown(text, scope));
    expect(back.peers).toHaveLength(15_000);
    const sizes = `${(text.length / 1e6).toFixed(1)} MB, encoded in ${writing} ms, decoded in ${reading} ms`;
    console.log(`15,000 peers: ${sizes}`);
    expect(writing).toBeLessThan(1000);
    expect(reading).toBeLessThan(3000);
  });
});

function timed<T>(work: () => T): [ms: number, result: T] {
  const begun = performance.now();
  const result = work();
  return [Math.round(performance.now() - begun), result];
}

describe('its file', () => {
  let directory: string;
  let file: string;
  const said: string[] = [];
  const log = pino({ level: 'warn' }, { write: (line: string) => void said.push(line) });
  const open = (everyMs = 50): LastKnownFile => new LastKnownFile(file, scope, log, everyMs);

  beforeEach(async () => {
    directory = await mkdtemp(path.join(tmpdir(), 'ripstop-known-'));
    file = path.join(directory, 'deeper', 'last-known.json');
    said.length = 0;
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  it('is written at the first note, for root only, and read by the next agent', async () => {
    const state = known(3);
    expect(await open().read()).toBeUndefined();
    const one = open();
    one.note(state, 'a');
    await one.flush();
    const { at, ...back } = (await open().read())!;
    expect(back).toEqual(state);
    expect(Math.abs(Date.now() - at)).toBeLessThan(5000);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect(said).toEqual([]);
  });

  it('is not written again for an equal state, but its modification time is updated', async () => {
    const state = known(3);
    const one = open();
    one.note(state, 'a');
    await one.flush();
    const before = await stat(file);
    await sleep(60);
    one.note({ own: { ...state.own }, peers: [...state.peers] }, 'a');
    await expect.poll(async () => (await stat(file)).mtimeMs).toBeGreaterThan(before.mtimeMs);
    expect((await stat(file)).ino).toBe(before.ino);
  });

  it('holds the last of many states in a row, with few writes', async () => {
    const one = open(200);
    const states = Array.from({ length: 50 }, (_, i) => known(3, { 'public-ip': `192.168.2.${i + 1}` }));
    const inodes = new Set<number>();
    for (const state of states) {
      one.note(state, String(states.indexOf(state)));
      await sleep(5);
      inodes.add((await stat(file).catch(() => ({ ino: -1 }))).ino);
    }
    await expect.poll(async () => (await open().read())?.peers[0]?.v4?.vtepIp).toBe('192.168.2.50');
    expect(inodes.size).toBeLessThan(6);
  });

  it.each([
    ['broken', '{"format":1,', 'it is not JSON'],
    ['of another format', '{"format":0,"scope":{}}', 'it is not of format 2'],
    ['foreign', textOf(known(1), { ...scope, nodeName: 'other' }), 'its node is'],
  ])('that is %s is kept, with one warning, until there is a new state', async (_, text, why) => {
    const one = open();
    one.note(known(1), 'a');
    await one.flush();
    await writeFile(file, text);
    expect(await open().read()).toBeUndefined();
    expect(said).toHaveLength(1);
    expect(said[0]).toContain(why);
    expect(await readFile(file, 'utf8')).toBe(text);
    const next = open();
    next.note(known(1), 'a');
    await next.flush();
    expect((await next.read())?.peers).toHaveLength(1);
  });

  it('that cannot be written is logged once and retried', async () => {
    await writeFile(path.join(directory, 'deeper'), 'no directory');
    const one = open();
    for (let i = 0; i < 3; i++) {
      one.note(known(1, { 'public-ip': `192.168.2.${i + 1}` }), String(i));
      await one.flush();
    }
    expect(said).toHaveLength(1);
    await rm(path.join(directory, 'deeper'));
    one.note(known(1), 'a');
    await one.flush();
    expect((await one.read())?.peers).toHaveLength(1);
  });
});
