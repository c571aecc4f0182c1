// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { ethernet, fragments, ip, udp, vxlan } from '../net/packets.ts';
import { RawSocket } from '../../test/support/raw-socket.ts';
import { ipJson } from '../lab/ip.ts';
import { testNetns, whyNoNetns, type TestNetns } from './netns.support.ts';
import { podRouteTarget } from './pod-routes.ts';
import { ensureRules, removeRules, type DesiredRules } from './rules.ts';
import { commandIn } from './run.ts';
import { readForwardCounters, readRuleCounters } from '../lab/rule-counters.ts';
import { ensureSysctls, nodeSysctls } from './sysctl.ts';
import { vtepSetTarget, vxlanSenders } from './vtep-set.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

/** All peers are known: there are none. */
const NOBODY = vxlanSenders([], true);

const DESIRED: DesiredRules = {
  networks: [
    {
      network: parseCidr('10.42.0.0/16'),
      podCidr: parseCidr('10.42.1.0/24'),
      vtepIp: '192.168.9.1',
      ...NOBODY,
    },
    { network: parseCidr('fd00::/48'), podCidr: parseCidr('fd00:0:0:1::/64'), vtepIp: 'fd09::1', ...NOBODY },
  ],
  masquerade: true,
  tunnel: { port: 8472, vni: 1 },
  uplink: 'eth0',
  bridges: [],
};

const POD = '10.42.1.5';
const POD6 = 'fd00:0:0:1::5';
const REMOTE_POD = '10.42.2.5';
const WORLD = '203.0.113.5';
const WORLD6 = '2001:db8::5';

interface Net extends AsyncDisposable {
  node: TestNetns;
  pod: TestNetns;
  /** Beyond eth0: the world, and in it a remote pod (routed without a tunnel here). */
  world: TestNetns;
  /** A neighbour on another interface, outside the cluster network. */
  lan: TestNetns;
}

/** A node that routes between a pod of its own, its uplink and a LAN. */
async function testNet(): Promise<Net> {
  const stack = new AsyncDisposableStack();
  const [node, pod, world, lan] = [
    stack.use(await testNetns()),
    stack.use(await testNetns()),
    stack.use(await testNetns()),
    stack.use(await testNetns()),
  ];
  await node.ip(
    `link add eth0 type veth peer name eth0 netns ${world.path}`,
    `link add lan0 type veth peer name eth0 netns ${lan.path}`,
    `link add vethA type veth peer name eth0 netns ${pod.path}`,
    'addr add 192.168.9.1/24 dev eth0',
    'addr add fd09::1/64 dev eth0 nodad',
    'addr add 10.7.0.1/24 dev lan0',
    'addr add 10.42.1.1/32 dev vethA',
    'addr add fd00:0:0:1::1/128 dev vethA nodad',
    'link set eth0 up',
    'link set lan0 up',
    'link set vethA up',
  );
  await pod.ip(
    `addr add ${POD}/32 dev eth0`,
    `addr add ${POD6}/128 dev eth0 nodad`,
    'link set eth0 up',
    'route add 10.42.1.1 dev eth0',
    'route add default via 10.42.1.1',
    'route add fd00:0:0:1::1 dev eth0',
    'route add default via fd00:0:0:1::1',
  );
  await world.ip(
    'addr add 192.168.9.254/24 dev eth0',
    'addr add fd09::fe/64 dev eth0 nodad',
    `addr add ${WORLD}/32 dev lo`,
    `addr add ${REMOTE_POD}/32 dev lo`,
    `addr add ${WORLD6}/128 dev lo`,
    'link set eth0 up',
    'route add 10.42.1.0/24 via 192.168.9.1',
    'route add fd00:0:0:1::/64 via fd09::1',
  );
  await lan.ip('addr add 10.7.0.2/24 dev eth0', 'link set eth0 up', 'route add default via 10.7.0.1');
  await node.ip(
    'route add default via 192.168.9.254',
    'route add 10.42.2.0/24 via 192.168.9.254',
    'route add default via fd09::fe',
  );
  await podRouteTarget(node.options).upsert(
    new Map([
      [`${POD}/32`, { dev: 'vethA' }],
      [`${POD6}/128`, { dev: 'vethA' }],
    ]),
  );
  await ensureSysctls(nodeSysctls([4, 6], ['eth0']), node.options);
  return { node, pod, world, lan, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** Answer every UDP datagram with the source address and port that it arrived with. */
async function mirror(where: TestNetns, ...addresses: string[]): Promise<AsyncDisposable> {
  const script = `for (const ip of process.argv.slice(1)) {
    const socket = require('node:dgram').createSocket(ip.includes(':') ? 'udp6' : 'udp4');
    socket.on('message', (_, from) => socket.send(from.address + ' ' + from.port, from.port, from.address));
    socket.bind(5555, ip, () => console.log('listening'));
  }`;
  const [file, ...args] = commandIn(where.path, process.execPath, ['-e', script, ...addresses]);
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let listening = 0;
  while (listening < addresses.length) {
    const [text] = (await once(child.stdout, 'data')) as [Buffer];
    listening += text.toString().split('listening').length - 1;
  }
  return {
    [Symbol.asyncDispose]: async () => {
      const closed = once(child, 'close');
      child.kill();
      await closed;
    },
  };
}

/** Send a datagram to a mirror. @returns the source address that the mirror saw, or `nothing` without an answer. */
async function seenFrom(sender: TestNetns, target: string): Promise<string> {
  return (await askMirror(sender, target)).split(' ')[0]!;
}

/** The same with the source port, `ADDRESS PORT`. @param port to send from; default: any */
async function askMirror(sender: TestNetns, target: string, port = 0): Promise<string> {
  const script = `const socket = require('node:dgram').createSocket(process.argv[1].includes(':') ? 'udp6' : 'udp4');
    socket.on('message', (text) => { console.log(String(text)); process.exit(); });
    setTimeout(() => { console.log('nothing'); process.exit(); }, 1500);
    socket.bind(Number(process.argv[2]), () => socket.send('?', 5555, process.argv[1]));`;
  return (await sender.run(process.execPath, '-e', script, target, String(port))).trim();
}

describe(title('the nft table'), { skip: skip !== undefined }, () => {
  it('is written once; a second pass writes nothing and keeps its handles', async () => {
    await using node = await testNetns();
    expect(await ensureRules(DESIRED, node.options)).toBe(true);
    const before = await node.run('nft', '-a', 'list', 'ruleset');
    expect(await ensureRules(DESIRED, node.options)).toBe(false);
    expect(await node.run('nft', '-a', 'list', 'ruleset')).toBe(before);
  });

  it.each([
    ['a rule was deleted', 'flush chain inet ripstop postrouting'],
    ['a rule was added', 'insert rule inet ripstop forward drop'],
    ['a policy was changed', 'chain inet ripstop forward { policy drop; }'],
    [
      'a set was deleted',
      'flush chain inet ripstop vxlan-in; flush chain inet ripstop vxlan-forward; delete set inet ripstop vteps6',
    ],
    [
      'a set is of another type',
      'delete table inet ripstop; add table inet ripstop; ' +
        'add set inet ripstop vteps4 { type inet_proto; elements = { tcp }; }',
    ],
    ['a chain was added', 'add chain inet ripstop extra { type filter hook input priority 0; }'],
    ['it was deleted', 'delete table inet ripstop'],
    ['everything was flushed', 'flush ruleset'],
  ])('is repaired when %s', async (_, damage) => {
    await using node = await testNetns();
    await ensureRules(DESIRED, node.options);
    const good = await node.run('nft', 'list', 'ruleset');
    await node.run('nft', damage);
    expect(await ensureRules(DESIRED, node.options)).toBe(true);
    expect(await node.run('nft', 'list', 'ruleset')).toBe(good);
  });

  it('follows a change of the podCIDR and of --ip-masq', async () => {
    await using node = await testNetns();
    await ensureRules(DESIRED, node.options);
    const networks = [{ ...DESIRED.networks[0]!, podCidr: parseCidr('10.42.9.0/24') }];
    expect(await ensureRules({ ...DESIRED, networks }, node.options)).toBe(true);
    const moved = await node.run('nft', 'list', 'table', 'inet', 'ripstop');
    expect(moved).toContain('10.42.9.0/24');
    expect(moved).not.toContain('10.42.1.0/24');
    expect(await ensureRules({ ...DESIRED, networks, masquerade: false }, node.options)).toBe(true);
    expect(await node.run('nft', 'list', 'table', 'inet', 'ripstop')).not.toContain('masquerade');
  });

  it("leaves other programs' tables alone, and is removed without a trace", async () => {
    await using node = await testNetns();
    await node.run(
      'nft',
      'table ip theirs { chain c { type nat hook postrouting priority 100; counter; }; }',
    );
    const before = await node.run('nft', '-a', 'list', 'ruleset');
    await ensureRules(DESIRED, node.options);
    expect(await node.run('nft', '-a', 'list', 'table', 'ip', 'theirs')).toBe(before);
    await removeRules(node.options);
    await removeRules(node.options);
    expect(await node.run('nft', '-a', 'list', 'ruleset')).toBe(before);
    expect(await readForwardCounters(node.options)).toBeUndefined();
  });
});

describe(title('packets through the node'), { skip: skip !== undefined }, () => {
  it('have the source address that flannel would give them', async () => {
    await using net = await testNet();
    const { node, pod, world, lan } = net;
    await using _world = await mirror(world, WORLD, REMOTE_POD, WORLD6);
    await using _pod = await mirror(pod, POD, POD6);

    // The world routes to pods here, so it can answer whatever address it sees.
    expect(await seenFrom(pod, WORLD)).toBe(POD);

    await ensureRules(DESIRED, node.options);
    expect({
      'pod to world': await seenFrom(pod, WORLD),
      'pod to remote pod': await seenFrom(pod, REMOTE_POD),
      'world to pod': await seenFrom(world, POD),
      'lan to pod': await seenFrom(lan, POD),
      'lan to remote pod': await seenFrom(lan, REMOTE_POD),
      'pod to world, IPv6': await seenFrom(pod, WORLD6),
      'world to pod, IPv6': await seenFrom(world, POD6),
    }).toEqual({
      'pod to world': '192.168.9.1',
      'pod to remote pod': POD,
      'world to pod': '192.168.9.254',
      'lan to pod': '10.7.0.2',
      'lan to remote pod': '192.168.9.1',
      'pod to world, IPv6': 'fd09::1',
      'world to pod, IPv6': 'fd09::fe',
    });

    // Every datagram and its answer was forwarded and counted: seven times two.
    expect((await readForwardCounters(node.options))?.packets).toBe(14);
  });

  it('that kube-proxy marked are left to kube-proxy', async () => {
    await using net = await testNet();
    await using _world = await mirror(net.world, WORLD);
    await ensureRules(DESIRED, net.node.options);
    await net.node.run(
      'nft',
      'table ip kube { chain pre { type filter hook prerouting priority 0; meta mark set 0x4000; }; }',
    );
    expect(await seenFrom(net.pod, WORLD)).toBe(POD);
  });

  it('get a random source port, or keep theirs with --ip-masq-fully-random-disable', async () => {
    await using net = await testNet();
    await using _world = await mirror(net.world, WORLD);
    await ensureRules({ ...DESIRED, keepPorts: true }, net.node.options);
    expect(await askMirror(net.pod, WORLD, 40_000)).toBe('192.168.9.1 40000');
    expect(await ensureRules(DESIRED, net.node.options)).toBe(true);
    const random = [40_001, 40_002, 40_003].map(async (port) =>
      (await askMirror(net.pod, WORLD, port)).endsWith(` ${port}`),
    );
    // One of them may meet its own port by chance, one in 64,512.
    expect(await Promise.all(random)).toContain(false);
  });

  it('keep their address without --ip-masq', async () => {
    await using net = await testNet();
    await using _world = await mirror(net.world, WORLD);
    await ensureRules({ ...DESIRED, masquerade: false }, net.node.options);
    expect(await seenFrom(net.pod, WORLD)).toBe(POD);
  });
});

describe(title('a pod that lies'), { skip: skip !== undefined }, () => {
  /** What the rules have dropped, by their words. */
  async function dropped(node: TestNetns): Promise<Record<string, number>> {
    const counters = (await readRuleCounters(node.options)).filter(
      ({ why, packets }) => packets > 0 && !why.endsWith('the cluster network'),
    );
    return Object.fromEntries(
      [...Map.groupBy(counters, ({ why }) => why)].map(([why, rules]) => [
        why,
        rules.reduce((sum, { packets }) => sum + packets, 0),
      ]),
    );
  }

  it('about its source is caught, in both families and behind tags, also where rp_filter is loose', async () => {
    await using net = await testNet();
    const { node, pod, world } = net;
    await using _world = await mirror(world, REMOTE_POD);
    await node.run('sysctl', '-qw', 'net.ipv4.conf.all.rp_filter=2');
    await ensureRules(DESIRED, node.options);
    expect(await seenFrom(pod, REMOTE_POD)).toBe(POD);
    expect(await dropped(node)).toEqual({});
    const [link] = await ipJson<{ address: string }>(['link', 'show', 'vethA'], node.options);
    using wire = new RawSocket(pod.path, 'eth0');
    for (const [src, dst] of [
      ['10.42.1.6', WORLD],
      [REMOTE_POD, WORLD],
      [WORLD, REMOTE_POD],
      ['fd00:0:0:1::6', WORLD6],
      [WORLD6, 'fd00:0:0:2::5'],
    ] as const) {
      const packet = ip({ src, dst }, udp({ src: 1, dst: 2 }));
      const frame = ethernet({ dst: link!.address, src: '02:00:00:00:00:66' }, packet);
      expect(wire.send(frame)).toBeUndefined();
      // Two tags of VLAN 0, which the kernel takes off one by one.
      const tags = [0x81, 0, 0, 0, 0x81, 0, 0, 0];
      expect(wire.send(Uint8Array.of(...frame.slice(0, 12), ...tags, ...frame.slice(12)))).toBeUndefined();
    }
    await expect.poll(() => dropped(node)).toEqual({ 'a pod sends from an address that is not its own': 10 });
  });

  it('with VXLAN is caught at every address of a node, through a Service, and in fragments', async () => {
    await using net = await testNet();
    const { node, pod } = net;
    await ensureRules({ ...DESIRED, masquerade: false }, node.options);
    await vtepSetTarget(node.options).upsert(new Map([['10.42.2.9', true]]));
    await node.run(
      'nft',
      'table ip kube { chain pre { type nat hook prerouting priority -100; ' +
        'ip daddr 10.43.0.1 udp dport 53 dnat to 203.0.113.5:8472; ' +
        'ip daddr 10.43.0.2 udp dport 53 dnat to 192.168.9.1:8472; }; }',
    );
    const [link] = await ipJson<{ address: string }>(['link', 'show', 'vethA'], node.options);
    using wire = new RawSocket(pod.path, 'eth0');
    const send = (dst: string, port: number, bytes: number, id: number): void => {
      const datagram = udp({ src: 1, dst: port }, vxlan({}, new Uint8Array(60)));
      const src = dst.includes(':') ? POD6 : POD;
      for (const packet of fragments({ src, dst, id }, datagram, bytes))
        expect(wire.send(ethernet({ dst: link!.address, src: '02:00:00:00:00:66' }, packet))).toBeUndefined();
    };
    // Our own addresses, a node in the cluster network, one in the world, and two Services.
    const targets = ['192.168.9.1', '10.7.0.1', 'fd09::1', '10.42.2.9', WORLD, WORLD6];
    for (const [i, dst] of targets.entries()) {
      send(dst, 8472, 2000, i);
      send(dst, 8472, 8, 100 + i);
    }
    send('10.43.0.1', 53, 2000, 7);
    send('10.43.0.2', 53, 8, 8);
    await expect.poll(() => dropped(node)).toEqual({ 'a pod talks VXLAN': 2 * targets.length + 2 });
    // Other pods may be what it likes to tunnel to.
    send(REMOTE_POD, 8472, 2000, 9);
    await expect
      .poll(async () => (await readForwardCounters(node.options))?.packets)
      .toBeGreaterThanOrEqual(1);
    expect(await dropped(node)).toEqual({ 'a pod talks VXLAN': 2 * targets.length + 2 });
  });
});

describe(title('VXLAN in fragments'), { skip: skip !== undefined }, () => {
  const VNI = 1;

  /** A namespace with a veth to another one, in which a VXLAN device of each family listens. */
  async function testWire(): Promise<AsyncDisposable & { node: TestNetns; wire: RawSocket; mac: string }> {
    const stack = new AsyncDisposableStack();
    const [node, world] = [stack.use(await testNetns()), stack.use(await testNetns())];
    const vxlan = (name: string, local: string) =>
      `link add ${name} type vxlan id ${VNI} dstport 8472 local ${local} nolearning`;
    await node.ip(
      `link add eth0 type veth peer name eth0 netns ${world.path}`,
      'addr add 192.168.9.1/24 dev eth0',
      'addr add fd09::1/64 dev eth0 nodad',
      'link set eth0 up',
      vxlan('flannel.1', '192.168.9.1'),
      `${vxlan('flannel-v6.1', 'fd09::1')} udp6zerocsumrx`,
      'link set flannel.1 up',
      'link set flannel-v6.1 up',
    );
    await world.ip('link set eth0 up');
    // The kernel adds this route when it starts to accept packets for the address, a moment after the link is up.
    const local = ['-6', 'route', 'show', 'table', 'local', 'fd09::1', 'dev', 'eth0'];
    await expect.poll(() => ipJson(local, node.options)).toHaveLength(1);
    const [link] = await ipJson<{ address: string }>(['link', 'show', 'eth0'], node.options);
    const wire = stack.use(new RawSocket(world.path, 'eth0'));
    return { node, wire, mac: link!.address, [Symbol.asyncDispose]: () => stack.disposeAsync() };
  }

  it.each([
    ['flannel.1', 'the first with all headers', '192.168.9.66', '192.168.9.1', 48],
    ['flannel.1', 'the first with UDP’s only', '192.168.9.66', '192.168.9.1', 8],
    ['flannel-v6.1', 'the first with all headers', 'fd09::66', 'fd09::1', 48],
    ['flannel-v6.1', 'the first with UDP’s only', 'fd09::66', 'fd09::1', 8],
  ])('reaches %s, %s, from nodes only', async (device, _, src, dst, bytes) => {
    await using net = await testWire();
    const { node, wire, mac } = net;
    const send = (id: number): void => {
      const inner = ethernet(
        { dst: '33:33:00:00:00:01', src: '02:00:00:00:00:66', type: 0x88b5 },
        new Uint8Array(50),
      );
      const datagram = udp({ src: 40_000, dst: 8472 }, vxlan({ vni: VNI }, inner));
      for (const packet of fragments({ src, dst, id }, datagram, bytes))
        expect(wire.send(ethernet({ dst: mac, src: '02:00:00:00:00:c8' }, packet))).toBeUndefined();
    };
    const counts = async (): Promise<{ received: number; dropped: number }> => {
      const [link] = await ipJson<{ stats64: { rx: { packets: number } } }>(
        ['-s', 'link', 'show', device],
        node.options,
      );
      const counters = await readRuleCounters(node.options);
      const dropped = counters.filter(({ why }) => why === 'a stranger talks VXLAN');
      return {
        received: link!.stats64.rx.packets,
        dropped: dropped.reduce((sum, { packets }) => sum + packets, 0),
      };
    };
    send(1);
    await expect.poll(counts).toEqual({ received: 1, dropped: 0 });
    // Nothing else in the table makes the kernel reassemble fragments.
    const rules = { ...DESIRED, masquerade: false };
    await ensureRules(rules, node.options);
    send(2);
    await expect.poll(counts).toEqual({ received: 1, dropped: 1 });
    await vtepSetTarget(node.options).upsert(new Map([[src, true]]));
    expect(await ensureRules(rules, node.options)).toBe(false);
    send(3);
    await expect.poll(counts).toEqual({ received: 2, dropped: 1 });
    // When it is written again, the table still has the elements of its sets.
    expect(await ensureRules({ ...rules, masquerade: true }, node.options)).toBe(true);
    send(4);
    await expect.poll(counts).toEqual({ received: 3, dropped: 0 });
  });
});
