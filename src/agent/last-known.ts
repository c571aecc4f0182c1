// SPDX-License-Identifier: Apache-2.0
/**
 * What this node last knew of itself and its peers, on disk: so that a node which reboots while the API server is down
 * still has a network. The file's time of modification says when all of it was last known to be true.
 */
import { stat, utimes } from 'node:fs/promises';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { ClusterSnapshot, LeaseSettings, OwnLease, OwnNode, Peer, PeerNode } from '../cluster/index.ts';
import { errorText, RipstopError } from '../errors.ts';
import { readIfThere, writeAtomically } from '../host/files.ts';
import { LogOnce } from '../log-once.ts';
import { addressFamily, type Cidr, familyKey, formatCidr, parseCidr, perFamily } from '../net/ip.ts';
import { normalizeMac } from '../net/mac.ts';

/** Of the file. Another number is another format, and none of ours. */
const FORMAT = 2;
const WRITE_EVERY_MS = 10_000;
const PEERS_IN_PIECE = 200;

export interface LastKnown {
  readonly own: OwnNode;
  /** No two of their podCIDRs overlap. */
  readonly peers: readonly PeerNode[];
}

/** Whose knowledge it is: under another name, network or backend it is worth nothing. */
export interface LastKnownScope {
  readonly nodeName: string;
  readonly lease: LeaseSettings;
}

const cidr = z
  .string()
  .max(64)
  .transform((text, context) => {
    try {
      return parseCidr(text);
    } catch (error) {
      context.addIssue(errorText(error));
      return z.NEVER;
    }
  });
const address = z.string().refine((text) => addressFamily(text) !== undefined, 'is no address');
const mac = z.string().refine((text) => normalizeMac(text) === text, 'is no MAC address');

const PeerFile = z.object({
  podCidr: cidr,
  vtepIp: address,
  vtepMac: mac,
  behindNat: z.boolean(),
  zeroChecksum: z.boolean(),
}) satisfies z.ZodType<Omit<Peer, 'name'>>;

const NodeFile = z
  .object({
    name: z.string(),
    uid: z.string(),
    createdAt: z.number(),
    v4: PeerFile.exactOptional(),
    v6: PeerFile.exactOptional(),
  })
  .transform(({ v4, v6, ...node }) => ({
    ...node,
    ...(v4 && { v4: { name: node.name, ...v4 } }),
    ...(v6 && { v6: { name: node.name, ...v6 } }),
  })) satisfies z.ZodType<PeerNode>;

const bothFamilies = <T extends z.ZodType>(schema: T) =>
  z.object({ v4: schema.exactOptional(), v6: schema.exactOptional() });

const OwnFile = z.object({
  name: z.string(),
  uid: z.string(),
  podCidrs: z.array(cidr),
  annotations: z.record(z.string(), z.string()),
  vtepMac: bothFamilies(mac),
  nodePublicIp: bothFamilies(address),
  internalIp: bothFamilies(address),
  flannelIsUp: z.boolean(),
}) satisfies z.ZodType<OwnNode>;

const Head = z.object({ format: z.literal(FORMAT), scope: z.record(z.string(), z.unknown()) });
const Body = z.object({ own: OwnFile, peers: z.array(NodeFile) });

/** As one line of JSON, in pieces: of 15,000 peers it has 4 MB, which nobody needs at once. */
export function* encodeLastKnown({ own, peers }: LastKnown, scope: LastKnownScope): Generator<string> {
  const head = {
    format: FORMAT,
    scope: scopeOf(scope),
    own: { ...own, podCidrs: own.podCidrs.map(formatCidr) },
  };
  yield `${JSON.stringify(head).slice(0, -1)},"peers":[`;
  for (let from = 0; from < peers.length; from += PEERS_IN_PIECE) {
    const piece = JSON.stringify(peers.slice(from, from + PEERS_IN_PIECE).map(encodeNode)).slice(1, -1);
    yield from === 0 ? piece : `,${piece}`;
  }
  yield ']}\n';
}

/** The inverse. @throws RipstopError saying why this text is of no use here. */
export function decodeLastKnown(text: string, scope: LastKnownScope): LastKnown {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new RipstopError('it is no JSON', { cause: error });
  }
  const head = Head.safeParse(json);
  if (!head.success) throw new RipstopError(`it is not of format ${FORMAT}`);
  const [theirs, ours] = [head.data.scope, scopeOf(scope)];
  for (const [key, value] of Object.entries(ours)) {
    if (theirs[key] === value) continue;
    throw new RipstopError(`its ${key} is ${JSON.stringify(theirs[key])}, and ours ${JSON.stringify(value)}`);
  }
  const body = Body.safeParse(json);
  if (body.success) return body.data;
  const [issue] = body.error.issues;
  throw new RipstopError(`${issue?.path.join('.')}: ${issue?.message}`, { cause: body.error });
}

function encodeNode(node: PeerNode): object {
  const parts = perFamily((family) => {
    const { name: _, podCidr, ...rest } = node[familyKey(family)] ?? {};
    return podCidr && { ...rest, podCidr: formatCidr(podCidr) };
  });
  return { ...node, ...parts };
}

function scopeOf({ nodeName, lease }: LastKnownScope): Record<string, string | number | null> {
  const network = (one: Cidr | undefined): string | null => (one ? formatCidr(one) : null);
  return {
    node: nodeName,
    network: network(lease.network),
    ipv6Network: network(lease.ipv6Network),
    backend: lease.backend,
    vni: lease.vni ?? null,
  };
}

/** The file, written at most every ten seconds and only for a change. */
export class LastKnownFile {
  readonly #path: string;
  readonly #scope: LastKnownScope;
  readonly #log: Logger;
  readonly #failure: LogOnce;
  readonly #everyMs: number;
  /** What the file holds, or is about to. */
  #writtenRevision: string | undefined;
  #latest: { readonly known: LastKnown; readonly revision: string } | undefined;
  #touchedAt = Number.NEGATIVE_INFINITY;
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> = Promise.resolve();

  constructor(path: string, scope: LastKnownScope, log: Logger, everyMs: number = WRITE_EVERY_MS) {
    this.#path = path;
    this.#scope = scope;
    this.#log = log;
    this.#failure = new LogOnce(
      log,
      'cannot keep the last-known state; after a reboot this node needs the API server',
    );
    this.#everyMs = everyMs;
  }

  /** What is of use, and since when it may be untrue (ms since 1970). Of a file that is none, the log tells why. */
  async read(): Promise<(LastKnown & { readonly at: number }) | undefined> {
    try {
      const text = await readIfThere(this.#path);
      if (text === undefined) return undefined;
      const { mtimeMs } = await stat(this.#path);
      return { ...decodeLastKnown(text, this.#scope), at: mtimeMs };
    } catch (error) {
      this.#log.warn({ file: this.#path, why: errorText(error) }, 'the last-known state is of no use here');
      return undefined;
    }
  }

  /** Note the cluster as it is now, our own Node with the MACs of our lease; returns at once. */
  noteCluster(own: OwnNode, lease: OwnLease, { nodes, peersRevision }: ClusterSnapshot): void {
    // Our Node names the MACs only when the API server has answered what we publish; peers may use them before.
    const known = {
      own: { ...own, vtepMac: perFamily((family) => lease[familyKey(family)]?.vtepMac) },
      peers: nodes,
    };
    this.note(known, `${peersRevision} ${JSON.stringify(known.own)}`);
  }

  /** This is how things are now; returns at once. @param revision the same for the same. */
  note(known: LastKnown, revision: string): void {
    this.#latest = { known, revision };
    if (this.#timer !== undefined) return;
    const wait = Math.max(0, this.#touchedAt + this.#everyMs - performance.now());
    // What is the same need not be made known before its time comes anyway.
    if (wait > 0 && this.#writtenRevision === revision) return;
    this.#timer = setTimeout(() => void this.flush(), wait);
  }

  /** Write what is noted now. Never throws: see the log. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#touchedAt = performance.now();
    return (this.#writing = this.#writing.then(() => this.#write()));
  }

  async #write(): Promise<void> {
    const latest = this.#latest;
    if (!latest) return;
    try {
      const now = new Date();
      if (this.#writtenRevision === latest.revision) await utimes(this.#path, now, now);
      else await writeAtomically(this.#path, encodeLastKnown(latest.known, this.#scope), { mode: 0o600 });
      this.#writtenRevision = latest.revision;
      this.#failure.over();
    } catch (error) {
      this.#writtenRevision = undefined;
      this.#failure.met(error);
    }
  }
}
