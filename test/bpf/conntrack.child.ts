// SPDX-License-Identifier: Apache-2.0
/**
 * Runs in an empty network namespace, whose conntrack table is then ours alone: flows come and go there as kube-proxy
 * would make them, and the programs are asked. Prints what they said, for conntrack.system.test.ts to compare.
 */
import { execFileSync } from 'node:child_process';
import { ethernet, ipv4, tcp, udp } from '../support/packets.ts';
import { TCP, wireFrame } from './frames.ts';
import { openNode, pods } from './node.ts';

const { near, sender } = pods;
const [far, service] = ['10.42.1.7', '10.43.0.10'];
const log: string[] = [];
using node = openNode();

const conntrack = (...args: string[]): unknown => execFileSync('conntrack', args, { stdio: 'pipe' });
const say = (what: string, is: unknown): unknown => log.push(`${what}: ${String(is)}`);

/** A connection from a pod of ours, as conntrack has it after its first packet; through the service to `backend` if told. */
function connect(from: string, sport: number, to: string, dport: number, backend?: string): void {
  const nat = backend === undefined ? [] : ['--dst-nat', backend];
  const tuple = ['-p', 'tcp', '-s', from, '-d', to, '--sport', `${sport}`, '--dport', `${dport}`];
  conntrack('-I', ...tuple, ...nat, '--state', 'SYN_SENT', '-t', '60');
}

const frame = (src: string, sport: number, dst: string, dport: number): Uint8Array =>
  ethernet(
    { dst: near.podMac, src: near.hostMac },
    ipv4({ src, dst, protocol: TCP }, tcp({ src: sport, dst: dport })),
  );
const remembered = (): string =>
  [...node.tables.stack_flows]
    .map(([flow]) => `${flow.src}:${flow.src_port} → ${flow.dst}:${flow.dst_port}`)
    .join(', ') || 'nothing';
const flowsOf = (pod: typeof near): number | undefined =>
  node.tables.endpoint_state.get(Number(pod.ip.split('.')[3]))?.stack_flows;

connect(near.ip, 40000, far, 8080);
say('a plain flow leaves', node.run('to_vtep', frame(near.ip, 40000, far, 8080)).counted);
say('remembered', remembered());

connect(near.ip, 40001, service, 80, `${far}:8080`);
const leaving = frame(near.ip, 40001, far, 8080);
say('a service flow leaves', node.run('to_vtep', leaving).counted);
say('a service flow leaves again', node.run('to_vtep', leaving).counted);
say('remembered', remembered());
say('flows of the pod', flowsOf(near));

const reply = wireFrame({}, tcp({ src: 8080, dst: 40001 }));
say('its reply', node.run('from_wire', reply).counted);
say(
  'the reply of the plain flow',
  node.run('from_wire', wireFrame({}, tcp({ src: 8080, dst: 40000 }))).counted,
);
say(
  'the same ports over UDP',
  node.run(
    'to_vtep',
    ethernet(
      { dst: near.podMac, src: near.hostMac },
      ipv4({ src: near.ip, dst: far }, udp({ src: 40001, dst: 8080 })),
    ),
  ).counted,
);

connect(sender.ip, 40002, service, 80, `${near.ip}:8080`);
say(
  'a service flow comes to a pod of ours',
  node.run('to_pod', frame(sender.ip, 40002, near.ip, 8080)).counted,
);
say('flows of the pod', flowsOf(near));
say('flows of the other', flowsOf(sender));

say('swept while conntrack knows them', node.sweepFlows());
conntrack('-D', '-p', 'tcp', '--orig-port-src', '40001');
say('swept when one is gone', node.sweepFlows());
say('remembered', remembered());
say('flows of the pod', flowsOf(near));
say('a reply of the one that is gone', node.run('from_wire', reply).counted);
conntrack('-F');
say('swept when all are gone', node.sweepFlows());
say('flows of the pod', flowsOf(near));

// Fill the map with flows of a third pod, which conntrack does not know.
const { maxEntries } = node.tables.stack_flows.map.info;
node.tables.stack_flows.setMany(
  Array.from({ length: maxEntries }, (_, i) => [
    { src: `10.42.${1 + (i >> 15)}.7`, dst: '10.42.3.99', src_port: i & 0x7fff, dst_port: 80, protocol: TCP },
    { created_ns: 1 },
  ]),
);
node.tables.endpoint_state.set(99, { stack_flows: maxEntries, overflow: 0 });
connect(near.ip, 40003, service, 80, `${far}:8080`);
say(
  'a service flow leaves and there is no room',
  node.run('to_vtep', frame(near.ip, 40003, far, 8080)).counted,
);
say('anything to the pod', node.run('from_wire', wireFrame({}, tcp({ src: 1, dst: 2 }))).counted);
say('swept', node.sweepFlows() === maxEntries ? 'all' : 'not all');
say('flows of the third pod', node.tables.endpoint_state.get(99)?.stack_flows);

// What found no room nobody knows, so the pod stays slow; the next one with its address begins anew.
const slot = Number(near.ip.split('.')[3]);
const endpoint = node.tables.endpoints.get(slot)!;
say('the pod, with room again', node.tables.endpoint_state.get(slot)?.overflow);
node.tables.endpoints.set(slot, { ...endpoint, ifindex: 0 });
node.sweepFlows();
say('the pod gone', node.tables.endpoint_state.get(slot)?.overflow);

console.log(JSON.stringify(log));
