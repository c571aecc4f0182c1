// SPDX-License-Identifier: Apache-2.0
/**
 * `sweep.ts PIN`: run the pinned program that sweeps stack_flows, as the agent does every 30 s, and print how many it
 * removed.
 */
import { BpfProgram } from '#libbpf-ts';

using program = BpfProgram.openPinned(process.argv[2] ?? '');
console.log(program.testRun({ data: new Uint8Array(64) }).returnValue);
