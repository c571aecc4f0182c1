// SPDX-License-Identifier: Apache-2.0
// Runs inside a network namespace for connecting.system.test.ts: asks a server that cannot be reached, and prints how
// that
// ended, and how often it was tried in a while.
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { ApiClient, ApiError } from './api-client.ts';
import { Reflector } from './reflector.ts';

/** The kubeconfig, or the directory above the service account's files. */
const { KUBECONFIG: kubeconfig, ROOT: root = '', WATCH_MS: watchMs = '0' } = process.env;
const client = await ApiClient.open(kubeconfig === undefined ? { root } : { kubeconfig });
const begun = performance.now();
const error = await client.request('GET', '/api/v1/nodes/a').catch((error: unknown) => error);
const ms = performance.now() - begun;
if (!(error instanceof ApiError)) throw new Error('that should have failed');

const reflector = new Reflector({
  client,
  path: '/api/v1/nodes',
  project: () => '',
  onChange: () => {},
  log: pino({ level: 'silent' }),
  timing: { backoffMinMs: 20, backoffMaxMs: 60_000 },
});
reflector.start();
await sleep(Number(watchMs));
const { faults } = reflector.health.activity;
await reflector.stop();
const { message, reason, nobodyThere } = error;
console.log(JSON.stringify({ ms, message, reason, nobodyThere, faults }));
