// SPDX-License-Identifier: Apache-2.0
// Runs inside a network namespace for listenInNetns: binds, passes the socket to the parent, ends when that has it.
import net from 'node:net';

const [host, port] = process.argv.slice(2);
const server = net.createServer();
process.on('message', () => process.exit(0));
process.on('disconnect', () => process.exit(1));
server.on('error', (error) => process.send?.({ error: error.message }));
server.listen(Number(port), host, () => process.send?.({}, server));
