// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from 'vitest/config';

/** Not part of `npm test`: these stories are told on the cluster that scripts/test-kubernetes.ts has raised. */
export default defineConfig({
  test: {
    include: ['test/kubernetes/stories/*.story.ts'],
    fileParallelism: false,
    expect: { poll: { timeout: 15_000 } },
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
