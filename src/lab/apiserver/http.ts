// SPDX-License-Identifier: Apache-2.0
import type { KeyObject } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { TLSSocket } from 'node:tls';
import { discovery } from './discovery.ts';
import type { Faults } from './faults.ts';
import { listPage } from './list.ts';
import { isRecord, objectJson, type ObjectInput, type View } from './objects.ts';
import { Outlet } from './outlet.ts';
import { isPatchType } from './patch.ts';
import { type ResourceName, resources } from './resources.ts';
import { creatable, noTarget, parsePath, type RequestInfo, type Verb, verbOf } from './routes.ts';
import { selector } from './selectors.ts';
import { notFound, type Status, StatusError } from './status.ts';
import type { Store } from './store.ts';
import { errorFrame, type Watches, type WatchRequest } from './watch.ts';

export interface Context {
  readonly store: Store;
  readonly watches: Watches;
  readonly faults: Faults;
  /** Bearer token → user name. */
  readonly tokens: ReadonlyMap<string, string>;
  /** The CA of client certificates. Their common name is the user. */
  readonly clientCa: KeyObject;
  readonly authorize: (request: RequestInfo) => boolean;
  /** Reset the TCP connection that carries a request. */
  readonly reset: (socket: Duplex) => void;
}

/** An answer. */
interface Answer {
  code: number;
  body: Buffer;
  contentType?: string;
  headers?: Record<string, string>;
}

/** A request, parsed. */
interface Call {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly info: RequestInfo;
  readonly query: URLSearchParams;
  readonly outlet: Outlet;
}

const maxBodyBytes = 3 << 20;
/** The lifetime of a watch without timeoutSeconds. */
const defaultWatchSeconds = 3600;

/** Answer one request. Never rejects: every failure becomes a Status, or the reset that a fault demands. */
export async function handle(
  context: Context,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const [path = '/', search = ''] = (request.url ?? '/').split('?', 2);
  const query = new URLSearchParams(search);
  const user = userOf(context, request);
  let info: RequestInfo = {
    ...noTarget,
    user,
    path,
    verb: 'get',
    remoteAddress: request.socket.remoteAddress,
  };
  const reset = (): void => context.reset(request.socket);
  try {
    const target = parsePath(path);
    info = { ...info, ...target, verb: verbOf(request.method ?? 'GET', target, query) };
    if (await misbehave(context, info, reset)) return;
    const outlet = new Outlet(info, response, context.faults, reset);
    const answered = await answer(context, { request, response, info, query, outlet });
    if (answered) send(context.faults, info, response, answered, reset);
  } catch (error) {
    send(context.faults, info, response, failure(error), reset);
  }
}

/**
 * Apply the faults that come before an answer. Returns true when there must be no answer. @throws StatusError to
 * refuse.
 */
async function misbehave({ faults }: Context, info: RequestInfo, reset: () => void): Promise<boolean> {
  const latency = faults.strikeLatency(info);
  if (latency > 0) await sleep(latency, undefined, { ref: false });
  if (faults.strike('reset', info)) {
    reset();
    return true;
  }
  if (faults.strike('hang', info)) return true;
  const refusal = faults.strike('refuse', info);
  if (!refusal) return false;
  const { code, retryAfterSeconds } = refusal;
  throw new StatusError(code, `the server was told to answer ${code}`, {
    ...(retryAfterSeconds !== undefined && { details: { retryAfterSeconds } }),
  });
}

function failure(error: unknown): Answer {
  const message = error instanceof Error ? error.message : String(error);
  // A URIError is a path with a broken percent-encoding.
  const status =
    error instanceof StatusError ? error : new StatusError(error instanceof URIError ? 400 : 500, message);
  const retryAfter = status.details?.retryAfterSeconds;
  return {
    ...json(status.code, status.body),
    ...(retryAfter !== undefined && { headers: { 'retry-after': String(retryAfter) } }),
  };
}

function json(code: number, body: object | string): Answer {
  return { code, body: Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)) };
}

/** Send a whole answer. Faults treat its body as one frame. */
function send(
  faults: Faults,
  info: RequestInfo,
  response: ServerResponse,
  { code, body, contentType = 'application/json', headers = {} }: Answer,
  reset: () => void,
): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(code, { 'content-type': contentType, 'cache-control': 'no-cache, private', ...headers });
  const outlet = new Outlet(info, response, faults, reset);
  outlet.frame(body);
  outlet.end();
}

/**
 * The user of a request. As in Kubernetes, a client certificate counts before a token; one of another CA is ignored.
 */
function userOf({ tokens, clientCa }: Context, request: IncomingMessage): string | undefined {
  const certificate = request.socket instanceof TLSSocket && request.socket.getPeerX509Certificate();
  if (certificate && certificate.verify(clientCa)) return /^CN=(.+)$/m.exec(certificate.subject)?.[1];
  const token = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1];
  return token === undefined ? undefined : tokens.get(token);
}

/** Paths that need no token, as in Kubernetes by default. */
const health = new Set(['/healthz', '/readyz', '/livez']);

/** The answer to a call, or undefined when it has begun a stream. */
async function answer(context: Context, call: Call): Promise<Answer | undefined> {
  const { info, request } = call;
  if (health.has(info.path)) return { code: 200, body: Buffer.from('ok'), contentType: 'text/plain' };
  if (info.path !== '/version') {
    if (info.user === undefined) throw new StatusError(401, 'Unauthorized');
    if (!context.authorize(info)) throw forbidden(info);
  }
  const { resource } = info;
  if (resource === undefined) {
    const found = discovery(info.path);
    if (!found) throw new StatusError(404, 'the server could not find the requested resource');
    return json(200, found);
  }
  if (info.subresource !== undefined && !(info.subresource === 'status' && resources[resource].status)) {
    throw new StatusError(404, `${resource} have no subresource "${info.subresource}"`);
  }
  const view = viewOf(request.headers.accept, info.verb, context.faults.wholeOnly);
  if (info.verb === 'watch') return startWatch(context, call, resource, view);
  if (info.verb === 'list')
    return json(200, listPage(context.store, resource, info.namespace, call.query, view));
  return json(...(await objectAnswer(context.store, call, resource, view)));
}

function forbidden({ user, verb, resource, subresource, namespace, name, path }: RequestInfo): StatusError {
  const what =
    resource === undefined
      ? `path "${path}"`
      : `resource "${[resource, subresource].filter(Boolean).join('/')}"`;
  const where = namespace === undefined ? 'at the cluster scope' : `in the namespace "${namespace}"`;
  return new StatusError(
    403,
    `${resource ?? path} ${name === undefined ? '' : `"${name}" `}is forbidden: ` +
      `User "${user}" cannot ${verb} ${what} ${where}`,
    { details: { ...(name && { name }), ...(resource && { kind: resource }) } },
  );
}

/**
 * The view that an Accept header asks for, by its first media type that the server supports. As in Kubernetes, a type
 * with a kind of another group is skipped. A type that asks for a list of metadata where the answer is an object, or
 * the reverse, is refused; the events of a watch are objects.
 * @throws StatusError 406.
 */
function viewOf(accept = '*/*', verb: Verb, wholeOnly: boolean): View {
  for (const clause of accept.split(',')) {
    const [type = '', ...parameters] = clause.split(';').map((part) => part.trim());
    if (!['application/json', 'application/*', '*/*', ''].includes(type)) continue;
    const { as, g, v } = Object.fromEntries(parameters.map((parameter) => parameter.split('=', 2))) as Record<
      string,
      string | undefined
    >;
    if (as === undefined) return 'full';
    const list = as === 'PartialObjectMetadataList';
    const known = g === 'meta.k8s.io' && v === 'v1' && (list || as === 'PartialObjectMetadata');
    if (!known || wholeOnly) continue;
    if (list === (verb === 'list')) return 'metadata';
    const what = list ? 'not a list' : 'a list';
    throw new StatusError(406, `you requested ${as}, but the requested object is ${what}`);
  }
  throw new StatusError(406, `only the following media types are accepted: application/json, not ${accept}`);
}

/** GET, POST, PUT, PATCH and DELETE of one object: code and JSON. */
async function objectAnswer(
  store: Store,
  call: Call,
  resource: ResourceName,
  view: View,
): Promise<[code: number, body: string | Status]> {
  const { info, request } = call;
  const { plural } = resources[resource];
  const name = info.name ?? '';
  const namespace = info.namespace ?? 'default';
  const subresource = info.subresource === 'status' ? 'status' : undefined;
  if (info.verb === 'get') {
    const object = store.get(resource, name, namespace);
    if (!object) throw notFound(plural, name);
    return [200, objectJson(object, view)];
  }
  if (info.verb === 'create') {
    if (!creatable(info)) throw new StatusError(405, `creating ${plural} needs a namespace in the path`);
    return [201, objectJson(store.create(resource, located(await readObject(request), info)), view)];
  }
  if (info.verb === 'update') {
    const object = located(await readObject(request), info);
    if (object.metadata?.name !== name) {
      throw new StatusError(
        400,
        `the object's name (${object.metadata?.name}) is not the one on the URL (${name})`,
      );
    }
    return [200, objectJson(store.update(resource, object, subresource), view)];
  }
  if (info.verb === 'patch') {
    const type = mediaType(request);
    if (!isPatchType(type)) throw new StatusError(415, `"${type}" is no patch type that is served`);
    const patch = await readJson(request);
    return [200, objectJson(store.patch(resource, name, type, patch, { namespace, subresource }), view)];
  }
  const options = await readJson(request);
  const preconditions =
    isRecord(options) && isRecord(options['preconditions']) ? options['preconditions'] : {};
  const { uid } = store.delete(resource, name, { namespace, preconditions }).metadata;
  const details = { name, kind: plural, uid };
  return [200, { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Success', details }];
}

/** The object with the namespace of its URL. @throws StatusError 400 when the object has another one. */
function located(object: ObjectInput, { namespace }: RequestInfo): ObjectInput {
  if (namespace === undefined) return object;
  const given = object.metadata?.namespace ?? namespace;
  if (given !== namespace) {
    throw new StatusError(400, `the object's namespace (${given}) is not the one on the URL (${namespace})`);
  }
  return { ...object, metadata: { ...object.metadata, namespace } };
}

function mediaType(request: IncomingMessage): string {
  return (request.headers['content-type'] ?? 'application/json').split(';')[0]!.trim().toLowerCase();
}

async function readObject(request: IncomingMessage): Promise<ObjectInput> {
  const type = mediaType(request);
  if (type !== 'application/json')
    throw new StatusError(415, `the body must be application/json, not ${type}`);
  const object = await readJson(request);
  if (!isRecord(object)) throw new StatusError(400, 'the body must be an object');
  return object;
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    // Read the rest past the limit too: leaving the loop would cut the connection before the answer.
    if (bytes <= maxBodyBytes) chunks.push(chunk);
  }
  if (bytes > maxBodyBytes) throw new StatusError(413, `a request may have ${maxBodyBytes} bytes`);
  if (bytes === 0) return undefined;
  try {
    return JSON.parse(Buffer.concat(chunks).toString());
  } catch (error) {
    throw new StatusError(400, `the body is no JSON: ${error instanceof Error ? error.message : ''}`);
  }
}

function startWatch({ watches, faults }: Context, call: Call, resource: ResourceName, view: View): undefined {
  const { info, query, outlet, response } = call;
  const since = revisionOf(query.get('resourceVersion'));
  const sendInitial = query.get('sendInitialEvents');
  const request: WatchRequest = {
    resource,
    view,
    matches: selector(resources[resource], {
      namespace: info.namespace,
      labelSelector: query.get('labelSelector') ?? '',
      fieldSelector: query.get('fieldSelector') ?? '',
    }),
    since: sendInitial === 'true' ? undefined : since,
    initialState: sendInitial === null ? since === undefined : sendInitial === 'true',
    initialEventsEnd: sendInitial === 'true',
    bookmarks: query.get('allowWatchBookmarks') === 'true',
    timeoutSeconds: Number(query.get('timeoutSeconds')) || defaultWatchSeconds,
  };
  let missed: ReturnType<Watches['missed']> | StatusError;
  try {
    missed = watches.missed(request);
  } catch (error) {
    if (!(error instanceof StatusError) || error.code !== 410 || faults.goneAs === 'status') throw error;
    missed = error;
  }
  if (response.destroyed) return;
  response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'no-cache, private' });
  response.flushHeaders();
  if (missed instanceof StatusError) {
    outlet.frame(errorFrame(missed));
    outlet.end();
    return;
  }
  const forget = watches.start(request, missed, outlet);
  response.on('close', forget);
}

/** The resourceVersion to start from; undefined without one, or for `0`, which means any. @throws StatusError 400. */
function revisionOf(text: string | null): number | undefined {
  if (text === null || text === '' || text === '0') return undefined;
  if (!/^\d{1,15}$/.test(text)) throw new StatusError(400, `"${text}" is no resource version`);
  return Number(text);
}
