// SPDX-License-Identifier: Apache-2.0
/** `ripstop check`: whether everybody reaches everybody, in a lab or in a cluster. */
import { type Command, InvalidArgumentError } from 'commander';
import type { CheckOptions } from '../check/check.ts';
import { type Kind, KINDS } from '../check/plan.ts';
import { RipstopError } from '../errors.ts';
import { loadLab } from './lab.ts';
import { examples, FOUND, flag } from './options.ts';
import { outputFlag, print } from './output.ts';

interface CheckFlags {
  readonly lab?: string | true;
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly namespace: string;
  readonly image?: string;
  readonly keep?: boolean;
  readonly only?: readonly Kind[];
  readonly sample: number;
  readonly seed?: number;
  readonly output: string;
}

const DEFAULT_LAB = 'lab';

export function addCheckCommand(program: Command): void {
  program
    .command('check')
    .description('send packets between all pods and nodes, and tell what does not get through')
    .addOption(
      flag('--lab [name]', 'check a lab (default: that of RIPSTOP_LAB; or the one named lab, if it is up)'),
    )
    .addOption(flag('--kubeconfig <file>', 'check a cluster, as kubectl finds it (default: as kubectl)'))
    .addOption(flag('--context <name>', 'the context of the kubeconfig'))
    .addOption(
      flag('-n, --namespace <name>', 'where the test pods are created')
        .argParser(namespace)
        .default('ripstop-check'),
    )
    .addOption(flag('--image <image>', "of the test pods (default: that of the cluster's ripstop)"))
    .addOption(flag('--keep', "leave the test pods, or the lab's Services, where they are"))
    .addOption(flag('--only <kinds>', `some of ${KINDS.join(', ')}, joined by commas`).argParser(kindsOf))
    .addOption(flag('--sample <n>', 'of more than n nodes, draw n at random').argParser(count).default(20))
    .addOption(flag('--seed <n>', 'draw the same nodes again').argParser(seed))
    .addOption(outputFlag())
    .addHelpText('after', NOTES)
    .action(async (flags: CheckFlags, command: Command) => check(flags, await labOf(flags, command)));
  program
    .command('check-prober', { hidden: true })
    .description('what `check` runs in each pod and on each node')
    .addOption(flag('--serve <port>', 'answer TCP and UDP').argParser(count))
    .action(async ({ serve }: { serve?: number }) => {
      const { runProber } = await import('../check/prober.ts');
      await runProber(serve);
    });
}

const NOTES = `
The matrix has a row for each sender's node and a column for each receiver's. A cell says ok, or what failed:

  pod-to-pod   TCP, UDP and ICMP between pods, on one node and between nodes
  pod-to-node  ICMP from a pod to a node
  node-to-pod  TCP, UDP and ICMP from a node to a pod
  service      TCP and UDP from a pod to a ClusterIP, whose only backend is on the receiver's node
  dns          kubernetes.default, from a pod
  mtu          a packet of the MTU of pods, and one of a byte more, which must be refused; fragments are forbidden
  fast-path    in a lab: whether the fast path carries a flow after its first packets

"answers lost" means that the packets arrive and their answers do not: the cell of the other direction says more.

In a cluster it creates the namespace, pods and Services, and removes them at the end, also after Ctrl-C. It never
touches a namespace of this name that is not its own. It takes your own rights,
not those of ripstop's agent: to create and delete namespaces, to create pods (with host network) and Services, to exec
into these pods, and to list Nodes and DaemonSets.

Exit codes: 0 all passed, 1 it could not be tried, 2 wrong usage, 3 something did not get through.
${examples([
  ['check', 'the lab that is up, or else the cluster that kubectl talks to'],
  ['check --lab demo --only pod-to-pod,mtu', 'two kinds of probes in a lab'],
  ['check --context prod --sample 50', 'at most 50 nodes of a cluster, drawn at random'],
  ['check -o json', 'each probe and its outcome'],
])}`;

/** @param lab its name; undefined: check a cluster. */
async function check(flags: CheckFlags, lab: string | undefined): Promise<void> {
  const { output } = flags;
  const seedUsed = flags.seed ?? Math.floor(Math.random() * 2 ** 31);
  const controller = new AbortController();
  // Removed at the end: what has been prepared must be cleaned up first, and a second Ctrl-C ends it at once.
  const interrupt = (signal: NodeJS.Signals): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort(new RipstopError(`interrupted by ${signal}`, { exitCode: 130 }));
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, interrupt);
  const forPeople = output === 'table' || output === 'wide';
  try {
    const report = await runCheck(flags, lab, seedUsed, forPeople, controller.signal);
    const { renderReport } = await import('./check-text.ts');
    await print(output, report, (isWide) => renderReport(report, isWide, process.stdout.columns));
    if (report.failed > 0 || report.notReady.length > 0) process.exitCode = FOUND;
    else if (report.probes === 0)
      throw new RipstopError('there was nothing to try: it takes two pods, or a pod and a node');
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, interrupt);
  }
}

async function runCheck(
  flags: CheckFlags,
  lab: string | undefined,
  seedUsed: number,
  forPeople: boolean,
  signal: AbortSignal,
) {
  const { CLEAN_UP, PREPARE, PROBERS, check } = await import('../check/check.ts');
  const { sample } = await import('../check/plan.ts');
  const { showProgress } = await import('./progress.ts');
  const kinds = flags.only ?? KINDS;
  const draw = (names: readonly string[]): { drawn: string[] } & Pick<CheckOptions, 'sample'> => {
    const drawn = sample(names, flags.sample, seedUsed);
    return { drawn, ...(drawn.length < names.length && { sample: { of: names.length, seed: seedUsed } }) };
  };
  const titles = [PREPARE, PROBERS, ...kinds, ...(flags.keep ? [] : [CLEAN_UP])];
  const options = { kinds, keep: flags.keep === true };
  const show: typeof showProgress = forPeople ? showProgress : (_, work) => work(() => {});
  if (lab !== undefined) {
    const module = await loadLab();
    const { prepareLab } = await import('../check/lab.ts');
    const { drawn, ...sampled } = draw(module.labStatus(lab).nodes.map(({ name }) => name));
    return show(titles, (progress) =>
      check(() => prepareLab(module, lab, drawn), { ...options, ...sampled }, progress, signal),
    );
  }
  const { openCluster, prepareCluster } = await import('../check/cluster.ts');
  const cluster = await openCluster(flags);
  try {
    const { drawn, ...sampled } = draw(cluster.nodeNames);
    return await show(titles, (progress) =>
      check(() => prepareCluster(cluster, drawn, signal), { ...options, ...sampled }, progress, signal),
    );
  } finally {
    cluster.client.close();
  }
}

/** The lab to check; undefined: a cluster. What is said on the command line comes before variables. */
async function labOf({ lab }: CheckFlags, command: Command): Promise<string | undefined> {
  const isFrom = (source: string, ...names: string[]): boolean =>
    names.some((name) => command.getOptionValueSource(name) === source);
  const ofCluster = ['kubeconfig', 'context', 'image'];
  if (isFrom('cli', 'lab') && isFrom('cli', ...ofCluster))
    throw new RipstopError('give either --lab, or --kubeconfig, --context and --image', { exitCode: 2 });
  if (isFrom('cli', ...ofCluster)) return undefined;
  if (lab !== undefined) return lab === true ? DEFAULT_LAB : lab;
  if (isFrom('env', ...ofCluster)) return undefined;
  const { existsSync } = await import('node:fs');
  return existsSync(`/run/ripstop-lab/${DEFAULT_LAB}`) ? DEFAULT_LAB : undefined;
}

/** It becomes part of paths of the API, one of which is deleted. */
function namespace(text: string): string {
  if (/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(text)) return text;
  throw new InvalidArgumentError('Give a name of up to 63 lower-case letters, digits and dashes.');
}

function kindsOf(text: string): Kind[] {
  const names = text.split(',');
  const unknown = names.filter((name) => !KINDS.some((kind) => kind === name));
  if (unknown.length > 0) throw new InvalidArgumentError(`Give some of ${KINDS.join(', ')}.`);
  return KINDS.filter((kind) => names.includes(kind));
}

function count(text: string): number {
  if (/^[1-9]\d{0,4}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Give a number from 1.');
}

function seed(text: string): number {
  if (/^\d{1,10}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Give the number that an earlier check has printed.');
}
