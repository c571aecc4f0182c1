// SPDX-License-Identifier: Apache-2.0
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { z } from 'zod';
import { errorText, RipstopError } from '../errors.ts';
import { hasLink } from '../host/links.ts';
import { addressFamily } from '../net/ip.ts';
import { normalizeMac } from '../net/mac.ts';
import type { AttachmentId } from './plugin.ts';

/** How long a file is not there before somebody else than the previous agent's DEL must have removed it, in ms. */
const MISSING_MS = 2000;

const mac = z.string().refine((text) => normalizeMac(text) !== undefined, 'is no MAC address');
const address = z.string().refine((text) => addressFamily(text) !== undefined, 'is no address');

const AttachmentFile = z.object({
  containerId: z.string(),
  /** The interface's name in the pod. */
  ifname: z.string(),
  /** Path of the pod's network namespace, as the runtime gave it. */
  netns: z.string(),
  /** The CNI network that it belongs to. */
  network: z.string(),
  hostIfname: z.string(),
  hostIfindex: z.int().positive(),
  hostMac: mac,
  podMac: mac,
  /** The pod's addresses without prefix lengths, one for each family, IPv4 first. */
  ips: z.array(address).min(1).readonly(),
  podNamespace: z.string().optional(),
  podName: z.string().optional(),
  /** Whether the pod stays on the kernel path, for example because a NetworkPolicy selects it. */
  kernelPath: z.boolean().optional(),
  /** The name of `kernelPath` in version 0.1.0. */
  slow: z.boolean().optional(),
});

/** A CNI attachment: one interface of a pod, and the data of its endpoints. */
export type Attachment = Readonly<Omit<z.infer<typeof AttachmentFile>, 'slow'>>;

/** A file that does not hold an attachment. */
export interface MalformedFile {
  /** The attachment that its name stands for. */
  readonly id: AttachmentId;
  readonly stamp: string;
  /** What is wrong, and what to do. */
  readonly why: string;
}

/**
 * The attachments of this node, one file for each: those that ADD created and DEL has not removed. They are files so
 * that the next agent and readers in other processes get them, and they are below /run so that a reboot, which ends all
 * pods, removes them. Only the agent writes them; it keeps their content in memory. All work on them is synchronous:
 * while a refresh waited for a file, a DEL could remove it, and the refresh would bring the attachment back.
 *
 * A malformed file, which a full disk or a person may leave, harms no other attachment: it counts as if it had its last
 * good content if this process knows that, and is written anew; else it is left out, and goes with its pod's DEL. So is the
 * file of a living pod that somebody removes while the agent runs.
 */
export class AttachmentStore {
  readonly #dir: string;
  /** By file name, with the stamp that the file had when it was read or written. */
  readonly #known = new Map<string, { readonly attachment: Attachment; readonly stamp: string }>();
  readonly #malformed = new Map<string, MalformedFile>();
  /** Since when files of attachments are not there, on the clock of `performance.now()`. */
  readonly #missingSince = new Map<string, number>();
  #isRead = false;

  /** @param runDir the agent's directory, e.g. `/run/ripstop`; the files are in `endpoints` below it. */
  constructor(runDir: string) {
    this.#dir = `${runDir}/endpoints`;
  }

  /**
   * Read the files that are new or changed since the last time, and drop those that are gone with their pod: the previous
   * agent may have finished a call after our start.
   */
  async refresh(): Promise<void> {
    const names = this.#names();
    // All other files are drafts of writes that are not finished; the next write of that attachment replaces its draft.
    const files = new Set(names.filter((name) => name.endsWith('.json')));
    for (const name of this.#malformed.keys()) if (!files.has(name)) this.#malformed.delete(name);
    for (const [name, { attachment }] of this.#known) this.#judgeMissing(name, attachment, files.has(name));
    for (const name of files) {
      const stamp = this.#stampOf(name);
      if (stamp === undefined || stamp === this.#malformed.get(name)?.stamp) continue;
      this.#malformed.delete(name);
      if (stamp === this.#known.get(name)?.stamp) continue;
      try {
        const attachment = readAttachment(this.#dir, name);
        if (attachment) this.#known.set(name, { attachment, stamp });
      } catch (error) {
        this.#malformed.set(name, { id: idOf(name), stamp, why: this.#repair(name) ?? errorText(error) });
      }
    }
    this.#isRead = true;
  }

  /** All attachments as of the last change or refresh, ordered by file name. */
  async list(): Promise<Attachment[]> {
    if (!this.#isRead) await this.refresh();
    return [...this.#known].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, { attachment }]) => attachment);
  }

  /** The malformed files, as of the last refresh. */
  get malformed(): readonly MalformedFile[] {
    return [...this.#malformed.values()];
  }

  /** Those of which this process does not know the last good content either. */
  get lost(): readonly AttachmentId[] {
    return [...this.#malformed].flatMap(([name, { id }]) => (this.#known.has(name) ? [] : [id]));
  }

  /** One attachment, or undefined, also when its file is malformed. */
  async get(id: AttachmentId): Promise<Attachment | undefined> {
    const name = fileName(id);
    try {
      return this.#known.get(name)?.attachment ?? readAttachment(this.#dir, name);
    } catch {
      return undefined;
    }
  }

  /**
   * Write one, atomically; its file is readable by root only. Not durable: a reboot ends the pods and empties /run. So
   * it takes no longer than a few system calls, and an ADD does not wait for other work of the process.
   * @throws RipstopError when the file system refuses.
   */
  put(attachment: Attachment): void {
    const name = fileName(attachment);
    const draft = `${this.#dir}/${name}.tmp`;
    try {
      mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
      writeFileSync(draft, encode(attachment), { mode: 0o600 });
      renameSync(draft, `${this.#dir}/${name}`);
    } catch (error) {
      throw new RipstopError(`cannot write ${this.#dir}/${name}: ${errorText(error)}`, { cause: error });
    }
    this.#known.set(name, { attachment, stamp: this.#stampOf(name) ?? '' });
    this.#malformed.delete(name);
  }

  /** Change one that there is, and nothing when a DEL has removed it meanwhile. */
  update(attachment: Attachment): void {
    if (this.#known.has(fileName(attachment))) this.put(attachment);
  }

  /** Remove one; it is no error if it does not exist. */
  async remove(id: AttachmentId): Promise<void> {
    const name = fileName(id);
    this.#known.delete(name);
    rmSync(`${this.#dir}/${name}`, { force: true, recursive: true });
    this.#malformed.delete(name);
  }

  /**
   * A file that is not there may be the work of the previous agent's DEL: then the veth goes a moment later. Somebody else
   * who removes it does not end the pod.
   */
  #judgeMissing(name: string, attachment: Attachment, isThere: boolean): void {
    const now = performance.now();
    const since = this.#missingSince.get(name) ?? now;
    if (isThere) {
      this.#missingSince.delete(name);
    } else if (!hasLink(attachment.hostIfname)) {
      this.#missingSince.delete(name);
      this.#known.delete(name);
    } else if (now - since < MISSING_MS) {
      this.#missingSince.set(name, since);
    } else {
      const why = this.#repair(name);
      if (why === undefined) return;
      this.#missingSince.delete(name);
      this.#malformed.set(name, { id: attachment, stamp: '', why });
    }
  }

  /** Write a malformed file anew. @returns what was done; undefined when nothing could be. */
  #repair(name: string): string | undefined {
    const known = this.#known.get(name);
    if (!known) return undefined;
    try {
      this.update(known.attachment);
      return `${this.#dir}/${name} did not hold its attachment any more, and was written anew`;
    } catch {
      return undefined;
    }
  }

  /** All that is in the directory. What else has its place is removed, or no pod could be added. */
  #names(): string[] {
    const stats = statSync(this.#dir, { throwIfNoEntry: false });
    if (stats?.isDirectory()) return readdirSync(this.#dir);
    if (stats) rmSync(this.#dir);
    return [];
  }

  /** Differs between a file and its replacement. */
  #stampOf(name: string): string | undefined {
    // Links are not followed: none is ours, and one that leads to itself cannot be.
    const stats = lstatSync(`${this.#dir}/${name}`, { throwIfNoEntry: false });
    return stats && `${stats.ino} ${stats.mtimeMs}`;
  }
}

function fileName({ containerId, ifname }: AttachmentId): string {
  // Both names may have hyphens. The last hyphen must be the separator, or two attachments could share a file.
  return `${containerId}-${ifname.replaceAll('-', '%2d')}.json`;
}

/** The inverse of {@link fileName}; of a file that somebody else made, some name. */
function idOf(name: string): AttachmentId {
  const stem = name.slice(0, -'.json'.length);
  const at = stem.lastIndexOf('-');
  return { containerId: stem.slice(0, Math.max(at, 0)), ifname: stem.slice(at + 1).replaceAll('%2d', '-') };
}

function encode(attachment: Attachment): string {
  return `${JSON.stringify(attachment, undefined, 2)}\n`;
}

function readAttachment(dir: string, name: string): Attachment | undefined {
  const file = `${dir}/${name}`;
  try {
    const stats = lstatSync(file, { throwIfNoEntry: false });
    if (!stats) return undefined;
    // Reading a pipe would wait for ever, and a link may lead anywhere.
    if (!stats.isFile()) throw new RipstopError('it is no file');
    const text = readFileSync(file, 'utf8');
    const { slow, kernelPath = slow, ...attachment } = AttachmentFile.parse(JSON.parse(text));
    if (fileName(attachment) !== name) throw new RipstopError(`it is that of ${fileName(attachment)}`);
    return { ...attachment, ...(kernelPath !== undefined && { kernelPath }) };
  } catch (error) {
    throw new RipstopError(
      `${file} does not hold an attachment; restart its pod, or remove it if there is none`,
      {
        cause: error,
        details: errorText(error),
      },
    );
  }
}
