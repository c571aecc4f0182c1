// SPDX-License-Identifier: Apache-2.0
import { execFileSync, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { missing as missingForNode } from './node.ts';

const missing =
  missingForNode ??
  ['unshare', 'conntrack']
    .map((program) => (spawnSync(program, ['--version']).error ? `needs ${program}` : undefined))
    .find((reason) => reason !== undefined);

describe.skipIf(missing)(`beside conntrack${missing ? ` (skipped: ${missing})` : ''}`, () => {
  it.each([4, 6])(
    'the IPv%i flows that it translates are remembered, kept off the fast path, and forgotten with it',
    (family) => {
      const child = join(import.meta.dirname, 'conntrack.child.ts');
      const command = ['--net', process.execPath, child, `${family}`];
      const output = execFileSync('unshare', command, { encoding: 'utf8' });
      expect(JSON.parse(output)).toEqual([
        'a plain flow leaves: to_vtep: kernel untranslated',
        'remembered: nothing',
        'a service flow leaves: to_vtep: kernel translated',
        'a service flow leaves again: to_vtep: kernel translated',
        'remembered: far:8080 → near:40001',
        'flows of the pod: 1',
        'its reply: from_wire: kernel translated',
        'the reply of the plain flow: from_wire: fast decap',
        'the same ports over UDP: to_vtep: kernel untranslated',
        'a service flow comes to a pod of ours: to_pod: kernel translated',
        'flows of the pod: 2',
        'flows of the other: 0',
        'swept while conntrack knows them: 0',
        'swept when one is gone: 1',
        'remembered: near:8080 → sender:40002',
        'flows of the pod: 1',
        'a reply of the one that is gone: from_wire: fast decap',
        'swept when all are gone: 1',
        'flows of the pod: 0',
        'a service flow leaves and there is no room: to_vtep: kernel translated',
        'anything to the pod: from_wire: kernel translated',
        'swept: all',
        'flows of the third pod: 0',
        'the pod, with room again: 1',
        'the pod gone: 0',
      ]);
    },
  );
});
