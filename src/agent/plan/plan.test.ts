// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Peer } from '../../cluster/index.ts';
import type { Policy } from '#netlink';
import type { Attachment } from '../../cni/attachments.ts';
import type { PodBridges } from '../../host/bridged-pods.ts';
import type { Link } from '../../host/links.ts';
import { flannelVxlan, link } from '../../host/links.support.ts';
import { parseCidr } from '../../net/ip.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import { type Peers, peerService, plan, type PlanOptions, renamedPods } from './index.ts';

const POD_CIDR = parseCidr('10.42.1.0/24');

const OPTIONS: PlanOptions = {
  agent: {
    nodeName: 'node1',
    netConf: '',
    mode: 'cni',
    ingress: 'auto',
    podDevice: 'veth',
    setNodeNetworkUnavailable: false,
    bpffs: '/bpf',
    runDir: '/run/ripstop',
    stateDir: '/state',
    subnetFile: '/run/flannel/subnet.env',
    metricsAddr: '',
    ipMasq: true,
    flowTableSize: 1024,
    metricsTop: 250,
    ipamDir: '',
  },
  backend: { type: 'vxlan', vni: 1, port: 8472, directRouting: false },
  own: {
    name: 'node1',
    uid: 'u1',
    podCidrs: [POD_CIDR],
    annotations: {},
    vtepMac: { v4: '02:00:00:00:00:01' },
    nodePublicIp: {},
    internalIp: { v4: '192.0.2.1' },
    flannelIsUp: false,
  },
  families: [{ family: 4, network: parseCidr('10.42.0.0/16'), podCidr: POD_CIDR }],
  freshMac: { v4: '02:ff:00:00:00:04', v6: '02:ff:00:00:00:06' },
};

const address = (ip: string, length: number) =>
  ({ family: 4, ip, length, scope: 'global', primary: true }) as const;

const eth0 = link('eth0', { ifindex: 2, addresses: [address('192.0.2.1', 24)] });
const flannel1 = link('flannel.1', { ifindex: 3, kind: 'vxlan', mtu: 1450, mac: '02:00:00:00:00:01' });
const cni0 = link('cni0', { ifindex: 4, kind: 'bridge', addresses: [address('10.42.1.1', 24)] });
const veth = link('veth00000001', { ifindex: 9, kind: 'veth', mtu: 1450 });

const pod: Attachment = {
  containerId: 'c1',
  ifname: 'eth0',
  netns: '/run/netns/pod',
  network: 'cbr0',
  hostIfname: 'veth00000001',
  hostIfindex: 9,
  hostMac: '02:00:00:00:02:01',
  podMac: '02:00:00:00:02:02',
  ips: ['10.42.1.5'],
};

const peer = (n: number, more: Partial<Peer> = {}): Peer => ({
  name: `node${n}`,
  podCidr: parseCidr(`10.42.${n}.0/24`),
  vtepIp: `192.0.2.${n}`,
  vtepMac: `02:00:00:00:00:0${n}`,
  behindNat: false,
  zeroChecksum: false,
  ...more,
});

const ids = {
  from_pod: 11,
  to_pod: 12,
  from_wire: 13,
  to_wire: 14,
  xdp_from_wire: 15,
  from_vtep: 16,
  to_vtep: 17,
};

interface Given {
  readonly links?: readonly Link[];
  readonly pods?: readonly Attachment[];
  readonly bridged?: Partial<PodBridges>;
  readonly lostPods?: readonly string[];
  readonly shaped?: readonly number[];
  readonly programs?: 'none' | 'loaded' | 'pending';
  readonly attached?: readonly string[];
  readonly policies?: readonly Policy[];
  readonly hops?: Readonly<Record<string, { dev: string; gateway?: string; mtu?: number }>>;
  readonly refusals?: Readonly<Record<string, string>>;
}

/** A node with its VTEP device and loaded programs, and with every peer on its own network. */
function node(given: Given = {}): NodeSnapshot {
  const { links = [eth0, flannel1, veth], pods = [], programs = 'loaded', attached = [] } = given;
  const hops = given.hops ?? { '192.0.2.2': { dev: 'eth0' }, '192.0.2.3': { dev: 'eth0' } };
  return {
    links: { revision: 1, value: new Map(links.map((one) => [one.name, one])) },
    routes: { revision: 1, value: { defaultRoutes: [{ dev: 'eth0' }], ipv6Mtus: new Map() } },
    nextHops: {
      revision: 1,
      value: new Map(Object.entries(hops).map(([ip, { dev, gateway, mtu }]) => [ip, { dev, gateway, mtu }])),
    },
    policies: { revision: 1, value: given.policies ?? [] },
    pods: { revision: 1, value: pods },
    bridged: { revision: 1, value: { ports: [], pods: [], contradictions: [], ...given.bridged } },
    lostPods: given.lostPods ?? [],
    shaped: { revision: 1, value: given.shaped ?? [] },
    programs: {
      revision: 1,
      value: programs === 'none' ? undefined : { ids, pending: programs === 'pending' },
    },
    attached: new Set(attached),
    xdpRefusals: new Map(Object.entries(given.refusals ?? {})),
  };
}

const peers = (all: readonly Peer[] = [peer(2)], synced = true): Peers => ({
  revision: 1,
  peers: all,
  synced,
});

/** The desired entries as an object; undefined when the plan does not contain the target. */
function entries(desired: Desired<unknown> | undefined): Record<string, unknown> | undefined {
  return desired && Object.fromEntries(desired.entries());
}

describe('in boost mode', () => {
  const boosted: PlanOptions = { ...OPTIONS, agent: { ...OPTIONS.agent, mode: 'boost' } };
  const device = { ...flannel1, mac: '02:00:00:00:00:99', vxlan: flannelVxlan() };
  const port = { ...veth, master: 'cni0', peer: { ifindex: 2, netnsId: 1 } };
  const bridge = { ...cni0, mac: '02:00:00:00:00:b0' };
  const bridged = {
    ports: [9],
    pods: [{ ip: '10.42.1.7', podMac: '02:00:00:00:00:07', bridge: 4, port: 9 }],
  };
  const given = { links: [eth0, device, port, bridge], bridged };

  it('nothing is desired that flannel owns, and one setting alone', () => {
    const { node: ofNode, peers: toPeers, pods } = plan(peers(), node(given), boosted);
    expect([ofNode.kernelPath, toPeers.kernelPath, pods.kernelPath]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
    expect(Object.keys(entries(ofNode.sysctls)!)).toEqual(['net/netfilter/nf_conntrack_tcp_be_liberal']);
  });

  it('the settings are those of flannel’s own device, whatever our Node says', () => {
    const { settings, uplink, mtu } = plan(peers(), node(given), boosted).outline;
    expect({ uplink: uplink.name, mtu, vtep: settings.v4!.vtepIp, mac: settings.v4!.vtepMac }).toEqual({
      uplink: 'eth0',
      mtu: 1500,
      vtep: '192.0.2.1',
      mac: '02:00:00:00:00:99',
    });
    expect(settings).toMatchObject({ bridge: 4, admitsStrangers: true });
  });

  it('there is no plan without flannel’s device', () => {
    expect(() => plan(peers(), node({ ...given, links: [eth0, port, bridge] }), boosted)).toThrow(
      'there is no flannel.1',
    );
  });

  it('pods on the bridge are endpoints; programs are on every port that leads to a pod', () => {
    const { endpoints, podLinks } = plan(
      peers(),
      node({ ...given, bridged: { ...bridged, ports: [9] } }),
      boosted,
    ).pods;
    expect(entries(endpoints)).toMatchObject({
      7: { ifindex: 9, pod_mac: '02:00:00:00:00:07', host_mac: '02:00:00:00:00:b0', mtu: 1450 },
    });
    expect(Object.keys(entries(podLinks)!)).toHaveLength(2);
  });

  it.each([9, 4])(
    'pods stay on the kernel path when somebody shapes their port or their bridge: %i',
    (ifindex) => {
      const { endpoints } = plan(peers(), node({ ...given, shaped: [ifindex] }), boosted).pods;
      expect(entries(endpoints)).toMatchObject({ 7: { flags: 1 } });
    },
  );
});

describe('the node itself', () => {
  it('has a VTEP device on its uplink, with the MAC that it has published', () => {
    const { vtepDevices } = plan(peers(), node(), OPTIONS).node.kernelPath!;
    expect(entries(vtepDevices)).toEqual({
      'flannel.1': {
        name: 'flannel.1',
        vni: 1,
        port: 8472,
        localIp: '192.0.2.1',
        uplink: 'eth0',
        mtu: 1450,
        mac: '02:00:00:00:00:01',
        address: '10.42.1.0/32',
      },
    });
  });

  it.each([
    ['the device that is there', [eth0, { ...flannel1, mac: '02:aa:00:00:00:01' }], '02:aa:00:00:00:01'],
    ['nowhere: a fresh one', [eth0], '02:ff:00:00:00:04'],
  ])('that has published none takes its MAC from %s', (_, links, mac) => {
    const own = { ...OPTIONS.own, vtepMac: {} };
    const { settings } = plan(peers(), node({ links }), { ...OPTIONS, own }).outline;
    expect(settings.v4?.vtepMac).toBe(mac);
  });

  it('has no VTEP device without tunnels', () => {
    const backend = { type: 'host-gw' as const };
    const { node: planned, peers: toPeers } = plan(peers(), node({ links: [eth0] }), { ...OPTIONS, backend });
    expect(entries(planned.kernelPath!.vtepDevices)).toEqual({});
    expect(entries(toPeers.kernelPath!.vtepSet)).toEqual({});
    expect(entries(toPeers.kernelPath!.peerRoutes)).toEqual({
      '10.42.2.0/24': { via: '192.0.2.2', dev: 'eth0', onlink: false },
    });
  });

  it('admits VXLAN from strangers until all peers are known, and while one is behind NAT', () => {
    const strangers = (given: Peers) =>
      plan(given, node(), OPTIONS)
        .node.kernelPath!.rules.entries()
        .get('inet ripstop')
        ?.networks.map((one) => one.strangers);
    expect(strangers(peers())).toEqual(['drop']);
    expect(strangers(peers([], false))).toEqual(['as found']);
    expect(strangers(peers([peer(2, { behindNat: true })]))).toEqual(['count']);
  });

  it('writes subnet.env for CNI plugins', () => {
    expect(
      plan(peers(), node(), OPTIONS).node.kernelPath!.files.entries().get('/run/flannel/subnet.env')?.text,
    ).toBe(
      'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n',
    );
  });

  it('makes the settings of an interface again when it was created again', () => {
    const before = plan(peers(), node(), OPTIONS).node.sysctls;
    const after = plan(peers(), node({ links: [eth0, { ...flannel1, ifindex: 33 }] }), OPTIONS).node.sysctls;
    expect(after.revision).not.toBe(before.revision);
    expect([...after.entries().keys()]).toEqual([...before.entries().keys()]);
  });

  it('cannot be planned without an uplink, and says why', () => {
    expect(() => plan(peers(), node({ links: [flannel1] }), OPTIONS)).toThrow(
      'cannot choose the interface for tunnels',
    );
  });
});

describe('peers', () => {
  it('have an entry in each place: neighbours, FDB, routes, sets and maps', () => {
    const { kernelPath, ...planned } = plan(peers(), node(), OPTIONS).peers;
    expect(entries(kernelPath!.vtepSet)).toEqual({ '192.0.2.2': true });
    expect(entries(kernelPath!.neighbours)).toEqual({ 'flannel.1 10.42.2.0': '02:00:00:00:00:02' });
    expect(entries(kernelPath!.fdb)).toEqual({ 'flannel.1 02:00:00:00:00:02': '192.0.2.2' });
    expect(entries(kernelPath!.peerRoutes)).toEqual({
      '10.42.2.0/24': { via: '10.42.2.0', dev: 'flannel.1', onlink: true },
    });
    expect(Object.keys(entries(planned.peers)!)).toEqual(['2']);
    expect(Object.keys(entries(planned.vteps)!)).toEqual(['192.0.2.2', '192.0.2.1']);
  });

  it.each([
    ['on our own L2', { dev: 'eth0' }, { via: '192.0.2.2', dev: 'eth0', onlink: false }],
    [
      'behind a router',
      { dev: 'eth0', gateway: '192.0.2.254' },
      { via: '10.42.2.0', dev: 'flannel.1', onlink: true },
    ],
    ['over another interface', { dev: 'eth1' }, { via: '10.42.2.0', dev: 'flannel.1', onlink: true }],
  ])('are routed directly with DirectRouting only %s', (_, hop, route) => {
    const backend = { type: 'vxlan', vni: 1, port: 8472, directRouting: true } as const;
    const given = node({ hops: { '192.0.2.2': hop } });
    const { peerRoutes } = plan(peers(), given, { ...OPTIONS, backend }).peers.kernelPath!;
    expect(entries(peerRoutes)).toEqual({ '10.42.2.0/24': route });
  });

  it('have the MTU of the route to their pods, where that is direct and promises less', () => {
    const hops = { '192.0.2.2': { dev: 'eth0', mtu: 1450 }, '10.42.2.0': { dev: 'eth0', mtu: 1400 } };
    const mtuWith = (directRouting: boolean): number | undefined => {
      const backend = { type: 'vxlan', vni: 1, port: 8472, directRouting } as const;
      const { peers: map } = plan(peers(), node({ hops }), { ...OPTIONS, backend }).peers;
      return map?.entries().get('2')?.head.mtu;
    };
    expect([mtuWith(true), mtuWith(false)]).toEqual([1400, 1450]);
  });

  it('are reported when neither a tunnel nor a direct route leads to them', () => {
    const given = node({ links: [eth0], hops: { '192.0.2.2': { dev: 'eth0', gateway: '192.0.2.254' } } });
    const { peerRoutes } = plan(peers(), given, { ...OPTIONS, backend: { type: 'host-gw' } }).peers
      .kernelPath!;
    expect(entries(peerRoutes)).toEqual({});
    expect(peerRoutes.impossible?.().get('10.42.2.0/24')).toContain('not node2 (192.0.2.2)');
  });

  it('are removed only when all nodes have been seen', () => {
    const areComplete = (given: Peers): boolean[] => {
      const { kernelPath, peers: map } = plan(given, node(), OPTIONS).peers;
      return [kernelPath!.peerRoutes, kernelPath!.fdb, map!].map(({ complete }) => complete);
    };
    expect(areComplete(peers([], false))).toEqual([false, false, false]);
    expect(areComplete(peers([]))).toEqual([true, true, true]);
  });

  describe('of which the kernel path alone serves some, say why:', () => {
    const directly = { type: 'vxlan', vni: 1, port: 8472, directRouting: true } as const;
    const esp: Policy = {
      family: 4,
      direction: 'out',
      action: 'allow',
      src: '0.0.0.0/0',
      dst: '192.0.2.2/32',
      protocol: 0,
      srcPort: undefined,
      dstPort: undefined,
      ifindex: undefined,
      priority: 0,
      index: 1,
      mark: undefined,
      interfaceId: undefined,
      templates: 1,
    };
    const v6 = {
      family: 6,
      network: parseCidr('fd00:42::/56'),
      podCidr: parseCidr('fd00:42:0:1::/64'),
    } as const;
    const eth6 = {
      ...eth0,
      addresses: [
        ...eth0.addresses,
        { family: 6, ip: 'fd00:31::1', length: 64, scope: 'global', primary: true } as const,
      ],
    };
    const peer6 = peer(2, { podCidr: parseCidr('fd00:42:0:2::/64'), vtepIp: 'fd00:31::2' });
    const dual = node({ links: [eth6, flannel1], hops: { 'fd00:31::2': { dev: 'eth0' } } });

    /** The reason, and how the maps have the peer: undefined, or its flags. */
    const judged = (one: Peer, snapshot: NodeSnapshot, options: Partial<PlanOptions> = {}) => {
      const given = { ...OPTIONS, ...options };
      const { outline, peers: planned } = plan(peers([one]), snapshot, given);
      const { kernelPathOnly } = peerService(outline, snapshot, given)(one);
      const [entry] = [planned.peers, planned.peers6].flatMap((map) => [...(map?.entries().values() ?? [])]);
      return { reason: kernelPathOnly?.reason, why: kernelPathOnly?.why, flags: entry?.head.flags };
    };
    const [present, kernelPath] = [1, 4];

    it('not of those that the fast path serves', () => {
      expect(judged(peer(2), node())).toEqual({ reason: undefined, why: undefined, flags: present });
      const other = judged(peer(2), node({ policies: [{ ...esp, dst: '192.0.2.3/32' }] }));
      expect(other.reason).toBeUndefined();
      expect(judged(peer(2), node({ shaped: [4711] })).reason).toBeUndefined();
      const direct = { backend: directly };
      expect(judged(peer(2), node({ shaped: [flannel1.ifindex] }), direct).reason).toBeUndefined();
      const both = { ...OPTIONS, families: [...OPTIONS.families, v6] };
      expect(judged({ ...peer6, zeroChecksum: true }, dual, both).reason).toBeUndefined();
    });

    it.each<[string, Peer, NodeSnapshot, Partial<PlanOptions>, string]>([
      ['backend', peer(2), node(), { backend: { type: 'alloc' } }, 'alloc'],
      ['no_programs', peer(2), node({ programs: 'none' }), {}, 'no programs'],
      ['no_route', peer(2), node({ hops: {} }), {}, 'no route to 192.0.2.2'],
      ['other_interface', peer(2), node({ hops: { '192.0.2.2': { dev: 'wg0' } } }), {}, 'over wg0, not eth0'],
      [
        'no_ethernet',
        peer(2),
        node({ links: [{ ...eth0, mac: undefined }] }),
        {},
        'on eth0 have no Ethernet',
      ],
      [
        'gateway_family',
        peer(2),
        node({ hops: { '192.0.2.2': { dev: 'eth0', gateway: 'fe80::1' } } }),
        {},
        'its gateway fe80::1',
      ],
      [
        'not_direct',
        peer(2),
        node({ hops: { '192.0.2.2': { dev: 'eth0', gateway: '192.0.2.254' } } }),
        { backend: { type: 'host-gw' } },
        'not on our own L2',
      ],
      ['pod_cidr', peer(2, { podCidr: parseCidr('10.42.4.0/23') }), node(), {}, 'no /24 of 10.42.0.0/16'],
      ['pod_cidr', peer6, dual, {}, 'of a family that is off'],
    ])('%s, without an entry', (reason, one, snapshot, options, why) => {
      expect(judged(one, snapshot, options)).toEqual({
        reason,
        why: expect.stringContaining(why) as string,
        flags: undefined,
      });
    });

    it.each<[string, Peer, NodeSnapshot, Partial<PlanOptions>, string]>([
      ['checksum', peer6, dual, { families: [...OPTIONS.families, v6] }, 'requires UDP checksums'],
      ['ipsec', peer(2), node({ policies: [esp] }), {}, 'all packets to 192.0.2.2'],
      [
        'ipsec',
        peer(2),
        node({ policies: [{ ...esp, dst: '10.42.2.0/24' }] }),
        { backend: directly },
        'all packets to 10.42.2.0/24',
      ],
      [
        'shaped',
        peer(2),
        node({ shaped: [flannel1.ifindex] }),
        {},
        'somebody shapes or filters packets on flannel.1',
      ],
    ])('%s, with a marked entry', (reason, one, snapshot, options, why) => {
      const found = judged(one, snapshot, options);
      expect(found).toMatchObject({ reason, why: expect.stringContaining(why) as string });
      expect(found.flags! & (present | kernelPath)).toBe(present | kernelPath);
    });
  });

  it('are not written to maps before programs are loaded', () => {
    const planned = plan(peers(), node({ programs: 'none' }), OPTIONS).peers;
    expect([planned.peers, planned.peers6, planned.vteps]).toEqual([undefined, undefined, undefined]);
    expect(entries(planned.kernelPath!.neighbours)).not.toEqual({});
  });

  it('have another revision when, and only when, something that they depend on changes', () => {
    const revision = (given: Peers, snapshot: NodeSnapshot) =>
      plan(given, snapshot, OPTIONS).peers.kernelPath!.peerRoutes.revision;
    const base = revision(peers(), node());
    expect(revision(peers(), node({ pods: [pod] }))).toBe(base);
    expect(revision({ ...peers(), revision: 2 }, node())).not.toBe(base);
    expect(revision(peers(), { ...node(), nextHops: { ...node().nextHops, revision: 2 } })).not.toBe(base);
    expect(revision(peers(), node({ links: [eth0, { ...flannel1, ifindex: 33 }] }))).not.toBe(base);
    const policies = { revision: 2, value: [] };
    expect(plan(peers(), { ...node(), policies }, OPTIONS).peers.peers!.revision).not.toBe(
      plan(peers(), node(), OPTIONS).peers.peers!.revision,
    );
  });
});

describe('pods', () => {
  it('have a route, an endpoint and programs; the rest of the podCIDR is unreachable', () => {
    const planned = plan(peers(), node({ pods: [pod] }), OPTIONS);
    expect(planned.podCount()).toBe(1);
    expect(entries(planned.pods.kernelPath!.podRoutes)).toEqual({
      '10.42.1.5/32': { dev: 'veth00000001' },
      '10.42.1.0/24': { unreachable: true },
    });
    expect(entries(planned.pods.endpoints)).toMatchObject({ '5': { ifindex: 9, mtu: 1450 } });
    expect(entries(planned.pods.podLinks)).toEqual({
      'to_pod@veth00000001': { ifindex: 9, programId: 12 },
      'from_pod@veth00000001': { ifindex: 9, programId: 11 },
    });
    expect(entries(planned.pods.kernelPath!.podSysctls)).toMatchObject({
      'net/ipv4/conf/veth00000001/rp_filter': { value: '1' },
    });
  });

  it('that somebody shapes stay on the kernel path, with nothing to learn', () => {
    const planned = plan(peers(), node({ pods: [pod], shaped: [9] }), OPTIONS).pods;
    expect(entries(planned.endpoints)).toMatchObject({ '5': { ifindex: 9, flags: 1 } });
    expect(entries(planned.podLinks)).toEqual({ 'from_pod@veth00000001': { ifindex: 9, programId: 11 } });
    const others = plan(peers(), node({ pods: [pod], shaped: [8] }), OPTIONS).pods;
    expect(entries(others.endpoints)).toMatchObject({ '5': { flags: 0 } });
  });

  it('with a netkit have from_pod at its hook, once the program for it is loaded', () => {
    const links = [eth0, flannel1, { ...veth, kind: 'netkit' }];
    const planned = (from_netkit?: number) => {
      const snapshot = node({ pods: [pod], links });
      const value = { ids: { ...ids, ...(from_netkit !== undefined && { from_netkit }) }, pending: false };
      return plan(peers(), { ...snapshot, programs: { revision: 1, value } }, OPTIONS);
    };
    const to_pod = { 'to_pod@veth00000001': { ifindex: 9, programId: 12 } };
    expect(entries(planned(17).pods.podLinks)).toEqual({
      ...to_pod,
      'from_pod@veth00000001': { ifindex: 9, programId: 17, netkit: true },
    });
    expect(entries(planned().pods.podLinks)).toEqual(to_pod);
  });

  it('with netkits need a program of their own: those that may come, and those of a previous agent', () => {
    const netkits = [eth0, flannel1, { ...veth, kind: 'netkit' }];
    const isLoaded = (given: Given, podDevice: 'veth' | 'netkit') =>
      plan(peers(), node(given), { ...OPTIONS, agent: { ...OPTIONS.agent, podDevice } }).outline.settings
        .netkit;
    expect(isLoaded({ pods: [pod] }, 'veth')).toBe(false);
    expect(isLoaded({ pods: [pod] }, 'netkit')).toBe(true);
    expect(isLoaded({ pods: [pod], links: netkits }, 'veth')).toBe(true);
  });

  it('with an address of another podCIDR get no from_pod, which would drop all that they send', () => {
    const moved = { ...pod, ips: ['10.42.77.5'] };
    const planned = plan(peers(), node({ pods: [moved] }), OPTIONS);
    expect(Object.keys(entries(planned.pods.podLinks)!)).toEqual(['to_pod@veth00000001']);
  });

  it.each([
    ['is down', { ...veth, up: false }],
    ['is another one under the same name', { ...veth, ifindex: 10 }],
  ])('are ignored while their host veth %s', (_, given) => {
    const planned = plan(peers(), node({ pods: [pod], links: [eth0, flannel1, given] }), OPTIONS);
    expect(planned.podCount()).toBe(0);
    expect(Object.keys(entries(planned.pods.kernelPath!.podRoutes)!)).toEqual(['10.42.1.0/24']);
  });

  it('are followed when their host veth is renamed, unless it is another device', () => {
    const lan7 = { ...veth, name: 'lan7', mac: pod.hostMac };
    const renamed = (...links: Link[]) => renamedPods(node({ pods: [pod], links: [eth0, ...links] }));
    expect(renamed(lan7)).toEqual([{ ...pod, hostIfname: 'lan7' }]);
    expect(renamed({ ...lan7, kind: 'netkit' })).toEqual([{ ...pod, hostIfname: 'lan7' }]);
    expect(renamed(lan7, { ...veth, ifindex: 10 })).toEqual([{ ...pod, hostIfname: 'lan7' }]);
    for (const other of [{ ...lan7, mac: '02:00:00:00:09:09' }, { ...lan7, kind: 'dummy' }, veth])
      expect(renamed(other)).toEqual([]);
  });

  it('keep what they have while the file of one that lives cannot be read', () => {
    const planned = (hostIfname: string) => {
      const { kernelPath, ...maps } = plan(peers(), node({ lostPods: [hostIfname] }), OPTIONS).pods;
      return { ...kernelPath!, ...maps };
    };
    for (const key of ['podRoutes', 'endpoints', 'podLinks'] as const) {
      expect(planned('veth00000001')[key]!.complete, key).toBe(false);
      expect(planned('veth99999999')[key]!.complete, key).toBe(true);
    }
  });

  it("get proxy neighbours on a bridge of flannel's pods, whose connected route then covers the podCIDR", () => {
    const planned = plan(peers(), node({ pods: [pod], links: [eth0, flannel1, veth, cni0] }), OPTIONS);
    expect(entries(planned.pods.kernelPath!.proxies)).toEqual({ 'cni0 10.42.1.5': true });
    expect(Object.keys(entries(planned.pods.kernelPath!.podRoutes)!)).toEqual(['10.42.1.5/32']);
  });

  it('cannot be added while programs are attached that this ripstop cannot load', () => {
    const attached = ['from_pod@veth00000001'];
    expect(plan(peers(), node({ programs: 'none', attached }), OPTIONS).blocked).toContain(
      'this one cannot replace them',
    );
    expect(plan(peers(), node({ programs: 'none' }), OPTIONS).blocked).toBeUndefined();
    expect(plan(peers(), node({ attached }), OPTIONS).blocked).toBeUndefined();
  });
});

describe('the programs on the uplink', () => {
  const hooks = (given: Peers, snapshot: NodeSnapshot, options = OPTIONS) =>
    Object.keys(entries(plan(given, snapshot, options).links.nodeLinks) ?? { nothing: 1 });
  const nic = node();

  it('take packets in the driver where it has XDP, after from_wire', () => {
    expect(hooks(peers(), nic)).toEqual([
      'to_wire@eth0',
      'to_vtep@flannel:1',
      'from_vtep@flannel:1',
      'from_wire@eth0',
      'xdp_from_wire@eth0',
    ]);
    expect(plan(peers(), nic, OPTIONS).links.ingress).toEqual({
      hook: 'xdp',
      why: 'the driver of eth0 has XDP',
    });
  });

  it('take them in tc where the driver has refused XDP at this MTU', () => {
    const refusals = { 'eth0 2 1500': 'the driver of eth0 has no XDP' };
    expect(hooks(peers(), node({ refusals }))).not.toContain('xdp_from_wire@eth0');
    const larger = { ...eth0, mtu: 9000 };
    expect(hooks(peers(), node({ refusals, links: [larger, flannel1] }))).toContain('xdp_from_wire@eth0');
  });

  it('take them in tc on a veth', () => {
    const uplink = { ...eth0, kind: 'veth' };
    expect(plan(peers(), node({ links: [uplink, flannel1] }), OPTIONS).links.ingress.hook).toBe('tc');
  });

  it('wait for the first peers, whose packets from_wire would drop; an attached from_wire stays', () => {
    expect(hooks(peers([], false), nic)).toEqual(['to_wire@eth0', 'to_vtep@flannel:1']);
    expect(hooks(peers([], false), node({ attached: ['from_wire@eth0'] }))).toContain('from_wire@eth0');
    expect(hooks(peers([]), nic)).toContain('from_wire@eth0');
  });

  it('see what the VTEP device encapsulates and decapsulates, once there is one', () => {
    expect(hooks(peers(), nic)).toEqual(expect.arrayContaining(['to_vtep@flannel:1', 'from_vtep@flannel:1']));
    expect(hooks(peers(), node({ links: [eth0] })).join()).not.toContain('_vtep@');
  });

  it('stay as they are while new maps are empty', () => {
    expect(hooks(peers([], false), node({ programs: 'pending' }))).toEqual(['nothing']);
    expect(hooks(peers(), node({ programs: 'pending' }))).toContain('from_wire@eth0');
    expect(plan(peers([], false), node({ programs: 'pending' }), OPTIONS).pods.podLinks).toBeUndefined();
  });
});
