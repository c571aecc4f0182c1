// SPDX-License-Identifier: Apache-2.0
import { type Arm, type ArmOptions, raiseArm } from '../../bench/arms.ts';
import { errorText, RipstopError } from '../../src/errors.ts';
import {
  type Datapath,
  labDown,
  type LabOptions,
  labUp,
  openLab,
  type Lab,
  type Progress,
} from '../../src/lab/index.ts';

/**
 * Everything that the demo raises, so that it can be taken down in any state. It first waits for labs that are still
 * being raised: they could not be taken down completely.
 */
export class Stage {
  readonly #making: Promise<unknown>[] = [];
  readonly #removals: (() => PromiseLike<unknown>)[] = [];
  #closing = false;

  /** Start work that makes namespaces or processes. @throws RipstopError while everything is being taken down. */
  make<T>(begin: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new RipstopError('everything is being taken down');
    const making = begin();
    this.#making.push(making);
    return making;
  }

  async raiseLab(options: LabOptions, progress: Progress): Promise<Lab> {
    await this.make(() => {
      this.#removals.push(() => labDown(options.name));
      return labUp(options, progress);
    });
    return openLab(options.name);
  }

  /** Raise a lab to compare with. If that fails, it takes itself down. */
  async raiseArm(datapath: Datapath, options: ArmOptions): Promise<Arm> {
    const arm = await this.make(() => raiseArm(datapath, options));
    this.#removals.push(() => arm[Symbol.asyncDispose]());
    return arm;
  }

  /** Take everything down. Returns a line for each failure. */
  async takeDown(): Promise<string[]> {
    this.#closing = true;
    await Promise.allSettled(this.#making);
    const outcomes = await Promise.allSettled(this.#removals.map((remove) => insist(remove)));
    return outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [errorText(outcome.reason)] : []));
  }
}

/** A second Ctrl-C ends the programs that take things down, so try once more. */
async function insist(remove: () => PromiseLike<unknown>): Promise<void> {
  for (let tries = 3; ; tries--) {
    try {
      await remove();
      return;
    } catch (error) {
      if (tries === 1) throw error;
    }
  }
}
