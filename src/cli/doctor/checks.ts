// SPDX-License-Identifier: Apache-2.0
/** All checks, in the order in which they are printed and described. */
import type { Check } from './check.ts';
import { fastPathChecks } from './fast-path-checks.ts';
import { deviceChecks, rulesChecks } from './kernel-path-checks.ts';
import { agentChecks, nodeChecks } from './node-checks.ts';
import { pathChecks } from './path-checks.ts';

/** The groups are the chapters of deploy/TROUBLESHOOTING.md. */
export const groups: readonly { readonly title: string; readonly checks: readonly Check[] }[] = [
  { title: 'The machine', checks: nodeChecks },
  { title: 'The agent', checks: agentChecks },
  { title: 'Devices and peers', checks: deviceChecks },
  { title: 'Rules and settings', checks: rulesChecks },
  { title: 'Between nodes', checks: pathChecks },
  { title: 'The fast path', checks: fastPathChecks },
];

export const checks: readonly Check[] = groups.flatMap((group) => group.checks);
