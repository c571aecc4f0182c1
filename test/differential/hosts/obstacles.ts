// SPDX-License-Identifier: Apache-2.0
/**
 * What operators put in the way of packets, or make of them, drawn from a seed: rules of nftables, iptables, routing, IPsec
 * and tc. All of them treat the packets of a flow alike, which is what the flow table relies on (bpf/README.md); none asks
 * for a packet's length or payload, counts packets, or names an interface that only one of the labs has. Rules for routes
 * concern pods of the other node: between pods of one node flannel's bridge asks no route.
 */
import type { Family } from '../../../src/net/ip.ts';
import type { Random } from '../../support/random.ts';
import { families, type NodeName, nodeNames, NODES, other, podNames, PODS, podsOn, VTEPS } from '../plan.ts';
import { DSCPS, HOST_PORT, PORTS, SERVICE_PORT } from './flows.ts';

/** Shell commands for a node. A pod's host veth is in the variable of its name, such as `$n1p1`. */
export interface Obstacle {
  readonly node: NodeName;
  readonly add: string;
  readonly remove: string;
}

/** What an obstacle is drawn from. */
interface Draw {
  readonly random: Random;
  readonly node: NodeName;
  readonly family: Family;
  /** Its own name, and number, for tables and the like. */
  readonly name: string;
  readonly id: number;
}

type Kind = (draw: Draw) => Omit<Obstacle, 'node'>;

const ipOf = (family: Family): string => (family === 4 ? 'ip' : 'ip6');
const ttlOf = (family: Family): string => (family === 4 ? 'ip ttl' : 'ip6 hoplimit');
const deviceOf = (family: Family): string => (family === 4 ? 'flannel.1' : 'flannel-v6.1');
const hostCidr = (address: string): string => `${address}/${address.includes(':') ? 128 : 32}`;
const remotePods = (node: NodeName) => podsOn(other(node));

// ---- nftables ----

/** Base chains: their hook and priority. */
const CHAINS = [
  ['prerouting', -300],
  ['prerouting', -150],
  ['forward', -150],
  ['forward', 0],
  ['forward', 10],
  ['postrouting', -150],
  ['postrouting', 200],
] as const;

/** A condition that names a pod or a port at least. */
function drawMatch({ random, family }: Draw): string {
  const ip = ipOf(family);
  const [a, b] = [random.pick(podNames), random.pick(podNames)];
  const pods = [
    '',
    `${ip} saddr ${PODS[family][a]}`,
    `${ip} daddr ${PODS[family][b]}`,
    `${ip} saddr ${PODS[family][a]} ${ip} daddr ${PODS[family][b]}`,
  ];
  const port = random.pick([...PORTS, ...PORTS, SERVICE_PORT, HOST_PORT]);
  const echo = family === 4 ? 'icmp type echo-request' : 'icmpv6 type echo-request';
  const ports = [
    '',
    '',
    `tcp dport ${port}`,
    `udp dport ${port}`,
    `tcp sport ${port}`,
    `udp sport ${port}`,
    echo,
  ];
  const more = [
    '',
    '',
    '',
    `${ip} dscp ${random.pick(DSCPS)}`,
    `${ttlOf(family)} < 32`,
    `${ttlOf(family)} > 100`,
    `ct state ${random.pick(['new', 'established', 'invalid', 'untracked'])}`,
    `ct direction ${random.pick(['original', 'reply'])}`,
    'ct status dnat',
    'meta mark 7',
  ];
  const who = random.pick(pods);
  const what = who === '' ? random.pick(ports.filter((text) => text !== '')) : random.pick(ports);
  return [who, what, random.pick(more)].filter((text) => text !== '').join(' ');
}

function drawVerdict({ random, family }: Draw, hook: string, match: string): string {
  const ip = ipOf(family);
  return random.pick([
    'drop',
    'drop',
    'meta mark set 7',
    'ct mark set 7',
    `${ip} dscp set ${random.pick([...DSCPS, 0])}`,
    `${ip} dscp set ${random.pick([...DSCPS, 0])}`,
    `${ttlOf(family)} set ${random.pick([2, 5, 33, 64, 200])}`,
    'accept',
    ...(hook === 'forward' ? ['reject', match.includes('tcp') ? 'reject with tcp reset' : 'reject'] : []),
    ...(hook === 'prerouting' ? ['notrack'] : []),
  ]);
}

const table = (name: string, hook: string, priority: number, rule: string, type = 'filter'): string =>
  `nft "table inet ${name} { chain c { type ${type} hook ${hook} priority ${priority}; ${rule}; }; }"`;

const nft: Kind = (draw) => {
  const [hook, priority] = draw.random.pick(CHAINS);
  const match = drawMatch(draw);
  const rule = `${match} ${drawVerdict(draw, priority === -150 ? 'other' : hook, match)}`;
  return { add: table(draw.name, hook, priority, rule), remove: `nft delete table inet ${draw.name}` };
};

/**
 * A mark on a connection, which another rule goes by. It is set by the first packet, or by none: one that a later packet sets
 * changes what becomes of the answers in the middle of their flow.
 */
const connectionMark: Kind = (draw) => {
  let match = drawMatch(draw);
  while (/ct st/.test(match)) match = drawMatch(draw);
  const verdict = draw.random.pick(['drop', `${ipOf(draw.family)} dscp set ${DSCPS[0]}`]);
  return {
    add: `nft "table inet ${draw.name} {
      chain a { type filter hook prerouting priority -149; ${match} ct mark set 9; };
      chain b { type filter hook forward priority 5; ct mark 9 ct direction reply ${verdict}; }; }"`,
    remove: `nft delete table inet ${draw.name}`,
  };
};

/** At a device, where a packet has not met the IP layer yet, or has left it. */
const netdev: Kind = (draw) => {
  const { random, node, family, name } = draw;
  const ip = ipOf(family);
  const outer = `${ip} ${random.pick(['saddr', 'daddr'])} ${NODES[family][other(node)]} udp dport 8472`;
  const veth = `$${random.pick(podsOn(node))}`;
  const [device, match] = random.pick([
    ['eth0', outer],
    [veth, `${ip} daddr ${PODS[family][random.pick(podNames)]} tcp dport ${random.pick(PORTS)}`],
    [veth, `${ip} saddr ${PODS[family][random.pick(podNames)]} udp sport ${random.pick(PORTS)}`],
  ] as const);
  const hook = random.pick(['ingress', 'egress']);
  return {
    add: `nft "table netdev ${name} { chain c { type filter hook ${hook} device ${device} priority 0; ${match} drop; }; }"`,
    remove: `nft delete table netdev ${name}`,
  };
};

/** Against the tunnel itself. */
const outer: Kind = ({ random, node, family, name }) => {
  const [hook, end] = random.pick([
    ['output', 'daddr'],
    ['input', 'saddr'],
    ['prerouting', 'saddr'],
    ['postrouting', 'daddr'],
  ]);
  const verdict = random.pick([
    'drop',
    'meta mark set 7',
    `${ipOf(family)} dscp set ${DSCPS[0]}`,
    `${ttlOf(family)} set 9`,
  ]);
  const match = `${ipOf(family)} ${end} ${NODES[family][other(node)]} udp dport 8472`;
  return { add: table(name, hook, 0, `${match} ${verdict}`), remove: `nft delete table inet ${name}` };
};

const nat: Kind = ({ random, node, family, name }) => {
  const ip = ipOf(family);
  const pod = random.pick(podNames);
  const [from, to] = [random.pick(podNames), random.pick(podNames)];
  const [hook, priority, rule] = random.pick([
    [
      'prerouting',
      -101,
      `${ip} daddr ${NODES[family][node]} tcp dport ${HOST_PORT} dnat ${ip} to ${PODS[family][pod]}:${PORTS[0]}`,
    ],
    [
      'prerouting',
      -101,
      `${ip} daddr ${NODES[family][node]} udp dport ${HOST_PORT} dnat ${ip} to ${PODS[family][pod]}:${PORTS[1]}`,
    ],
    ['postrouting', 99, `${ip} saddr ${PODS[family][from]} ${ip} daddr ${PODS[family][to]} masquerade`],
  ] as const);
  const bracketed = family === 6 ? rule.replace(/to (\S+):(\d+)$/, 'to [$1]:$2') : rule;
  return { add: table(name, hook, priority, bracketed, 'nat'), remove: `nft delete table inet ${name}` };
};

// ---- iptables ----

const iptables: Kind = ({ random, family }) => {
  const protocol = random.pick(['tcp', 'udp']);
  const pod = random.pick([
    `-s ${PODS[family][random.pick(podNames)]}`,
    `-d ${PODS[family][random.pick(podNames)]}`,
  ]);
  const match = `${pod} -p ${protocol} ${random.pick(['--dport', '--sport'])} ${random.pick(PORTS)}`;
  const ttl = family === 4 ? 'TTL --ttl-set' : 'HL --hl-set';
  const [place, target] = random.pick([
    ['-t raw -X PREROUTING', 'DROP'],
    ['-t raw -X PREROUTING', 'CT --notrack'],
    ['-t mangle -X PREROUTING', `DSCP --set-dscp ${random.pick(DSCPS)}`],
    ['-t mangle -X FORWARD', `${ttl} 40`],
    ['-t mangle -X POSTROUTING', 'MARK --set-mark 7'],
    ['-X FORWARD', 'DROP'],
    ['-X FORWARD', 'REJECT'],
  ] as const);
  const command = `${family === 4 ? 'iptables' : 'ip6tables'} ${place} ${match} -j ${target}`;
  return { add: command.replace('-X', '-I'), remove: command.replace('-X', '-D') };
};

// ---- Routing, IPsec ----

const NOWHERE = ['blackhole', 'unreachable', 'prohibit'] as const;

const routingRule = (family: Family, id: number, what: string): Omit<Obstacle, 'node'> => ({
  add: `ip -${family} rule add pref ${1000 + id} ${what}`,
  remove: `ip -${family} rule del pref ${1000 + id}`,
});

const rule: Kind = ({ random, node, family, id }) => {
  const to = PODS[family][random.pick(remotePods(node))];
  const from = PODS[family][random.pick(podsOn(node))];
  const ends = random.pick([`to ${to}`, `from ${from} to ${to}`]);
  const what = random.pick(['', ` ipproto tcp dport ${random.pick(PORTS)}`, ' ipproto udp', ' fwmark 7']);
  return routingRule(family, id, `${ends}${what} ${random.pick(NOWHERE)}`);
};

const outerRule: Kind = ({ random, node, family, id }) =>
  routingRule(family, id, `to ${NODES[family][other(node)]} ipproto udp dport 8472 ${random.pick(NOWHERE)}`);

/** By the other node's tunnel, as flannel's own route, but for smaller packets only. */
const narrowRoute = (node: NodeName, family: Family, to: string): string =>
  `${hostCidr(to)} via ${VTEPS[family][other(node)]} dev ${deviceOf(family)} onlink mtu 1300`;

const route: Kind = ({ random, node, family, id }) => {
  const to = PODS[family][random.pick(remotePods(node))];
  const what = random.pick([
    narrowRoute(node, family, to),
    narrowRoute(node, family, to),
    ...NOWHERE.map((kind) => `${kind} ${hostCidr(to)}`),
  ]);
  return {
    add: `ip -${family} route add ${what} metric ${10 + id}`,
    remove: `ip -${family} route del ${what} metric ${10 + id}`,
  };
};

/** Marked packets go by a table of their own. */
const policyRouting: Kind = (draw) => {
  const { random, node, family, name, id } = draw;
  const to = PODS[family][random.pick(remotePods(node))];
  const what = random.pick([narrowRoute(node, family, to), `blackhole ${hostCidr(to)}`]);
  const mark = `${drawMatch(draw)} meta mark set ${100 + id}`;
  const byMark = routingRule(family, id, `fwmark ${100 + id} lookup ${100 + id}`);
  return {
    add: `${table(name, 'prerouting', -150, mark)}; ip -${family} route add ${what} table ${100 + id}; ${byMark.add}`,
    remove: `${byMark.remove}; ip -${family} route flush table ${100 + id}; nft delete table inet ${name}`,
  };
};

const xfrm: Kind = ({ random, node, family }) => {
  const [near, far] = [PODS[family][random.pick(podsOn(node))], PODS[family][random.pick(remotePods(node))]];
  const ends = random.pick([
    `src ${hostCidr(near)} dst ${hostCidr(far)} dir out`,
    `src ${hostCidr(near)} dst ${hostCidr(far)} dir fwd`,
    `src ${hostCidr(far)} dst ${hostCidr(near)} dir fwd`,
  ]);
  return { add: `ip xfrm policy add ${ends} action block`, remove: `ip xfrm policy delete ${ends}` };
};

// ---- tc ----

/** Queues that deliver everything, and filters that send some packets nowhere. */
const shaping: Kind = ({ random, node, family }) => {
  const veth = `$${random.pick(podsOn(node))}`;
  const protocol = family === 4 ? 'ip' : 'ipv6';
  const match = family === 4 ? 'ip' : 'ip6';
  const nowhere = 'action mirred egress redirect dev lo';
  const device = random.pick(['eth0', veth]);
  return random.pick([
    {
      add: `tc qdisc add dev ${device} root tbf rate 400mbit burst 512k latency 100ms`,
      remove: `tc qdisc del dev ${device} root`,
    },
    { add: `tc qdisc add dev ${device} root pfifo limit 1000`, remove: `tc qdisc del dev ${device} root` },
    {
      add: `tc qdisc add dev ${veth} ingress; tc filter add dev ${veth} ingress protocol ${protocol} u32 match ${match} dport ${random.pick(PORTS)} 0xffff ${nowhere}`,
      remove: `tc qdisc del dev ${veth} ingress`,
    },
    {
      add: `tc qdisc add dev eth0 clsact; tc filter add dev eth0 ${random.pick(['ingress', 'egress'])} protocol ${protocol} u32 match ${match} dport 8472 0xffff ${nowhere}`,
      remove: 'tc qdisc del dev eth0 clsact',
    },
  ]);
};

/** Kinds, as often as they are to be drawn. */
const KINDS: readonly Kind[] = [
  ...Array.from({ length: 10 }, () => nft),
  connectionMark,
  netdev,
  netdev,
  outer,
  nat,
  nat,
  iptables,
  iptables,
  iptables,
  rule,
  rule,
  outerRule,
  route,
  route,
  policyRouting,
  xfrm,
  xfrm,
  shaping,
  shaping,
];

/** Obstacle number `id` of a configuration. */
export function drawObstacle(random: Random, id: number): Obstacle {
  const node = random.pick(nodeNames);
  const draw = { random, node, family: random.pick(families), name: `own${id}`, id };
  return { node, ...random.pick(KINDS)(draw) };
}
