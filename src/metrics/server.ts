// SPDX-License-Identifier: Apache-2.0
import { rmSync } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import { once } from 'node:events';
import { errorText, RipstopError } from '../errors.ts';
import { removeEmptyDirectory } from '../host/files.ts';

export interface HttpAnswer {
  readonly status?: number;
  readonly body: string;
  /** Default: text. */
  readonly contentType?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** Answers one path. */
export type HttpRoute = () => Promise<HttpAnswer>;

/** Whatever is served is current, and is what its type says. */
const HEADERS = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' };

/** A TCP address to serve at. */
export interface Address {
  /** The flag that gives it, for errors. */
  readonly flag: string;
  /** `host:port`, `[v6]:port` or `:port`. */
  readonly text: string;
  /** The paths that are served there. Default: all. */
  readonly paths?: readonly string[];
}

/**
 * Serve GET routes on TCP addresses and on a unix socket (mode 0600): the first for Prometheus, the kubelet and
 * browsers, the second for readers on the node, whichever network namespace they are in.
 * @param localRoutes more of them, on the socket alone.
 * @throws RipstopError when an address is taken or no address.
 */
export async function serveRoutes(
  addresses: readonly Address[],
  socketPath: string,
  routes: Readonly<Record<string, HttpRoute>>,
  localRoutes: Readonly<Record<string, HttpRoute>> = {},
): Promise<{ close(): Promise<void> }> {
  const places = addresses.map(placeOf);
  const answering =
    (known: Readonly<Record<string, HttpRoute>>): RequestListener =>
    (request, response) => {
      const route = known[new URL(request.url ?? '/', 'http://localhost').pathname];
      if (!route || request.method !== 'GET') {
        response.writeHead(route ? 405 : 404).end();
        return;
      }
      route().then(
        ({ status = 200, body, contentType = 'text/plain; charset=utf-8', headers }) =>
          response.writeHead(status, { ...HEADERS, ...headers, 'content-type': contentType }).end(body),
        (error: unknown) => response.writeHead(500).end(`${errorText(error)}\n`),
      );
    };
  await removeEmptyDirectory(socketPath);
  rmSync(socketPath, { force: true });
  const before = process.umask(0o177);
  const local = createServer(answering({ ...routes, ...localRoutes })).listen(socketPath);
  process.umask(before);
  const servers: Server[] = [
    local,
    ...addresses.map(({ paths }, i) =>
      createServer(answering(paths ? onlyOf(routes, paths) : routes)).listen(places[i]),
    ),
  ];
  try {
    await Promise.all(servers.map(async (server) => server.listening || once(server, 'listening')));
  } catch (error) {
    for (const server of servers) server.close();
    throw new RipstopError(
      `cannot serve HTTP: ${errorText(error)}; choose another ${addresses.map(({ flag }) => flag).join(' or ')}`,
      { cause: error },
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

function placeOf({ flag, text }: Address): { host?: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]*)):(\d{1,5})$/.exec(text);
  if (!match) throw new RipstopError(`${flag} "${text}" is not HOST:PORT`, { exitCode: 2 });
  const host = match[1] ?? match[2];
  // Without one Node takes IPv4 where the kernel has no IPv6.
  return { ...(host && { host }), port: Number(match[3]) };
}

const onlyOf = (routes: Readonly<Record<string, HttpRoute>>, paths: readonly string[]) =>
  Object.fromEntries(Object.entries(routes).filter(([path]) => paths.includes(path)));
