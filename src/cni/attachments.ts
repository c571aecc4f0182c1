// SPDX-License-Identifier: Apache-2.0
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { z } from 'zod';
import { errorText, RipstopError } from '../errors.ts';
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
 * The attachments of this node, one file for each: what ADD has promised and DEL not yet taken back. The agent derives
 * its endpoints from it, after a restart too, and so do readers in other processes: nothing is kept in memory. It lies
 * below /run, so a reboot, which ends all pods, empties it.
 */
export class AttachmentStore {
  readonly #dir: string;

  /** @param runDir the agent's directory, e.g. `/run/ripstop`; the files are in `endpoints` below it. */
  constructor(runDir: string) {
    this.#dir = `${runDir}/endpoints`;
  }

  /** All attachments. @throws RipstopError naming a file that is none. */
  async list(): Promise<Attachment[]> {
    const names = (await orMissing(readdir(this.#dir))) ?? [];
    // Everything else in the directory is a write that is not finished, or never was; the next one replaces it.
    const files = names.filter((name) => name.endsWith('.json')).sort();
    const attachments = await Promise.all(files.map((name) => readAttachment(`${this.#dir}/${name}`)));
    return attachments.filter((attachment) => attachment !== undefined);
  }

  /** One of them, or undefined. @throws RipstopError when its file holds something else. */
  get(id: AttachmentId): Promise<Attachment | undefined> {
    return readAttachment(this.#file(id));
  }

  /** Write one, in place of what it was before: whole or not at all, readable by root only. */
  async put(attachment: Attachment): Promise<void> {
    const file = this.#file(attachment);
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    await writeFile(`${file}.tmp`, `${JSON.stringify(attachment, undefined, 2)}\n`, { mode: 0o600 });
    await rename(`${file}.tmp`, file);
  }

  /** Forget one; one that is not there is no error. */
  async remove(id: AttachmentId): Promise<void> {
    await rm(this.#file(id), { force: true });
  }

  #file({ containerId, ifname }: AttachmentId): string {
    // Both names may hold hyphens; the last one must be ours, or two attachments could share a file.
    return `${this.#dir}/${containerId}-${ifname.replaceAll('-', '%2d')}.json`;
  }
}

async function readAttachment(file: string): Promise<Attachment | undefined> {
  const text = await orMissing(readFile(file, 'utf8'));
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

async function orMissing<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
