// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync, statSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { z } from 'zod';
import { errorText, RipstopError } from '../errors.ts';
import { readIfThere, writeAtomically } from '../host/files.ts';
import type { AttachmentId } from './plugin.ts';

const AttachmentFile = z.object({
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
  /** Whether the pod stays on the kernel path, for example because a NetworkPolicy selects it. */
  kernelPath: z.boolean().optional(),
  /** The name of `kernelPath` in version 0.1.0. */
  slow: z.boolean().optional(),
});

/** A CNI attachment: one interface of a pod, and the data of its endpoints. */
export type Attachment = Readonly<Omit<z.infer<typeof AttachmentFile>, 'slow'>>;

/**
 * The attachments of this node, one file for each: those that ADD created and DEL has not removed. They are files so
 * that the next agent and readers in other processes get them, and they are below /run so that a reboot, which ends all
 * pods, removes them. Only the agent writes them; it keeps their content in memory.
 */
export class AttachmentStore {
  readonly #dir: string;
  /** By file name, with the stamp that the file had when it was read or written. */
  readonly #known = new Map<string, { readonly attachment: Attachment; readonly stamp: string }>();
  #isRead = false;

  /** @param runDir the agent's directory, e.g. `/run/ripstop`; the files are in `endpoints` below it. */
  constructor(runDir: string) {
    this.#dir = `${runDir}/endpoints`;
  }

  /**
   * Read the files that are new or changed since the last time, and drop those that are gone: the previous agent may
   * have finished a call after our start.
   * @throws RipstopError naming a file that does not hold an attachment.
   */
  async refresh(): Promise<void> {
    const names = existsSync(this.#dir) ? readdirSync(this.#dir) : [];
    // All other files are drafts of writes that are not finished; the next write of that attachment replaces its draft.
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

  /** All attachments as of the last change or refresh, ordered by file name. */
  async list(): Promise<Attachment[]> {
    if (!this.#isRead) await this.refresh();
    return [...this.#known].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, { attachment }]) => attachment);
  }

  /** One attachment, or undefined. @throws RipstopError when its file does not hold an attachment. */
  async get(id: AttachmentId): Promise<Attachment | undefined> {
    const name = fileName(id);
    return this.#known.get(name)?.attachment ?? readAttachment(`${this.#dir}/${name}`);
  }

  /** Write one, atomically; its file is readable by root only. */
  async put(attachment: Attachment): Promise<void> {
    const name = fileName(attachment);
    const text = `${JSON.stringify(attachment, undefined, 2)}\n`;
    // Not durable: a reboot ends the pods and empties /run.
    await writeAtomically(`${this.#dir}/${name}`, text, {
      mode: 0o600,
      directoryMode: 0o700,
      durable: false,
    });
    this.#known.set(name, { attachment, stamp: this.#stampOf(name) ?? '' });
  }

  /** Remove one; it is no error if it does not exist. */
  async remove(id: AttachmentId): Promise<void> {
    const name = fileName(id);
    await rm(`${this.#dir}/${name}`, { force: true });
    this.#known.delete(name);
  }

  /** Differs between a file and its replacement. */
  #stampOf(name: string): string | undefined {
    const stats = statSync(`${this.#dir}/${name}`, { throwIfNoEntry: false });
    return stats && `${stats.ino} ${stats.mtimeMs}`;
  }
}

function fileName({ containerId, ifname }: AttachmentId): string {
  // Both names may have hyphens. The last hyphen must be the separator, or two attachments could share a file.
  return `${containerId}-${ifname.replaceAll('-', '%2d')}.json`;
}

async function readAttachment(file: string): Promise<Attachment | undefined> {
  const text = await readIfThere(file);
  if (text === undefined) return undefined;
  try {
    const { slow, kernelPath = slow, ...attachment } = AttachmentFile.parse(JSON.parse(text));
    return { ...attachment, ...(kernelPath !== undefined && { kernelPath }) };
  } catch (error) {
    throw new RipstopError(`${file} does not hold an attachment; remove it and restart its pod`, {
      cause: error,
      details: errorText(error),
    });
  }
}
