// SPDX-License-Identifier: Apache-2.0
// Runs inside a network namespace for apiserver-main.ts. It gets a listener of another namespace, and forwards its
// connections to a host and port of this one.
import net from 'node:net';

const [host, port] = process.argv.slice(2);

process.on('message', (_message, listener: net.Server) => {
  listener.on('connection', (incoming) => {
    const outgoing = net.connect(Number(port), host);
    incoming.pipe(outgoing).pipe(incoming);
    incoming.on('error', () => outgoing.destroy());
    outgoing.on('error', () => incoming.resetAndDestroy());
  });
});
process.on('disconnect', () => process.exit(0));
