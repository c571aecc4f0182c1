// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import http, { type ClientRequest, type IncomingMessage } from 'node:http';
import https, { type RequestOptions } from 'node:https';
import { access, readFile } from 'node:fs/promises';
import path from 'node:path';
import { TLSSocket } from 'node:tls';
import type { KubeConfig } from '@kubernetes/client-node';
import { z } from 'zod';
import { errorText, RipstopError } from '../errors.ts';

/** Why a request to the API server failed. */
export class ApiError extends RipstopError {
  /** The HTTP status of the answer; undefined when there was none. */
  readonly status: number | undefined;
  /**
   * Kubernetes' reason (`Gone`, `Forbidden`), an errno code (`ECONNRESET`), `NoConnection`, `Deadline`, `BadAnswer` or
   * `Credentials`.
   */
  readonly reason: string;
  /** How long the server asks us to wait. */
  readonly retryAfterMs: number | undefined;

  constructor(
    message: string,
    options: {
      status?: number;
      reason: string;
      retryAfterMs?: number | undefined;
      cause?: unknown;
      details?: string;
    },
  ) {
    super(message, options);
    this.status = options.status;
    this.reason = options.reason;
    this.retryAfterMs = options.retryAfterMs;
  }

  /** Whether nobody received the packets. Retrying soon then costs no server anything. */
  get nobodyThere(): boolean {
    return NOBODY_THERE.has(this.reason);
  }
}

/** Reasons that mean that nobody received the packets. */
const NOBODY_THERE: ReadonlySet<string> = new Set([
  'NoConnection',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
]);

export interface ApiClientOptions {
  /** A kubeconfig file; the pod's service account when left out. */
  kubeconfig?: string;
  /** A kubeconfig that has been read already, in place of a file. */
  config?: KubeConfig;
  /** The rights that its user needs, for errors. Default: those of an agent. */
  needs?: string;
  /** Where the service account's files are looked for, before `/var/run/secrets/…`. For tests. */
  root?: string;
}

export type Query = Readonly<Record<string, string | number | boolean | undefined>>;

export interface RequestSettings {
  query?: Query;
  /** Sent as JSON. */
  body?: unknown;
  /** Of the body. Default `application/json`. */
  contentType?: string;
  /** Media types to answer in, as in the HTTP header. Default `application/json`. */
  accept?: string;
  /** Until the whole answer is here; for a stream, until its headers are. Default 30 s. */
  deadlineMs?: number;
  signal?: AbortSignal;
}

/** What a request needs of the kubeconfig. */
interface Credentials {
  readonly server: URL;
  readonly headers: Record<string, string>;
  readonly agent: http.Agent;
  /** Hash of everything that the agent was made from. */
  readonly fingerprint: string;
  /** On the monotonic clock. */
  readonly readAtMs: number;
}

/** Tokens that rotate on disk stay valid for minutes after that: client-go re-reads them this often too. */
const CREDENTIALS_MAX_AGE_MS = 60_000;
/** A page of 100 Nodes has up to 3 MB; an API server has no reason to send more than this. */
const MAX_BODY_BYTES = 64 << 20;
/** Until TCP is connected. A lost SYN is sent again after one second; an unanswered one tells nothing. */
const CONNECT_MS = 3_000;
/** From there until TLS is ready: an API server to which all nodes return at once is slow. */
const HANDSHAKE_MS = 10_000;
/** Idle time before TCP asks whether the other side is still there (then every second, ten times). */
const TCP_KEEPALIVE_MS = 15_000;

const SERVICE_ACCOUNT_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount/token';

const statusSchema = z.object({
  kind: z.literal('Status'),
  message: z.string().catch(''),
  reason: z.string().catch(''),
  details: z
    .object({ retryAfterSeconds: z.number().nonnegative().optional().catch(undefined) })
    .nullish()
    .catch(undefined),
});

/**
 * Requests to the Kubernetes API server: plain node:https with the credentials of a kubeconfig. Credentials are read
 * again when they are a minute old and after every failure that could be theirs, so rotated tokens and certificates
 * take effect without a restart. @kubernetes/client-node takes half a second to load, hence only on first use.
 */
export class ApiClient {
  readonly #options: ApiClientOptions;
  #credentials: Credentials | undefined;

  private constructor(options: ApiClientOptions) {
    this.#options = options;
  }

  /**
   * Check that the credentials can be read; nothing is sent yet, so the API server may be down.
   * @throws RipstopError naming the kubeconfig and what to do.
   */
  static async open(options: ApiClientOptions = {}): Promise<ApiClient> {
    await loadKubeConfig(options);
    return new ApiClient(options);
  }

  /** Close idle connections and end those in use. */
  close(): void {
    this.#credentials?.agent.destroy();
    this.#credentials = undefined;
  }

  /**
   * One request and its JSON answer, to be parsed by the caller.
   * @throws ApiError for every failure.
   */
  async request(method: string, path: string, settings: RequestSettings = {}): Promise<unknown> {
    const { deadlineMs = 30_000 } = settings;
    return withDeadline(deadlineMs, settings.signal, `${method} ${path}`, async (signal) => {
      const response = await this.#send(method, path, settings, signal);
      const text = await this.#readBody(response, `${method} ${path}`);
      try {
        return JSON.parse(text) as unknown;
      } catch (error) {
        throw new ApiError(
          `${method} ${path}: the answer is no JSON (${errorText(error).slice(0, 100)}); ` +
            `is ${this.#host} a Kubernetes API server?`,
          { reason: 'BadAnswer', cause: error },
        );
      }
    });
  }

  /**
   * A GET whose body is read as it comes. The caller must read it to its end or `destroy()` it.
   * @throws ApiError when there is no success status within the deadline.
   */
  async stream(path: string, settings: RequestSettings = {}): Promise<IncomingMessage> {
    const { deadlineMs = 30_000 } = settings;
    return withDeadline(deadlineMs, settings.signal, `GET ${path}`, (signal) =>
      this.#send('GET', path, settings, signal),
    );
  }

  get #host(): string {
    return this.#credentials?.server.origin ?? 'the server';
  }

  /** Send, and return the response once its status says success. */
  async #send(
    method: string,
    path: string,
    settings: RequestSettings,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const credentials = await this.#currentCredentials();
    signal.throwIfAborted();
    let response: IncomingMessage;
    try {
      response = await roundTrip(credentials, method, path, settings, signal);
    } catch (error) {
      this.#credentialsMayBeStale();
      throw this.#unreachable(error, `${method} ${path}`);
    }
    const status = response.statusCode ?? 0;
    if (status >= 200 && status < 300) return response;
    if (status === 401 || status === 403) this.#credentialsMayBeStale();
    const body = await this.#readBody(response, `${method} ${path}`).catch(() => '');
    const { needs = 'nodes get, list, watch and nodes/status patch' } = this.#options;
    const retryAfter = response.headers['retry-after'];
    throw statusError(`${method} ${path}`, status, retryAfter, body, { credentials: this.#source, needs });
  }

  async #readBody(response: IncomingMessage, what: string): Promise<string> {
    const chunks: Buffer[] = [];
    let size = 0;
    try {
      for await (const chunk of response as AsyncIterable<Buffer>) {
        chunks.push(chunk);
        size += chunk.length;
        if (size > MAX_BODY_BYTES) break;
      }
    } catch (error) {
      throw this.#unreachable(error, what);
    }
    if (size > MAX_BODY_BYTES) {
      throw new ApiError(`${what}: the answer is larger than ${MAX_BODY_BYTES >> 20} MiB`, {
        reason: 'BadAnswer',
      });
    }
    return Buffer.concat(chunks).toString('utf8');
  }

  #unreachable(error: unknown, what: string): ApiError {
    if (error instanceof ApiError) return error;
    const reason = error instanceof Error && 'code' in error ? String(error.code) : 'Unreachable';
    // A failed dual-stack connect is an AggregateError without a message of its own.
    const parts = error instanceof AggregateError && error.message === '' ? error.errors : [error];
    const options = { reason, cause: error };
    const why = `${what}: ${this.#host} cannot be reached: ${parts.map(errorText).join(', ')}`;
    return new ApiError(`${why}; ${this.#advice(reason)}`, options);
  }

  #advice(reason: string): string {
    if (/CERT|ALTNAME|SELF_SIGNED|SIGNATURE|^ERR_SSL/.test(reason))
      return "check the kubeconfig's certificate authority and server name";
    // The service account comes with the address of the Service `kubernetes`.
    const { kubeconfig, config } = this.#options;
    if (kubeconfig === undefined && config === undefined && NOBODY_THERE.has(reason))
      return 'this is KUBERNETES_SERVICE_HOST, which kube-proxy serves on this node: it may not run yet';
    return 'is the API server up and reachable from this node?';
  }

  get #source(): string {
    const { kubeconfig, config } = this.#options;
    return kubeconfig ?? (config ? `context ${config.getCurrentContext()}` : 'the service account');
  }

  /** Read them again before the next request; the connections stay if nothing changed. */
  #credentialsMayBeStale(): void {
    if (this.#credentials) this.#credentials = { ...this.#credentials, readAtMs: -Infinity };
  }

  async #currentCredentials(): Promise<Credentials> {
    const old = this.#credentials;
    if (old && performance.now() - old.readAtMs < CREDENTIALS_MAX_AGE_MS) return old;
    let fresh: Credentials;
    try {
      fresh = await readCredentials(await loadKubeConfig(this.#options), old);
    } catch (error) {
      throw new ApiError(`cannot read the credentials of ${this.#source}: ${errorText(error)}`, {
        reason: 'Credentials',
        cause: error,
      });
    }
    this.#credentials = fresh;
    return fresh;
  }
}

async function loadKubeConfig(options: ApiClientOptions): Promise<KubeConfig> {
  if (options.config) return options.config;
  const { KubeConfig } = await import('@kubernetes/client-node');
  const config = new KubeConfig();
  const { kubeconfig, root = '' } = options;
  if (kubeconfig === undefined) {
    const token = `${root}${SERVICE_ACCOUNT_TOKEN}`;
    const inPod = process.env['KUBERNETES_SERVICE_HOST'] && process.env['KUBERNETES_SERVICE_PORT'];
    if (
      !inPod ||
      !(await access(token).then(
        () => true,
        () => false,
      ))
    ) {
      throw new RipstopError(
        `no kubeconfig was given and this is no pod with a service account ` +
          `(KUBERNETES_SERVICE_HOST and ${token} are needed); name one with --kubeconfig`,
      );
    }
    config.loadFromCluster(root);
    return config;
  }
  try {
    config.loadFromFile(kubeconfig);
    await useTokenFile(config, kubeconfig);
  } catch (error) {
    throw new RipstopError(
      `cannot read the kubeconfig ${kubeconfig}: ${errorText(error)}; ` +
        `check the path given with --kubeconfig and its permissions`,
      { cause: error },
    );
  }
  const server = config.getCurrentCluster()?.server;
  if (!server || !URL.canParse(server)) {
    throw new RipstopError(
      `the kubeconfig ${kubeconfig} has no usable cluster: its current-context ` +
        `${JSON.stringify(config.getCurrentContext() ?? '')} leads to ` +
        `${server ? `the server ${JSON.stringify(server)}` : 'none'}; ` +
        `see kubectl --kubeconfig ${kubeconfig} config view`,
    );
  }
  return config;
}

const usersSchema = z.object({
  users: z.array(
    z.object({ name: z.string(), user: z.object({ tokenFile: z.string().optional() }).nullish() }),
  ),
});

/** kubectl's `tokenFile`, which KubeConfig does not know; like client-go it comes before `token`. */
async function useTokenFile(config: KubeConfig, kubeconfig: string): Promise<void> {
  const current = config.getCurrentUser();
  const { load } = await import('js-yaml');
  const parsed = usersSchema.safeParse(load(await readFile(kubeconfig, 'utf8')));
  const tokenFile = parsed.data?.users.find(({ name }) => name === current?.name)?.user?.tokenFile;
  if (!current || !tokenFile) return;
  const token = await readFile(path.resolve(path.dirname(kubeconfig), tokenFile), 'utf8');
  config.users = config.users.map((user) => (user === current ? { ...user, token: token.trim() } : user));
}

/** Ask the KubeConfig for headers and TLS material. Its own agent has no keep-alive, so only a proxy's is used. */
async function readCredentials(config: KubeConfig, old: Credentials | undefined): Promise<Credentials> {
  const cluster = config.getCurrentCluster()!;
  const options: RequestOptions = {};
  await config.applyToHTTPSOptions(options);
  const { ca, cert, key, servername, rejectUnauthorized } = options;
  const tls = { ca, cert, key, servername, rejectUnauthorized };
  const fingerprint = createHash('sha256')
    .update(JSON.stringify([cluster.server, cluster.proxyUrl, tls]))
    .digest('hex');
  const headers: Record<string, string> = {};
  // A token file often ends in a newline, which no header may contain.
  for (const [name, value] of Object.entries(options.headers ?? {})) headers[name] = String(value).trim();
  if (options.auth) headers['Authorization'] = `Basic ${Buffer.from(options.auth).toString('base64')}`;
  const server = new URL(cluster.server);
  let agent = old?.agent;
  if (!agent || old?.fingerprint !== fingerprint) {
    const defined = Object.fromEntries(Object.entries(tls).filter(([, value]) => value !== undefined));
    // An agent's timeout closes idle sockets only: those of an agent that a new certificate replaced go that way.
    const keepAlive = { keepAlive: true, timeout: 90_000 };
    if (cluster.proxyUrl) agent = options.agent as http.Agent;
    else if (server.protocol === 'http:') agent = new http.Agent(keepAlive);
    else agent = new https.Agent({ ...keepAlive, ...defined });
  }
  return { server, headers, agent, fingerprint, readAtMs: performance.now() };
}

/** One request on one connection; sent again on another when the server had closed a kept one. */
async function roundTrip(
  credentials: Credentials,
  method: string,
  path: string,
  settings: RequestSettings,
  signal: AbortSignal,
): Promise<IncomingMessage> {
  const url = new URL(credentials.server);
  url.pathname = `${url.pathname.replace(/\/$/, '')}${path}`;
  for (const [name, value] of Object.entries(settings.query ?? {})) {
    if (value !== undefined) url.searchParams.set(name, String(value));
  }
  const body = settings.body === undefined ? undefined : JSON.stringify(settings.body);
  const headers = {
    ...credentials.headers,
    accept: settings.accept ?? 'application/json',
    'user-agent': 'ripstop',
    ...(body !== undefined && {
      'content-type': settings.contentType ?? 'application/json',
      'content-length': Buffer.byteLength(body),
    }),
  };
  const { request } = url.protocol === 'http:' ? http : https;
  for (;;) {
    let reused = false;
    try {
      return await new Promise<IncomingMessage>((resolve, reject) => {
        const sent = request(url, { method, headers, agent: credentials.agent, signal });
        limitConnecting(sent);
        sent.once('response', resolve);
        sent.on('error', (error) => {
          reused = sent.reusedSocket;
          reject(error);
        });
        // A watch only reads: without probes it would never learn that its peer is gone.
        sent.once('socket', (socket) => socket.setKeepAlive(true, TCP_KEEPALIVE_MS));
        sent.end(body);
      });
    } catch (error) {
      if (!reused || signal.aborted) throw error;
    }
  }
}

/** Why there is no connection, with a `code` as system errors have it. */
class ConnectError extends Error {
  readonly code: string;

  constructor(message: string, code: string) {
    super(message);
    this.code = code;
  }
}

/** Give up on a request that gets no connection, long before its own deadline. */
function limitConnecting(sent: ClientRequest): void {
  const giveUpAfter = (ms: number, what: string, code: string): NodeJS.Timeout =>
    setTimeout(() => sent.destroy(new ConnectError(`${what} within ${ms / 1000} s`, code)), ms);
  let timer = giveUpAfter(CONNECT_MS, 'no connection', 'NoConnection');
  const stop = (): void => clearTimeout(timer);
  sent.once('close', stop);
  sent.once('socket', (socket) => {
    // A kept connection, or one through a proxy.
    if (!socket.connecting) return stop();
    socket.once('connect', () => {
      stop();
      if (!(socket instanceof TLSSocket) || sent.destroyed) return;
      timer = giveUpAfter(HANDSHAKE_MS, 'connected, but no TLS handshake', 'Deadline');
      socket.once('secureConnect', stop);
    });
  });
}

/** Run `work` until it is done, the caller aborts or the time is up. Node's timers are monotonic. */
async function withDeadline<T>(
  ms: number,
  outer: AbortSignal | undefined,
  what: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const aborted = Promise.withResolvers<never>();
  const abort = (reason: ApiError): void => {
    aborted.reject(reason);
    controller.abort(reason);
  };
  const onOuter = (): void => abort(new ApiError(`${what}: aborted`, { reason: 'Aborted' }));
  const timer = setTimeout(() => {
    abort(
      new ApiError(`${what}: no answer within ${ms / 1000} s; is the API server overloaded or cut off?`, {
        reason: 'Deadline',
      }),
    );
  }, ms);
  outer?.addEventListener('abort', onOuter, { once: true });
  try {
    if (outer?.aborted) onOuter();
    return await Promise.race([aborted.promise, work(controller.signal)]);
  } finally {
    clearTimeout(timer);
    outer?.removeEventListener('abort', onOuter);
  }
}

function statusError(
  what: string,
  status: number,
  retryAfter: string | undefined,
  body: string,
  { credentials, needs }: { credentials: string; needs: string },
): ApiError {
  const parsed = statusSchema.safeParse(tryJson(body));
  const { message = '', reason = '', details } = parsed.success ? parsed.data : {};
  const said = message || http.STATUS_CODES[status] || 'no reason given';
  const advice =
    status === 401
      ? `; the credentials of ${credentials} are not (or no longer) valid`
      : status === 403
        ? `; ripstop needs ${needs}`
        : '';
  const seconds = parseRetryAfter(retryAfter) ?? details?.retryAfterSeconds;
  return new ApiError(
    `${what}: the API server answered ${status}: ${errorText(said).slice(0, 300)}${advice}`,
    {
      status,
      reason: reason || (http.STATUS_CODES[status] ?? '').replaceAll(' ', ''),
      retryAfterMs: seconds === undefined ? undefined : seconds * 1000,
      ...(parsed.success ? {} : { details: body.slice(0, 2000) }),
    },
  );
}

/** Retry-After in its two forms (RFC 9110, section 10.2.3) → seconds. */
function parseRetryAfter(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value)) return Number(value);
  const at = Date.parse(value);
  return Number.isNaN(at) ? undefined : Math.max(0, (at - Date.now()) / 1000);
}

function tryJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
