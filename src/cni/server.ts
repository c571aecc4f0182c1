// SPDX-License-Identifier: Apache-2.0
import { once } from 'node:events';
import { chmod, mkdir, rename, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import type { Logger } from 'pino';
import { errorText, RipstopError } from '../errors.ts';
import { DeferredDels } from './deferred.ts';
import { type CniContext, createCniOps } from './ops.ts';
import { dispatch, errorResponse } from './plugin.ts';
import { type CniRequest, type CniResponse, encodeResponse, requestDecoder } from './protocol.ts';
import { CniCode, CniError } from './spec.ts';

export interface CniServerOptions {
  /** E.g. `/run/ripstop/cni.sock`; at most 100 bytes, for a temporary name beside it must fit into a socket's address. */
  socketPath: string;
  /** Where the shim keeps the DELs that found no agent. */
  deferredDir: string;
  /** The agent's state. */
  context: () => CniContext;
  log: Logger;
  /** How long the shim may take to send its request. Default 10 s: it has read its input before it connects. */
  requestDeadlineMs?: number;
  /** How long a command may take. Default 55 s, so that the answer is there before the shim gives up at 60 s. */
  answerDeadlineMs?: number;
  /**
   * How often to look for DELs of shims that gave up on a running agent: one that was just starting, or that hung.
   * Default 10 s.
   */
  deferredEveryMs?: number;
}

export interface CniServer {
  /** Takes no more calls, and resolves when those under way have been answered. */
  close(): Promise<void>;
}

/**
 * The agent's end of the CNI shim. Calls run at the same time, those about one container one after another. The DELs that
 * found no agent are carried out first: an ADD waits for them, since one may be about the same attachment, or hold the
 * last free address.
 *
 * Only root may call. Node cannot ask for a peer's credentials, and need not: connecting takes write permission on the
 * socket, which has mode 0600 in a directory of mode 0700.
 *
 * Resolves when the socket takes calls. @throws RipstopError when it cannot be created.
 */
export async function createCniServer(options: CniServerOptions): Promise<CniServer> {
  const { socketPath, log } = options;
  const ops = createCniOps(options.context);
  const reading = new Set<Socket>();

  const deferred = new DeferredDels({
    dir: options.deferredDir,
    del: (request) => dispatch(request, ops),
    log,
  });

  const carryOut = async (request: CniRequest): Promise<CniResponse> => {
    if (request.env['CNI_COMMAND'] === 'ADD') await deferred.carryOut();
    return dispatch(request, ops);
  };

  const serve = async (socket: Socket): Promise<void> => {
    // A peer that goes away early is its own affair: what it has begun is finished, and the runtime will call DEL.
    socket.on('error', (error) => log.debug({ error: errorText(error) }, 'CNI connection lost'));
    reading.add(socket);
    let answered: Buffer;
    try {
      const request = await readRequest(socket, options.requestDeadlineMs ?? 10_000);
      reading.delete(socket);
      answered = encodeResponse(await answer(request));
    } catch (thrown) {
      reading.delete(socket);
      const error = `cannot talk to the CNI plugin: ${errorText(thrown)}`;
      answered = encodeResponse(errorResponse(new CniError(CniCode.io, error)));
      log.warn({ error }, 'CNI call refused');
    }
    socket.end(answered);
    // What a peer sends after its request is read by nobody; and it must not keep the connection for ever.
    socket.setTimeout(options.requestDeadlineMs ?? 10_000, () => socket.destroy());
  };

  const answer = async (request: CniRequest): Promise<CniResponse> => {
    const { CNI_COMMAND: command, CNI_CONTAINERID: containerId, CNI_IFNAME: ifname } = request.env;
    const started = performance.now();
    const response = await withDeadline(carryOut(request), options.answerDeadlineMs ?? 55_000);
    const fields = { command, containerId, ifname, ms: Math.round(performance.now() - started) };
    if (response.exitCode === 0) log.info(fields, 'CNI call done');
    else log.warn({ ...fields, error: Buffer.from(response.stdout).toString().trim() }, 'CNI call failed');
    return response;
  };

  // Half-open: the peer may end its side once it has sent the request.
  const server = createServer({ allowHalfOpen: true }, (socket) => void serve(socket));
  void deferred.carryOut();
  await listen(server, socketPath);
  const timer = setInterval(() => void deferred.carryOut(), options.deferredEveryMs ?? 10_000);
  server.on('error', (error) => log.error({ error: errorText(error) }, 'CNI socket failed'));

  return {
    async close() {
      clearInterval(timer);
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of reading) socket.destroy();
      await closed;
      await deferred.stop();
    },
  };
}

/**
 * Bind under another name, make that private, then rename it: at no moment is there a socket with the wrong mode, and a
 * stale one, or that of the agent that this one takes over from, is replaced without a gap. Nobody removes the file at
 * the end: by then it may be a successor's, and a stale one refuses connections at once.
 */
async function listen(server: Server, socketPath: string): Promise<void> {
  const temporary = `${socketPath}.${process.pid}`;
  try {
    await mkdir(dirname(socketPath), { recursive: true, mode: 0o700 });
    await rm(temporary, { force: true });
    await once(server.listen(temporary), 'listening');
    await chmod(temporary, 0o600);
    await rename(temporary, socketPath);
  } catch (error) {
    server.close();
    throw new RipstopError(`cannot listen on ${socketPath}: ${errorText(error)}`, { cause: error });
  }
}

/** @throws Error when the peer breaks the protocol, ends early or takes too long. */
function readRequest(socket: Socket, deadlineMs: number): Promise<CniRequest> {
  const decoder = requestDecoder();
  const { promise, resolve, reject } = Promise.withResolvers<CniRequest>();
  const timer = setTimeout(() => reject(new Error('the request did not arrive in time')), deadlineMs);
  socket.on('data', (piece) => {
    try {
      const request = decoder.push(Buffer.from(piece));
      if (request) resolve(request);
    } catch (error) {
      reject(error);
    }
  });
  socket.on('close', () => reject(new Error('the connection ended before the request')));
  socket.on('end', () => reject(new Error('the connection ended before the request')));
  return promise.finally(() => {
    clearTimeout(timer);
    socket.removeAllListeners('data').resume();
  });
}

/** The response, or after the deadline an error in its place; the work itself goes on to its end. */
async function withDeadline(working: Promise<CniResponse>, deadlineMs: number): Promise<CniResponse> {
  const { promise, resolve } = Promise.withResolvers<CniResponse>();
  const timer = setTimeout(() => {
    const message = `the ripstop agent did not finish within ${deadlineMs / 1000} s; see its log`;
    resolve(errorResponse(new CniError(CniCode.tryAgain, message)));
  }, deadlineMs);
  try {
    return await Promise.race([working, promise]);
  } finally {
    clearTimeout(timer);
  }
}
