// SPDX-License-Identifier: Apache-2.0
/**
 * One archive for a bug report. What is in it is listed here, part by part: no directory is copied, and neither the
 * environment nor a kubeconfig is read. What looks like a secret in the text of others is replaced all the same.
 */
import { createWriteStream } from 'node:fs';
import { release } from 'node:os';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { pack } from 'tar-stream';
import packageJson from '../../../package.json' with { type: 'json' };
import { listLinks as listPinnedLinks } from '../../dataplane/links.ts';
import { layout } from '../../dataplane/layout.gen.ts';
import { pinPaths } from '../../dataplane/tables.ts';
import { errorText, RipstopError } from '../../errors.ts';
import { listIpsecPolicies } from '../../host/ipsec.ts';
import { listLinks } from '../../host/links.ts';
import { openNetlink } from '../../host/netlink.ts';
import { run } from '../../host/run.ts';
import { listNeighbours, listQdiscs, listRoutes, listRules, RT_TABLE } from '#netlink';
import { askAgent } from '../ask-agent.ts';
import { readFlows } from '../flows.ts';
import { exportMaps } from '../map-dump.ts';
import { listMaps } from '../maps.ts';
import { readEndpoints, readPeers } from '../rows.ts';
import { readStats } from '../stats.ts';
import type { Finding } from './check.ts';
import { renderFindings } from './index.ts';
import { observe, type Places } from './observe.ts';

const FAMILIES = [4, 6] as const;
/** A program that hangs must not keep the rest from being packed. */
const TIMEOUT_MS = 10_000;

/** The files of the archive, by name: text, or anything that is written as JSON. */
function partsOf(places: Places, findings: readonly Finding[]): Record<string, () => unknown> {
  const { bpffs, runDir } = places;
  const command =
    (program: string, ...args: string[]) =>
    () =>
      run(program, args, { timeoutMs: TIMEOUT_MS });
  const overNetlink =
    <T>(read: (socket: ReturnType<typeof openNetlink>) => T) =>
    () => {
      using socket = openNetlink({});
      return read(socket);
    };
  return {
    'findings.json': () => findings,
    'findings.txt': () => renderFindings(findings),
    'versions.json': () => ({
      ripstop: packageJson.version,
      layout: layout.version,
      kernel: release(),
      node: process.version,
      takenAt: new Date().toISOString(),
    }),
    'agent-status.json': async () => (await askAgent(runDir)) ?? { error: 'no agent answers' },
    'facts.json': () =>
      observe(
        places,
        new Set([
          'settings',
          'entries',
          'owners',
          'forward',
          'leases',
          'strangers',
          'checksums',
          'changes',
          'privileges',
        ]),
      ),
    'peers.json': async () => readPeers(bpffs, await askAgent(runDir)),
    'endpoints.json': () => readEndpoints(bpffs, runDir),
    'flows.json': async () => readFlows(bpffs, runDir, await askAgent(runDir)),
    'stats.json': () => readStats(bpffs),
    'maps.json': () => listMaps(bpffs),
    'maps-dump.json': () => exportMaps(bpffs, runDir),
    'attached.json': () => [...listPinnedLinks(pinPaths(bpffs).links)],
    'links.json': async () => [...(await listLinks()).values()],
    'routes.json': overNetlink((socket) =>
      FAMILIES.flatMap((family) => listRoutes(socket, { family, table: RT_TABLE.main })),
    ),
    'rules.json': overNetlink((socket) => FAMILIES.flatMap((family) => listRules(socket, family))),
    'neighbours.json': overNetlink((socket) => listNeighbours(socket)),
    'qdiscs.json': overNetlink((socket) => listQdiscs(socket)),
    'ipsec-policies.json': () => listIpsecPolicies(),
    'nft.txt': command('nft', 'list', 'ruleset'),
    'iptables.txt': command('iptables-save', '-c'),
    'ip6tables.txt': command('ip6tables-save', '-c'),
  };
}

/**
 * Write the archive; `-` is standard output. A part that cannot be had is in it as its error.
 * @returns the names of its files.
 * @throws RipstopError when the file cannot be written.
 */
export async function writeBundle(
  file: string,
  places: Places,
  findings: readonly Finding[],
): Promise<string[]> {
  const parts = partsOf(places, findings);
  const archive = pack();
  const files = await Promise.all(
    Object.entries(parts).map(async ([name, read]) => {
      try {
        const value = await read();
        return { name, text: redact(typeof value === 'string' ? value : toJson(value)) };
      } catch (error) {
        return { name: `${name}.error`, text: redact(`${errorText(error)}\n`) };
      }
    }),
  );
  for (const { name, text } of files)
    archive.entry({ name: `ripstop-doctor/${name}`, mode: 0o600, mtime: new Date() }, text);
  archive.finalize();
  const out = file === '-' ? process.stdout : createWriteStream(file, { mode: 0o600 });
  try {
    await pipeline(archive, createGzip(), out, { end: file !== '-' });
  } catch (cause) {
    throw new RipstopError(
      `cannot write ${file}: ${errorText(cause)}; give a file in a writable directory, or -`,
      {
        cause,
      },
    );
  }
  return files.map(({ name }) => name);
}

function toJson(value: unknown): string {
  const plain = (_: string, one: unknown): unknown =>
    one instanceof Map
      ? Object.fromEntries(one)
      : one instanceof Set
        ? [...one]
        : typeof one === 'bigint'
          ? String(one)
          : one;
  return `${JSON.stringify(value, plain, 1)}\n`;
}

/** What tokens, keys and passwords look like, wherever somebody has put them: a comment of a rule, an error's text. */
const SECRETS = [
  /\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*/g, // JSON Web Tokens, as of service accounts
  /-----BEGIN [A-Z ]*PRIVATE KEY-----[^]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g,
  /\b[a-z0-9]{6}\.[a-z0-9]{16}\b/g, // kubeadm's bootstrap tokens
  /\bK10[0-9a-f]{32,}::\S+/g, // k3s's tokens
  /(?<=\b(?:bearer|basic)\s+)[\w+/=.~-]{8,}/gi,
  /(?<=\b(?:token|password|passwd|secret|psk|api[_-]?key)["']?\s*[:=]\s*["']?)[^\s"',}]{4,}/gi,
  /(?<=:\/\/[^\s/:@]+:)[^\s/@]+(?=@)/g, // in URLs
];

/** The text without what looks like a secret. */
export function redact(text: string): string {
  return SECRETS.reduce((rest, pattern) => rest.replaceAll(pattern, '[left out]'), text);
}
