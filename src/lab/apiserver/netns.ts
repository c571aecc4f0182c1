// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import { RipstopError } from '../../errors.ts';

const child = fileURLToPath(new URL('netns.child.ts', import.meta.url));

/**
 * A listener on an address of another network namespace, in this process: a child enters the namespace with nsenter,
 * binds there, passes the socket over and ends. The socket keeps the namespace alive until it is closed.
 * @param netnsPath e.g. `/run/netns/x`.
 * @throws RipstopError when the namespace cannot be entered or the address not be bound.
 */
export async function listenInNetns(netnsPath: string, host: string, port: number): Promise<net.Server> {
  const where = `${host} port ${port} in ${netnsPath}`;
  return new Promise((resolve, reject) => {
    const argv = [`--net=${netnsPath}`, '--', process.execPath, child, host, String(port)];
    const nsenter = spawn('nsenter', argv, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], timeout: 10_000 });
    let stderr = '';
    nsenter.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    let server: net.Server | undefined;
    let why: string | undefined;
    nsenter.on('message', (message: { error?: string }, handle) => {
      why = message.error;
      if (handle instanceof net.Server) server = handle;
      // The child ends on this; a disconnect from here would keep Node from ever emitting 'close'.
      nsenter.send('received');
    });
    nsenter.on('error', (error) =>
      reject(new RipstopError(`cannot run nsenter: ${error.message}`, { cause: error })),
    );
    // Once the child has ended, nobody else accepts connections on the socket.
    nsenter.on('close', (code, signal) => {
      if (server) return resolve(server);
      const end = why ?? (stderr.trim().split('\n').at(-1) || `its helper ended with ${signal ?? code}`);
      reject(new RipstopError(`cannot listen on ${where}: ${end}`, { details: stderr }));
    });
  });
}
