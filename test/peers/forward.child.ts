// SPDX-License-Identifier: Apache-2.0
// Runs inside a network namespace for apiserver-main.ts: what arrives on the listener it is given, which is of another
// namespace, goes on to a host and port of this one.
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
