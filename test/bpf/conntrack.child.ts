// SPDX-License-Identifier: Apache-2.0
/**
 * Runs in an empty network namespace with its own conntrack table: adds and removes flows there as kube-proxy would
 * create them, and runs the programs. Argument: the family, 4 or 6. Prints the verdicts, for
 * conntrack.system.test.ts to compare.
 */
import { execFileSync } from 'node:child_process';
import { stateSlot } from '../../src/dataplane/desired.ts';
import { ethernet, ip, protocols, tcp, udp } from '../support/packets.ts';
import { wireFrame } from './frames.ts';
import { openNode, settings, v4, v6 } from './node.ts';

const { tcp: TCP } = protocols;
const side = process.argv[2] === '6' ? v6 : v4;
const { near, sender } = side.pods;
const { service } = side;
const far = side.podOf(1, 7);
const log: string[] = [];
using node = openNode();

const conntrack = (...args: string[]): unknown => execFileSync('conntrack', args, { stdio: 'pipe' });
const ofFamily = ['-f', `ipv${side.family}`];
const say = (what: string, is: unknown): unknown => log.push(`${what}: ${String(is)}`);
const slotOf = (pod: string): number => stateSlot(settings, pod)!;
const endpointText = (address: string, port: number): string =>
  side.family === 6 ? `[${address}]:${port}` : `${address}:${port}`;

/**
 * A local pod's connection, as it is in conntrack after its first packet; optionally through the service to a backend.
 */
function connect(from: string, sport: number, to: string, dport: number, backend?: [string, number]): void {
  const nat = backend === undefined ? [] : ['--dst-nat', endpointText(...backend)];
  const tuple = ['-p', 'tcp', '-s', from, '-d', to, '--sport', `${sport}`, '--dport', `${dport}`];
  conntrack('-I', ...tuple, ...nat, '--state', 'SYN_SENT', '-t', '60');
}

const frame = (src: string, sport: number, dst: string, dport: number): Uint8Array =>
  ethernet(
    { dst: near.podMac, src: near.hostMac },
    ip({ src, dst, protocol: TCP }, tcp({ src: sport, dst: dport })),
  );
const names = new Map([
  [far, 'far'],
  [near.ip, 'near'],
  [sender.ip, 'sender'],
]);
const remembered = (): string =>
  [...node.tables.stack_flows]
    .map(([flow]) => `${names.get(flow.src)}:${flow.src_port} → ${names.get(flow.dst)}:${flow.dst_port}`)
    .join(', ') || 'nothing';
const stateOf = (pod: string) => node.tables.endpoint_state.get(slotOf(pod));

connect(near.ip, 40000, far, 8080);
say('a plain flow leaves', node.run('to_vtep', frame(near.ip, 40000, far, 8080)).counted);
say('remembered', remembered());

connect(near.ip, 40001, service, 80, [far, 8080]);
const leaving = frame(near.ip, 40001, far, 8080);
say('a service flow leaves', node.run('to_vtep', leaving).counted);
say('a service flow leaves again', node.run('to_vtep', leaving).counted);
say('remembered', remembered());
say('flows of the pod', stateOf(near.ip)?.stack_flows);

const reply = wireFrame(side, {}, tcp({ src: 8080, dst: 40001 }));
say('its reply', node.run('from_wire', reply).counted);
const plainReply = wireFrame(side, {}, tcp({ src: 8080, dst: 40000 }));
say('the reply of the plain flow', node.run('from_wire', plainReply).counted);
const overUdp = ethernet(
  { dst: near.podMac, src: near.hostMac },
  ip({ src: near.ip, dst: far }, udp({ src: 40001, dst: 8080 })),
);
say('the same ports over UDP', node.run('to_vtep', overUdp).counted);

connect(sender.ip, 40002, service, 80, [near.ip, 8080]);
say(
  'a service flow comes to a pod of ours',
  node.run('to_pod', frame(sender.ip, 40002, near.ip, 8080)).counted,
);
say('flows of the pod', stateOf(near.ip)?.stack_flows);
say('flows of the other', stateOf(sender.ip)?.stack_flows);

say('swept while conntrack knows them', node.sweepFlows());
conntrack('-D', ...ofFamily, '-p', 'tcp', '--orig-port-src', '40001');
say('swept when one is gone', node.sweepFlows());
say('remembered', remembered());
say('flows of the pod', stateOf(near.ip)?.stack_flows);
say('a reply of the one that is gone', node.run('from_wire', reply).counted);
conntrack('-F', ...ofFamily);
say('swept when all are gone', node.sweepFlows());
say('flows of the pod', stateOf(near.ip)?.stack_flows);

// Fill the map with flows of a third pod, which conntrack does not know.
const third = side.podOf(3, 99);
const { maxEntries } = node.tables.stack_flows.map.info;
node.tables.stack_flows.setMany(
  Array.from({ length: maxEntries }, (_, i) => [
    { src: side.podOf(1 + (i >> 15), 7), dst: third, src_port: i & 0x7fff, dst_port: 80, protocol: TCP },
    { created_ns: 1 },
  ]),
);
node.tables.endpoint_state.set(slotOf(third), { stack_flows: maxEntries, overflow: 0, forwards: 0 });
connect(near.ip, 40003, service, 80, [far, 8080]);
say(
  'a service flow leaves and there is no room',
  node.run('to_vtep', frame(near.ip, 40003, far, 8080)).counted,
);
say('anything to the pod', node.run('from_wire', wireFrame(side, {}, tcp({ src: 1, dst: 2 }))).counted);
say('swept', node.sweepFlows() === maxEntries ? 'all' : 'not all');
say('flows of the third pod', stateOf(third)?.stack_flows);

// Nobody knows which flows found no room, so the pod stays on the kernel path; the next pod with its address does not.
say('the pod, with room again', stateOf(near.ip)?.overflow);
if (side === v4) {
  const slot = slotOf(near.ip);
  node.tables.endpoints.set(slot, { ...node.tables.endpoints.get(slot)!, ifindex: 0 });
} else node.tables.endpoints6.deleteMany([near.ip]);
node.sweepFlows();
say('the pod gone', stateOf(near.ip)?.overflow);

console.log(JSON.stringify(log));
