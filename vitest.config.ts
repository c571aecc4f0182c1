// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from 'vitest/config';
import './test/support/compile-cache.ts';

/** How many times longer than usual a test may take, for slow machines. Limits that a test itself measures stay. */
const scale = Number(process.env['TEST_TIME_SCALE'] ?? 1);

const PROGRAMS = 'test/{bpf,model}/**/*.system.test.ts';

/**
 * Three projects: `unit` needs nothing but Node; `programs` needs root and BPF, and hands packets to programs; `system` needs
 * network namespaces too. Each file of the last two says in one line what it lacks when it skips. System files run one after
 * another: they measure time and share two cores. The others run two at a time.
 *
 * How files for tests are named:
 * - Tests lie beside what they test: NAME.test.ts, NAME.system.test.ts. Tests of the whole are below test/.
 * - What needs other people's tools is test/tools/NAME.tools.test.ts, and has a configuration of its own: `npm run test:tools`.
 * - What tests import is NAME.support.ts, and lies beside them. Below test/, where everything is for tests, a folder's files
 *   share `support.ts`, and folders share test/support/.
 * - What runs as a child process, often in a network namespace of its own, is NAME.child.ts. Nothing imports it.
 * - What tests read or compile, below src, lies in a folder `fixtures`.
 * Product code imports none of these; the linter sees to that.
 */
export default defineConfig({
  test: {
    maxWorkers: 2,
    reporters: ['default', './test/support/skipped.ts'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['{src,bench,test}/**/*.test.ts'],
          // *.tools.test.ts: npm run test:tools.
          exclude: ['**/*.{system,tools}.test.ts', '**/node_modules/**'],
          // On a busy machine what must come may come late.
          expect: { poll: { timeout: 4_000 * scale } },
          testTimeout: 5_000 * scale,
          hookTimeout: 10_000 * scale,
        },
      },
      {
        test: {
          name: 'programs',
          include: [PROGRAMS],
          testTimeout: 60_000 * scale,
          hookTimeout: 120_000 * scale,
        },
      },
      {
        test: {
          name: 'system',
          include: ['{src,bench,test}/**/*.system.test.ts'],
          exclude: [PROGRAMS, '**/node_modules/**'],
          fileParallelism: false,
          // Polls for what must come in the end; what must come in time is measured by the test itself.
          expect: { poll: { timeout: 10_000 * scale } },
          testTimeout: 60_000 * scale,
          hookTimeout: 120_000 * scale,
        },
      },
    ],
  },
});
