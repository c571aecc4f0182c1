// SPDX-License-Identifier: Apache-2.0
import { pino } from 'pino';
import { expect, it } from 'vitest';
import { Report } from './report.ts';

it('the status names in words what is not as it should be, target by target', () => {
  const why = 'Address already in use (EADDRINUSE)';
  const statuses = [
    { name: 'rules', desired: 1, pending: 0, failures: [], sinceMs: 0 },
    {
      name: 'vtep-devices',
      desired: 1,
      pending: 0,
      failures: [{ key: 'flannel.1', why, sinceMs: 0 }],
      sinceMs: 0,
    },
  ];
  const status = new Report({ nodeName: 'node1', mode: 'cni' }, [], pino({ enabled: false })).toStatus({
    notReady: why,
    health: { connected: true },
    standing: undefined,
    serviceOf: undefined,
    statuses,
  });
  expect(status.passes.lastErrors).toEqual([`vtep-devices flannel.1: ${why}`]);
});
