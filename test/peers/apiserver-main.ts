// SPDX-License-Identifier: Apache-2.0
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadAll } from 'js-yaml';
import { errorText, RipstopError } from '../../src/errors.ts';
import { familiesOf, gatewayAddress, serviceNetwork } from '../../src/lab/addresses.ts';
import { issueCertificates, kubeconfigText } from '../../src/lab/apiserver/index.ts';
import { TestClient } from '../../src/lab/apiserver/client.support.ts';
import type { ApiAccess } from '../../src/lab/kube.ts';
import { netnsPath } from '../../src/lab/netns.ts';
import { openLab, underlayNetns, writeAtomically } from '../../src/lab/state.ts';
import { peerPath } from '../support/peer-programs.ts';

/*
 * A lab's API server as a program, like src/lab/apiserver-main.ts, but the real one: etcd and kube-apiserver in the
 * lab's underlay namespace (they end with it, whatever happens here), with TLS, RBAC, and a service account for the
 * nodes that may do what deploy/ripstop.yml lets ripstop do.
 */

const PORT = 6443;
const READY_TIMEOUT_MS = 60_000;

const dir = process.argv[2] ?? '';
const lab = openLab(basename(dir));
const netns = netnsPath(underlayNetns(lab.name));
const gateway = gatewayAddress(lab.state.options.underlay);

const files = join(dir, 'kube-apiserver');
mkdirSync(files, { mode: 0o700 });
const file = (name: string): string => join(files, name);

const { caPem, certPem, keyPem } = await issueCertificates(['127.0.0.1', gateway, 'kubernetes.default.svc']);
const signing = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const adminToken = randomUUID();
const kubeProxyToken = randomUUID();
for (const [name, text] of Object.entries({
  'ca.pem': caPem,
  'server.pem': certPem,
  'server.key': keyPem,
  'accounts.key': signing.privateKey.export({ type: 'pkcs8', format: 'pem' }),
  'accounts.pub': signing.publicKey.export({ type: 'spki', format: 'pem' }),
  // RBAC's default roles know the second too.
  'tokens.csv': `${adminToken},admin,admin,system:masters\n${kubeProxyToken},system:kube-proxy,kube-proxy\n`,
})) {
  writeFileSync(file(name), text, { mode: 0o600 });
}

const children = new Set<ChildProcess>();
startThere(peerPath('etcd'), {
  'data-dir': file('etcd'),
  'listen-client-urls': 'http://127.0.0.1:2379',
  'advertise-client-urls': 'http://127.0.0.1:2379',
  'listen-peer-urls': 'http://127.0.0.1:2380',
  'log-level': 'warn',
  // Nothing here must survive a crash of the machine.
  'unsafe-no-fsync': 'true',
});
startThere(peerPath('kube-apiserver'), {
  'etcd-servers': 'http://127.0.0.1:2379',
  'bind-address': gateway,
  'advertise-address': gateway,
  'secure-port': String(PORT),
  'tls-cert-file': file('server.pem'),
  'tls-private-key-file': file('server.key'),
  'token-auth-file': file('tokens.csv'),
  'authorization-mode': 'RBAC',
  'service-account-issuer': 'https://kubernetes.default.svc',
  'service-account-key-file': file('accounts.pub'),
  'service-account-signing-key-file': file('accounts.key'),
  'service-cluster-ip-range': familiesOf(lab.state.options).map(serviceNetwork).join(),
  'allow-privileged': 'true',
});
const url = await forward();
const api = new TestClient({ url, caPem, adminToken });
await ready();
for (const manifest of loadAll(readFileSync(join(import.meta.dirname, '../../deploy/ripstop.yml'), 'utf8'))) {
  await apply(manifest as Manifest);
}
const account = await api.post('/api/v1/namespaces/kube-ripstop/serviceaccounts/ripstop/token', {
  apiVersion: 'authentication.k8s.io/v1',
  kind: 'TokenRequest',
  spec: { expirationSeconds: 24 * 3600 },
});
const { token } = account.body.status as { token: string };

const access: ApiAccess = { url, ca: caPem, token: adminToken };
writeAtomically(join(dir, 'apiserver.json'), JSON.stringify(access));
writeAtomically(join(dir, 'kubeconfig'), kubeconfigText(url, caPem, adminToken));
const forNodes = (token: string): string => kubeconfigText(`https://${gateway}:${PORT}`, caPem, token);
writeAtomically(join(dir, 'kube-proxy.kubeconfig'), forNodes(kubeProxyToken));
writeAtomically(join(dir, 'node.kubeconfig'), forNodes(token));

/** A program in the underlay, with its output in ours. It is restarted when it is killed, as by kubelet. */
function startThere(program: string, flags: Record<string, string>): void {
  const argv = Object.entries(flags).map(([flag, value]) => `--${flag}=${value}`);
  const child = spawn('nsenter', [`--net=${netns}`, '--', program, ...argv], {
    stdio: ['ignore', 'inherit', 'inherit'],
    // etcd would use ETCD_… and a proxy from its environment.
    env: { PATH: process.env['PATH'] ?? '' },
  });
  children.add(child);
  child.on('error', (error) => end(`${basename(program)} cannot be started: ${errorText(error)}`));
  child.on('exit', (code, signal) => {
    children.delete(child);
    if (signal !== 'SIGKILL') end(`${basename(program)} ended with ${signal ?? code}`);
    startThere(program, flags);
  });
}

function end(why: string): never {
  console.error(why);
  for (const child of children) child.kill('SIGKILL');
  process.exit(1);
}

/** Forward a port on loopback here to the server there. Resolves with the server's URL. */
async function forward(): Promise<string> {
  const listener = net.createServer().listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address() as net.AddressInfo;
  const child = fork(join(import.meta.dirname, 'forward.child.ts'), [gateway, String(PORT)], {
    execPath: 'nsenter',
    execArgv: [`--net=${netns}`, '--', process.execPath],
  });
  child.on('exit', (code, signal) => end(`the way to the server ended with ${signal ?? code}`));
  child.send('listener', listener);
  listener.close();
  return `https://127.0.0.1:${port}`;
}

async function ready(): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (let last = ''; ; await sleep(100)) {
    try {
      const answer = await api.get('/readyz');
      if (answer.code === 200) return;
      last = answer.text;
    } catch (error) {
      last = errorText(error);
    }
    if (performance.now() > deadline)
      throw new RipstopError(`kube-apiserver is not ready after ${READY_TIMEOUT_MS / 1000} s: ${last}`);
  }
}

interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string };
}

/** Create an object, like `kubectl apply` in an empty cluster. */
async function apply(manifest: Manifest): Promise<void> {
  const { apiVersion, kind, metadata } = manifest;
  const group = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  const place = metadata.namespace === undefined ? '' : `/namespaces/${metadata.namespace}`;
  const { code, text } = await api.post(
    `${group}${place}/${kind.toLowerCase().replace(/y$/, 'ie')}s`,
    manifest,
  );
  if (code !== 201)
    throw new RipstopError(
      `the real API server refused ${kind} ${metadata.name} of deploy/ripstop.yml: ${text}`,
    );
}
