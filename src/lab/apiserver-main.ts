// SPDX-License-Identifier: Apache-2.0
import { randomUUID } from 'node:crypto';
import { basename, join } from 'node:path';
import { ApiServer, listenInNetns } from './apiserver/index.ts';
import { gatewayAddress, KUBERNETES_SERVICE_IP } from './addresses.ts';
import type { ApiAccess } from './kube.ts';
import { netnsPath } from './netns.ts';
import { openLab, underlayNetns, writeAtomically } from './state.ts';

/*
 * The lab's API server as a program: `node apiserver-main.ts /run/ripstop-lab/NAME`. It listens on loopback in the
 * namespace where the lab was started, for people and tests, and on the underlay's gateway address, for the nodes.
 */

const NODES_PORT = 6443;

const dir = process.argv[2] ?? '';
const lab = openLab(basename(dir));
const gateway = gatewayAddress(lab.state.options.underlay);
const nodeToken = randomUUID();

const sans = [gateway, KUBERNETES_SERVICE_IP];
const server = await ApiServer.start({ tokens: { [nodeToken]: 'system:nodes' }, sans });
server.adoptListener(await listenInNetns(netnsPath(underlayNetns(lab.name)), gateway, NODES_PORT));

const access: ApiAccess = { url: server.url, ca: server.caPem, token: server.adminToken };
writeAtomically(join(dir, 'apiserver.json'), JSON.stringify(access));
writeAtomically(join(dir, 'kubeconfig'), server.kubeconfig());
writeAtomically(
  join(dir, 'node.kubeconfig'),
  server.kubeconfig(`https://${gateway}:${NODES_PORT}`, nodeToken),
);
