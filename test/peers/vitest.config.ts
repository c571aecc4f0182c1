// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from 'vitest/config';
import '../support/compile-cache.ts';

/** Not part of `npm test`: these stories need the real peers, which scripts/test-peers.ts builds first. */
export default defineConfig({
  test: {
    include: ['test/peers/*.peers.ts'],
    fileParallelism: false,
    expect: { poll: { timeout: 15_000 } },
    testTimeout: 60_000,
    hookTimeout: 180_000,
  },
});
