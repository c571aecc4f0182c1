// SPDX-License-Identifier: Apache-2.0
/**
 * The last-known state: what this node knew of itself and its peers, on disk, so that a node which reboots while the
 * API server is down still has a network. The file's modification time is when the state was last known to be current.
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

/** The version of the file's format. A file of another version is not read. */
const FORMAT = 2;
const WRITE_EVERY_MS = 10_000;
const PEERS_IN_CHUNK = 200;

export interface LastKnown {
  readonly own: OwnNode;
  /** No two of their podCIDRs overlap. */
  readonly peers: readonly PeerNode[];
}

/** The node and cluster that the state belongs to: it is useless for a node of another name, network or backend. */
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
  otherIps: z.array(address).exactOptional(),
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

/** One line of JSON, in chunks: with 15,000 peers it has 4 MB, which are not needed in memory at once. */
export function* encodeLastKnown({ own, peers }: LastKnown, scope: LastKnownScope): Generator<string> {
  const head = {
    format: FORMAT,
    scope: scopeOf(scope),
    own: { ...own, podCidrs: own.podCidrs.map(formatCidr) },
  };
  yield `${JSON.stringify(head).slice(0, -1)},"peers":[`;
  for (let from = 0; from < peers.length; from += PEERS_IN_CHUNK) {
    const piece = JSON.stringify(peers.slice(from, from + PEERS_IN_CHUNK).map(encodeNode)).slice(1, -1);
    yield from === 0 ? piece : `,${piece}`;
  }
  yield ']}\n';
}

/** The inverse of {@link encodeLastKnown}. @throws RipstopError saying why the text cannot be used. */
export function decodeLastKnown(text: string, scope: LastKnownScope): LastKnown {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new RipstopError('it is not JSON', { cause: error });
  }
  const head = Head.safeParse(json);
  if (!head.success) throw new RipstopError(`it is not of format ${FORMAT}`);
  const [theirs, ours] = [head.data.scope, scopeOf(scope)];
  for (const [key, value] of Object.entries(ours)) {
    if (theirs[key] === value) continue;
    throw new RipstopError(
      `its ${key} is ${JSON.stringify(theirs[key])}, and ours is ${JSON.stringify(value)}`,
    );
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

/** The file. Its content is written only when it changes, at most every ten seconds. */
export class LastKnownFile {
  readonly #path: string;
  readonly #scope: LastKnownScope;
  readonly #log: Logger;
  readonly #failure: LogOnce;
  readonly #everyMs: number;
  /** The revision that the file holds. */
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
      'cannot write the last-known state; after a reboot this node needs the API server; retrying',
    );
    this.#everyMs = everyMs;
  }

  /**
   * Read the file. `at` is when the state was last known to be current (ms since 1970). If the file cannot be used, the
   * log says why.
   */
  async read(): Promise<(LastKnown & { readonly at: number }) | undefined> {
    try {
      const text = await readIfThere(this.#path);
      if (text === undefined) return undefined;
      const { mtimeMs } = await stat(this.#path);
      return { ...decodeLastKnown(text, this.#scope), at: mtimeMs };
    } catch (error) {
      this.#log.warn({ file: this.#path, why: errorText(error) }, 'cannot use the last-known state');
      return undefined;
    }
  }

  /** Note the present state of the cluster, and of our own Node with the MACs of our lease. Returns at once. */
  noteCluster(own: OwnNode, lease: OwnLease, { nodes, peersRevision }: ClusterSnapshot): void {
    // Peers may know the MACs of our lease before our Node shows them to us.
    const known = {
      own: { ...own, vtepMac: perFamily((family) => lease[familyKey(family)]?.vtepMac) },
      peers: nodes,
    };
    this.note(known, `${peersRevision} ${JSON.stringify(known.own)}`);
  }

  /** Note the present state. Returns at once. @param revision the same revision stands for the same state. */
  note(known: LastKnown, revision: string): void {
    this.#latest = { known, revision };
    if (this.#timer !== undefined) return;
    const wait = Math.max(0, this.#touchedAt + this.#everyMs - performance.now());
    // An unchanged state only needs its modification time updated, at the next regular write.
    if (wait > 0 && this.#writtenRevision === revision) return;
    this.#timer = setTimeout(() => void this.flush(), wait);
  }

  /** Write the noted state now. Never throws; failures are logged. */
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
