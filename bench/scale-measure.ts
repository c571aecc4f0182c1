// SPDX-License-Identifier: Apache-2.0
/** What a running agent costs and has done, as seen from outside of it. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { openTables } from '../src/dataplane/tables.ts';
import { listNft, NFT_TABLE } from '../src/host/nft.ts';
import { commandIn } from '../src/host/run.ts';
import { listedVteps } from '../src/host/vtep-set.ts';
import {
  fdbKey,
  fdbTarget,
  neighbourKey,
  neighbourTarget,
  peerRouteTarget,
} from '../src/host/vxlan-target.ts';
import { parseCidr } from '../src/net/ip.ts';
import type { Lease } from './scale-nodes.ts';
import { median } from './stats.ts';

/** In bytes. */
export interface Memory {
  /** Resident, of which the shared part is counted in full. */
  readonly rss: number;
  /** The most that was ever resident. */
  readonly peak: number;
  /** Resident, of which each page is shared out among those who have it. */
  readonly pss: number;
}

export function memoryOf(pid: number): Memory {
  const field = (file: string, name: string): number =>
    Number(
      new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(readFileSync(`/proc/${pid}/${file}`, 'utf8'))?.[1],
    ) * 1024;
  return { rss: field('status', 'VmRSS'), peak: field('status', 'VmHWM'), pss: field('smaps_rollup', 'Pss') };
}

/** USER_HZ of every Linux there is. */
const TICKS_PER_SECOND = 100;

/** Seconds of CPU time of a process and of all that it has started, dead or alive. */
export function cpuSeconds(pid: number): number {
  try {
    // After the program's name, in parentheses: state is the first field, utime to cstime the 12th to the 15th
    // (proc(5)).
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    const own = fields.slice(11, 15).reduce((sum, text) => sum + Number(text), 0) / TICKS_PER_SECOND;
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
    return children.reduce((sum, child) => sum + cpuSeconds(Number(child)), own);
  } catch {
    return 0; // Ended meanwhile.
  }
}

/** What an agent says that it did in a pass: how many entries it wrote and removed, by target. */
export interface Applied {
  /** ms since 1970. */
  readonly at: number;
  readonly changes: Readonly<Record<string, number>>;
}

/** The passes that changed anything, from an agent's log. */
export function appliedIn(log: string): Applied[] {
  return log.split('\n').flatMap((line) => {
    if (!line.includes('"msg":"applied"')) return [];
    const { time, changed } = JSON.parse(line) as { time: number; changed: string };
    const changes = Array.from(
      changed.matchAll(/([\w-]+) \+(\d+) -(\d+)/g),
      ([, target, written, removed]) => [target!, Number(written) + Number(removed)],
    );
    return [{ at: time, changes: Object.fromEntries(changes) as Record<string, number> }];
  });
}

/** The metrics of an agent. */
function scrape(socketPath: string): Promise<string> {
  return new Promise<string>((resolve, reject) => {
    request({ socketPath, path: '/metrics' }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => (text += part));
      response.on('end', () => resolve(text)).on('error', reject);
    })
      .on('error', reject)
      .end();
  });
}

/** How many passes an agent has made, by its metrics. */
export async function passesOf(socketPath: string): Promise<number> {
  const metrics = await scrape(socketPath);
  return Number(/^ripstop_reconcile_duration_seconds_count (\d+)/m.exec(metrics)?.[1]);
}

/** The median of a few scrapes, as who scrapes sees it, and how much text they are. */
export async function scrapeCost(socketPath: string): Promise<{ ms: number; bytes: number }> {
  const times: number[] = [];
  let bytes = 0;
  for (let i = 0; i < 11; i++) {
    const beganMs = performance.now();
    bytes = (await scrape(socketPath)).length;
    times.push(performance.now() - beganMs);
  }
  return { ms: median(times), bytes };
}

/** Follows what changes in a namespace's kernel path, whoever changes it. */
export class KernelWatch {
  events = 0;
  /** Of the last event, ms since 1970. */
  lastAt: number | undefined;
  readonly #children: { kill(): unknown }[];

  constructor(netns: string) {
    this.#children = [
      ['ip', 'monitor', 'link', 'address', 'route'],
      ['bridge', 'monitor', 'fdb'],
      ['nft', 'monitor'],
    ].map(([program, ...args]) => {
      const [file, ...argv] = commandIn(netns, program!, args);
      const child = spawn(file, argv, { stdio: ['ignore', 'pipe', 'ignore'] });
      child.stdout.on('data', (chunk: Buffer) => {
        this.lastAt = Date.now();
        for (const byte of chunk) if (byte === 0x0a) this.events++;
      });
      return child;
    });
  }

  stop(): void {
    for (const child of this.#children) child.kill();
  }
}

/** Where a node's peers are to be found. */
export interface Place {
  readonly netns: string;
  /** Where ripstop has pinned its maps. */
  readonly bpffs?: string;
}

/**
 * What of the peers' entries is not as it should be, in routes, neighbours, FDB and, of a ripstop node, the nft set
 * and the BPF maps. Nothing missing: an empty list.
 */
export async function missing(leases: readonly Lease[], { netns, bpffs }: Place): Promise<string[]> {
  const device = 'flannel.1';
  const [neighbours, fdb, routes] = await Promise.all([
    neighbourTarget({ netns }).list(),
    fdbTarget({ netns }).list(),
    bpffs === undefined ? undefined : peerRouteTarget({ netns }).list(),
  ]);
  const lacking: Record<string, number> = {};
  const expect = (what: string, holds: boolean): void => {
    if (!holds) lacking[what] = (lacking[what] ?? 0) + 1;
  };
  for (const { podCidr, publicIp, vtepMac } of leases) {
    const { base } = parseCidr(podCidr);
    expect('neighbours', neighbours.get(neighbourKey(device, base)) === vtepMac);
    expect('fdb', fdb.get(fdbKey(device, vtepMac)) === publicIp);
    if (routes) expect('routes', routes.get(podCidr)?.via === base);
  }
  if (bpffs !== undefined) {
    const set = listedVteps(await listNft(['set', ...NFT_TABLE, 'vteps4'], { netns }), 4);
    using tables = openTables(bpffs);
    const peers = new Map<string, string>();
    for (const [, { head, header }] of tables.peers.entries()) {
      if (head.flags !== 0) peers.set(head.vtep_ip, header.inner_ether.dst);
    }
    const vteps = new Map(tables.vteps.entries());
    for (const { publicIp, vtepMac } of leases) {
      expect('nft set', set.has(publicIp));
      expect('peers map', peers.get(publicIp) === vtepMac);
      expect('vteps map', vteps.has(publicIp));
    }
  }
  return Object.entries(lacking).map(([what, count]) => `${count} ${what}`);
}
