// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { rename, rm, writeFile } from 'node:fs/promises';
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
  /** The pod's address, without a prefix length. */
  ip: z.string(),
  podNamespace: z.string().optional(),
  podName: z.string().optional(),
  /** Kept off the fast path, e.g. because a NetworkPolicy selects the pod. */
  slow: z.boolean().optional(),
});

/** One pod's connection to this node: what an endpoint is made of. */
export type Attachment = Readonly<z.infer<typeof Attachment>>;

/**
 * The attachments of this node, one file for each: what ADD has promised and DEL not yet taken back. The agent derives
 * its endpoints from it, after a restart too. It lies below /run, so a reboot, which ends all pods, empties it.
 */
export class AttachmentStore {
  readonly #dir: string;
  readonly #attachments = new Map<string, Attachment>();

  /**
   * Read what an earlier agent has left.
   * @param dir e.g. `/run/ripstop/endpoints`; made if it is not there.
   * @throws RipstopError naming a file that is no attachment.
   */
  constructor(dir: string) {
    this.#dir = dir;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    // Everything else in the directory is a write that an agent did not live to finish; the next one replaces it.
    for (const name of readdirSync(dir).filter((name) => name.endsWith('.json'))) {
      this.#attachments.set(`${dir}/${name}`, readAttachment(`${dir}/${name}`));
    }
  }

  /** All attachments, in no order. */
  list(): Attachment[] {
    return [...this.#attachments.values()];
  }

  get(id: AttachmentId): Attachment | undefined {
    return this.#attachments.get(this.#file(id));
  }

  /** Write one, in place of what it was before: whole or not at all, readable by root only. */
  async put(attachment: Attachment): Promise<void> {
    const file = this.#file(attachment);
    await writeFile(`${file}.tmp`, `${JSON.stringify(attachment, undefined, 2)}\n`, { mode: 0o600 });
    await rename(`${file}.tmp`, file);
    this.#attachments.set(file, attachment);
  }

  /** Forget one; one that is not there is no error. */
  async remove(id: AttachmentId): Promise<void> {
    const file = this.#file(id);
    this.#attachments.delete(file);
    await rm(file, { force: true });
  }

  #file({ containerId, ifname }: AttachmentId): string {
    // Both names may hold hyphens; the last one must be ours, or two attachments could share a file.
    return `${this.#dir}/${containerId}-${ifname.replaceAll('-', '%2d')}.json`;
  }
}

function readAttachment(file: string): Attachment {
  try {
    return Attachment.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (error) {
    throw new RipstopError(`${file} does not hold an attachment; remove it and restart its pod`, {
      cause: error,
      details: errorText(error),
    });
  }
}
