// SPDX-License-Identifier: Apache-2.0
import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { z } from 'zod';
import { errorText } from '../errors.ts';
import { type CniRequest, type CniResponse, requestDecoder } from './protocol.ts';
import { CniCode } from './spec.ts';

/**
 * Where the shim stores the DELs that it received while no agent answered. Like the leases, they must survive a reboot.
 */
export const deferredDir = (stateDir: string): string => join(stateDir, 'deferred');

/** Files that were set aside since they hold no valid DEL: what that means, and what to do. */
export async function listSetAside(dir: string): Promise<string[]> {
  const names = await readdir(join(dir, MALFORMED)).catch(() => []);
  return names
    .toSorted((a, b) => (a < b ? -1 : 1))
    .map(
      (name) =>
        `${join(dir, MALFORMED, name)} holds no valid DEL; remove it, and its address stays leased until the runtime calls GC`,
    );
}

/** A DEL that failed is retried after this time. */
const RETRY_MS = 30_000;
/** An older draft was left by a shim that was killed: a running shim gives up sooner. */
const DRAFT_MAX_MS = 300_000;
/** The subdirectory for files that do not hold a valid DEL, to be examined by a person. */
const MALFORMED = 'malformed';

/** Errors that are due to the request itself, so that a retry is useless. */
const permanentErrors: readonly number[] = [
  CniCode.incompatibleVersion,
  CniCode.unsupportedField,
  CniCode.environment,
  CniCode.decode,
  CniCode.config,
];

const ErrorAnswer = z.object({ code: z.number(), msg: z.string() });

/** The result of one pass over the deferred DELs. */
export interface CarriedOut {
  readonly done: number;
  /** The reasons why the others are still deferred. */
  readonly failed: readonly string[];
}

/**
 * The DELs that arrived while no agent answered (shim/ripstop-cni.c says which are kept). Each is a file with the
 * request as the shim would have sent it, one for each attachment, so their order does not matter. The file is removed
 * when the DEL is done. A crash in between does no harm, since DEL may be done twice.
 */
export class DeferredDels {
  readonly #dir: string;
  readonly #del: (request: CniRequest) => Promise<CniResponse>;
  readonly #log: Logger;
  /** The DELs that failed: when each is retried (on the monotonic clock), and why it failed. */
  readonly #failures = new Map<string, { retryAtMs: number; why: string }>();
  #last: Promise<unknown> = Promise.resolve();
  #stopped = false;

  /** @param options.del carries a request out; never throws. */
  constructor(options: { dir: string; del: (request: CniRequest) => Promise<CniResponse>; log: Logger }) {
    this.#dir = options.dir;
    this.#del = options.del;
    this.#log = options.log;
  }

  /**
   * Carry out all deferred DELs, one after another. Resolves when all that were deferred at the time of the call are
   * done or have failed. Never throws.
   */
  carryOut(): Promise<CarriedOut> {
    const turn = this.#last.then(() => this.#pass());
    this.#last = turn;
    return turn;
  }

  /** Start no other DEL; resolves when the one under way is done. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#last;
  }

  async #pass(): Promise<CarriedOut> {
    let done = 0;
    const failed: string[] = [];
    for (const name of await this.#due()) {
      if (this.#stopped) break;
      const why = await this.#carryOutOne(name).catch(errorText);
      if (why === undefined) done++;
      else failed.push(`${name}: ${why}`);
      this.#note(name, why);
    }
    return { done, failed };
  }

  /** The names of the files that are due. */
  async #due(): Promise<string[]> {
    const names = await readdir(this.#dir).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') this.#note('', errorText(error));
      return [];
    });
    const now = performance.now();
    for (const name of names.filter((name) => name.startsWith('.'))) await this.#removeOldDraft(name);
    return names.filter((name) => {
      if (name.startsWith('.') || name === MALFORMED) return false;
      return (this.#failures.get(name)?.retryAtMs ?? 0) <= now;
    });
  }

  async #removeOldDraft(name: string): Promise<void> {
    const path = join(this.#dir, name);
    const { mtimeMs } = (await stat(path).catch(() => undefined)) ?? { mtimeMs: Infinity };
    if (Date.now() - mtimeMs > DRAFT_MAX_MS) await rm(path, { force: true }).catch(() => {});
  }

  /** @returns why it failed and must be retried; undefined when it is done or set aside. */
  async #carryOutOne(name: string): Promise<string | undefined> {
    const file = join(this.#dir, name);
    let request: CniRequest;
    try {
      // Reading a pipe would wait for ever.
      if (!(await stat(file)).isFile()) throw new Error('it is no file');
      request = parseDel(await readFile(file));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      return this.#setAside(name, errorText(error));
    }
    const { exitCode, stdout } = await this.#del(request);
    if (exitCode !== 0) {
      const { code, msg } = ErrorAnswer.parse(JSON.parse(Buffer.from(stdout).toString()));
      return permanentErrors.includes(code) ? this.#setAside(name, msg) : msg;
    }
    await rm(file, { force: true });
    const { CNI_CONTAINERID: containerId, CNI_IFNAME: ifname } = request.env;
    this.#log.info({ containerId, ifname }, 'carried out a DEL that was deferred while no agent answered');
    return undefined;
  }

  async #setAside(name: string, why: string): Promise<undefined> {
    const to = join(this.#dir, MALFORMED);
    await mkdir(to, { recursive: true, mode: 0o700 });
    await rename(join(this.#dir, name), join(to, name));
    const error = `${join(to, name)} does not hold a valid DEL: ${why}`;
    this.#log.error({ error }, 'a DEL is lost; its address stays leased until the runtime calls GC');
  }

  /** Log each failure once. */
  #note(name: string, why: string | undefined): void {
    const before = this.#failures.get(name)?.why;
    if (why === undefined) this.#failures.delete(name);
    else this.#failures.set(name, { retryAtMs: performance.now() + RETRY_MS, why });
    if (why !== undefined && why !== before)
      this.#log.warn({ file: join(this.#dir, name), why }, 'a deferred DEL failed; retrying');
  }
}

/** @throws Error when it is not a request, or not that of a DEL. */
function parseDel(bytes: Buffer): CniRequest {
  const request = requestDecoder().push(bytes);
  if (!request) throw new Error(`it ends too early, after ${bytes.length} bytes`);
  const { CNI_COMMAND: command = '' } = request.env;
  if (command !== 'DEL') throw new Error(`its command is ${JSON.stringify(command)}`);
  // Without the namespace, which DEL does not need: its path (/proc/PID/ns/net) may lead to another pod's by now.
  return { ...request, env: { ...request.env, CNI_NETNS: '' } };
}
