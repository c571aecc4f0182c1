// SPDX-License-Identifier: Apache-2.0
import type { Reporter, TestCase, TestModule, Vitest } from 'vitest/node';

/**
 * Ends a run with a line for each story that was skipped, which says why. scripts/test-fresh.ts reads them. When tests are
 * chosen by name (`-t`), all others count as skipped, and there are no lines.
 */
export default class Skipped implements Reporter {
  #isChosenByName = false;

  onInit({ config }: Vitest): void {
    this.#isChosenByName = config.testNamePattern !== undefined;
  }

  onTestRunEnd(modules: readonly TestModule[]): void {
    if (this.#isChosenByName) return;
    const skipped = modules.flatMap(({ children, relativeModuleId }) =>
      [...children.allTests('skipped')].map((test) => `${relativeModuleId}: ${why(test)}`),
    );
    for (const [story, { length }] of Map.groupBy(skipped, (story) => story))
      console.log(`skipped: ${story} (${length} test${length === 1 ? '' : 's'})`);
  }
}

/** A test that skips itself notes the reason; of others the title of the story has it. */
function why(test: TestCase): string {
  const result = test.result();
  const note = result.state === 'skipped' ? result.note : undefined;
  return note === undefined ? test.fullName.split(' > ')[0]! : `${test.fullName}: ${note}`;
}
