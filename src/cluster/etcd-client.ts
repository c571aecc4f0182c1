// SPDX-License-Identifier: Apache-2.0
/**
 * etcd's v3 API over gRPC, which is a POST on HTTP/2 whose body is messages of a length each (grpc.io, "gRPC over
 * HTTP2"), so Node's own HTTP/2 does. etcd's JSON gateway would not: it can be switched off, knows no users by client
 * certificate, and answers only where the server's own certificate also serves as a client's.
 */
import { readFile } from 'node:fs/promises';
import http2 from 'node:http2';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import tls from 'node:tls';
import { errorText, RipstopError } from '../errors.ts';
import type { EtcdOptions } from './etcd-options.ts';
import { authenticate, type Method } from './etcd-wire.ts';

/** The gRPC status codes that ripstop distinguishes. */
export const grpcStatus = {
  deadlineExceeded: 4,
  permissionDenied: 7,
  failedPrecondition: 9,
  unavailable: 14,
  unauthenticated: 16,
} as const;

/** A refusal by etcd or no answer from it. */
export class EtcdError extends RipstopError {
  /** gRPC's status code. */
  readonly code: number;

  constructor(message: string, code: number, options: { cause?: unknown } = {}) {
    super(message, options);
    this.code = code;
  }
}

const CONNECT_MS = 4_000;
const CALL_MS = 8_000;
/** Larger than any message of etcd by default, and small enough not to exhaust memory. */
const MAX_MESSAGE = 64 << 20;

/** A stream in both directions. */
export interface EtcdStream<Request, Response> extends AsyncDisposable {
  send(request: Request): void;
  /** Ends when the server ends it well. @throws EtcdError otherwise. */
  readonly responses: AsyncIterable<Response>;
}

/** One connection at a time, to the first endpoint that answers. */
export class EtcdClient {
  readonly #options: EtcdOptions;
  readonly #endpoints: readonly URL[];
  #at = 0;
  #session: Promise<http2.ClientHttp2Session> | undefined;
  #token: Promise<string | undefined> | undefined;
  #closed = false;

  /** @throws RipstopError when an endpoint is no address, or half of a pair of options is missing. */
  constructor(options: EtcdOptions) {
    this.#options = options;
    this.#endpoints = options.endpoints.map((text) => parseEndpoint(text, options));
    if (this.#endpoints.length === 0) {
      throw new RipstopError('no etcd endpoint given: name one with --etcd-endpoints', { exitCode: 2 });
    }
    requirePair(options, 'certfile', 'keyfile');
    requirePair(options, 'username', 'password');
  }

  /**
   * Ask and get the answer. With no answer from one endpoint the next is asked, so a request may be carried out more
   * than once.
   * @throws EtcdError when etcd refuses, or none of the endpoints answers.
   */
  async call<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    { signal, deadlineMs = CALL_MS }: { signal?: AbortSignal; deadlineMs?: number } = {},
  ): Promise<Response> {
    const encoded = method.encode(request);
    const endsAt = performance.now() + deadlineMs;
    let renewed = false;
    for (let attempt = 1; ; attempt++) {
      try {
        return method.decode(await this.#call(method.path, encoded, deadlineMs, signal));
      } catch (error) {
        if (signal?.aborted || this.#closed || !(error instanceof EtcdError)) throw error;
        if (isBadToken(error) && !renewed) {
          renewed = true;
          this.dropToken();
        } else if (!isNoAnswer(error) || attempt >= this.#endpoints.length || performance.now() > endsAt) {
          throw error;
        }
      }
    }
  }

  /** @throws EtcdError when no endpoint can be connected to; the stream's own end comes with its responses. */
  async stream<Request, Response>(
    method: Method<Request, Response>,
    signal: AbortSignal,
  ): Promise<EtcdStream<Request, Response>> {
    const stream = await this.#open(method.path, signal);
    const responses = async function* (): AsyncIterable<Response> {
      for await (const message of messagesOf(stream)) yield method.decode(message);
    };
    return {
      send: (request) => {
        if (!stream.destroyed) stream.write(frame(method.encode(request)));
      },
      responses: { [Symbol.asyncIterator]: () => responses()[Symbol.asyncIterator]() },
      [Symbol.asyncDispose]: async () => {
        stream.destroy();
      },
    };
  }

  /** Log in again before the next request: the server no longer accepts our token. */
  dropToken(): void {
    this.#token = undefined;
  }

  /** Use the next endpoint from now on: this one answers, but does not serve. */
  async nextEndpoint(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    this.#at = (this.#at + 1) % this.#endpoints.length;
    (await session?.catch(() => undefined))?.destroy();
  }

  /** End every call and the connection. */
  async close(): Promise<void> {
    this.#closed = true;
    (await this.#session?.catch(() => undefined))?.destroy();
  }

  async #call(
    path: string,
    encoded: Buffer,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<Buffer> {
    const deadline = AbortSignal.timeout(deadlineMs);
    const either = signal ? AbortSignal.any([signal, deadline]) : deadline;
    try {
      const stream = await this.#open(path, either, encoded);
      try {
        for await (const message of messagesOf(stream)) return message;
        throw new EtcdError('etcd answered with nothing', grpcStatus.unavailable);
      } finally {
        stream.destroy();
      }
    } catch (error) {
      if (error instanceof EtcdError && isNoAnswer(error)) await this.nextEndpoint();
      if (!deadline.aborted || signal?.aborted) throw error;
      await this.nextEndpoint();
      const why = `etcd at ${this.#endpoints.map(String).join(', ')} did not answer within ${deadlineMs / 1000} s`;
      throw new EtcdError(why, grpcStatus.deadlineExceeded, { cause: error });
    }
  }

  /** @param encoded the only request; left out: the stream stays open for more. */
  async #open(path: string, signal: AbortSignal, encoded?: Buffer): Promise<http2.ClientHttp2Stream> {
    const token = path === authenticate.path ? undefined : await this.#login();
    const session = await this.#connection(signal);
    signal.throwIfAborted();
    const headers = {
      ':method': 'POST',
      ':path': path,
      'content-type': 'application/grpc',
      te: 'trailers',
      'user-agent': 'ripstop',
      // A member that lost its leader says so instead of falling silent.
      hasleader: 'true',
      ...(token !== undefined && { token }),
    };
    let stream: http2.ClientHttp2Stream;
    try {
      stream = session.request(headers, { endStream: false, signal });
    } catch (error) {
      // As when the server has just said that it goes away.
      const why = `the connection to etcd broke: ${errorText(error)}`;
      throw new EtcdError(why, grpcStatus.unavailable, { cause: error });
    }
    // The reader of the messages gets the error; without a listener it would end the process.
    stream.on('error', () => {});
    if (encoded) stream.end(frame(encoded));
    return stream;
  }

  /** Our user's token, asked for once; undefined without a user. */
  #login(): Promise<string | undefined> {
    const { username, password } = this.#options;
    if (username === undefined || password === undefined) return Promise.resolve(undefined);
    this.#token ??= this.call(authenticate, { name: username, password }).then(
      ({ token }) => token,
      (error: unknown) => {
        this.#token = undefined;
        // Authentication is off.
        if (error instanceof EtcdError && error.code === grpcStatus.failedPrecondition) return undefined;
        throw error;
      },
    );
    return this.#token;
  }

  async #connection(signal: AbortSignal): Promise<http2.ClientHttp2Session> {
    for (let tries = 1; ; tries++) {
      if (this.#closed) throw new EtcdError('the connection to etcd was closed', grpcStatus.unavailable);
      this.#session ??= this.#connect(this.#endpoints[this.#at]!);
      const pending = this.#session;
      try {
        const session = await pending;
        if (!session.closed && !session.destroyed) return session;
        if (this.#session === pending) this.#session = undefined;
      } catch (error) {
        // All who waited for this connection get here; only one of them moves on to the next endpoint.
        if (this.#session === pending) {
          this.#session = undefined;
          this.#at = (this.#at + 1) % this.#endpoints.length;
        }
        if (tries >= this.#endpoints.length || signal.aborted) throw error;
      }
    }
  }

  async #connect(endpoint: URL): Promise<http2.ClientHttp2Session> {
    // Read each time: certificates are renewed in place.
    const { cafile, certfile, keyfile } = this.#options;
    const secure = endpoint.protocol === 'https:';
    const [ca, cert, key] = await Promise.all([cafile, certfile, keyfile].map(fileOf));
    const host = endpoint.hostname.replace(/^\[|\]$/g, '');
    const port = Number(endpoint.port) || (secure ? 443 : 80);
    // A socket of our own, because an HTTP/2 session does not tell why its socket was closed.
    const socket = secure
      ? tls.connect({
          host,
          port,
          ALPNProtocols: ['h2'],
          ...(net.isIP(host) === 0 && { servername: host }),
          ...(ca && { ca }),
          ...(cert && { cert }),
          ...(key && { key }),
        })
      : net.connect({ host, port });
    socket.setKeepAlive(true, 10_000);
    const session = http2.connect(endpoint, { createConnection: () => socket });
    session.on('error', () => {});
    session.on('close', () => session.destroy());
    const failed = new Promise<never>((_, reject) => {
      socket.once('error', reject);
      session.once('error', reject);
      session.once('close', () => reject(new Error('the connection was closed')));
    });
    failed.catch(() => {});
    const connected = new Promise<void>((resolve) => {
      // TLS and TCP alone prove little: a server that hangs completes them too.
      session.once('remoteSettings', () => resolve());
    });
    const late = new AbortController();
    try {
      await Promise.race([
        connected,
        failed,
        sleep(CONNECT_MS, undefined, { signal: late.signal }).then(() => {
          throw new Error(`no answer within ${CONNECT_MS / 1000} s`);
        }),
      ]);
    } catch (error) {
      session.destroy();
      throw new EtcdError(
        `cannot connect to etcd at ${endpoint.origin}: ${errorText(error)}`,
        grpcStatus.unavailable,
        {
          cause: error,
        },
      );
    } finally {
      late.abort();
    }
    return session;
  }
}

/** No request was answered, so another endpoint may do better. */
export function isNoAnswer({ code }: EtcdError): boolean {
  return code === grpcStatus.unavailable || code === grpcStatus.deadlineExceeded;
}

/** The server no longer knows our token, or it is from before the users were changed. */
function isBadToken({ code, message }: EtcdError): boolean {
  return (
    code === grpcStatus.unauthenticated ||
    /invalid auth token|revision of auth store|user name is empty/.test(message)
  );
}

function parseEndpoint(text: string, { cafile, certfile }: EtcdOptions): URL {
  const scheme = cafile === undefined && certfile === undefined ? 'http' : 'https';
  const url = URL.parse(text.includes('://') ? text : `${scheme}://${text}`);
  if (url && ['http:', 'https:'].includes(url.protocol) && url.hostname !== '' && url.username === '')
    return url;
  throw new RipstopError(`--etcd-endpoints: "${text}" is no address of etcd such as https://10.0.0.1:2379`, {
    exitCode: 2,
  });
}

function requirePair(options: EtcdOptions, one: keyof EtcdOptions, other: keyof EtcdOptions): void {
  if ((options[one] === undefined) === (options[other] === undefined)) return;
  const [there, missing] = options[one] === undefined ? [other, one] : [one, other];
  throw new RipstopError(`--etcd-${there} needs --etcd-${missing} beside it`, { exitCode: 2 });
}

async function fileOf(path: string | undefined): Promise<Buffer | undefined> {
  if (path === undefined) return undefined;
  try {
    return await readFile(path);
  } catch (error) {
    throw new EtcdError(
      `cannot read ${path} to connect to etcd: ${errorText(error)}`,
      grpcStatus.unavailable,
      {
        cause: error,
      },
    );
  }
}

/** A message on the wire: not compressed, its length, itself. */
function frame(message: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** The messages of a response, then its status. @throws EtcdError unless that is OK. */
async function* messagesOf(stream: http2.ClientHttp2Stream): AsyncGenerator<Buffer> {
  let status: http2.IncomingHttpHeaders | undefined;
  const note = (headers: http2.IncomingHttpHeaders): void => {
    if (headers['grpc-status'] !== undefined) status = headers;
    const http = Number(headers[':status'] ?? 200);
    if (http !== 200)
      status = { 'grpc-status': '14', 'grpc-message': `HTTP status ${http}: is this etcd's v3 API?` };
  };
  stream.on('response', note);
  stream.on('trailers', note);
  let rest: Buffer = Buffer.alloc(0);
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      while (rest.length >= 5) {
        const length = rest.readUInt32BE(1);
        if (rest[0] !== 0 || length > MAX_MESSAGE) {
          throw new EtcdError('etcd sent a message that is compressed or too long', grpcStatus.unavailable);
        }
        if (rest.length < 5 + length) break;
        yield rest.subarray(5, 5 + length);
        rest = rest.subarray(5 + length);
      }
    }
  } catch (error) {
    if (error instanceof EtcdError) throw error;
    throw new EtcdError(`the connection to etcd broke: ${errorText(error)}`, grpcStatus.unavailable, {
      cause: error,
    });
  }
  const code = status?.['grpc-status'];
  if (code === '0') return;
  const text = decodeMessage(String(status?.['grpc-message'] ?? 'the connection ended'));
  throw new EtcdError(`etcd: ${text}`, code === undefined ? grpcStatus.unavailable : Number(code));
}

/** gRPC percent-encodes its messages; one that is broken is shown as it is. */
function decodeMessage(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
