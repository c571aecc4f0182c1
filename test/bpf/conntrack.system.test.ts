// SPDX-License-Identifier: Apache-2.0
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { missing as missingForNode } from './node.ts';

const missing =
  missingForNode ??
  ['unshare', 'taskset', 'nft']
    .map((program) => (spawnSync(program, ['--version']).error ? `needs ${program}` : undefined))
    .find((reason) => reason !== undefined);

/** A CPU that we may use: what a packet's arrival is noted on. */
const cpu = (): string => /^Cpus_allowed_list:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]!;

describe.skipIf(missing)(`beside conntrack${missing ? ` (skipped: ${missing})` : ''}`, () => {
  it.each([4, 6])('IPv%i connections are learned as conntrack has them, when all is certain', (family) => {
    const child = join(import.meta.dirname, 'conntrack.child.ts');
    const command = ['--net', 'taskset', '-c', cpu(), process.execPath, child, `${family}`];
    const output = execFileSync('unshare', command, { encoding: 'utf8' });
    const mtu = family === 4 ? 1450 : 1430;
    // What is known of a way that has carried small packets only.
    const least = family === 4 ? 552 : 1280;
    const headers = family === 4 ? 40 : 60;
    const [sent, got] = ['from_pod: kernel new_flow; to_wire:', 'from_wire: kernel new_flow; to_pod:'];
    const carried = 'to_vtep: kernel learned';
    const [fastOut, fastIn] = ['  then from_pod: fast encap', '  then from_wire: fast decap'];
    expect(JSON.parse(output)).toEqual([
      `a plain connection: ${sent} kernel learned`,
      `  plain, leaves pod:40000 → far:8080, MTU ${least}`,
      fastOut,
      `its answers: ${got} kernel learned`,
      '  plain, leaves far:8080 → pod:40000, MTU 1450',
      fastIn,
      `a connection to a Service: ${sent} kernel learned`,
      `  translated, leaves pod:40001 → far:8080, MTU ${least}`,
      fastOut,
      `its answers: ${got} kernel learned`,
      '  translated, leaves service:80 → pod:40001, MTU 1450',
      fastIn,
      `a masqueraded connection: ${sent} kernel learned`,
      `  translated, leaves gateway:61000 → far:8081, MTU ${least}`,
      fastOut,
      `its answers: ${got} kernel learned`,
      '  translated, leaves far:8081 → pod:40002, MTU 1450',
      fastIn,
      `UDP to a Service: ${sent} kernel learned`,
      `  translated, leaves pod:40003 → far:8080, MTU ${least}`,
      fastOut,
      `its answers: ${got} kernel learned`,
      '  translated, leaves service:80 → pod:40003, MTU 1450',
      fastIn,
      `with another DSCP: ${sent} kernel not_seen`,
      `with a TTL of two less: ${sent} kernel not_seen`,
      'without its arrival: to_wire: kernel not_seen',
      `with a helper: ${sent} kernel not_established`,
      `that conntrack does not know: ${sent} kernel learned`,
      `  plain, leaves pod:41004 → far:8080, MTU ${least}`,
      fastOut,
      `as a packet of another connection: ${sent} kernel not_seen`,
      `after its end: ${sent} kernel not_established`,
      `to another MAC address: ${sent} kernel other_way`,
      `with another outer TTL: ${sent} kernel other_way`,
      `with an outer DSCP: ${sent} kernel other_way`,
      `in the tunnel to another node: ${sent} kernel other_way`,
      ...[
        ['of a small packet', 'kernel new_flow', least],
        ['of a larger one', 'kernel too_big', 1300 + headers],
        ['and of a small one again', 'fast encap', 1300 + headers],
      ].flatMap(([what, comes, bytes]) => [
        `${what}: from_pod: ${comes}; to_wire: kernel learned`,
        `  plain, leaves pod:41014 → far:8080, MTU ${bytes}`,
        fastOut,
      ]),
      'into the tunnel, and another packet leaves: as it is; known: nothing',
      `and the packet itself: as it is; known: ${least} of ${mtu} bytes`,
      `and the next one: ${carried}; known: ${least} of ${mtu} bytes`,
      `and a large one: as it is; known: ${1300 + headers} of ${mtu} bytes`,
      `and as large a one again: ${carried}; known: ${1300 + headers} of ${mtu} bytes`,
      `with a mark: as it is; known: ${least} of ${mtu} bytes`,
      `with a mark again: ${carried}; known: ${least} of ${mtu} bytes`,
      `in another epoch: as it is; known: ${least} of ${mtu} bytes`,
      `in another epoch again: ${carried}; known: ${least} of ${mtu} bytes`,
      `over a way with a smaller MTU: ${sent} kernel learned`,
      `  plain, leaves pod:41020 → far:8080, MTU ${mtu - 100}`,
      fastOut,
      `into the tunnel over that way: as it is; known: ${mtu - 100} of ${mtu - 100} bytes`,
      `over another next hop: ${sent} kernel other_way`,
      `without a tunnel to a peer on our L2: ${sent} kernel learned`,
      `  plain, leaves pod:40000 → far:8080, MTU ${least}`,
      '  then from_pod: fast direct',
      `before its handshake is complete: ${sent} kernel not_established`,
    ]);
  });
});
