// SPDX-License-Identifier: Apache-2.0
/** Rehearsals of `ripstop trace`: the same verdict and the same bytes as the program's, and nothing changes. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readCounters } from '../../src/dataplane/counters.ts';
import type { HookName } from '../../src/dataplane/links.ts';
import { Rehearsal } from '../../src/dataplane/rehearsal.ts';
import { run } from '../../src/host/run.ts';
import { podFlow, podFrame, wireFlow, wireFrame } from './frames.ts';
import { arrivalsOf, sides, type TestNode } from './node.ts';
import { describeOnNode } from './support.ts';

const PROGRAMS = ['from_pod', 'from_wire', 'xdp_from_wire'] as const satisfies HookName[];

describeOnNode('a rehearsal', (node) => {
  const rehearse = (hook: (typeof PROGRAMS)[number]): Rehearsal =>
    new Rehearsal(node().bpffs, hook, node().programs[hook].info.id);

  /** Everything that programs change. */
  const state = ({ tables }: TestNode): unknown => [
    readCounters(tables),
    arrivalsOf(tables),
    [...tables.flows4.entries(), ...tables.flows6.entries()],
    tables.ip_ids.getPerCpu(0),
    [...tables.endpoint_state.entries()],
  ];

  describe.each(sides)('of IPv$family', (side) => {
    const { near } = side.pods;
    const packets = {
      from_pod: [
        podFrame(side),
        podFrame(side, { dst: near.ip }),
        podFrame(side, { ttl: 1 }),
        podFrame(side, { src: near.ip }),
        podFrame(side, { dst: side.world }),
      ],
      from_wire: [
        wireFrame(side),
        wireFrame(side, { inner: { ttl: 9 } }),
        wireFrame(side, { udp: { dst: 99 } }),
      ],
      xdp_from_wire: [wireFrame(side), wireFrame(side, { inner: { ttl: 9 } })],
    };
    const flows = [
      { flow: podFlow(side), ttl: 64 },
      { flow: podFlow(side, { dst: near.ip }), ttl: 64 },
      { flow: wireFlow(side), ttl: 63 },
    ];

    it.each(PROGRAMS)('of %s does what the program does, and changes nothing', (hook) => {
      const verdicts = new Set<string>();
      for (const known of [true, false]) {
        for (const frame of packets[hook]) {
          using _ = node().learn(known ? flows : []);
          const before = state(node());
          using rehearsal = rehearse(hook);
          const rehearsed = rehearsal.run(frame, {});
          expect(state(node())).toEqual(before);
          const done = node().run(hook, frame);
          const { verdict, reason } = rehearsed;
          expect(`${hook}: ${verdict} ${reason}`).toBe(done.counted);
          verdicts.add(verdict);
          // The outer IP id is another one on each CPU, and the checksum with it.
          const [a, b] = [rehearsed.frame, done.packet.subarray(-rehearsed.frame.length)].map((bytes) => {
            const copy = bytes.slice();
            if (reason === 'encap' && side.family === 4) copy.fill(0, 18, 20).fill(0, 24, 26);
            return Buffer.from(copy).toString('hex');
          });
          expect(a).toBe(b);
        }
      }
      expect(verdicts).toContain('fast');
      expect(verdicts).toContain('kernel');
    });
  });

  it('refuses a program of another build', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rehearsal-'));
    try {
      cpSync(join(import.meta.dirname, '../../bpf'), join(folder, 'bpf'), { recursive: true });
      const header = join(folder, 'bpf/flows.h');
      writeFileSync(header, readFileSync(header, 'utf8').replace('GAP_NS 2000000', 'GAP_NS 2000001'));
      const flags = `-O2 -g -target bpf -mcpu=v3 -fno-strict-aliasing -I/usr/include/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`;
      await run('clang-19', [
        ...flags.split(' '),
        '-c',
        join(folder, 'bpf/pod.bpf.c'),
        '-o',
        join(folder, 'pod.bpf.o'),
      ]);
      const { id } = node().programs.from_pod.info;
      expect(() => new Rehearsal(node().bpffs, 'from_pod', id, folder)).toThrow(
        /the attached program from_pod \([0-9a-f]{16}\) is of another build than this ripstop's \([0-9a-f]{16}\)/,
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
