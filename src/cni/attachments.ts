// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync, statSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { z } from 'zod';
import { errorText, RipstopError } from '../errors.ts';
import { readIfThere, writeAtomically } from '../host/files.ts';
import type { AttachmentId } from './plugin.ts';

const Attachment = z.object({
  containerId: z.string(),
  /** The interface's name in the pod. */
  ifname: z.string(),
  /** Path of the pod's network namespace, as the runtime gave it. */
  netns: z.string(),
  /** The CNI network that it belongs to. */
  network: z.string(),
  hostIfname: z.string(),
  hostIfindex: z.number(),
  hostMac: z.string(),
  podMac: z.string(),
  /** The pod's addresses without prefix lengths, one for each family, IPv4 first. */
  ips: z.array(z.string()).min(1).readonly(),
  podNamespace: z.string().optional(),
  podName: z.string().optional(),
  /** Kept off the fast path, e.g. because a NetworkPolicy selects the pod. */
  slow: z.boolean().optional(),
});

/** One pod's connection to this node: what an endpoint is made of. */
export type Attachment = Readonly<z.infer<typeof Attachment>>;

/**
 * The attachments of this node, one file for each: what ADD has promised and DEL not yet taken back. Files, so that the next
 * agent derives its endpoints from them, and readers in other processes too; below /run, so that a reboot, which ends all
 * pods, empties them. An agent is the only one who writes them, and has what they hold in memory.
 */
export class AttachmentStore {
  readonly #dir: string;
  /** By file name, each with what its file looked like when it was read or written. */
  readonly #known = new Map<string, { readonly attachment: Attachment; readonly stamp: string }>();
  #isRead = false;

  /** @param runDir the agent's directory, e.g. `/run/ripstop`; the files are in `endpoints` below it. */
  constructor(runDir: string) {
    this.#dir = `${runDir}/endpoints`;
  }

  /**
   * Read the files that came or changed, and forget those that went, since the last time: the agent that this one succeeds
   * may have finished a call after our start. @throws RipstopError naming a file that is no attachment.
   */
  async refresh(): Promise<void> {
    const names = existsSync(this.#dir) ? readdirSync(this.#dir) : [];
    // Everything else in the directory is a write that is not finished, or never was; the next one replaces it.
    const files = new Set(names.filter((name) => name.endsWith('.json')));
    for (const name of this.#known.keys()) if (!files.has(name)) this.#known.delete(name);
    for (const name of files) {
      const stamp = this.#stampOf(name);
      if (stamp === undefined || stamp === this.#known.get(name)?.stamp) continue;
      const attachment = await readAttachment(`${this.#dir}/${name}`);
      if (attachment) this.#known.set(name, { attachment, stamp });
    }
    this.#isRead = true;
  }

  /** All attachments, as of the last change or refresh, in the order of their names. */
  async list(): Promise<Attachment[]> {
    if (!this.#isRead) await this.refresh();
    return [...this.#known].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, { attachment }]) => attachment);
  }

  /** One of them, or undefined. @throws RipstopError when its file holds something else. */
  async get(id: AttachmentId): Promise<Attachment | undefined> {
    const name = fileName(id);
    return this.#known.get(name)?.attachment ?? readAttachment(`${this.#dir}/${name}`);
  }

  /** Write one, in place of what it was before: whole or not at all, readable by root only. */
  async put(attachment: Attachment): Promise<void> {
    const name = fileName(attachment);
    const text = `${JSON.stringify(attachment, undefined, 2)}\n`;
    // A reboot ends the pods, and empties /run with them.
    await writeAtomically(`${this.#dir}/${name}`, text, {
      mode: 0o600,
      directoryMode: 0o700,
      durable: false,
    });
    this.#known.set(name, { attachment, stamp: this.#stampOf(name) ?? '' });
  }

  /** Forget one; one that is not there is no error. */
  async remove(id: AttachmentId): Promise<void> {
    const name = fileName(id);
    await rm(`${this.#dir}/${name}`, { force: true });
    this.#known.delete(name);
  }

  /** What tells a file that was replaced from the one before. */
  #stampOf(name: string): string | undefined {
    const stats = statSync(`${this.#dir}/${name}`, { throwIfNoEntry: false });
    return stats && `${stats.ino} ${stats.mtimeMs}`;
  }
}

function fileName({ containerId, ifname }: AttachmentId): string {
  // Both names may hold hyphens; the last one must be ours, or two attachments could share a file.
  return `${containerId}-${ifname.replaceAll('-', '%2d')}.json`;
}

async function readAttachment(file: string): Promise<Attachment | undefined> {
  const text = await readIfThere(file);
  if (text === undefined) return undefined;
  try {
    return Attachment.parse(JSON.parse(text));
  } catch (error) {
    throw new RipstopError(`${file} does not hold an attachment; remove it and restart its pod`, {
      cause: error,
      details: errorText(error),
    });
  }
}
