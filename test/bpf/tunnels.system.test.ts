// SPDX-License-Identifier: Apache-2.0
/**
 * Tunnels: once the kernel path was seen to carry VXLAN from a peer, from_wire takes the outer headers off packets of the
 * kernel path; and to_vtep puts them on, once it was seen to carry VXLAN to the peer. conntrack.system.test.ts has the way
 * to a peer that to_wire needs to see that.
 */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { encapBytes, podMtu } from '../../src/dataplane/desired.ts';
import { addressToBytes } from '../../src/net/ip.ts';
import { ethernet, ip, protocols, sealed, sealedAround, tcp, udp, unsummed } from '../../src/net/packets.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import {
  chosenOf,
  encapsulated,
  flowOf,
  ipBytes,
  type IpFields,
  toVtep,
  tunnelled,
  type WireFields,
  withOptions,
} from './frames.ts';
import {
  directSettings,
  FROM_FAST_PATH,
  forgetTunnelling,
  noteArrival,
  type Outcome,
  type RunOptions,
  type SeenTunnel,
  seeTunnel,
  settings,
  type Side,
  sides,
  spreadTunnelArrival,
  tableOf,
  TEST_RUN_IFINDEX,
  type TestNode,
  endsOf,
  tunnelArrivalsOf,
  tunnelKey,
  v6,
} from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const segment = tcp({ src: 80, dst: 40000 });
const SYN = tcp({ src: 1, dst: 2, flags: 2 });

/* ---- From a peer ---- */

/** The key of the tunnel in which the fixtures' packets come from a peer. */
const fromPeer = (peer: Side['peers']['one'], inner: Uint8Array): SeenTunnel['key'] =>
  tunnelKey(peer, { is_inward: 1, sender: '02:00:00:00:00:01', ttl: 64, ...endsOf(inner) });
const fromOne = (side: Side): SeenTunnel['key'] => fromPeer(side.peers.one, innerOf(side));
/** Of those to node one. */
const toOne = (side: Side, over: Partial<SeenTunnel['key']> = {}): SeenTunnel['key'] =>
  tunnelKey(side.peers.one, { ...endsOf(outgoing(side)), ...over });

/** What a packet of a new flow is inside its tunnel. */
const innerOf = ({ podOf, pods }: Side, fields: IpFields = {}, payload = segment): Uint8Array =>
  ip({ src: podOf(1, 7), dst: pods.near.ip, protocol: TCP, ttl: 63, ...fields }, payload);

const padded = (packet: Uint8Array): Uint8Array => Uint8Array.from([...packet, 1, 2]);

/** The frame that the VTEP device gets: from the peer's VTEP to ours. */
const atVtep = ({ peers, settings }: Side, inner: Uint8Array): Uint8Array =>
  ethernet({ dst: settings.vtepMac, src: peers.one.vtepMac }, inner);

/** What our nft rules put into skb->priority: the end of the outer source address. */
const senderOf = ({ peers }: Side): number =>
  new DataView(Uint8Array.from(addressToBytes(peers.one.vtepIp)).buffer).getUint32(
    addressToBytes(peers.one.vtepIp).length - 4,
    true,
  );

/** The kernel path decapsulates a packet: it comes from the wire, and then from the VTEP device. */
function arrives(
  node: TestNode,
  side: Side,
  { came, left = came, ...options }: { came: Uint8Array; left?: Uint8Array } & RunOptions,
): Outcome {
  const outcome = node.run('from_wire', tunnelled(side, side.peers.one, came), options);
  spreadTunnelArrival(node.tables, { ...fromOne(side), mark: options.mark ?? 0 });
  const sender = { priority: senderOf(side) };
  const seen = node.run('from_vtep', atVtep(side, left), { ...sender, ...options });
  expect(seen.counted).toBe('from_vtep: kernel from_peer');
  return outcome;
}

/** How a packet of the kernel path comes from the wire. */
function comes(node: TestNode, side: Side, inner = innerOf(side), options: RunOptions = {}): string {
  const { verdict, counted, packet } = node.run('from_wire', tunnelled(side, side.peers.one, inner), options);
  expect(counted).toMatch(/^from_wire: kernel /);
  const isBare = Buffer.compare(packet, atVtep(side, inner)) === 0;
  if (verdict === 'fast' && isBare) return 'without its outer headers';
  return verdict === 'kernel' && packet.length > inner.length + 14 ? 'as it is' : `wrongly, ${verdict}`;
}

/** The kernel path was seen to use a tunnel, in the epoch that is now. */
function sees({ tables }: TestNode, tunnel: SeenTunnel): void {
  seeTunnel(tables, { epoch: tables.epoch.get(0)!, ...tunnel });
}

function clear({ tables }: TestNode, side: Side): void {
  tables.tunnels.deleteMany([...tables.tunnels.keys()]);
  forgetTunnelling(tables, fromOne(side));
  forgetTunnelling(tables, toOne(side));
}

function inwardStories(node: () => TestNode): void {
  describe.each(sides)('from a peer, IPv$family', (side) => {
    it('the kernel path carries the first packet, and is seen; the next one loses its outer headers', () => {
      clear(node(), side);
      const first = arrives(node(), side, { came: innerOf(side, { id: 1, flowLabel: 1 }) });
      expect(first).toMatchObject({ verdict: 'kernel', counted: 'from_wire: kernel new_flow' });
      const { tunnels, epoch } = node().tables;
      expect(tunnels.get(fromOne(side))).toMatchObject({ epoch: epoch.get(0), ifindex: TEST_RUN_IFINDEX });

      const inner = innerOf(side, {}, tcp({ src: 81, dst: 40000, flags: 2 }));
      const next = node().run('from_wire', tunnelled(side, side.peers.one, inner), { priority: 6 });
      expect(next).toMatchObject({ verdict: 'fast', counted: 'from_wire: kernel handshake' });
      expect(next.packet).toEqual(atVtep(side, inner));
      expect(next.beside).toEqual({ mark: 0, priority: 0, note: FROM_FAST_PATH });

      const last = node().run('from_vtep', next.packet, next.beside);
      expect(last).toMatchObject({ verdict: 'kernel', counted: 'from_vtep: kernel from_peer' });
    });

    it.each<{ what: string; left: IpFields; payload?: Uint8Array; isIt?: boolean }>([
      { what: 'a packet with another TTL and ECN', left: { ttl: 62, tos: 3 }, isIt: true },
      { what: 'the next packet of the flow', left: { id: 2, flowLabel: 2 } },
      { what: 'a packet with another port', left: {}, payload: tcp({ src: 81, dst: 40000 }) },
      { what: 'a packet from another pod', left: { src: side.podOf(1, 8) } },
      { what: 'a packet to another pod', left: { dst: side.pods.narrow.ip } },
    ])('$what shows or does not show that the kernel path carried the noted one', (row) => {
      clear(node(), side);
      const numbers = { id: 1, flowLabel: 1 };
      const left = innerOf(side, { ...numbers, ...row.left }, row.payload);
      arrives(node(), side, { came: innerOf(side, numbers), left });
      expect(comes(node(), side)).toBe(row.isIt ? 'without its outer headers' : 'as it is');
    });

    it('another epoch ends it, and so does one that begins while the kernel path has the packet', () => {
      clear(node(), side);
      arrives(node(), side, { came: innerOf(side) });
      node().moveEpoch();
      expect(comes(node(), side)).toBe('as it is');
      spreadTunnelArrival(node().tables, fromOne(side));
      node().moveEpoch();
      node().run('from_vtep', atVtep(side, innerOf(side)), { priority: senderOf(side) });
      expect(comes(node(), side)).toBe('as it is');
    });

    it('it expires, and what it carried itself does not renew it', () => {
      clear(node(), side);
      arrives(node(), side, { came: innerOf(side) });
      const { tables } = node();
      const key = fromOne(side);
      sees(node(), { key, ageMs: 4000 });
      const before = tables.tunnels.get(key);
      const { packet, beside } = node().run('from_wire', tunnelled(side, side.peers.one, innerOf(side)));
      expect(beside.note).toBe(FROM_FAST_PATH);
      node().run('from_vtep', packet, beside);
      expect(tables.tunnels.get(key)).toEqual(before);
      sees(node(), { key, ageMs: 6000 });
      expect(comes(node(), side)).toBe('as it is');
    });

    it('packets with another mark have one of their own', () => {
      clear(node(), side);
      arrives(node(), side, { came: innerOf(side), mark: 7 });
      expect(comes(node(), side)).toBe('as it is');
      expect(comes(node(), side, innerOf(side), { mark: 7 })).toBe('without its outer headers');
    });

    it('ECN leaves it by RFC 6040, and what would be dropped is left to the kernel', () => {
      clear(node(), side);
      for (const tos of [0, 1, 2, 3]) sees(node(), { key: { ...fromOne(side), tos } });
      const rows = [0, 1, 2, 3].map((inner) =>
        [0, 1, 2, 3].map((outer) => {
          const sent = innerOf(side, { tos: 0xb8 | inner });
          const frame = tunnelled(side, side.peers.one, sent, { outer: { tos: outer } });
          const { packet, verdict } = node().run('from_wire', frame);
          const ecn = [0, 1, 2, 3].find((tos) => {
            const is = atVtep(side, innerOf(side, { tos: 0xb8 | tos }));
            return Buffer.compare(packet, is) === 0;
          });
          return verdict === 'kernel' && Buffer.compare(packet, frame) === 0 ? 'kernel' : ecn;
        }),
      );
      expect(rows).toEqual([
        [0, 0, 0, 'kernel'],
        [1, 1, 1, 3],
        [2, 1, 2, 3],
        [3, 3, 3, 3],
      ]);
    });
  });
}

function inwardFixtures(side: Side): Record<string, Fixture[]> {
  const { peers, pods, podOf } = side;
  const come = (
    says: string,
    verdict: Fixture['verdict'],
    wire: WireFields & { from?: typeof peers.one } = {},
    payload = segment,
  ): Fixture => {
    const { from = peers.one, inner = {} } = wire;
    const [node] = from === peers.far ? [5] : from === peers.behindNat ? [9] : [1];
    const inside = innerOf(side, { src: podOf(node, 7), ...inner }, payload);
    const packet = tunnelled(side, from, inside, wire);
    return { says, verdict, packet, tunnel: { key: fromPeer(from, inside) } };
  };
  const carried: typeof come = (says, verdict, wire, payload) => {
    const out = atVtep(side, innerOf(side, wire?.inner, payload));
    return { ...come(says, verdict, wire, payload), isCarried: true, out };
  };
  return {
    'whatever is inside, if its tunnel is valid,': [
      carried('carries the first packet of a connection', 'kernel handshake', {}, SYN),
      carried('carries a fragment', 'kernel fragment', { inner: { fragment: 0x2000 } }),
      (([inner, payload]) => carried('carries options', 'kernel ip_options', { inner }, payload))(
        withOptions(side),
      ),
      carried('carries unknown protocols', 'kernel protocol', { inner: { protocol: protocols.sctp } }),
      carried('carries what is for nobody', 'kernel new_flow', { inner: { dst: podOf(3, 99) } }),
      carried('carries what is about to expire', 'kernel new_flow', { inner: { ttl: 1 } }),
      {
        ...carried('carries what is right in all checksums', 'kernel new_flow'),
        packet: tunnelled(side, peers.one, sealed(innerOf(side)), { seal: sealed }),
        out: atVtep(side, sealed(innerOf(side))),
      },
      carried('carries what no NIC has summed', 'kernel new_flow', { seal: unsummed }),
    ],
    'even if its tunnel is valid,': [
      come('drops a source of another node', 'drop spoofed_source', { inner: { src: podOf(2, 7) } }),
      come('drops the VXLAN of no node', 'drop unknown_peer', { outer: { src: side.vtepOf(77) } }),
      come('leaves VXLAN from behind NAT as it is', 'kernel new_flow', { from: peers.behindNat }),
      come('leaves what is for a marked pod as it is', 'kernel new_flow', { inner: { dst: pods.marked.ip } }),
      come('leaves what comes from no pod as it is', 'kernel outside', { inner: { src: side.world } }),
      come('leaves another VNI as it is', 'kernel other_vni', { vxlan: { vni: 2 } }),
      come('leaves a wrong outer checksum to the kernel', 'kernel new_flow', { udp: { checksum: 1 } }),
      {
        ...come('leaves an outer checksum to the kernel that leaves options out', 'kernel ip_options'),
        packet: tunnelled(side, peers.one, innerOf(side, ...withOptions(side)), { seal: sealedAround }),
      },
      {
        ...come('leaves an outer checksum to the kernel that leaves padding out', 'kernel malformed'),
        packet: tunnelled(side, peers.one, padded(innerOf(side)), { seal: sealedAround }),
      },
      { ...come('leaves super-packets without a type as they are', 'kernel new_flow'), gsoSize: 100 },
    ],
    'if its tunnel is not valid,': [
      {
        ...come('leaves it as it is: it was seen to another peer', 'kernel new_flow'),
        ...seenOf(side, { vtep_ip: peers.two.vtepIp }),
      },
      {
        ...come('leaves it as it is: it was seen outward', 'kernel new_flow'),
        ...seenOf(side, { is_inward: 0 }),
      },
    ],
  };
}

const seenOf = (side: Side, over: Partial<SeenTunnel['key']>): Pick<Fixture, 'tunnel'> => ({
  tunnel: { key: { ...fromOne(side), ...over } },
});

/** The groups of both families, by titles of their own. */
const ofBoth = (groupsOf: (side: Side) => Record<string, Fixture[]>): Record<string, Fixture[]> =>
  Object.fromEntries(
    sides.flatMap((side) =>
      Object.entries(groupsOf(side)).map(([group, fixtures]) => [`of IPv${side.family}, ${group}`, fixtures]),
    ),
  );

runFixtures('from_wire', 'tunnels', {
  ...ofBoth(inwardFixtures),
  'of an IPv6 peer that wants outer checksums': [
    {
      says: 'leaves all as it is',
      verdict: 'kernel marked',
      packet: tunnelled(v6, v6.peers.far, innerOf(v6, { src: v6.podOf(5, 7) })),
      ...seenOf(v6, { vtep_ip: v6.peers.far.vtepIp, src: v6.podOf(5, 7) }),
    },
  ],
});

describeOnNode(
  'tunnels from a peer in boost mode',
  (node) => {
    it.each(sides)(
      'IPv$family: no rule tells the sender, and the kernel path is seen all the same',
      (side) => {
        clear(node(), side);
        arrives(node(), side, { came: innerOf(side), priority: 0 });
        expect(comes(node(), side)).toBe('without its outer headers');
      },
    );

    it.each(sides)('IPv$family: nobody’s source is judged', (side) => {
      const outcome = node().run('from_vtep', atVtep(side, innerOf(side, { src: side.podOf(77, 7) })));
      expect(outcome).toMatchObject({ verdict: 'kernel', counted: 'from_vtep: kernel from_peer' });
    });
  },
  { ...settings, admitsStrangers: true },
);

/* ---- To a peer ---- */

/** The ports from which the kernel's VXLAN device sends, the last one not among them. */
const [firstPort, endPort] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8')
  .split(/\s+/)
  .map(Number);

/** What the kernel path sends into the tunnel to node one. It has taken a hop off already. */
const outgoing = ({ podOf, pods }: Side, fields: IpFields = {}, payload = segment): Uint8Array =>
  ip({ src: pods.sender.ip, dst: podOf(1, 7), protocol: TCP, ttl: 63, ...fields }, payload);

const sourcePortOf = ({ family }: Side, packet: Uint8Array): number =>
  new DataView(packet.buffer, packet.byteOffset).getUint16(14 + ipBytes[family]);

/** The frame that must leave, but for what the programs may choose. */
const leaving =
  (side: Side, inner: Uint8Array, ecn = 0, to = side.peers.one) =>
  (packet: Uint8Array) =>
    encapsulated(side, to, inner, { ecn, ...chosenOf(packet), sourcePort: sourcePortOf(side, packet) });

function outwardStories(node: () => TestNode): void {
  describe.each(sides)('to a peer, IPv$family', (side) => {
    const valid = (over: Partial<SeenTunnel> = {}): void => {
      clear(node(), side);
      sees(node(), { key: toOne(side), ...over });
    };

    it('carries a packet as the kernel would: TTL as it is, mark and priority kept', () => {
      valid({ key: toOne(side, { mark: 7, priority: 6, tos: 2 }) });
      const inner = outgoing(side, { ttl: 17, tos: 0xbb });
      const { beside, ...result } = node().run('to_vtep', toVtep(side, inner), { mark: 7, priority: 6 });
      expect(result.verdict).toBe('fast');
      expect(result.packet).toEqual(leaving(side, inner, 2)(result.packet));
      expect(result.bytes).toBe(inner.length + 14 + encapBytes[side.family]);
      expect(beside).toEqual({ mark: 7, priority: 6, note: FROM_FAST_PATH });
      const again = node().run('to_wire', result.packet, beside);
      expect(again, 'to_wire looks at it').toMatchObject({ verdict: 'kernel', counted: '' });
    });

    it('sends from the kernel’s ports, all packets of a flow from the same', () => {
      valid();
      const portOf = (src: number, bytes: number): number => {
        const inner = outgoing(
          side,
          { protocol: UDP, id: bytes },
          udp({ src, dst: 53 }, new Uint8Array(bytes)),
        );
        return sourcePortOf(side, node().run('to_vtep', toVtep(side, inner)).packet);
      };
      const ports = Array.from({ length: 24 }, (_, i) => portOf(1000 + i, 8));
      expect(Math.min(...ports)).toBeGreaterThanOrEqual(firstPort!);
      expect(Math.max(...ports)).toBeLessThan(endPort!);
      expect(new Set(ports).size).toBeGreaterThan(12);
      expect(Array.from({ length: 24 }, (_, i) => portOf(1000 + i, 100))).toEqual(ports);
    });

    it('leaves a packet to the kernel path and notes it, if that was seen to carry only smaller ones', () => {
      const mtu = podMtu(settings, side.family);
      valid({ carried: mtu - 1 });
      const bytes = mtu - ipBytes[side.family] - 20;
      const largest = outgoing(side, {}, tcp({ src: 80, dst: 40000 }, new Uint8Array(bytes - 1)));
      const larger = outgoing(side, {}, tcp({ src: 80, dst: 40000 }, new Uint8Array(bytes)));
      expect(node().run('to_vtep', toVtep(side, largest)).verdict).toBe('fast');
      expect(tunnelArrivalsOf(node().tables, toOne(side))).toEqual([]);
      const { verdict, counted, packet } = node().run('to_vtep', toVtep(side, larger));
      expect({ verdict, counted, packet }).toEqual({
        verdict: 'kernel',
        counted: '',
        packet: toVtep(side, larger),
      });
      expect(tunnelArrivalsOf(node().tables, toOne(side))).toHaveLength(1);
    });

    it.each([
      { when: 'it has expired', over: { ageMs: 6000 } },
      { when: 'its epoch is old', over: { epoch: 77 } },
      { when: 'it is of another mark', over: { key: toOne(side, { mark: 1 }) } },
      { when: 'it is of another priority', over: { key: toOne(side, { priority: 1 }) } },
      { when: 'it is of the other direction', over: { key: toOne(side, { is_inward: 1 }) } },
      { when: 'it is of another pod', over: { key: toOne(side, { src: side.podOf(3, 99) }) } },
      { when: 'it is to another pod', over: { key: toOne(side, { dst: side.podOf(1, 8) }) } },
      { when: 'it is of another peer', over: { key: toOne(side, { vtep_ip: side.peers.two.vtepIp }) } },
    ])('leaves a packet to the kernel path and notes it, if $when', ({ over }) => {
      valid(over);
      expect(node().run('to_vtep', toVtep(side, outgoing(side))).verdict).toBe('kernel');
      expect(tunnelArrivalsOf(node().tables, toOne(side))).toHaveLength(1);
    });

    it('learns the flow of what it carries, with the way’s MTU and the port that it has chosen', () => {
      const mtu = podMtu(settings, side.family) - 50;
      valid({ mtu, key: toOne(side, { mark: 7 }) });
      const payload = tcp({ src: 80, dst: 40000 }, new Uint8Array(mtu - ipBytes[side.family] - 20 + 1));
      const fields = { src: side.pods.sender.ip, dst: side.podOf(1, 7) };
      const flow = flowOf(fields, payload);
      using _ = node().learn([]);
      noteArrival(node().tables, { flow, ttl: 64 });
      const { counted, packet } = node().run('to_vtep', toVtep(side, outgoing(side, {}, payload)), {
        mark: 7,
      });
      expect(counted).toBe('to_vtep: kernel learned');
      expect(tableOf(node().tables, flow).get(flow)?.head).toMatchObject({
        mtu,
        mark: 7,
        hops: 1,
        source_port: sourcePortOf(side, packet),
      });
    });
  });
}

describeOnNode('tunnels, packet by packet', (node) => {
  inwardStories(node);
  outwardStories(node);
});

function outwardFixtures(side: Side): Record<string, Fixture[]> {
  const { peers, pods, podOf } = side;
  const carried = (
    says: string,
    verdict: Fixture['verdict'],
    fields: IpFields,
    payload = segment,
  ): Fixture => {
    const inner = outgoing(side, fields, payload);
    const tunnel = { key: tunnelKey(peers.one, endsOf(inner)) };
    return { says, verdict, tunnel, isCarried: true, packet: toVtep(side, inner), out: leaving(side, inner) };
  };
  const stays = (says: string, packet: Uint8Array, to = peers.one): Fixture => ({
    says,
    verdict: 'nothing',
    tunnel: { key: tunnelKey(to, endsOf(packet.subarray(14))) },
    packet,
  });
  const behindNat = outgoing(side, { dst: podOf(9, 7) });
  return {
    'whatever is inside, if its tunnel is valid,': [
      carried('carries the first packet of a connection', 'kernel handshake', {}, SYN),
      carried('carries a fragment', 'kernel fragment', { fragment: 0x2000 }),
      carried('carries options', 'kernel ip_options', ...withOptions(side, { ttl: 63 })),
      carried('carries unknown protocols', 'kernel protocol', { protocol: protocols.sctp }),
      carried('carries what the node itself sends', 'kernel not_seen', { src: podOf(3, 0) }),
      {
        ...carried('carries what is for a peer behind NAT', 'kernel not_seen', {}),
        tunnel: { key: tunnelKey(peers.behindNat, endsOf(behindNat)) },
        packet: toVtep(side, behindNat, peers.behindNat),
        out: leaving(side, behindNat, 0, peers.behindNat),
      },
    ],
    'even if its tunnel is valid,': [
      stays('leaves what a marked pod sends', toVtep(side, outgoing(side, { src: pods.markedSender.ip }))),
      stays('leaves what is for another MAC address', toVtep(side, outgoing(side), peers.two)),
      stays('leaves what is for no node', toVtep(side, outgoing(side, { dst: podOf(77, 7) }))),
      stays('leaves what is for the world', toVtep(side, outgoing(side, { dst: side.world }))),
      stays('leaves another IP version', toVtep(side, outgoing(side)).with(14, 0)),
      { ...stays('leaves super-packets without a type', toVtep(side, outgoing(side))), gsoSize: 100 },
    ],
  };
}

runFixtures('to_vtep', 'tunnels', {
  ...ofBoth(outwardFixtures),
  'to an IPv6 peer that wants outer checksums': [
    {
      says: 'leaves all to the kernel',
      verdict: 'nothing',
      tunnel: { key: tunnelKey(v6.peers.far, endsOf(outgoing(v6, { dst: v6.podOf(5, 7) }))) },
      packet: toVtep(v6, outgoing(v6, { dst: v6.podOf(5, 7) }), v6.peers.far),
    },
  ],
});

runFixtures(
  'to_vtep',
  'tunnels with DirectRouting',
  ofBoth((side) => ({
    'to a peer on our L2': [
      {
        says: 'leaves all to the kernel',
        verdict: 'nothing',
        tunnel: { key: toOne(side) },
        packet: toVtep(side, outgoing(side)),
      },
    ],
  })),
  directSettings,
);
