// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from 'vitest/config';

/**
 * Two projects: `unit` needs nothing but Node; `system` needs root, BPF and network namespaces, and each of its files
 * says in one line what it lacks when it skips. System files run one after another: they measure time and share two cores.
 */
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: ['{src,bench,test}/**/*.test.ts'],
          exclude: ['**/*.system.test.ts', '**/node_modules/**'],
        },
      },
      {
        test: {
          name: 'system',
          include: ['{src,bench,test}/**/*.system.test.ts'],
          fileParallelism: false,
          // Polls for what must come in the end; what must come in time is measured by the test itself.
          expect: { poll: { timeout: 10_000 } },
          testTimeout: 60_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
