// SPDX-License-Identifier: Apache-2.0
/**
 * Runs in an empty network namespace, on one CPU: makes real connections there, plain and translated by nftables, and
 * runs the programs on their packets, as they come in and as they leave the kernel path. Argument: the family, 4 or 6.
 * Prints what was counted and learned, for conntrack.system.test.ts to compare.
 */
import { execFileSync } from 'node:child_process';
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { macToBytes } from '../../src/net/mac.ts';
import { ethernet, ip, protocols, tcp, udp } from '../../src/net/packets.ts';
import { encapsulated, podFrame, toVtep, tunnelled } from './frames.ts';
import {
  directSettings,
  endsOf,
  type Flow,
  FROM_FAST_PATH,
  openNode,
  type RunOptions,
  settings,
  tableOf,
  TEST_RUN_MAC,
  tunnelKey,
  v4,
  v6,
} from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const side = process.argv[2] === '6' ? v6 : v4;
const { sender } = side.pods;
const { service } = side;
const far = side.podOf(1, 7);
const gateway = side.podOf(3, 0);
const PEER_MAC = '02:00:00:00:00:01';

/* ---- The namespace: every address is on the loopback device, and the peers are on the uplink's L2. ---- */

const run = (command: string): string =>
  execFileSync('sh', ['-ec', command], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
const prefix = side.family === 4 ? 24 : 64;
run(`
  echo 1 > /proc/sys/net/ipv4/ip_forward
  echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
  ip link set lo up
  ip link add uplink type veth peer name underlay
  ip link set uplink up
  ip link set underlay up
  ip addr add ${side.settings.vtepIp}/${prefix} dev uplink ${side.family === 6 ? 'nodad' : ''}
  ip neigh add ${side.peers.one.vtepIp} lladdr ${PEER_MAC} dev uplink nud permanent
  ip route add ${service} dev lo
`);
for (const address of [sender.ip, far, gateway]) run(`ip addr add ${address} dev lo`);
const [uplink] = JSON.parse(run('ip -json link show uplink')) as { ifindex: number }[];

const family = side.family === 4 ? 'ip' : 'ip6';
const at = (address: string, port: number): string =>
  side.family === 6 ? `[${address}]:${port}` : `${address}:${port}`;
run(`nft -f - <<'END'
table ${family} nat {
  ct helper ftp { type "ftp" protocol tcp; }
  chain output {
    type nat hook output priority -100;
    meta l4proto { tcp, udp } ${family} daddr ${service} th dport 80 dnat to ${at(far, 8080)}
  }
  chain postrouting {
    type nat hook postrouting priority 100;
    meta l4proto { tcp, udp } th dport 8081 snat to ${at(gateway, 61000)}
  }
  chain helper {
    type filter hook output priority 0;
    tcp dport 8021 ct helper set "ftp"
  }
}
END`);

/* ---- Connections ---- */

interface Ends {
  readonly src: string;
  readonly src_port: number;
  readonly dst: string;
  readonly dst_port: number;
}
const ends = (src: string, src_port: number, dst: string, dst_port: number): Ends => ({
  src,
  src_port,
  dst,
  dst_port,
});
const reversed = ({ src, src_port, dst, dst_port }: Ends): Ends => ends(dst, dst_port, src, src_port);

using closing = new DisposableStack();

async function listen(port: number): Promise<void> {
  const server = createServer((socket) => socket.on('error', () => {})).listen(port, far);
  closing.defer(() => server.close());
  const socket = createSocket(side.family === 4 ? 'udp4' : 'udp6').bind(port, far);
  closing.defer(() => socket.close());
  socket.on('message', (message, from) => socket.send(message, from.port, from.address));
  await Promise.all([once(server, 'listening'), once(socket, 'listening')]);
}

async function connectTcp({ src, src_port, dst, dst_port }: Ends): Promise<Socket> {
  const socket = connect({ host: dst, port: dst_port, localAddress: src, localPort: src_port });
  closing.defer(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

async function exchangeUdp({ src, src_port, dst, dst_port }: Ends): Promise<UdpSocket> {
  const socket = createSocket(side.family === 4 ? 'udp4' : 'udp6').bind(src_port, src);
  closing.defer(() => socket.close());
  await once(socket, 'listening');
  socket.send('ping', dst_port, dst);
  await once(socket, 'message');
  return socket;
}

/* ---- The programs ---- */

const here = { uplink: { ...settings.uplink, ifindex: uplink!.ifindex } };
using node = openNode({ ...settings, ...here });
using directNode = openNode({ ...directSettings, ...here });
const log: string[] = [];

interface Change {
  ttl?: number;
  /** IPv4's id and IPv6's flow label. */
  id?: number;
  tos?: number;
}

const packetOf = (
  flow: Ends,
  protocol: number,
  { ttl = 64, tos = 0, id = 0 }: Change,
  bytes = 0,
): Uint8Array => {
  const ports = { src: flow.src_port, dst: flow.dst_port };
  const payload = new Uint8Array(bytes);
  const segment = protocol === TCP ? tcp(ports, payload) : udp(ports, payload);
  return ip({ src: flow.src, dst: flow.dst, protocol, ttl, tos, id, flowLabel: id }, segment);
};
const frame = (packet: Uint8Array): Uint8Array =>
  Uint8Array.from([...podFrame(side).subarray(0, 14), ...packet]);

/** A packet comes in and leaves the kernel path. */
interface Passage {
  readonly node?: typeof node;
  readonly protocol?: number;
  readonly comes: Ends;
  readonly leaves: Ends;
  readonly change?: Change;
  /** Bytes of payload. */
  readonly bytes?: number;
  /** It leaves without having been seen to come in. */
  readonly unseen?: boolean;
  /** What is wrong with the outer packet. */
  readonly outer?: (frame: Uint8Array) => Uint8Array;
}

const names: Readonly<Record<string, string>> = {
  [sender.ip]: 'pod',
  [far]: 'far',
  [service]: 'service',
  [gateway]: 'gateway',
};
const textOf = (flow: Ends): string =>
  `${names[flow.src]}:${flow.src_port} → ${names[flow.dst]}:${flow.dst_port}`;

/** What the flow table says of the flow; `taken` is what the next packet meets. */
function say(
  what: string,
  on: typeof node,
  protocol: number,
  comes: Ends,
  steps: string[],
  next: Uint8Array,
) {
  const flow: Flow = { ...comes, protocol };
  const entry = tableOf(on.tables, flow).get(flow);
  if (!entry) {
    log.push(`${what}: ${steps.join('; ')}`);
    return;
  }
  const { head, out } = entry;
  const age = Number(process.hrtime.bigint()) - head.learned_ns;
  const isFresh = age > -1e9 && age < 1e9 && head.ifindex === 1 && head.epoch === on.tables.epoch.get(0);
  const translated = head.is_translated ? 'translated' : 'plain';
  log.push(`${what}: ${steps.join('; ')}`, `  ${translated}, leaves ${textOf(out)}, MTU ${head.mtu}`);
  if (!isFresh) log.push(`but with ${JSON.stringify(head)}`);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1); // a gap in the flow
  const program = comes.src === far ? 'from_wire' : 'from_pod';
  log.push(`  then ${on.run(program, next).counted}`);
}

/** From the pod to the other node. */
function sends(what: string, passage: Passage): void {
  const { node: on = node, protocol = TCP, comes, leaves, change = {}, bytes, unseen, outer } = passage;
  const inner = packetOf(leaves, protocol, { ttl: 63, ...change }, bytes);
  const isDirect = on === directNode;
  const wire = isDirect
    ? ethernet({ dst: PEER_MAC, src: TEST_RUN_MAC }, inner)
    : encapsulated(side, side.peers.one, inner, { ecn: (change.tos ?? 0) & 3, id: 0, sourcePort: 40000 });
  wire.set(macToBytes(PEER_MAC));
  const came = frame(packetOf(comes, protocol, {}, bytes));
  const steps = [
    ...(unseen ? [] : [on.run('from_pod', came).counted]),
    on.run('to_wire', outer ? outer(wire) : wire).counted,
  ];
  say(what, on, protocol, comes, steps, frame(packetOf(comes, protocol, {})));
}

/** From the other node to the pod. */
function gets(what: string, { protocol = TCP, comes, leaves, change = {} }: Passage): void {
  const came = tunnelled(side, side.peers.one, packetOf(comes, protocol, { ttl: 63 }));
  const left = frame(packetOf(leaves, protocol, { ttl: 62, ...change }));
  const steps = [node.run('from_wire', came).counted, node.run('to_pod', left).counted];
  say(what, node, protocol, comes, steps, came);
}

for (const port of [8080, 8081, 8021]) await listen(port);

const plain = ends(sender.ip, 40000, far, 8080);
await connectTcp(plain);
sends('a plain connection', { comes: plain, leaves: plain });
gets('its answers', { comes: reversed(plain), leaves: reversed(plain) });

const toService = ends(sender.ip, 40001, service, 80);
const dnat = ends(sender.ip, 40001, far, 8080);
await connectTcp(toService);
sends('a connection to a Service', { comes: toService, leaves: dnat });
gets('its answers', { comes: reversed(dnat), leaves: reversed(toService) });

const masqueraded = ends(sender.ip, 40002, far, 8081);
const snat = ends(gateway, 61000, far, 8081);
await connectTcp(masqueraded);
sends('a masqueraded connection', { comes: masqueraded, leaves: snat });
gets('its answers', { comes: reversed(snat), leaves: reversed(masqueraded) });

const question = ends(sender.ip, 40003, service, 80);
const asked = ends(sender.ip, 40003, far, 8080);
await exchangeUdp(question);
sends('UDP to a Service', { protocol: UDP, comes: question, leaves: asked });
gets('its answers', { protocol: UDP, comes: reversed(asked), leaves: reversed(question) });

/* ---- What is not certain is not learned. ---- */

const fresh = async (port: number, dst_port = 8080): Promise<Passage> => {
  const flow = ends(sender.ip, port, far, dst_port);
  await connectTcp(flow);
  return { comes: flow, leaves: flow };
};
sends('with another DSCP', { ...(await fresh(41000)), change: { tos: 0xb8 } });
sends('with a TTL of two less', { ...(await fresh(41001)), change: { ttl: 62 } });
sends('without its arrival', { ...(await fresh(41002)), unseen: true });
sends('with a helper', await fresh(41003, 8021));
const unknown = ends(sender.ip, 41004, far, 8080);
sends('that conntrack does not know', { comes: unknown, leaves: unknown });
sends('as a packet of another connection', {
  ...(await fresh(41005)),
  comes: ends(sender.ip, 41007, far, 8080),
});

const ending = ends(sender.ip, 41006, far, 8080);
const socket = await connectTcp(ending);
socket.resetAndDestroy();
await once(socket, 'close');
sends('after its end', { comes: ending, leaves: ending });

const udpAt = 14 + (side.family === 4 ? 20 : 40);
const ttlAt = side.family === 4 ? 22 : 21;
sends('to another MAC address', { ...(await fresh(41010)), outer: (wire) => wire.with(5, 2) });
sends('with another outer TTL', { ...(await fresh(41011)), outer: (wire) => wire.with(ttlAt, 63) });
sends('with an outer DSCP', {
  ...(await fresh(41012)),
  outer: (wire) => (side.family === 4 ? wire.with(15, 0xb8) : wire.with(14, 0x6b)),
});
sends('in the tunnel to another node', {
  ...(await fresh(41013)),
  outer: (wire) => wire.with(udpAt - 1, 2),
});

const growing = await fresh(41014);
sends('of a small packet', growing);
sends('of a larger one', { ...growing, bytes: 1300 });
sends('and of a small one again', growing);

/* ---- The kernel path is seen to carry packets to a peer, and then to_vtep carries them. ---- */

/** The kernel path sends a packet into the tunnel. What to_vtep does not carry leaves as it is, or as another one. */
function tunnels(what: string, bytes = 0, options: RunOptions = {}, leaves = 0): void {
  const { one } = side.peers;
  const inner = (id: number): Uint8Array => packetOf(plain, TCP, { ttl: 63, id }, bytes);
  const { tables } = node;
  const { counted, beside } = node.run('to_vtep', toVtep(side, inner(0)), options);
  const isCarried = beside.note === FROM_FAST_PATH;
  const wire = encapsulated(side, one, inner(leaves), { id: 0, sourcePort: 40000 });
  wire.set(macToBytes(PEER_MAC));
  if (!isCarried) node.run('to_wire', wire, options);
  const seen = tables.tunnels.get(tunnelKey(one, { ...options, ...endsOf(inner(0)) }));
  const known =
    seen && seen.epoch === tables.epoch.get(0) ? `${seen.carried} of ${seen.mtu} bytes` : 'nothing';
  log.push(`${what}: ${isCarried ? counted : 'as it is'}; known: ${known}`);
}

node.tables.tunnels.deleteMany([...node.tables.tunnels.keys()]);
tunnels('into the tunnel, and another packet leaves', 0, {}, 1);
tunnels('and the packet itself');
tunnels('and the next one');
tunnels('and a large one', 1300);
tunnels('and as large a one again', 1300);
tunnels('with a mark', 0, { mark: 7 });
tunnels('with a mark again', 0, { mark: 7 });
node.moveEpoch();
tunnels('in another epoch');
tunnels('in another epoch again');

run(`ip route add ${side.peers.one.vtepIp} dev uplink mtu lock 1400`);
sends('over a way with a smaller MTU', { ...(await fresh(41020)), bytes: 1400 });
node.moveEpoch();
tunnels('into the tunnel over that way', 1400);
run(`ip route replace ${side.peers.one.vtepIp} via ${side.vtepOf(2)} dev uplink`);
run(`ip neigh add ${side.vtepOf(2)} lladdr ${PEER_MAC} dev uplink nud permanent`);
sends('over another next hop', await fresh(41021));
run(`ip route del ${side.peers.one.vtepIp}`);

run(`ip addr del ${far} dev lo`);
run(`ip route add ${far} via ${side.peers.one.vtepIp} dev uplink`);
sends('without a tunnel to a peer on our L2', { node: directNode, comes: plain, leaves: plain });

/** A connection whose SYN nobody answers. */
const silent = ends(sender.ip, 42000, side.podOf(1, 8), 8080);
run(`ip route add ${silent.dst} dev uplink`);
run(`ip neigh add ${silent.dst} lladdr ${PEER_MAC} dev uplink nud permanent`);
const waiting = connect({ host: silent.dst, port: 8080, localAddress: sender.ip, localPort: 42000 });
closing.defer(() => waiting.destroy());
waiting.on('error', () => {});
await setTimeout(50);
sends('before its handshake is complete', { comes: silent, leaves: silent });

console.log(JSON.stringify(log));
process.exit(0);
