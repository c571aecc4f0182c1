// SPDX-License-Identifier: Apache-2.0

export interface BackoffTiming {
  readonly backoffMinMs: number;
  readonly backoffMaxMs: number;
  /** A longer Retry-After is cut to this. */
  readonly retryAfterMaxMs: number;
}

/**
 * How long to wait after a failure: the time doubles with each failure before it. It has jitter, or all nodes of a
 * cluster would come back to the API server at once.
 * @param failures before this one.
 * @param retryAfterMs what the server asked for.
 * @returns ms.
 */
export function backoffMs(timing: BackoffTiming, failures: number, retryAfterMs = 0): number {
  const { backoffMinMs, backoffMaxMs, retryAfterMaxMs } = timing;
  const ceiling = Math.min(backoffMaxMs, backoffMinMs * 2 ** Math.min(failures, 20));
  const asked = Math.min(retryAfterMs, retryAfterMaxMs);
  return Math.max(ceiling * (0.5 + Math.random() / 2), asked * (1 + Math.random() / 10));
}
