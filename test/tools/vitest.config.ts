// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from 'vitest/config';
import '../support/compile-cache.ts';

/** Not part of `npm test`: these stories need other people's tools, which scripts/test-tools.ts fetches first. */
export default defineConfig({
  test: {
    include: ['test/tools/*.tools.test.ts'],
    fileParallelism: false,
    expect: { poll: { timeout: 15_000 } },
    testTimeout: 60_000,
    hookTimeout: 180_000,
  },
});
