// SPDX-License-Identifier: Apache-2.0
import { existsSync, rmSync } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import { once } from 'node:events';
import { errorText, RipstopError } from '../errors.ts';

/** Answers one path; `contentType` defaults to text. */
export type HttpRoute = () => Promise<{ status?: number; body: string; contentType?: string }>;

/**
 * Serve GET routes on a TCP address and on a unix socket (mode 0600): the first for Prometheus and the kubelet, the
 * second for readers on the node, whichever network namespace they are in.
 * @param address `host:port`, `[v6]:port` or `:port`.
 * @param localRoutes more of them, on the socket alone.
 * @throws RipstopError when the address is taken or no address.
 */
export async function serveRoutes(
  address: string,
  socketPath: string,
  routes: Readonly<Record<string, HttpRoute>>,
  localRoutes: Readonly<Record<string, HttpRoute>> = {},
): Promise<{ close(): Promise<void> }> {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]*)):(\d{1,5})$/.exec(address);
  if (!match) throw new RipstopError(`--metrics-addr "${address}" is not HOST:PORT`, { exitCode: 2 });
  const answering =
    (known: Readonly<Record<string, HttpRoute>>): RequestListener =>
    (request, response) => {
      const route = known[new URL(request.url ?? '/', 'http://localhost').pathname];
      if (!route || request.method !== 'GET') {
        response.writeHead(route ? 405 : 404).end();
        return;
      }
      route().then(
        ({ status = 200, body, contentType = 'text/plain; charset=utf-8' }) =>
          response.writeHead(status, { 'content-type': contentType }).end(body),
        (error: unknown) => response.writeHead(500).end(`${errorText(error)}\n`),
      );
    };
  if (existsSync(socketPath)) rmSync(socketPath);
  const before = process.umask(0o177);
  const local = createServer(answering({ ...routes, ...localRoutes })).listen(socketPath);
  process.umask(before);
  const servers: Server[] = [
    local,
    createServer(answering(routes)).listen(Number(match[3]), match[1] ?? (match[2] || '::')),
  ];
  try {
    await Promise.all(servers.map(async (server) => server.listening || once(server, 'listening')));
  } catch (error) {
    for (const server of servers) server.close();
    throw new RipstopError(
      `cannot serve metrics on ${address}: ${errorText(error)}; choose another --metrics-addr`,
      {
        cause: error,
      },
    );
  }
  return {
    close: async () => {
      for (const server of servers) {
        server.closeAllConnections();
        server.close();
      }
      rmSync(socketPath, { force: true });
    },
  };
}
