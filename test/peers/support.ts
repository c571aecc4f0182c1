// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { RipstopError } from '../../src/errors.ts';
import { type ApiAccess } from '../../src/lab/kube.ts';
import {
  type Datapath,
  type Lab,
  type LabFlags,
  type LabOptions,
  labUp,
  openLab,
  parseLabOptions,
} from '../../src/lab/index.ts';
import { TestClient } from '../../src/lab/apiserver/client.support.ts';
import { peerPath } from '../support/peer-programs.ts';

/**
 * A lab with the real API server, whose `flannel` nodes run the real flanneld. Take it down with `labDown(lab.name)`,
 * even if this fails.
 * @param purpose a part of its name, which ends in the process id
 */
export async function realLab(
  purpose: string,
  datapaths: readonly Datapath[],
  flags: Pick<LabFlags, 'pods' | 'ipv6' | 'kubeProxy' | 'mode'> = {},
): Promise<Lab> {
  const options = parseLabOptions({ ...flags, name: labNameFor(purpose) });
  await tellingWhy({
    ...options,
    datapaths,
    real: {
      apiServer: join(import.meta.dirname, 'apiserver-main.ts'),
      flannel: { daemon: peerPath('flanneld'), plugin: peerPath('flannel') },
      kubeProxy: peerPath('kube-proxy'),
    },
  });
  return openLab(options.name);
}

/** `labUp`, with logs in its error, since the lab is taken down before anybody can read them. */
async function tellingWhy(options: LabOptions): Promise<void> {
  try {
    await labUp(options);
  } catch (error) {
    if (error instanceof RipstopError && error.details) console.error(error.details.slice(-4000));
    throw error;
  }
}

export function labNameFor(purpose: string): string {
  return `peers-${purpose}-${process.pid}`;
}

/** A plain client of the real server, by default with the administrator's token. */
export function clientOf(lab: Lab): TestClient {
  const { url, ca, token } = JSON.parse(readFileSync(join(lab.dir, 'apiserver.json'), 'utf8')) as ApiAccess;
  return new TestClient({ url, caPem: ca, adminToken: token });
}

/** A token of ripstop's service account in deploy/ripstop.yml, not bound to a pod. */
export function unboundTokenOf(lab: Lab): string {
  const kubeconfig = readFileSync(join(lab.dir, 'node.kubeconfig'), 'utf8');
  return /token: "(.*)"/.exec(kubeconfig)![1]!;
}
