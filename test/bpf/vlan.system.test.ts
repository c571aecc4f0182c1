// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { BpfObject } from '#libbpf-ts';
import { fixture } from '../../src/libbpf-ts/libbpf.support.ts';
import { describeOnNode } from './support.ts';
import { podFlow, podFrame, wireFlow, wireFrame } from './frames.ts';
import { v4, v6 } from './node.ts';

const int32 = (value: number): Uint8Array => new Uint8Array(Int32Array.of(value).buffer);

// A tagged packet on the fast path would leave with its tag: a pod could choose its VLAN on the underlay.
describeOnNode('a packet whose VLAN tag the kernel has taken off', (node) => {
  const local = { dst: v4.pods.near.ip };
  it.each([
    ['from_pod', 'to a pod of this node', podFrame(v4, local), podFlow(v4, local)],
    ['from_pod', 'to a pod of another node', podFrame(v4), podFlow(v4)],
    ['from_pod', 'to a pod of another node, over IPv6', podFrame(v6), podFlow(v6)],
    ['from_wire', 'to a pod of ours', wireFrame(v4), wireFlow(v4)],
    ['from_wire', 'to a pod of ours, over IPv6', wireFrame(v6), wireFlow(v6)],
  ] as const)('%s leaves to the kernel, %s (row 54)', (program, _says, packet, flow) => {
    using _ = node().learn([{ flow }]);
    using object = BpfObject.open(fixture('vlan', import.meta.dirname));
    object.load();
    object.map('under_test').update(int32(0), int32(node().programs[program].fd));
    expect(node().run(program, packet).verdict).toBe('fast');
    const { verdict, counted } = node().run(object.program('tagged'), packet);
    expect({ verdict, counted }).toEqual({ verdict: 'kernel', counted: `${program}: kernel not_ip` });
  });
});
