// SPDX-License-Identifier: Apache-2.0
/** The parts of a run. Each raises its labs, compares them, and takes them down. */
import { errorText, RipstopError } from '../src/errors.ts';
import type { Datapath, Wire } from '../src/lab/index.ts';
import { type Arm, type ArmOptions, armSpecs, type ClusterSize, raiseArm } from './arms.ts';
import { type Comparison, compare, measure, type Settings } from './compare.ts';
import { type Contrast, type ContrastId, TABLE_SIZES } from './contrasts.ts';
import { programCosts } from './program-cost.ts';
import type { RunResult } from './report.ts';
import { amongFlows, besideNewFlows, throughClusterIp, withEpochs } from './situations.ts';
import { bystanderWorks, controlWorks, scaleWorks, type Work } from './works.ts';

/** The name of a cluster size, which can be part of a lab's name. */
function nameOf({ peers, endpoints }: ClusterSize): string {
  return `${peers}-peers-${endpoints}-pods`;
}

/** A part of the comparison of sizes, named for what differs in it. */
export function axis(
  all: Comparison,
  sizes: readonly ClusterSize[],
  title: (size: ClusterSize) => string,
): Comparison {
  const titles = sizes
    .map((size) => [nameOf(size), title(size)] as const)
    .filter(([name]) => all.arms.includes(name));
  if (titles.length < 2) return nothing;
  return {
    arms: titles.map(([, arm]) => arm),
    measured: all.measured.map((one) => ({
      ...one,
      samples: Object.fromEntries(titles.map(([name, arm]) => [arm, one.samples[name] ?? []])),
    })),
  };
}

type ArmSpec = Pick<ArmOptions, 'kernelPath' | 'wire' | 'size' | 'mode'> &
  Partial<Pick<ArmOptions, 'services'>> & {
    readonly name: string;
    readonly datapath?: Datapath;
  };

/** The arms of the contrasts that have labs of their own. */
export const ownArms: Partial<Record<ContrastId, readonly ArmSpec[]>> = {
  'bare-host': [
    { name: 'bare-host', datapath: 'host', services: 0 },
    { name: 'bare-ripstop', datapath: 'ripstop', services: 0 },
  ],
  boost: [
    { name: 'cni', datapath: 'ripstop' },
    { name: 'boosted', datapath: 'ripstop', mode: 'boost' },
  ],
};

export const nothing: Comparison = { arms: [], measured: [] };

type Planes = Readonly<Record<'host' | 'flannel' | 'ripstop', Arm>>;

/** The arms of a contrast, in the labs of the data planes. `cpu` is the one of pinned works. */
function situationsOf(id: ContrastId, { host, flannel, ripstop }: Planes, cpu: number): Arm[] {
  switch (id) {
    case 'services':
      return [ripstop, throughClusterIp(ripstop), flannel, throughClusterIp(flannel)];
    case 'flows':
      return TABLE_SIZES.map((flows) => amongFlows(ripstop, flows));
    case 'new-flows':
      return [ripstop, flannel, host].flatMap((arm) => [arm, besideNewFlows(arm, cpu === 0 ? 1 : 0)]);
    case 'epoch':
      return (['still', 'moving'] as const).map((name) => withEpochs(ripstop, name));
    case 'bare-host':
    case 'boost':
      return []; // has labs of its own
    default:
      return id satisfies never;
  }
}

/** A run in progress: the settings, what all labs share, and the results so far. */
export class Bench {
  readonly failures: string[] = [];
  readonly programs: RunResult['programs'][number][] = [];
  readonly contrasts: Partial<Record<ContrastId, Comparison>> = {};
  readonly #settings: Settings;
  readonly #shared: { program: string; services: number; serverCpu: number };

  constructor(
    settings: Omit<Settings, 'fail'>,
    shared: { program: string; services: number; serverCpu: number },
  ) {
    this.#shared = shared;
    const fail = (what: string): void => {
      this.failures.push(what);
      settings.say(what);
    };
    this.#settings = { ...settings, fail };
  }

  /** Run a part. If it fails, the others still run. @throws RipstopError when interrupted. */
  async part<T>(name: string, act: () => Promise<T>, otherwise: T): Promise<T> {
    this.#settings.say(name);
    try {
      return await act();
    } catch (error) {
      if (this.#settings.signal.aborted) throw error;
      this.#settings.fail(`${name}: ${errorText(error)}`);
      return otherwise;
    }
  }

  /** The control; and with the same two labs the bystanders, one of them then without ripstop's programs. */
  async control(): Promise<{ control: Comparison; bystanders: Comparison }> {
    await using stack = new AsyncDisposableStack();
    const arms = await this.#raise(
      stack,
      ['ripstop', 'ripstop-again'].map((name) => ({ name })),
    );
    const control = await compare(arms, controlWorks, this.#settings);
    await arms[1]!.detach();
    const pair = [
      { ...arms[1]!, name: 'not attached' },
      { ...arms[0]!, name: 'attached' },
    ];
    return { control, bystanders: await compare(pair, bystanderWorks, this.#settings) };
  }

  /**
   * All data planes on one kind of wire; then, with the same labs, the contrasts. On the GSO wire ripstop's programs are
   * timed afterwards, which slows them.
   */
  async planes(wire: Wire, some: readonly Work[], others: readonly Contrast[]): Promise<Comparison> {
    await using stack = new AsyncDisposableStack();
    const arms = await this.#raise(
      stack,
      armSpecs.map((spec) => ({ ...spec, wire })),
    );
    const result = await compare(arms, some, this.#settings);
    const byName = Object.fromEntries(arms.map((arm) => [arm.name, arm]));
    for (const contrast of others)
      await this.#contrast(contrast, situationsOf(contrast.id, byName as Planes, this.#settings.cpu));
    if (wire === 'gso') await this.part('programs', () => this.#timePrograms(byName['ripstop']!), undefined);
    return result;
  }

  async #timePrograms(ripstop: Arm): Promise<void> {
    for (const work of scaleWorks) {
      this.#settings.say(`ns per run of each program: ${work.name}`);
      const costs = await programCosts(ripstop, () => measure(ripstop, work, this.#settings));
      this.programs.push(...costs.map((cost) => ({ ...cost, load: work.name })));
    }
  }

  async #contrast(contrast: Contrast, arms: readonly Arm[]): Promise<void> {
    const { id, title, works } = contrast;
    this.contrasts[id] = await this.part(title, () => compare(arms, works, this.#settings), nothing);
  }

  /** A contrast that has labs of its own: see {@link ownArms}. */
  async apart(contrast: Contrast, arms: readonly ArmSpec[]): Promise<void> {
    await using stack = new AsyncDisposableStack();
    await this.#contrast(contrast, await this.#raise(stack, arms));
  }

  /** ripstop in clusters of several sizes. An arm is named for its size: see {@link nameOf}. */
  async sizes(sizes: readonly ClusterSize[]): Promise<Comparison> {
    await using stack = new AsyncDisposableStack();
    const arms: Arm[] = [];
    // One after another, since growing uses all CPUs.
    for (const size of sizes) {
      this.#settings.say(`growing a cluster of ${nameOf(size)}`);
      arms.push(...(await this.#raise(stack, [{ name: nameOf(size), size }])));
    }
    // Awaited here, since the labs are taken down at the end of this block.
    return await compare(arms, scaleWorks, this.#settings);
  }

  /** Raise labs, which the stack takes down. If one cannot be raised, the others are still taken down. */
  async #raise(stack: AsyncDisposableStack, specs: readonly ArmSpec[]): Promise<Arm[]> {
    const raising = specs.map(({ datapath = 'ripstop', ...spec }) =>
      raiseArm(datapath, { ...this.#shared, ...spec }),
    );
    const outcomes = await Promise.allSettled(raising);
    const arms = outcomes.flatMap((outcome) =>
      outcome.status === 'fulfilled' ? [stack.use(outcome.value)] : [],
    );
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed) throw failed.reason;
    if (this.#settings.signal.aborted) throw new RipstopError('interrupted; there are no results');
    return arms;
  }
}
