// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ifindexOf } from './index.ts';
import { fixture, noKernel, TemporaryBpffs } from './libbpf.support.ts';

interface Seen {
  ids: { tc: number; tcNext: number; xdp: number };
  left: number;
  right: number;
  [step: string]: unknown;
}

/** Run the child in a new namespace, where `left` (10.0.0.1) and `right` are the two ends of a veth pair. */
function runAttachments(): Seen {
  const netns = `libbpf-ts-${process.pid}`;
  const folder = mkdtempSync(join(tmpdir(), 'libbpf-ts-'));
  using bpffs = new TemporaryBpffs();
  execFileSync('ip', ['netns', 'add', netns]);
  try {
    const object = join(folder, 'basic.o');
    writeFileSync(object, fixture('basic'));
    const commands = [
      'link add left type veth peer name right address 02:00:00:00:00:02',
      'link set left up',
      'link set right up',
      'address add 10.0.0.1/24 dev left',
      'neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev left',
    ];
    execFileSync('ip', ['-n', netns, '-batch', '-'], { input: commands.join('\n') });
    const child = join(import.meta.dirname, 'attach.child.ts');
    const output = execFileSync('nsenter', [
      `--net=/run/netns/${netns}`,
      process.execPath,
      child,
      object,
      bpffs.path,
    ]);
    return JSON.parse(output.toString()) as Seen;
  } finally {
    execFileSync('ip', ['netns', 'delete', netns]);
    rmSync(folder, { recursive: true });
  }
}

describe.skipIf(noKernel)(`attachments${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  test('count real packets, and can be replaced, pinned and detached', () => {
    const seen = runAttachments();
    const { ids, left: _left, right } = seen;
    // Each array of three has how far the counters of tc, tc next and XDP moved for three datagrams.
    expect(seen).toMatchObject({
      'tcx info': { type: 'tcx', programId: ids.tc, ifindex: right, attachType: 'tcx_ingress' },
      'tcx programs': [[ids.tc], [], []],
      'tcx counts': [3, 0, 0],
      'update with the wrong expectation': 'EPERM',
      'after update': [ids.tcNext, [0, 3, 0]],
      pinned: [ids.tcNext, [0, 3, 0]],
      detached: [0, [0, 0, 0]],
      attachTc: [true, [3, 0, 0]],
      'closed without a pin': [0, 0, 0],
      xdp: [{ type: 'xdp', programId: ids.xdp, ifindex: right, attachType: 'xdp' }, [0, 0, 3]],
      'second xdp': 'EBUSY',
      'no such interface': 'ENODEV',
      'not a tc program': 'EINVAL',
      'no filter yet': true,
      filter: [ids.tc, [3, 0, 0]],
      'filter after update': [ids.tcNext, [0, 3, 0]],
      'filter detached': [null, [0, 0, 0]],
    });
  });

  test('need an interface that exists', () => {
    expect(ifindexOf('lo')).toBe(1);
    expect(() => ifindexOf('no-such-iface')).toThrow('if_nametoindex (no-such-iface) failed: ENODEV');
  });
});
