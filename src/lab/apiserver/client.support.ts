// SPDX-License-Identifier: Apache-2.0
import { once } from 'node:events';
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import https from 'node:https';
import type { ApiServer } from './server.ts';

/** An answer's body as the tests look at it: an object, a list or a Status. */
export interface Body {
  kind?: string;
  apiVersion?: string;
  reason?: string;
  message?: string;
  code?: number;
  metadata: {
    name?: string;
    uid?: string;
    resourceVersion: string;
    continue?: string;
    remainingItemCount?: number;
    generation?: number;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec?: Record<string, unknown>;
  status?: unknown;
  items?: Body[];
  details?: Record<string, unknown>;
}

export interface WatchEvent {
  type: string;
  object: Body;
}

export interface Answer {
  code: number;
  headers: IncomingHttpHeaders;
  text: string;
  /** The sizes of the pieces the body came in. */
  pieces: number[];
  body: Body;
}

export interface RequestOptions {
  body?: unknown;
  type?: string;
  /** `null`: no Authorization header. */
  token?: string | null;
  accept?: string;
  method?: string;
}

/** A bare HTTPS client: every request has a connection of its own, and nothing is retried. */
export class TestClient {
  readonly server: Pick<ApiServer, 'url' | 'caPem' | 'adminToken'>;
  readonly #open = new Set<IncomingMessage>();

  constructor(server: Pick<ApiServer, 'url' | 'caPem' | 'adminToken'>) {
    this.server = server;
  }

  /** Send a request and read its head. Rejects when the connection breaks first. */
  async open(path: string, options: RequestOptions = {}): Promise<IncomingMessage> {
    const { token = this.server.adminToken, accept, body, type = 'application/json' } = options;
    const text = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
    const request = https.request(this.server.url + path, {
      ca: this.server.caPem,
      agent: false,
      method: options.method ?? 'GET',
      headers: {
        ...(token !== null && { authorization: `Bearer ${token}` }),
        ...(accept && { accept }),
        // Node leaves the length of a DELETE's body out.
        ...(text !== undefined && { 'content-type': type, 'content-length': Buffer.byteLength(text) }),
      },
    });
    // Once there is a response, a broken connection shows there.
    request.on('error', () => {});
    request.end(text);
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    this.#open.add(response);
    return response;
  }

  /** A whole exchange. Rejects when the answer is cut off. */
  async request(path: string, options: RequestOptions = {}): Promise<Answer> {
    const response = await this.open(path, options);
    const chunks: Buffer[] = [];
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    const pieces = chunks.map(({ length }) => length);
    const isJson = response.headers['content-type'] === 'application/json';
    const answer = { code: response.statusCode ?? 0, headers: response.headers, text, pieces };
    return {
      ...answer,
      get body(): Body {
        return (isJson ? JSON.parse(text) : {}) as Body;
      },
    };
  }

  get(path: string, options?: RequestOptions): Promise<Answer> {
    return this.request(path, options);
  }

  post(path: string, body: unknown): Promise<Answer> {
    return this.request(path, { method: 'POST', body });
  }

  put(path: string, body: unknown): Promise<Answer> {
    return this.request(path, { method: 'PUT', body });
  }

  delete(path: string, body?: unknown): Promise<Answer> {
    return this.request(path, { method: 'DELETE', body });
  }

  patch(path: string, kind: 'strategic-merge' | 'merge' | 'json', body: unknown): Promise<Answer> {
    return this.request(path, { method: 'PATCH', body, type: `application/${kind}-patch+json` });
  }

  /** Begin a watch of nodes; `query` is what follows `watch=1&`. */
  async watch(query = '', options: RequestOptions & { path?: string } = {}): Promise<TestWatch> {
    return new TestWatch(await this.open(`${options.path ?? '/api/v1/nodes'}?watch=1&${query}`, options));
  }

  close(): void {
    for (const response of this.#open) response.destroy();
  }
}

/** A watch's stream, line by line. */
export class TestWatch {
  /** The sizes of the pieces the stream came in. */
  readonly pieces: number[] = [];
  /** How the stream ended: `'end'`, or the error's code. */
  readonly ended: Promise<string>;
  #text = '';
  #over = false;
  #wake: () => void = () => {};

  constructor(response: IncomingMessage) {
    response.setEncoding('utf8').on('data', (text: string) => {
      this.pieces.push(text.length);
      this.#text += text;
      this.#wake();
    });
    this.ended = new Promise((resolve) => {
      const over = (how: string): void => {
        this.#over = true;
        this.#wake();
        resolve(how);
      };
      response.on('end', () => over('end'));
      response.on('error', (error: NodeJS.ErrnoException) => over(error.code ?? error.message));
    });
  }

  /** The next line, or the rest when the stream has ended; undefined when there is no rest. */
  async line(): Promise<string | undefined> {
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end >= 0 || this.#over) {
        const line = end >= 0 ? this.#text.slice(0, end) : this.#text;
        this.#text = end >= 0 ? this.#text.slice(end + 1) : '';
        return end < 0 && line === '' ? undefined : line;
      }
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async next(): Promise<WatchEvent> {
    const line = await this.line();
    if (line === undefined) throw new Error('the watch ended');
    return JSON.parse(line) as WatchEvent;
  }

  /** The next events, as `TYPE name`. */
  async take(count: number): Promise<string[]> {
    const seen: string[] = [];
    while (seen.length < count) {
      const { type, object } = await this.next();
      seen.push(`${type} ${object.metadata.name ?? object.reason ?? ''}`.trim());
    }
    return seen;
  }

  /** Whether nothing arrives, and the stream does not end, for so long. */
  async silentFor(ms: number): Promise<boolean> {
    const before = this.#text.length;
    await Promise.race([this.ended, new Promise((resolve) => setTimeout(resolve, ms))]);
    return !this.#over && this.#text.length === before;
  }
}
