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
 * A lab around the real API server, its `flannel` nodes run by the real flanneld. Take it down with `labDown(lab.name)`,
 * also when this fails.
 * @param purpose part of its name, which the process id completes.
 */
export async function realLab(
  purpose: string,
  datapaths: readonly Datapath[],
  flags: Pick<LabFlags, 'pods' | 'ipv6' | 'kubeProxy'> = {},
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

/** `labUp`, whose failure shows the log that it is about: the lab is taken down before anybody could look. */
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

/** The real server, spoken to without a library; with the administrator's token unless a request says otherwise. */
export function clientOf(lab: Lab): TestClient {
  const { url, ca, token } = JSON.parse(readFileSync(join(lab.dir, 'apiserver.json'), 'utf8')) as ApiAccess;
  return new TestClient({ url, caPem: ca, adminToken: token });
}

/** A token of the service account that deploy/ripstop.yml makes for ripstop, which belongs to no pod. */
export function unboundTokenOf(lab: Lab): string {
  const kubeconfig = readFileSync(join(lab.dir, 'node.kubeconfig'), 'utf8');
  return /token: "(.*)"/.exec(kubeconfig)![1]!;
}
