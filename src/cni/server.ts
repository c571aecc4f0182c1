// SPDX-License-Identifier: Apache-2.0
import { once } from 'node:events';
import { chmod, mkdir, rename, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import type { Logger } from 'pino';
import { errorText, RipstopError } from '../errors.ts';
import { removeEmptyDirectory } from '../host/files.ts';
import { DeferredDels } from './deferred.ts';
import { LogOnce } from '../log-once.ts';
import { type CniContext, createCniOps, type Sweeper } from './ops.ts';
import { type Answer, type Command, commandOf, dispatch, errorResponse } from './plugin.ts';
import { type CniRequest, encodeResponse, requestDecoder } from './protocol.ts';
import { CniCode, CniError } from './spec.ts';

export interface CniServerOptions {
  /**
   * Such as `/run/ripstop/cni.sock`; at most 100 bytes, since a longer temporary name must fit into a socket address.
   */
  socketPath: string;
  /** Where the shim stores the DELs that it received while no agent answered. */
  deferredDir: string;
  /** The agent's state. */
  context: () => CniContext;
  /** Called after each call that was answered. */
  onCall?: (call: CniCall) => void;
  log: Logger;
  /** The time for the shim to send its request. Default 10 s: it reads its input before it connects. */
  requestDeadlineMs?: number;
  /** The time for a command. Default 55 s, so that there is an answer before the shim gives up after 60 s. */
  answerDeadlineMs?: number;
  /**
   * How often to look for deferred DELs of shims that gave up waiting for an agent that runs: it was starting, or hung.
   * Default 10 s.
   */
  deferredEveryMs?: number;
  /** Of looking for leases of pods that are gone. */
  sweep?: {
    /** How often. Default a minute. */
    everyMs?: number;
    /** Younger leases stay. Default five minutes. */
    minAgeMs?: number;
    /** Where the pods' network namespaces are. */
    netnsDir?: string;
  };
}

/** A call that was answered. */
export interface CniCall {
  /** `other`: none of CNI's. */
  readonly command: Command | 'other';
  /** Of the error; 0 when the call succeeded. */
  readonly code: number;
  readonly durationMs: number;
}

export interface CniServer {
  /** Accept no more calls; resolves when those under way are answered. */
  close(): Promise<void>;
}

/**
 * Serve the CNI shim's calls. Calls about one container are carried out one after another, others at the same time.
 * Deferred DELs are carried out first, and an ADD waits for them: one may be about the same attachment, or its address
 * may be the last free one.
 *
 * Only root can call: connecting requires write permission on the socket, which has mode 0600 in a directory of mode
 * 0700.
 *
 * Resolves when the socket accepts calls. @throws RipstopError when it cannot be created.
 */
export async function createCniServer(options: CniServerOptions): Promise<CniServer> {
  const { socketPath, log } = options;
  const ops = createCniOps(options.context);
  const reading = new Set<Socket>();

  const del = (request: CniRequest): Promise<Answer> => dispatch(request, ops);
  const deferred = new DeferredDels({ dir: options.deferredDir, del, log });

  const carryOut = async (request: CniRequest): Promise<Answer> => {
    if (request.env['CNI_COMMAND'] === 'ADD') await deferred.carryOut();
    return dispatch(request, ops);
  };

  const serve = async (socket: Socket): Promise<void> => {
    // If the shim is gone before the answer, the command is carried out nevertheless; the runtime will call DEL.
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
    // Whatever follows the request is ignored, and the shim must not keep the connection open for ever.
    socket.setTimeout(options.requestDeadlineMs ?? 10_000, () => socket.destroy());
  };

  let lastStatus: string | undefined;
  const answer = async (request: CniRequest): Promise<Answer> => {
    const { CNI_COMMAND: command, CNI_CONTAINERID: containerId, CNI_IFNAME: ifname } = request.env;
    const started = performance.now();
    const response = await withDeadline(carryOut(request), options.answerDeadlineMs ?? 55_000);
    const durationMs = performance.now() - started;
    options.onCall?.({ command: commandOf(request) ?? 'other', code: response.code, durationMs });
    const fields = { command, containerId, ifname, ms: Math.round(durationMs) };
    // A kubelet asks every few seconds: only a change is worth a line.
    const output = Buffer.from(response.stdout).toString().trim();
    if (command === 'STATUS' && output === lastStatus) return response;
    if (command === 'STATUS') lastStatus = output;
    if (response.exitCode === 0) log.info({ ...fields, steps: response.stepsMs }, 'CNI call done');
    else log.warn({ ...fields, error: output }, 'CNI call failed');
    return response;
  };

  // Half-open: the shim may close its side once it has sent the request.
  const server = createServer({ allowHalfOpen: true }, (socket) => void serve(socket));
  void deferred.carryOut();
  await listen(server, socketPath);
  const timer = setInterval(() => void deferred.carryOut(), options.deferredEveryMs ?? 10_000);
  const sweeper = startSweeping(ops, options);
  server.on('error', (error) => log.error({ error: errorText(error) }, 'CNI socket failed'));

  return {
    async close() {
      clearInterval(timer);
      clearInterval(sweeper);
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of reading) socket.destroy();
      await closed;
      await deferred.stop();
    },
  };
}

/** Release the leases of pods that are gone, now and then. A failure is logged once. */
function startSweeping(ops: Sweeper, { sweep = {}, log }: CniServerOptions): NodeJS.Timeout {
  const { everyMs = 60_000, minAgeMs = 5 * 60_000, netnsDir } = sweep;
  const failure = new LogOnce(log, 'cannot find out which leases are those of pods that are gone; retrying');
  const once = async (): Promise<void> => {
    try {
      const swept = await ops.sweep(minAgeMs, netnsDir);
      for (const { ip, containerId, network } of swept)
        log.info({ ip, containerId, network }, 'released the address of a pod that is gone; no DEL had come');
      failure.over();
    } catch (error) {
      failure.met(error);
    }
  };
  return setInterval(() => void once(), everyMs);
}

/**
 * Bind under a temporary name, set the mode, then rename. So there is never a socket with the wrong mode, and the
 * socket of a previous agent is replaced without a gap. The file is not removed at the end: by then it may be that of
 * the next agent, and a socket without an agent refuses connections at once.
 */
async function listen(server: Server, socketPath: string): Promise<void> {
  const temporary = `${socketPath}.${process.pid}`;
  try {
    await mkdir(dirname(socketPath), { recursive: true, mode: 0o700 });
    await rm(temporary, { force: true });
    await once(server.listen(temporary), 'listening');
    await chmod(temporary, 0o600);
    await removeEmptyDirectory(socketPath);
    await rename(temporary, socketPath);
  } catch (error) {
    server.close();
    throw new RipstopError(`cannot listen on ${socketPath}: ${errorText(error)}`, { cause: error });
  }
}

/** @throws Error when the shim violates the protocol, closes early or takes too long. */
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

/** The response, or after the deadline an error instead; the work continues nevertheless. */
async function withDeadline(working: Promise<Answer>, deadlineMs: number): Promise<Answer> {
  const { promise, resolve } = Promise.withResolvers<Answer>();
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
