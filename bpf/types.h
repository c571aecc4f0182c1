/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every struct and enum that BPF programs and the manager share, once. scripts/gen-layout reads them back from BTF and
 * writes src/dataplane/layout.gen.ts, so nothing here is mirrored by hand. The generator understands these types:
 *   __be32          an IPv4 address
 *   __be16          a number in network byte order (a port, a length, an ethertype)
 *   net32           the same, 32 bits wide
 *   struct mac      a MAC address
 *   struct address  an IP address of either family
 *   an enum         a number, shown by its enumerators' names
 * and skips a member that is called `unused`, which is padding.
 */
#pragma once

#include <linux/types.h>

typedef __u32 net32;

struct mac {
	__u8 bytes[6];
};

/* An IPv6 address, or an IPv4 one mapped into IPv6: ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2. */
struct address {
	union {
		__be64 halves[2];
		__be32 words[4];
	};
};

/* ---- Headers as on the wire. Their members are naturally aligned, so the compiler may load whole words. ---- */

struct ether { /* IEEE 802.3 */
	struct mac dst;
	struct mac src;
	__be16 type;
};

struct ipv4 { /* RFC 791 */
	__u8 version_ihl;
	__u8 tos; /* DSCP and ECN, RFC 2474, RFC 3168 */
	__be16 total_length;
	__be16 id;
	__be16 fragment; /* flags and offset */
	__u8 ttl;
	__u8 protocol;
	__be16 checksum; /* RFC 1071: may be summed in either byte order */
	__be32 src;
	__be32 dst;
};

struct ipv6 { /* RFC 8200 */
	net32 version_class_flow; /* 4 bits, 8 of traffic class (DSCP and ECN), 20 of flow label */
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct address src;
	struct address dst;
};

struct udp { /* RFC 768 */
	__be16 src_port;
	__be16 dst_port;
	__be16 length;
	__be16 checksum;
};

struct vxlan { /* RFC 7348: one flag bit, the VNI in the upper 24 bits of the second word */
	net32 flags;
	net32 vni;
};

/* All headers of an encapsulated packet before its inner IP header, in order, without gaps. */
struct outer_header {
	struct ether ether;
	struct ipv4 ip;
	struct udp udp;
	struct vxlan vxlan;
	struct ether inner_ether;
} __attribute__((packed));

struct outer_header6 {
	struct ether ether;
	struct ipv6 ip;
	struct udp udp;
	struct vxlan vxlan;
	struct ether inner_ether;
} __attribute__((packed));

/* ---- Configuration: written into .rodata before the programs are loaded, and fixed from then on. ---- */

/*
 * A family that is off has a network and a podCIDR that contain no address. The fast path serves only those nodes whose
 * podCIDR is as long as ours.
 */
struct config {
	__be32 network; /* the cluster network, e.g. 10.42.0.0 */
	__be32 network_mask;
	__be32 pod_cidr; /* this node's part of it, e.g. 10.42.3.0 */
	__be32 pod_cidr_mask;
	__be32 vtep_ip; /* the uplink's address, to which peers send VXLAN */
	__be16 vxlan_port;
	struct mac vtep_mac; /* flannel.1's */
	struct mac vtep_mac6; /* flannel-v6.1's */
	struct mac uplink_mac;
	struct address network6;
	struct address network6_mask;
	struct address pod_cidr6;
	struct address pod_cidr6_mask;
	struct address vtep_ip6;
	__u32 vni;
	__u32 subnet_shift; /* 32 - the podCIDR's length: an address's peer slot is (address - network) >> shift */
	__u32 endpoint_slots; /* a power of two */
	__u32 uplink_ifindex;
	__u32 uplink_gso_segs; /* the most segments of a super-packet that the uplink's driver takes */
	__u32 pod_mtu; /* the largest packet that fits the uplink once it is encapsulated; like all MTUs here, bytes of IP */
	__u32 pod_mtu6;
	__u32 direct_routing; /* not zero when some peers are reached without encapsulation */
	__u64 lifetime_ns; /* how long a flow is valid after it was learned; then one packet asks the kernel path again */
	__u32 netns; /* the inode of the node's network namespace */
	__u32 bridge_ifindex; /* of the bridge with this node's podCIDR, whose pods the programs may not all know; or 0 */
	__u32 admits_strangers; /* not zero when flannel alone decides about VXLAN from addresses that no node has */
	__u32 source_port; /* the first of the UDP ports from which the kernel's VXLAN device sends */
	__u32 source_ports; /* how many there are */
	__u32 unused;
};

/* ---- Map values ---- */

enum peer_flags {
	PEER_PRESENT = 1,
	PEER_BEHIND_NAT = 2, /* publishes public-ip-overwrite, so its outer source address proves nothing */
	PEER_KERNEL_PATH = 4, /* the kernel path alone serves it, both ways: `ripstop peers` says why */
	PEER_DIRECT = 8, /* on our L2, and reached without encapsulation */
};

/* The part that is the same for both families. */
struct peer_head {
	enum peer_flags flags;
	__u32 checksum_base; /* the one's complement sum of the template's IPv4 header, not folded */
	struct address vtep_ip;
	struct address next_hop; /* vtep_ip itself on the same L2, else the gateway */
	__u32 mtu; /* of the route to it, as the kernel's VXLAN device heeds it */
	__u32 unused;
};

/*
 * A peer, in the slot of its podCIDR. An all-zero slot is empty. The header is a template: lengths, id, ECN, source
 * port and checksum are filled in for each packet.
 */
struct peer {
	struct peer_head head;
	struct outer_header header;
};

/* A peer, by the base address of its IPv6 podCIDR. */
struct peer6 {
	struct peer_head head;
	struct outer_header6 header;
};

/* Flags of an underlay address that belongs to a node. */
enum vtep_flags {
	VTEP_LOCAL = 1,
	VTEP_REMOTE = 2,
	VTEP_UNINDEXED = 4, /* of a node without a slot in peers, so only the kernel path can judge what it sends */
};

struct vtep {
	enum vtep_flags flags;
	__u32 unused;
	struct address vtep_ip; /* that of the node's VTEP: a node may send from another address than it publishes */
};

enum endpoint_flags {
	ENDPOINT_KERNEL_PATH = 1, /* marked for the kernel path */
};

/*
 * A local pod, in the slot of its IPv4 address's host part, or by its IPv6 address. With ifindex 0 the slot is empty.
 * The two MACs are the first 12 bytes of a frame to the pod.
 */
struct endpoint {
	__u32 ifindex; /* of the host veth */
	enum endpoint_flags flags;
	struct mac pod_mac;
	struct mac host_mac;
	__u32 mtu; /* of the pod's interface */
};

/* What the programs themselves keep of an endpoint, apart from what the agent writes. */
struct endpoint_state {
	__u32 forwards; /* set when it forwarded a super-packet from a tunnel: from then on such take the kernel path */
};

/* ---- The flow table ---- */

/*
 * The addresses, ports and protocol of a packet. An ICMP echo has its identifier as source port, and its type as
 * destination port.
 */
struct flow4 {
	__be32 src;
	__be32 dst;
	__be16 src_port;
	__be16 dst_port;
	__u8 protocol;
	__u8 unused[3];
};

struct flow6 {
	struct address src;
	struct address dst;
	__be16 src_port;
	__be16 dst_port;
	__u8 protocol;
	__u8 unused[3];
};

/*
 * What the kernel path was seen to do with a flow: the part that both families have. What every packet of the fast path
 * reads or counts comes first, so that of an IPv4 entry (144 bytes in the kernel) it seldom takes more than two cache lines.
 */
struct learned {
	__u64 learned_ns; /* CLOCK_MONOTONIC, as noted_ns */
	__u64 packets; /* that took the fast path since the flow was first learned; a super-packet counts once */
	__u64 bytes; /* of them, of IP, as they came in and without a tunnel's headers */
	__u32 epoch; /* when its packet came in; another epoch invalidates the flow */
	__u32 ifindex; /* where its packets come in: a host veth, or the uplink */
	__u32 mtu; /* the largest IP packet, before encapsulation, that its way is known to carry */
	__u32 mark; /* skb->mark and skb->priority with which it left for the wire */
	__u32 priority;
	__u32 frame_dst; /* see struct arrival */
	__u8 is_translated; /* not zero when its packets leave with other addresses or ports */
	__u8 is_settled; /* zero as long as earlier packets may still be under way on the kernel path */
	__u8 hops; /* that the kernel path takes off the TTL: none across a bridge */
	__u8 ttl; /* with which the learned packet came in, and its DSCP: rules and routes may go by them, or set them */
	__u8 dscp;
	__u8 is_ending; /* not zero when conntrack has seen this direction's FIN */
	__be16 source_port; /* of the outer UDP header; a hash, so that the underlay routes all packets of a flow alike */
	__u64 noted_ns; /* when its last packet came in that took the kernel path, or the first that did not */
};

/* A flow's packets leave as `out`. */
struct learned4 {
	struct learned head;
	struct flow4 out;
};

struct learned6 {
	struct learned head;
	struct flow6 out;
};

/*
 * A party to packets that the kernel path carries: a pod of this node, by its address; a peer, by its podCIDR's base
 * address; or a Service, which alone has a port and a protocol.
 */
struct party {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 unused[5];
};

struct carried {
	__u64 packets; /* skbs, so a GSO super-packet counts once */
	__u64 bytes; /* of IP, without a tunnel's headers */
};

/*
 * A packet that was left to the kernel path, as it came in. The program that sees it leave the kernel path compares.
 */
struct arrival {
	struct flow6 flow; /* of IPv4, too: see struct address */
	__u64 noted_ns; /* CLOCK_MONOTONIC */
	__u64 since_ns; /* since when packets of the flow have come without a gap */
	__u32 epoch;
	__u32 ifindex;
	__u32 frame_dst; /* the end of the MAC that the frame was for, if that was not the interface's own: at a bridge */
	__u8 dscp; /* the upper six bits of TOS or traffic class */
	__u8 ttl;
	__u8 unused[2];
};

/* ---- Tunnels: what the kernel path was seen to do with VXLAN to and from a peer ---- */

/*
 * VXLAN from one address to another, through the tunnel to or from a peer. What rules and routes of the node may go by, of
 * the outer packet and inside it, is in the key.
 */
struct tunnel_key {
	struct address vtep_ip; /* the peer's */
	struct address src; /* of the inner packet */
	struct address dst;
	__u32 mark; /* skb->mark, as the packet leaves for the wire or comes in */
	__u32 priority; /* skb->priority, as it leaves for the wire; inward 0 */
	__u32 is_inward; /* not zero: from the peer to this node */
	struct mac sender; /* inward: of the frame. Who forges a peer's address may have another one, or be farther away. */
	__u8 ttl; /* inward: of the outer packet */
	__u8 tos; /* of the outer packet */
	__u32 unused;
};

struct tunnel {
	__u64 seen_ns; /* CLOCK_MONOTONIC: when the kernel path carried a packet */
	__u32 epoch; /* of that moment; another epoch invalidates the tunnel */
	__u32 mtu; /* outward: the largest inner packet that fits the route to the peer */
	__u32 carried; /* outward: the largest inner packet that the kernel path was seen to carry */
	__u32 ifindex; /* inward: the VTEP device that got the packet */
};

/*
 * A packet that the kernel path has got at one end of its own tunnel device. The program at the other end compares.
 */
struct tunnel_arrival {
	struct tunnel_key key;
	__u64 packet; /* what tells the inner packet from others */
	__u32 epoch;
	__u32 unused;
};

/* From where a pod on a bridge sent for an address of this node's podCIDR that no endpoint has. */
struct sighting {
	__u32 ifindex;
	struct mac mac;
	__u8 unused[2];
};

/*
 * The metadata that xdp_from_wire puts before a frame that it has decapsulated. A packet cannot bring metadata along,
 * so from_wire can tell such a frame from a forged plain one.
 */
struct mark {
	__u32 magic;
	__u32 vni;
};

#define MARK_MAGIC 0x72697073

/* ---- What the programs count ---- */

enum hook {
	HOOK_FROM_POD,
	HOOK_FROM_WIRE,
	HOOK_TO_POD,
	HOOK_TO_WIRE,
	HOOK_XDP_FROM_WIRE,
	HOOK_FROM_VTEP,
	HOOK_TO_VTEP,
	HOOKS,
};

/*
 * Why a packet took the path that it took. The first word is the verdict: FAST (redirected past the kernel path),
 * KERNEL (left to the kernel path, unmodified) or DROP.
 */
#define ALL_REASONS(X)                                                                                              \
	X(FAST, LOCAL) /* pod to pod on this node */                                                                \
	X(FAST, ENCAP)                                                                                              \
	X(FAST, DECAP)                                                                                              \
	X(FAST, DIRECT) /* to or from a pod on another node, without encapsulation */                               \
	X(KERNEL, NOT_IP) /* ARP, VLANs, ... */                                                                     \
	X(KERNEL, NOT_VXLAN) /* from the wire, but not for our VXLAN port and address */                            \
	X(KERNEL, MALFORMED) /* a header is cut short, lengths contradict each other, or a checksum is wrong */     \
	X(KERNEL, IP_OPTIONS) /* or IPv6 extension headers */                                                       \
	X(KERNEL, FRAGMENT) /* conntrack reassembles packets, so no fragment may bypass it */                       \
	X(KERNEL, OUTER_CHECKSUM) /* an outer UDP checksum that could not be verified */                            \
	X(KERNEL, OTHER_VNI) /* or unknown VXLAN flags */                                                           \
	X(KERNEL, OTHER_MAC) /* the frame is not addressed to this node, or the inner one not to our VTEP */        \
	X(KERNEL, ROUTED_SOURCE) /* a pod sends for an address that the node has a route to through it */          \
	X(KERNEL, LINK_LOCAL) /* a pod sends from a link-local address, or has no address yet */                    \
	X(KERNEL, PROTOCOL) /* neither TCP, UDP nor an ICMP echo */                                                 \
	X(KERNEL, HANDSHAKE) /* TCP with SYN, RST or the first FIN: conntrack must see beginnings and ends */               \
	X(KERNEL, NEW_FLOW) /* not in the flow table */                                                             \
	X(KERNEL, OLD_EPOCH) /* in the flow table, but something has changed since */                               \
	X(KERNEL, EXPIRED) /* in the flow table, but learned too long ago */                                        \
	X(KERNEL, UNSETTLED) /* in the flow table, but earlier packets may be under way on the kernel path */       \
	X(KERNEL, OTHER_WAY) /* its flow came in elsewhere or with another TTL or DSCP, or must go elsewhere */     \
	X(KERNEL, LEARNED) /* leaves the kernel path, and its flow was learned */                                   \
	X(KERNEL, OUTSIDE) /* the other end is no pod, but a node or somebody behind it */                          \
	X(KERNEL, FROM_PEER) /* decapsulated by the kernel path; its sender may send for its source */              \
	X(KERNEL, NOT_SEEN) /* leaves the kernel path, but its arrival was not seen, or it was changed since */     \
	X(KERNEL, NOT_ESTABLISHED) /* leaves the kernel path, and conntrack must see more of its connection */      \
	X(KERNEL, NO_ENDPOINT) /* an address of this node's podCIDR that no pod has */                              \
	X(KERNEL, NO_PEER) /* to or from an address of the cluster network that has no slot in peers */             \
	X(KERNEL, MARKED) /* the endpoint or the peer is marked for the kernel path */                              \
	X(KERNEL, TTL) /* about to expire: the kernel answers */                                                    \
	X(KERNEL, TOO_BIG) /* over the path's MTU: the kernel answers or fragments */                               \
	X(KERNEL, NO_ROOM) /* the kernel refuses to grow or shrink the packet, or would do it wrongly */            \
	X(DROP, UNKNOWN_PEER) /* VXLAN for us from an address that no node has */                                   \
	X(DROP, SPOOFED_SOURCE) /* the inner source belongs to another node than the one that sent it */            \
	X(DROP, OTHER_SOURCE) /* a pod sends from an address that is not its own */                                 \
	X(DROP, VXLAN_FROM_POD) /* a pod sends VXLAN to a node */                                                   \
	X(DROP, ECN) /* congestion is marked on a packet whose sender cannot react to it, RFC 6040 section 4.2 */   \
	X(DROP, OTHER_VLAN) /* XDP decapsulated it, but could not see that the frame belongs to a VLAN */

#define ENUMERATOR(verdict, why) verdict##_##why,
enum reason {
	ALL_REASONS(ENUMERATOR)
	REASONS,
};
#undef ENUMERATOR

/* Per CPU. The empty arrays take no room: they tell BTF what the map is indexed by. */
struct counter {
	__u64 packets; /* skbs, so a GSO super-packet counts once */
	__u64 bytes;
	enum hook by_hook[0];
	enum reason by_reason[0];
};

/* How the flow table changes. What was added and not removed, and is not there, was evicted. */
enum flow_change {
	FLOW_ADDED, /* learned, and not in the table before */
	FLOW_RENEWED, /* learned again: the entry was invalid, or the packet larger than those before */
	FLOW_REMOVED, /* with its connection, or by a packet that begins the next one or resets it */
	FLOW_CHANGES,
};

/* Per CPU. */
struct flow_count {
	__u64 ipv4;
	__u64 ipv6;
	enum flow_change by_change[0];
};

/*
 * Why the epoch moved. EVENT: an event told the agent of a change. TRACED: a program at a function of the kernel saw it;
 * then an event may tell of the same change too.
 */
enum cause {
	CAUSE_EVENT_NETWORK, /* an address, a route or a routing rule */
	CAUSE_EVENT_SETTINGS,
	CAUSE_EVENT_RULES, /* in nftables, ours */
	CAUSE_EVENT_FLANNEL_RULES,
	CAUSE_EVENT_POLICY, /* in nftables, others' */
	CAUSE_EVENT_IPSEC,
	CAUSE_EVENT_SHAPING,
	CAUSE_EVENT_LOST, /* events were lost */
	CAUSE_EVENT_MARKED, /* the agent has marked an endpoint for the kernel path */
	CAUSE_TRACED_NFTABLES,
	CAUSE_TRACED_IPTABLES,
	CAUSE_TRACED_IPSET,
	CAUSE_TRACED_IPVS,
	CAUSE_TRACED_IPSEC,
	CAUSE_TRACED_ROUTING_RULES,
	CAUSE_TRACED_ROUTES,
	CAUSES,
};

struct invalidation {
	__u64 times;
	enum cause by_cause[0];
};

/* ---- Events: what `ripstop monitor` shows ---- */

#define EVENT_BYTES 192 /* of the packet: all headers, of two packets if it is tunnelled */

/* The beginning of a record. Bytes of the packet follow, as the program leaves it; EVENT_BYTES at most. */
struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 length; /* of the whole frame; of a super-packet, of all its segments together */
	__u32 captured; /* the bytes that follow */
	enum hook hook;
	enum reason reason;
	__u32 unused;
};

/* What somebody who listens wants to hear. All zero: nobody listens. */
struct listener {
	__u64 reasons; /* a bit for each */
	__u64 heard; /* events so far */
	__u64 allowed; /* those after these are only counted; who listens moves it on, in time */
	__u32 sample; /* one packet of so many */
	__u32 owner; /* a random number; who finds another one there has been replaced */
	struct event event[0];
};
