// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { ociArchive } from '../../scripts/image/oci.ts';
import { debianProgram } from '../support/debian-programs.ts';
import { cacheDir, fetchModule } from '../support/go-programs.ts';
import { peerPath, type ProgramName, programs } from '../support/peer-programs.ts';
import { images as upstream } from '../support/versions.ts';
import { buildProbe } from './programs.ts';

/** The images that a cluster needs beside ripstop's own, made from the programs; nothing is pulled from anywhere. */

/**
 * Which names an image has on a node. None of them can be pulled, so all must be there under the name that is asked
 * for.
 */
export const imageNames = {
  pause: [upstream.pause],
  // busybox and probe: the stories' pods, and what Kubernetes' tests take a busybox for.
  tools: [upstream.busybox],
  // The tests look for these images for the sake of one or two tools in them.
  agnhost: [upstream.agnhost, upstream.dnsTesting, upstream.distrolessIptables],
  'regression-issue-74839': [upstream.regression],
  coredns: ['registry.k8s.io/coredns/coredns:test'],
  flannel: ['docker.io/flannel/flannel:test'],
  'kube-router': ['docker.io/cloudnativelabs/kube-router:test'],
  'kube-network-policies': ['registry.k8s.io/networking/kube-network-policies:test'],
} as const;
export type ImageName = keyof typeof imageNames;

/** What an image holds and starts. */
interface Recipe {
  /** What is to be built anew when it changes. */
  readonly inputs: readonly string[];
  readonly fill: (root: string) => Promise<void>;
  readonly entrypoint?: readonly string[];
  readonly cmd?: readonly string[];
}

/** Debian's names of the tools that Kubernetes' tests call in agnhost (its own Dockerfile has Alpine's). */
const AGNHOST_TOOLS =
  'curl,bind9-dnsutils,netcat-openbsd,iproute2,iputils-ping,iperf,procps,conntrack,wget,ca-certificates';

const recipes: Record<ImageName, Recipe> = {
  pause: {
    inputs: [programs.kubelet.version],
    async fill(root) {
      const { Dir } = await fetchModule(programs.kubelet);
      await run('cc', ['-Os', '-static', '-o', join(root, 'pause'), join(Dir, 'build/pause/linux/pause.c')]);
    },
    entrypoint: ['/pause'],
  },
  tools: {
    inputs: [],
    async fill(root) {
      await addBusybox(root);
      copyFileSync(await buildProbe(), join(root, 'bin/probe'));
    },
    cmd: ['sh'],
  },
  agnhost: {
    inputs: [AGNHOST_TOOLS, peerPath('agnhost'), peerPath('coredns')],
    async fill(root) {
      await fillWithDebian(root, AGNHOST_TOOLS);
      copyFileSync(peerPath('agnhost'), join(root, 'agnhost'));
      copyFileSync(peerPath('coredns'), join(root, 'coredns'));
      symlinkSync('agnhost', join(root, 'agnhost-2'));
      mkdirSync(join(root, 'uploads'));
      const { Dir } = await fetchModule(programs.agnhost);
      for (const file of ['localhost.crt', 'localhost.key']) {
        copyFileSync(join(Dir, 'test/images/agnhost/porter', file), join(root, file));
      }
    },
    entrypoint: ['/agnhost'],
    cmd: ['pause'],
  },
  coredns: only('coredns'),
  flannel: {
    inputs: [peerPath('flanneld'), peerPath('flannel')],
    async fill(root) {
      await fillWithDebian(root, 'iptables,nftables,iproute2');
      mkdirSync(join(root, 'opt/bin'), { recursive: true });
      copyFileSync(peerPath('flanneld'), join(root, 'opt/bin/flanneld'));
      copyFileSync(peerPath('flannel'), join(root, 'flannel'));
    },
    entrypoint: ['/opt/bin/flanneld'],
  },
  'kube-router': {
    inputs: [peerPath('kube-router')],
    async fill(root) {
      await fillWithDebian(root, 'iptables,ipset,iproute2,kmod');
      copyFileSync(peerPath('kube-router'), join(root, 'usr/local/bin/kube-router'));
    },
    entrypoint: ['/usr/local/bin/kube-router'],
  },
  'kube-network-policies': only('kube-network-policies'),
  'regression-issue-74839': only('regression-issue-74839'),
};

/** An image of one static program. */
function only(program: ImageName & ProgramName): Recipe {
  return {
    inputs: [peerPath(program)],
    async fill(root) {
      await addBusybox(root);
      copyFileSync(peerPath(program), join(root, program));
    },
    entrypoint: [`/${program}`],
  };
}

/** A root with a shell, for a program that is linked statically. */
async function addBusybox(root: string): Promise<void> {
  for (const name of ['bin', 'etc', 'proc', 'sys', 'dev', 'tmp', 'run', 'var']) mkdirSync(join(root, name));
  chmodSync(join(root, 'tmp'), 0o1777);
  writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n');
  writeFileSync(join(root, 'etc/group'), 'root:x:0:\nnogroup:x:65534:\n');
  const busybox = debianProgram('busybox');
  copyFileSync(busybox, join(root, 'bin/busybox'));
  for (const applet of (await run(busybox, ['--list'])).trim().split('\n')) {
    if (applet !== 'busybox') symlinkSync('busybox', join(root, 'bin', applet));
  }
}

/** A root of Debian's with these packages. */
async function fillWithDebian(root: string, packages: string): Promise<void> {
  await ensureDebootstrap();
  const argv = ['--variant=minbase', `--include=${packages}`, 'bookworm', root];
  await run('nice', ['debootstrap', ...argv], { timeoutMs: 10 * 60_000 });
  const ballast = [
    'var/cache/apt',
    'var/lib/apt/lists',
    'usr/share/doc',
    'usr/share/locale',
    'usr/share/man',
  ];
  for (const folder of ballast) rmSync(join(root, folder), { recursive: true });
}

async function ensureDebootstrap(): Promise<void> {
  if (existsSync('/usr/sbin/debootstrap')) return;
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } as Record<string, string>;
  await run('apt-get', ['-q', 'update'], { env, timeoutMs: 120_000 });
  const argv = ['-q', '-y', '--no-install-recommends', 'install', 'debootstrap'];
  await run('apt-get', argv, { env, timeoutMs: 300_000 });
}

/**
 * The archives of these images, built where they are not there yet or out of date.
 * @param note is told in one line what is built. @throws RipstopError when one cannot be built.
 */
export async function buildImages(
  names: readonly ImageName[],
  note: (line: string) => void,
): Promise<Record<ImageName, string>> {
  const paths = {} as Record<ImageName, string>;
  for (const name of names) paths[name] = await buildImage(name, note);
  return paths;
}

async function buildImage(name: ImageName, note: (line: string) => void): Promise<string> {
  const recipe = recipes[name];
  const own = [import.meta.filename, await buildProbe()].map((file) => readFileSync(file));
  const hash = createHash('sha256').update(JSON.stringify(recipe.inputs));
  for (const bytes of own) hash.update(bytes);
  const target = join(cacheDir('kubernetes/images'), `${name}-${hash.digest('hex').slice(0, 12)}.tar`);
  if (existsSync(target)) return target;
  note(`building the image ${imageNames[name][0]}`);
  mkdirSync(dirname(target), { recursive: true });
  const rootfs = mkdtempSync(join(dirname(target), `${name}-`));
  try {
    chmodSync(rootfs, 0o755);
    await recipe.fill(rootfs);
    const { entrypoint, cmd } = recipe;
    const arch = process.arch === 'arm64' ? 'arm64' : 'amd64';
    const started = { ...(entrypoint && { entrypoint }), ...(cmd && { cmd }) };
    return await ociArchive({ rootfs, name: imageNames[name][0], ...started, arch, target });
  } finally {
    rmSync(rootfs, { recursive: true });
  }
}
