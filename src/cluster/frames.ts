// SPDX-License-Identifier: Apache-2.0
import { z } from 'zod';

/** The stream of a watch, or an object in it, is not what the API promises. */
export class FrameError extends Error {}

/** etcd refuses objects beyond 1.5 MiB; a longer frame is no Kubernetes object. */
const MAX_FRAME_BYTES = 4 << 20;

/** Cuts a byte stream into lines of valid UTF-8, wherever its chunks begin and end; empty lines are left out. */
export class Lines {
  readonly #maxBytes: number;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true });
  /** Of a line without its end. They are joined once: joining at each chunk would be quadratic for a slow sender. */
  #pieces: Uint8Array[] = [];
  #size = 0;

  constructor(maxBytes = MAX_FRAME_BYTES) {
    this.#maxBytes = maxBytes;
  }

  /**
   * @returns the lines that end in this chunk.
   * @throws FrameError when one is too long or no UTF-8.
   */
  push(chunk: Uint8Array): string[] {
    const lines: string[] = [];
    let start = 0;
    for (let end = chunk.indexOf(0x0a); end !== -1; end = chunk.indexOf(0x0a, start)) {
      const line = this.#take(chunk.subarray(start, end));
      start = end + 1;
      if (line.trim() !== '') lines.push(line);
    }
    if (start < chunk.length) {
      this.#pieces.push(chunk.subarray(start));
      this.#size += chunk.length - start;
    }
    if (this.#size > this.#maxBytes) {
      throw new FrameError(`a frame is longer than ${this.#maxBytes} bytes`);
    }
    return lines;
  }

  /** @throws FrameError when the stream ends within a line. */
  end(): void {
    if (this.#size === 0) return;
    throw new FrameError(`the stream ended in the middle of a frame, after ${this.#size} bytes of it`);
  }

  #take(last: Uint8Array): string {
    const line = this.#pieces.length === 0 ? last : Buffer.concat([...this.#pieces, last]);
    this.#pieces = [];
    this.#size = 0;
    try {
      return this.#decoder.decode(line);
    } catch (error) {
      throw new FrameError('a frame is no valid UTF-8', { cause: error });
    }
  }
}

const resourceVersion = z.string().regex(/^(0|[1-9]\d{0,19})$/, 'no decimal number');

/** What every object has that the reflector looks at. */
const objectMetaSchema = z.object({
  metadata: z.object({
    name: z.string().min(1).max(253),
    namespace: z.string().optional(),
    uid: z.string().min(1).max(128),
    resourceVersion,
  }),
});

export type ObjectMeta = z.infer<typeof objectMetaSchema>['metadata'];

const bookmarkSchema = z.object({ metadata: z.object({ resourceVersion }) });
const errorSchema = z.object({
  code: z.number().catch(0),
  reason: z.string().catch(''),
  message: z.string().catch(''),
  details: z
    .object({ retryAfterSeconds: z.number().nonnegative().optional().catch(undefined) })
    .nullish()
    .catch(undefined),
});
const frameSchema = z.object({ type: z.string(), object: z.custom<object>(isObject, 'no object') });

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null;
}

/** One event of a watch. `object` is the object without its managed fields; only its metadata has been checked. */
export type Frame =
  | { readonly type: 'ADDED' | 'MODIFIED' | 'DELETED'; readonly meta: ObjectMeta; readonly object: unknown }
  | { readonly type: 'BOOKMARK'; readonly resourceVersion: string }
  | {
      readonly type: 'ERROR';
      readonly code: number;
      readonly message: string;
      readonly retryAfterMs?: number;
    };

const MANAGED_FIELDS = ',"managedFields":[';

/**
 * The text of a JSON object without its `managedFields`: two thirds of a Node's metadata, which nobody here reads, and
 * most of the time that parsing takes. Such a key, with a comma before it, cannot be part of a string: there its quotes
 * would be escaped.
 */
export function withoutManagedFields(text: string): string {
  const start = text.indexOf(MANAGED_FIELDS);
  if (start === -1) return text;
  let depth = 1;
  for (let i = start + MANAGED_FIELDS.length; i < text.length; i++) {
    switch (text[i]) {
      case '"': // Skip the string.
        for (i++; i < text.length && text[i] !== '"'; i++) if (text[i] === '\\') i++;
        break;
      case '[':
      case '{':
        depth++;
        break;
      case ']':
      case '}':
        if (--depth === 0) return text.slice(0, start) + text.slice(i + 1);
        break;
      default:
    }
  }
  return text;
}

/** @throws FrameError when the line is no event. */
export function parseFrame(line: string): Frame {
  let json: unknown;
  try {
    json = JSON.parse(withoutManagedFields(line));
  } catch (error) {
    throw new FrameError(`a frame is no JSON: ${JSON.stringify(line.slice(0, 60))}`, { cause: error });
  }
  const { type, object } = shape(frameSchema, json, 'a frame');
  switch (type) {
    case 'ADDED':
    case 'MODIFIED':
    case 'DELETED':
      return { type, meta: shape(objectMetaSchema, object, `a frame of type ${type}`).metadata, object };
    case 'BOOKMARK':
      return { type, resourceVersion: shape(bookmarkSchema, object, 'a bookmark').metadata.resourceVersion };
    case 'ERROR': {
      const { code, reason, message, details } = shape(errorSchema, object, 'an ERROR');
      const seconds = details?.retryAfterSeconds;
      return {
        type,
        code,
        message: [reason, message].filter((text) => text !== '').join(': '),
        ...(seconds !== undefined && { retryAfterMs: seconds * 1000 }),
      };
    }
    default:
      throw new FrameError(`a frame has the unknown type ${JSON.stringify(type.slice(0, 40))}`);
  }
}

const listSchema = z.object({
  metadata: z.object({ resourceVersion, continue: z.string().optional() }),
  items: z.array(z.unknown()).nullable(),
});

export interface ListPage {
  readonly resourceVersion: string;
  /** Token for the next page; empty on the last. */
  readonly next: string;
  readonly objects: readonly { readonly meta: ObjectMeta; readonly object: unknown }[];
}

/** @throws FrameError when the answer to a list is none. */
export function parseListPage(json: unknown): ListPage {
  const { metadata, items } = shape(listSchema, json, 'the list');
  return {
    resourceVersion: metadata.resourceVersion,
    next: metadata.continue ?? '',
    objects: (items ?? []).map((object) => ({
      meta: shape(objectMetaSchema, object, 'an object of the list').metadata,
      object,
    })),
  };
}

function shape<S extends z.ZodType>(schema: S, json: unknown, what: string): z.infer<S> {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new FrameError(`${what} has a wrong shape: ${issue?.path.join('.') || 'it'}: ${issue?.message}`);
}

/**
 * Whether resourceVersion `a` is newer than `b`: decimal numbers of any size without leading zeros, which since
 * Kubernetes 1.35 may be compared. An empty text is older than all.
 */
export function newer(a: string, b: string): boolean {
  return a.length === b.length ? a > b : a.length > b.length;
}
