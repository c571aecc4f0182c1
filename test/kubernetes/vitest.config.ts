// SPDX-License-Identifier: Apache-2.0
import { BaseSequencer, type TestSpecification } from 'vitest/node';
import { defineConfig } from 'vitest/config';
import '../support/compile-cache.ts';

/** Sort by name: vitest's own order begins with files that failed or took long the last time. */
class ByName extends BaseSequencer {
  override sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return Promise.resolve(files.toSorted((a, b) => a.moduleId.localeCompare(b.moduleId)));
  }
}

/** Not part of `npm test`: these stories run on the cluster that scripts/test-kubernetes.ts has raised. */
export default defineConfig({
  test: {
    include: ['test/kubernetes/stories/*.story.ts'],
    fileParallelism: false,
    // A line for each test when it ends, since stories take minutes.
    reporters: ['verbose'],
    sequence: { sequencer: ByName },
    expect: { poll: { timeout: 15_000 } },
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
