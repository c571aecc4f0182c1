// SPDX-License-Identifier: Apache-2.0
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { NetlinkError } from './error.ts';
import { addressFamily } from '../net/ip.ts';
import { AF, type Attributes, Writer } from './wire.ts';

/* linux/rtnetlink.h */
export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const RTM_SETLINK = 19;
const RTEXT_FILTER_SKIP_STATS = 8;
/** linux/rtnetlink.h `struct ifinfomsg`. */
const IFINFOMSG = 16;
/* linux/if.h */
const IFF_UP = 0x1;
const IFF_LOOPBACK = 0x8;
const IFF_LOWER_UP = 0x10000;
/** linux/netdevice.h: what a device takes that has no limit of its own. */
const GSO_MAX_SEGS = 65535;
/** linux/if_link.h */
const IFLA = {
  address: 1,
  ifname: 3,
  mtu: 4,
  link: 5,
  master: 10,
  operState: 16,
  linkinfo: 18,
  afSpec: 26,
  netNsFd: 28,
  extMask: 29,
  linkNetnsid: 37,
  gsoMaxSegs: 40,
} as const;
const IFLA_INFO = { kind: 1, data: 2 } as const;
const IFLA_INET_CONF = 1;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const ADDR_GEN_MODES = ['eui64', 'none', 'stable-privacy', 'random'] as const;
export type AddrGenMode = (typeof ADDR_GEN_MODES)[number];
const VXLAN = {
  id: 1,
  group: 2,
  link: 3,
  local: 4,
  ttl: 5,
  learning: 7,
  ageing: 8,
  proxy: 11,
  rsc: 12,
  l2miss: 13,
  l3miss: 14,
  port: 15,
  group6: 16,
  local6: 17,
  udpCsum: 18,
  udpZeroCsum6Tx: 19,
  udpZeroCsum6Rx: 20,
  gbp: 23,
  collectMetadata: 25,
  gpe: 27,
  vnifilter: 30,
} as const;
const VETH_INFO_PEER = 1;
const NETKIT = { peerInfo: 1, mode: 5 } as const;
/** linux/if_link.h `enum netkit_mode`. */
const NETKIT_MODES = { l2: 0, l3: 1 } as const;
const BRIDGE = { forwardDelay: 1, ageingTime: 4, stpState: 5, vlanFiltering: 7 } as const;
/** linux/if.h IF_OPER_ states (RFC 2863), by number. */
const OPER_STATES = ['unknown', 'notpresent', 'down', 'lowerlayerdown', 'testing', 'dormant', 'up'] as const;
export type OperState = (typeof OPER_STATES)[number];
/** linux/ip.h: settings of IPv4 that a link may be given in the message that makes or changes it. */
const IPV4_DEVCONF = { forwarding: 1, proxyArp: 3, rpFilter: 8, arpIgnore: 19 } as const;

/** A network device. Indexes of other devices are of the same namespace unless said otherwise. */
export interface Link {
  readonly ifindex: number;
  readonly name: string;
  /** Lower case; undefined for a device without an address of six bytes. */
  readonly mac: string | undefined;
  readonly mtu: number;
  /** The most segments of a super-packet that its driver takes. */
  readonly gsoMaxSegs: number;
  /** IFF_ flags of linux/if.h. */
  readonly flags: number;
  /** Administratively up. */
  readonly up: boolean;
  /** Up and with a carrier. */
  readonly running: boolean;
  /**
   * `up` once the kernel has begun to send, a moment after the carrier is there; `unknown` of links that do not tell.
   */
  readonly operState: OperState;
  readonly loopback: boolean;
  /** `veth`, `vxlan`, `bridge`, `bond`, …; undefined for hardware and loopback. */
  readonly kind: string | undefined;
  /** Index of the bridge, bond or VRF that it is enslaved to. */
  readonly master: number | undefined;
  /** A veth's peer or a VLAN's parent. `netnsId` is there when that is in another namespace: its index there. */
  readonly parent: { readonly ifindex: number; readonly netnsId?: number } | undefined;
  readonly addrGenMode: AddrGenMode | undefined;
  readonly vxlan: VxlanInfo | undefined;
  readonly bridge: BridgeInfo | undefined;
}

/** How a VXLAN device was made. */
export interface VxlanInfo {
  /** 0 for one that takes it from each packet (`external`). */
  readonly vni: number;
  /** UDP destination port. */
  readonly port: number;
  /** Outer source address. */
  readonly local: string | undefined;
  /** Multicast group, or the one remote address. */
  readonly group: string | undefined;
  /** Index of the device that the tunnel is bound to. */
  readonly lower: number | undefined;
  readonly ttl: number;
  readonly learning: boolean;
  /** In seconds. */
  readonly ageing: number;
  /** Outer UDP checksums over IPv4. */
  readonly checksum: boolean;
  /** Outer UDP checksums of zero over IPv6: sends them, accepts them. */
  readonly zeroChecksum6: { readonly tx: boolean; readonly rx: boolean };
  readonly proxy: boolean;
  readonly rsc: boolean;
  readonly l2miss: boolean;
  readonly l3miss: boolean;
  readonly gbp: boolean;
  readonly gpe: boolean;
  readonly external: boolean;
  readonly vnifilter: boolean;
}

export interface BridgeInfo {
  readonly stp: boolean;
  readonly vlanFiltering: boolean;
  /** In hundredths of a second. */
  readonly forwardDelay: number;
  readonly ageingTime: number;
}

/** What may be given to a link when it is made and later. */
export interface LinkSettings {
  readonly mtu?: number;
  readonly mac?: string;
  readonly up?: boolean;
  /** Index of the bridge, bond or VRF to enslave it to; 0: none. */
  readonly master?: number;
  /** An open file descriptor of the network namespace to move it to, or to make it in. */
  readonly netns?: number;
}

/** A link to be made. */
export interface NewLink extends LinkSettings {
  readonly name: string;
  readonly kind: 'veth' | 'netkit' | 'vxlan' | 'bridge' | (string & {});
  /** The other end, of a veth or netkit; it can be set up once this end is there. */
  readonly peer?: Pick<LinkSettings, 'mtu' | 'mac' | 'netns'> & { readonly name: string };
  /** With Ethernet headers and MAC addresses, or without. Default: `l3`, as the kernel's. */
  readonly netkitMode?: keyof typeof NETKIT_MODES;
  readonly vxlan?: Pick<VxlanInfo, 'vni' | 'port'> &
    Partial<Pick<VxlanInfo, 'local' | 'group' | 'lower' | 'learning' | 'ttl' | 'checksum' | 'zeroChecksum6'>>;
  readonly bridge?: Partial<BridgeInfo>;
}

/** A change of a link that is there. */
export interface LinkChange extends LinkSettings {
  /** Its new name. */
  readonly name?: string;
  /** Which IPv6 link-local address the kernel gives it when it comes up. EAFNOSUPPORT on a kernel without IPv6. */
  readonly addrGenMode?: AddrGenMode;
  /** Its settings below net.ipv4.conf. */
  readonly ipv4?: Partial<Record<keyof typeof IPV4_DEVCONF, number>>;
}

/** Every link of the namespace. */
export function listLinks(socket: NetlinkSocket): Link[] {
  const payload = header(0).u32(IFLA.extMask, RTEXT_FILTER_SKIP_STATS).done();
  return socket.dump({ type: RTM_GETLINK, payload, what: () => 'list links' }, readLink);
}

/** One link, by name or index; undefined when there is none. */
export function getLink(socket: NetlinkSocket, link: string | number): Link | undefined {
  const payload = identified(link).u32(IFLA.extMask, RTEXT_FILTER_SKIP_STATS).done();
  const request = { type: RTM_GETLINK, payload, what: () => `look up link ${link}` };
  const [answer] = socket.ask([request], readLink);
  if (!(answer instanceof NetlinkError)) return answer;
  if (answer.code === 'ENODEV') return undefined;
  throw answer;
}

export function readLink({ body }: Message): Link {
  const attributes = body.attributes(IFINFOMSG);
  const flags = body.u32(8);
  const info = attributes.nested(IFLA.linkinfo);
  const kind = info?.text(IFLA_INFO.kind);
  const data = info?.nested(IFLA_INFO.data);
  const parent = attributes.u32(IFLA.link);
  const netnsId = attributes.u32(IFLA.linkNetnsid);
  const genMode = attributes.nested(IFLA.afSpec)?.nested(AF[6])?.u8(IFLA_INET6_ADDR_GEN_MODE);
  return {
    ifindex: body.i32(4),
    name: attributes.text(IFLA.ifname) ?? '',
    mac: attributes.mac(IFLA.address),
    mtu: attributes.u32(IFLA.mtu) ?? 0,
    gsoMaxSegs: attributes.u32(IFLA.gsoMaxSegs) ?? GSO_MAX_SEGS,
    flags,
    up: (flags & IFF_UP) !== 0,
    running: (flags & IFF_LOWER_UP) !== 0,
    operState: OPER_STATES[attributes.u8(IFLA.operState) ?? 0] ?? 'unknown',
    loopback: (flags & IFF_LOOPBACK) !== 0,
    kind,
    master: attributes.u32(IFLA.master),
    parent: parent ? { ifindex: parent, ...(netnsId !== undefined && { netnsId }) } : undefined,
    addrGenMode: genMode === undefined ? undefined : ADDR_GEN_MODES[genMode],
    vxlan: kind === 'vxlan' && data ? readVxlan(data) : undefined,
    bridge: kind === 'bridge' && data ? readBridge(data) : undefined,
  };
}

function readVxlan(data: Attributes): VxlanInfo {
  const on = (type: number): boolean => (data.u8(type) ?? 0) !== 0;
  return {
    vni: data.u32(VXLAN.id) ?? 0,
    port: data.get(VXLAN.port)?.be16(0) ?? 0,
    local: data.address(VXLAN.local) ?? data.address(VXLAN.local6),
    group: data.address(VXLAN.group) ?? data.address(VXLAN.group6),
    lower: data.u32(VXLAN.link) || undefined,
    ttl: data.u8(VXLAN.ttl) ?? 0,
    learning: on(VXLAN.learning),
    ageing: data.u32(VXLAN.ageing) ?? 0,
    checksum: on(VXLAN.udpCsum),
    zeroChecksum6: { tx: on(VXLAN.udpZeroCsum6Tx), rx: on(VXLAN.udpZeroCsum6Rx) },
    proxy: on(VXLAN.proxy),
    rsc: on(VXLAN.rsc),
    l2miss: on(VXLAN.l2miss),
    l3miss: on(VXLAN.l3miss),
    gbp: data.has(VXLAN.gbp),
    gpe: data.has(VXLAN.gpe),
    external: on(VXLAN.collectMetadata),
    vnifilter: on(VXLAN.vnifilter),
  };
}

function readBridge(data: Attributes): BridgeInfo {
  return {
    stp: (data.u32(BRIDGE.stpState) ?? 0) !== 0,
    vlanFiltering: (data.u8(BRIDGE.vlanFiltering) ?? 0) !== 0,
    forwardDelay: data.u32(BRIDGE.forwardDelay) ?? 0,
    ageingTime: data.u32(BRIDGE.ageingTime) ?? 0,
  };
}

/** Make a link. EEXIST when the name is taken. */
export function addLink(link: NewLink): Request {
  const writer = settings(header(0, link.up), link).nest(IFLA.linkinfo, (info) => {
    info.text(IFLA_INFO.kind, link.kind);
    const { peer, netkitMode, vxlan, bridge } = link;
    if (link.kind === 'netkit') {
      info.nest(IFLA_INFO.data, (data) => {
        if (peer) data.nest(NETKIT.peerInfo, (end) => writePeer(end, peer));
        data.u32(NETKIT.mode, netkitMode && NETKIT_MODES[netkitMode]);
      });
    } else if (peer) {
      info.nest(IFLA_INFO.data, (data) => data.nest(VETH_INFO_PEER, (end) => writePeer(end, peer)));
    }
    if (vxlan) info.nest(IFLA_INFO.data, (data) => writeVxlan(data, vxlan));
    if (bridge) info.nest(IFLA_INFO.data, (data) => writeBridge(data, bridge));
  });
  return {
    type: RTM_NEWLINK,
    flags: CREATE.add,
    payload: writer.done(),
    what: () => `add link ${link.name} of type ${link.kind}`,
  };
}

/**
 * Asks whether the kernel has netkits, and makes none: the driver refuses such a mode (EINVAL), and without the driver the
 * kind is unknown (EOPNOTSUPP).
 */
export function probeNetkit(): Request {
  const payload = header(0)
    .nest(IFLA.linkinfo, (info) =>
      info
        .text(IFLA_INFO.kind, 'netkit')
        .nest(IFLA_INFO.data, (data) => data.u32(NETKIT.mode, NO_NETKIT_MODE)),
    )
    .done();
  return { type: RTM_NEWLINK, flags: CREATE.add, payload, what: () => 'look for netkit' };
}

const NO_NETKIT_MODE = 0xff;

function writePeer(end: Writer, peer: NonNullable<NewLink['peer']>): void {
  settings(end.raw(header(0).done()), peer);
}

function writeVxlan(data: Writer, vxlan: NonNullable<NewLink['vxlan']>): void {
  const { local, group, zeroChecksum6 } = vxlan;
  data
    .u32(VXLAN.id, vxlan.vni)
    .address(isIpv6(local) ? VXLAN.local6 : VXLAN.local, local)
    .address(isIpv6(group) ? VXLAN.group6 : VXLAN.group, group)
    .u32(VXLAN.link, vxlan.lower)
    .u8(VXLAN.ttl, vxlan.ttl)
    // The kernel's own default is not to learn; iproute2 asks for it.
    .u8(VXLAN.learning, vxlan.learning ?? false)
    .be16(VXLAN.port, vxlan.port)
    .u8(VXLAN.udpCsum, vxlan.checksum)
    .u8(VXLAN.udpZeroCsum6Tx, zeroChecksum6?.tx)
    .u8(VXLAN.udpZeroCsum6Rx, zeroChecksum6?.rx);
}

function isIpv6(address: string | undefined): boolean {
  return address !== undefined && addressFamily(address) === 6;
}

function writeBridge(data: Writer, bridge: Partial<BridgeInfo>): void {
  data
    .u32(BRIDGE.forwardDelay, bridge.forwardDelay)
    .u32(BRIDGE.ageingTime, bridge.ageingTime)
    .u32(BRIDGE.stpState, bridge.stp === undefined ? undefined : Number(bridge.stp))
    .u8(BRIDGE.vlanFiltering, bridge.vlanFiltering);
}

/** Change a link, by name or index. ENODEV when there is none. */
export function setLink(link: string | number, change: LinkChange): Request {
  const { name, addrGenMode, ipv4 } = change;
  // By index a name is its new one; by name there is room for one only.
  const writer = settings(identified(link, change.up), {
    ...change,
    name: typeof link === 'number' ? name : undefined,
  });
  if (addrGenMode !== undefined || ipv4 !== undefined) {
    writer.nest(IFLA.afSpec, (specs) => {
      if (ipv4 !== undefined)
        specs.nest(AF[4], (spec) => spec.nest(IFLA_INET_CONF, (conf) => writeIpv4(conf, ipv4)));
      if (addrGenMode !== undefined) {
        specs.nest(AF[6], (spec) => spec.u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODES.indexOf(addrGenMode)));
      }
    });
  }
  return { type: RTM_SETLINK, payload: writer.done(), what: () => `change link ${link}` };
}

function writeIpv4(conf: Writer, ipv4: NonNullable<LinkChange['ipv4']>): void {
  for (const [name, type] of Object.entries(IPV4_DEVCONF))
    conf.u32(type, ipv4[name as keyof typeof IPV4_DEVCONF]);
}

/** Delete a link, by name or index. ENODEV when there is none. */
export function deleteLink(link: string | number): Request {
  return { type: RTM_DELLINK, payload: identified(link).done(), what: () => `delete link ${link}` };
}

/** `struct ifinfomsg`: family, pad, type, index, flags, and the mask of the flags that are meant. */
function header(ifindex: number, up?: boolean): Writer {
  const mask = up === undefined ? 0 : IFF_UP;
  return new Writer().struct([1, 0], [1, 0], [2, 0], [4, ifindex], [4, up ? IFF_UP : 0], [4, mask]);
}

function identified(link: string | number, up?: boolean): Writer {
  return typeof link === 'number' ? header(link, up) : header(0, up).text(IFLA.ifname, link);
}

function settings(
  writer: Writer,
  { name, mtu, mac, master, netns }: LinkSettings & { name?: string | undefined },
): Writer {
  return writer
    .text(IFLA.ifname, name)
    .u32(IFLA.mtu, mtu)
    .mac(IFLA.address, mac)
    .u32(IFLA.master, master)
    .u32(IFLA.netNsFd, netns);
}
