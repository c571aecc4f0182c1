// SPDX-License-Identifier: Apache-2.0
import { randomBytes, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { createSecureContext } from 'node:tls';
import { RipstopError } from '../../errors.ts';
import { type ClientCertificate, issueCertificates } from './certificates.ts';
import { Connections } from './connections.ts';
import { Faults } from './faults.ts';
import { handle } from './http.ts';
import { kubeconfigText } from './kubeconfig.ts';
import type { RequestInfo } from './routes.ts';
import { Store } from './store.ts';
import { Watches } from './watch.ts';

export interface ApiServerOptions {
  /** Bearer token → user name, besides the administrator's own. */
  tokens?: Record<string, string>;
  /** DNS names and IP addresses for the certificate, besides 127.0.0.1 and localhost. */
  sans?: string[];
  /** How many events of each resource can be replayed. Default 10,000. */
  historySize?: number;
  /** Default: any free port. */
  port?: number;
  /** Default 127.0.0.1. */
  host?: string;
  /** How often watches that allow it get a bookmark. Default one minute. */
  bookmarkIntervalMs?: number;
  /** Whether a known user may do that; false is a 403. Default: everybody may do everything. */
  authorize?: (request: RequestInfo) => boolean;
}

interface Parts {
  connections: Connections;
  watches: Watches;
  caPem: string;
  issueClient: (user: string) => Promise<ClientCertificate>;
  tokens: Map<string, string>;
  adminToken: string;
  store: Store;
  faults: Faults;
  url: string;
}

/** A Kubernetes API server in this process, for Nodes and the kinds around them, with faults on demand. */
export class ApiServer {
  /** `https://host:port`. */
  readonly url: string;
  /** The CA that signed the server's certificate, PEM. */
  readonly caPem: string;
  /** Issue a client certificate, with its key, for a user. */
  readonly issueClient: (user: string) => Promise<ClientCertificate>;
  /** A token of the user `admin`. */
  readonly adminToken: string;
  /** Bearer token → user name; tokens may come and go while the server runs. */
  readonly tokens: Map<string, string>;
  /** Direct access to the objects. Watches see what is done here. */
  readonly store: Store;
  readonly faults: Faults;
  readonly #connections: Connections;
  readonly #watches: Watches;

  private constructor(parts: Parts) {
    this.url = parts.url;
    this.caPem = parts.caPem;
    this.issueClient = parts.issueClient;
    this.adminToken = parts.adminToken;
    this.tokens = parts.tokens;
    this.store = parts.store;
    this.faults = parts.faults;
    this.#connections = parts.connections;
    this.#watches = parts.watches;
  }

  /** @throws RipstopError when it cannot listen. */
  static async start(options: ApiServerOptions = {}): Promise<ApiServer> {
    const { host = '127.0.0.1', port = 0 } = options;
    const adminToken = randomBytes(24).toString('base64url');
    const tokens = new Map([...Object.entries(options.tokens ?? {}), [adminToken, 'admin']]);
    const certificate = await issueCertificates(['127.0.0.1', 'localhost', ...(options.sans ?? [])]);

    const store = new Store(options.historySize ?? 10_000);
    for (const name of ['default', 'kube-system', 'kube-public', 'kube-node-lease']) {
      store.create('namespaces', { metadata: { name }, status: { phase: 'Active' } });
    }
    const watches = new Watches(store, options.bookmarkIntervalMs ?? 60_000);
    // Idle connections stay: a server that closes them races with its clients' next request.
    const httpServer = http.createServer({ keepAliveTimeout: 0, requestTimeout: 0 });
    const { caPem, certPem, keyPem, issueClient } = certificate;
    // Without this id, Node refuses to resume sessions of clients that may have a certificate.
    const secureContext = createSecureContext({
      cert: certPem,
      key: keyPem,
      sessionIdContext: 'ripstop-lab',
    });
    const connections = new Connections(httpServer, secureContext, () => faults.connections);
    const faults = new Faults({
      resetConnections: () => connections.resetAll(),
      dropWatches: (match, end) => watches.drop(match, end),
      expireHistory: () => {
        store.expireHistory();
        watches.expire(faults.goneAs === 'stream');
      },
    });
    const context = {
      store,
      watches,
      faults,
      tokens,
      clientCa: new X509Certificate(caPem).publicKey,
      authorize: options.authorize ?? (() => true),
      reset: (socket: Parameters<Connections['reset']>[0]) => connections.reset(socket),
    };
    httpServer.on('request', (request, response) => void handle(context, request, response));

    const listener = net.createServer();
    try {
      listener.listen(port, host);
      await once(listener, 'listening');
    } catch (error) {
      watches.close();
      const why = error instanceof Error ? error.message : String(error);
      throw new RipstopError(`the API server cannot listen on ${host} port ${port}: ${why}`, {
        cause: error,
      });
    }
    connections.adopt(listener);
    const address = listener.address() as net.AddressInfo;
    const url = `https://${net.isIPv6(address.address) ? `[${address.address}]` : address.address}:${address.port}`;
    return new ApiServer({
      connections,
      watches,
      caPem,
      issueClient,
      tokens,
      adminToken,
      store,
      faults,
      url,
    });
  }

  /**
   * A kubeconfig, as YAML text.
   * @param server the URL to reach the server at, when it is not {@link url}.
   * @param token the bearer token to use, when it is not the administrator's.
   */
  kubeconfig(server: string = this.url, token: string = this.adminToken): string {
    return kubeconfigText(server, this.caPem, token);
  }

  /** Serve TLS also on what another listener accepts, e.g. one of another network namespace; close it with the rest. */
  adoptListener(server: net.Server): void {
    this.#connections.adopt(server);
  }

  /** Stop listening, cut every connection, end. */
  async close(): Promise<void> {
    this.#watches.close();
    await this.#connections.close();
  }
}
