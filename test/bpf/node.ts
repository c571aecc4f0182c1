// SPDX-License-Identifier: Apache-2.0
/**
 * The node that the fixtures of this folder run on: the programs as the agent loads them, over maps as the agent fills
 * them, and packets handed in by BPF_PROG_TEST_RUN. It has no network and needs none.
 */
import type { BpfProgram } from '#libbpf-ts';
import type { Struct } from '../../src/dataplane/codec.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import {
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  type Endpoint,
  endpointSlot,
  type NodeSettings,
  type Peer,
} from '../../src/dataplane/desired.ts';
import { type LoadedPrograms, loadPrograms, type ProgramName } from '../../src/dataplane/programs.ts';
import { pinPaths, type Tables } from '../../src/dataplane/tables.ts';
import { TemporaryBpffs } from '../../src/libbpf-ts/test-support.ts';
import { parseCidr } from '../../src/net/ip.ts';

/** Why the fixtures cannot run here; undefined when they can. */
export const missing = process.getuid?.() === 0 ? undefined : 'needs root to load BPF programs';

export const settings: NodeSettings = {
  network: parseCidr('10.42.0.0/16'),
  podCidr: parseCidr('10.42.3.0/24'),
  vni: 1,
  port: 8472,
  vtepMac: 'aa:00:00:00:00:03',
  uplink: { ifindex: 2, ip: '192.168.0.3', mtu: 1500 },
  sourcePorts: { min: 32768, max: 60999 },
};

function peer(n: number, over: Partial<Peer> = {}): Peer {
  const podCidr = parseCidr(`10.42.${n}.0/24`);
  const addresses = { vtepIp: `192.168.0.${n}`, vtepMac: `aa:00:00:00:00:0${n}` };
  return { name: `node${n}`, podCidr, ...addresses, behindNat: false, ...over };
}

export const peers = {
  one: peer(1),
  two: peer(2),
  /** Its podCIDR has another length than ours, so the peers map has no slot for it. */
  unindexed: peer(8, { podCidr: parseCidr('10.42.16.0/23') }),
  behindNat: peer(9, { vtepIp: '203.0.113.9', behindNat: true }),
};

/** A test run comes in by the loopback device, so that is the veth of every pod that sends. */
const TEST_RUN_IFINDEX = 1;

function pod(n: number, over: Partial<Endpoint> = {}): Endpoint {
  return {
    ip: `10.42.3.${n}`,
    hostIfname: `veth${n}`,
    hostIfindex: 100 + n,
    podMac: `0a:00:00:00:00:${n}`,
    hostMac: `0e:00:00:00:00:${n}`,
    mtu: 1450,
    slow: false,
    ...over,
  };
}

export const pods = {
  sender: pod(10, { hostIfindex: TEST_RUN_IFINDEX }),
  slowSender: pod(11, { hostIfindex: TEST_RUN_IFINDEX, slow: true }),
  near: pod(20),
  slow: pod(21, { slow: true }),
  /** Its interface has a smaller MTU than the others'. */
  narrow: pod(22, { mtu: 1280 }),
};

/** What the programs remember of a local pod's flows. */
export interface Remembered {
  readonly pod: Endpoint;
  readonly flows?: readonly Struct<'flow'>[];
  readonly overflow?: boolean;
}

export interface RunOptions {
  /** Size of the segments in a GSO super-packet, bytes of payload; 0 is no such packet. */
  readonly gsoSize?: number;
}

export interface Outcome {
  /** By the program's return value. */
  readonly verdict: string;
  /** The counters that moved, such as `from_pod: fast local`, with how often when it was not once. */
  readonly counted: string;
  /** How far the byte counters moved. */
  readonly bytes: number;
  readonly packet: Uint8Array;
}

// linux/pkt_cls.h. TC_ACT_UNSPEC (-1) is our way to the stack, TC_ACT_SHOT a drop, TC_ACT_REDIRECT the fast path.
const verdicts: Record<number, string> = { 0xffff_ffff: 'stack', 2: 'drop', 7: 'fast' };

/** `struct __sk_buff` of linux/bpf.h; a test run accepts little more than these members. */
const SK_BUFF_BYTES = 192;
const GSO_SIZE_OFFSET = 176;

function context({ gsoSize = 0 }: RunOptions): Uint8Array {
  const bytes = new Uint8Array(SK_BUFF_BYTES);
  new Uint32Array(bytes.buffer)[GSO_SIZE_OFFSET / 4] = gsoSize;
  return bytes;
}

export interface TestNode extends Disposable {
  readonly tables: Tables;
  readonly programs: LoadedPrograms['programs'];
  /** Run one of the programs by its name, or a test's own that calls them. */
  run(program: ProgramName | BpfProgram, packet: Uint8Array, options?: RunOptions): Outcome;
  /** Forget what conntrack has forgotten; how many flows that were. */
  sweepFlows(): number;
  /** Put flows into stack_flows as to_pod and to_vtep do; the result takes them out again. */
  remember(remembered: Remembered): Disposable;
}

export function openNode(): TestNode {
  const bpffs = new TemporaryBpffs();
  const loaded = loadPrograms(settings, pinPaths(bpffs.path));
  const { programs, tables } = loaded;

  const everyPeer = Object.values(peers);
  const indexed = desiredPeers(settings, everyPeer, (address) => address);
  for (const [slot, value] of indexed) tables.peers.set(Number(slot), value);
  for (const [slot, value] of desiredEndpoints(settings, Object.values(pods)))
    tables.endpoints.set(Number(slot), value);
  tables.vteps.setMany(desiredVteps(settings, everyPeer, indexed));

  return {
    tables,
    programs,
    run(program, packet, options = {}) {
      const before = readCounters(tables);
      const result = (typeof program === 'string' ? programs[program] : program).testRun({
        data: packet,
        context: context(options),
      });
      const moved = readCounters(tables)
        .map((counter, i) => ({
          ...counter,
          packets: counter.packets - before[i]!.packets,
          bytes: counter.bytes - before[i]!.bytes,
        }))
        .filter((counter) => counter.packets !== 0);
      return {
        verdict: verdicts[result.returnValue] ?? `return value ${result.returnValue}`,
        counted: moved
          .map(
            ({ hook, verdict, reason, packets }) =>
              `${hook}: ${verdict} ${reason}${packets === 1 ? '' : ` ${packets} times`}`,
          )
          .join(', '),
        bytes: moved.reduce((sum, counter) => sum + counter.bytes, 0),
        packet: result.data,
      };
    },
    sweepFlows: () => loaded.sweepFlows(),
    remember({ pod, flows = [], overflow = false }) {
      const slot = endpointSlot(settings, pod.ip)!;
      tables.stack_flows.setMany(flows.map((flow) => [flow, { created_ns: 1 }]));
      tables.endpoint_state.set(slot, { stack_flows: flows.length, overflow: overflow ? 1 : 0 });
      return {
        [Symbol.dispose]() {
          tables.stack_flows.deleteMany(flows);
          tables.endpoint_state.set(slot, { stack_flows: 0, overflow: 0 });
        },
      };
    },
    [Symbol.dispose]() {
      loaded[Symbol.dispose]();
      bpffs[Symbol.dispose]();
    },
  };
}
