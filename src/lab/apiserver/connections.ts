// SPDX-License-Identifier: Apache-2.0
import type { Server as HttpServer } from 'node:http';
import type { Server, Socket } from 'node:net';
import { type SecureContext, TLSSocket } from 'node:tls';
import type { Duplex } from 'node:stream';

/** Carries plain TCP connections from any number of listeners into one HTTP server, through TLS. */
export class Connections {
  readonly #http: HttpServer;
  readonly #context: SecureContext;
  /** Asked for each new connection, before TLS. */
  readonly #policy: () => 'serve' | 'hang' | 'reset';
  readonly #listeners = new Set<Server>();
  readonly #open = new Set<Socket>();
  readonly #below = new WeakMap<Duplex, Socket>();

  constructor(http: HttpServer, context: SecureContext, policy: () => 'serve' | 'hang' | 'reset') {
    this.#http = http;
    this.#context = context;
    this.#policy = policy;
  }

  /** Serve what a listener accepts, and close it with the rest. */
  adopt(listener: Server): void {
    this.#listeners.add(listener);
    listener.on('connection', (socket: Socket) => this.#accept(socket));
  }

  /** Reset the TCP connection below a TLS one. */
  reset(secure: Duplex): void {
    this.#below.get(secure)?.resetAndDestroy();
    secure.destroy();
  }

  resetAll(): void {
    for (const socket of this.#open) socket.resetAndDestroy();
  }

  /** Stop listening and cut every connection. */
  async close(): Promise<void> {
    const closed = [...this.#listeners].map(
      (listener) => new Promise<void>((resolve) => void listener.close(() => resolve())),
    );
    for (const socket of this.#open) socket.destroy();
    await Promise.all(closed);
  }

  #accept(socket: Socket): void {
    this.#open.add(socket);
    socket.on('close', () => this.#open.delete(socket));
    // The client reports a broken connection.
    socket.on('error', () => {});
    const policy = this.#policy();
    if (policy === 'reset') socket.resetAndDestroy();
    if (policy !== 'serve') return;
    socket.setNoDelay(true);
    const secure = new TLSSocket(socket, {
      isServer: true,
      secureContext: this.#context,
      // The certificate is checked when a request comes.
      requestCert: true,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
    });
    secure.on('error', () => socket.destroy());
    secure.on('close', () => socket.destroy());
    this.#below.set(secure, socket);
    this.#http.emit('connection', secure);
  }
}
