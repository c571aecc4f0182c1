/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every struct and enum that BPF programs and the manager share, once. scripts/gen-layout reads them back from BTF and
 * writes src/dataplane/layout.gen.ts, so nothing here is ever mirrored by hand. The generator understands, and prints:
 *   __be32          an IPv4 address
 *   __be16          a number in network byte order (a port, a length, an ethertype)
 *   net32           the same, 32 bits wide
 *   struct mac      a MAC address
 *   struct address  an IP address of either family
 *   an enum         a number, shown by its enumerators' names
 *   unused          nothing: padding
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

/* ---- Headers as on the wire. Naturally aligned within themselves, so the compiler may load whole words. ---- */

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

/* What goes before the inner IP header of an encapsulated packet, in order, without gaps. */
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

/* ---- Configuration: fixed while the programs are loaded, written into .rodata before. ---- */

/*
 * A family that is off has a network and a podCIDR that nothing lies in. All nodes' podCIDRs of a family have the length
 * of ours; where one has not, the kernel path serves it.
 */
struct config {
	__be32 network; /* the cluster network, e.g. 10.42.0.0 */
	__be32 network_mask;
	__be32 pod_cidr; /* this node's part of it, e.g. 10.42.3.0 */
	__be32 pod_cidr_mask;
	__be32 vtep_ip; /* the address that peers dial: the uplink's */
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
	__u32 uplink_mtu; /* bytes, as all MTUs here: the largest IP packet */
	__u32 pod_mtu; /* what fits the uplink encapsulated */
	__u32 pod_mtu6;
	__u32 source_port_min; /* the range that outer source ports are hashed into */
	__u32 source_port_count;
	__u32 direct_routing; /* not zero: some peers are reached without encapsulation */
};

/* ---- Map values ---- */

enum peer_flags {
	PEER_PRESENT = 1,
	PEER_BEHIND_NAT = 2, /* publishes public-ip-overwrite: its outer source address says nothing */
	PEER_KERNEL_PATH = 4, /* for the kernel path, both ways: its VXLAN device wants checksums that BPF cannot make */
	PEER_DIRECT = 8, /* on our L2 and reached without encapsulation */
};

/* What the peers of both families have. */
struct peer_head {
	enum peer_flags flags;
	__u32 checksum_base; /* one's complement sum of the template's IPv4 header, not folded */
	struct address vtep_ip;
	struct address next_hop; /* whose MAC the frame goes to: vtep_ip itself on one L2, else the gateway */
};

/*
 * A node, in the slot of its podCIDR. An all-zero slot is empty. The header is a template; lengths, id, ECN, source port
 * and checksum are filled in per packet.
 */
struct peer {
	struct peer_head head;
	struct outer_header header;
};

/* A node, by its IPv6 podCIDR's base. */
struct peer6 {
	struct peer_head head;
	struct outer_header6 header;
};

/* What is known of an underlay address that belongs to a node. */
enum vtep_flags {
	VTEP_LOCAL = 1,
	VTEP_REMOTE = 2,
	VTEP_UNINDEXED = 4, /* of a node that has no slot in peers, so only the kernel path can judge what it sends */
};

struct vtep {
	enum vtep_flags flags;
};

enum endpoint_flags {
	ENDPOINT_KERNEL_PATH = 1, /* marked for the kernel path */
};

/* A local pod, in the slot of its IPv4 address's host part or by its IPv6 address. ifindex 0: the slot is empty. */
struct endpoint {
	__u32 ifindex; /* the host side of its veth */
	enum endpoint_flags flags;
	struct mac pod_mac; /* these two are the first 12 bytes of a frame to the pod */
	struct mac host_mac;
	__u32 mtu; /* of the pod's interface */
};

/* What the programs themselves keep of an endpoint; apart from struct endpoint, which the manager overwrites whole. */
struct endpoint_state {
	__u32 stack_flows; /* entries of stack_flows that name it, or one that shares this; never less than there are */
	__u32 overflow; /* set when stack_flows was full: from then on all of the endpoint's packets go to the kernel path */
	__u32 forwards; /* set when it sent on a super-packet that had come through a tunnel: it gets those from the kernel path then */
};

/* A packet's tuple, as the packet carries it. */
struct flow {
	struct address src;
	struct address dst;
	__be16 src_port;
	__be16 dst_port;
	__u8 protocol;
	__u8 unused[3];
};

/* A flow that conntrack must translate: its packets in the direction of the key belong to the kernel path. */
struct stack_flow {
	__u64 created_ns; /* CLOCK_MONOTONIC */
};

/*
 * What xdp_from_wire leaves before a frame that it decapsulated, as metadata: no packet can bring that along, so from_wire
 * knows such a frame from a forged plain one.
 */
struct mark {
	__u32 magic;
	__u32 vni;
};

#define MARK_MAGIC 0x72697073

/* ---- What the programs say ---- */

enum hook {
	HOOK_FROM_POD,
	HOOK_FROM_WIRE,
	HOOK_TO_POD,
	HOOK_TO_VTEP,
	HOOK_XDP_FROM_WIRE,
	HOOKS,
};

/*
 * Why a packet took its way; the first word is the verdict: FAST (redirected past the kernel path), KERNEL (goes on,
 * unmodified, on the kernel path) or DROP. Add new reasons at the end of their verdict's block; pinned counters are re-made.
 */
enum reason {
	FAST_LOCAL, /* pod to pod on this node */
	FAST_ENCAP,
	FAST_DECAP,
	FAST_DIRECT, /* to or from a pod on another node, without encapsulation */

	KERNEL_NOT_IP, /* ARP, VLANs, ... */
	KERNEL_NEIGHBOUR, /* IPv6 neighbour discovery */
	KERNEL_NOT_VXLAN, /* from the wire, and not for our VXLAN port and address */
	KERNEL_MALFORMED, /* a header does not fit the packet, lengths contradict each other, or an IPv4 header's checksum is wrong */
	KERNEL_IP_OPTIONS, /* or IPv6 extension headers */
	KERNEL_FRAGMENT, /* the kernel path may wait until it has all of a packet (conntrack does), so none may pass it by */
	KERNEL_OUTER_CHECKSUM, /* an outer UDP checksum that could not be verified */
	KERNEL_OTHER_VNI, /* or VXLAN flags that we do not know */
	KERNEL_OTHER_MAC, /* the frame is not addressed to this node, or the inner one not to our VTEP */
	KERNEL_OTHER_SOURCE, /* a pod sends from an address that is not its own */
	KERNEL_OUTSIDE, /* the other end is no pod: the world, a service, a node */
	KERNEL_NO_ENDPOINT, /* an address of this node's podCIDR that no pod has */
	KERNEL_NO_PEER, /* to or from an address of the cluster network that no slot of peers stands for */
	KERNEL_MARKED, /* the endpoint or the peer is marked for the kernel path */
	KERNEL_TRANSLATED, /* belongs to a flow that conntrack translates, or may: an ICMP error about one, SCTP, the endpoint's flows overflowed */
	KERNEL_UNTRANSLATED, /* left the kernel path as a plain flow */
	KERNEL_TTL, /* about to expire: the kernel answers */
	KERNEL_TOO_BIG, /* over the path's MTU: the kernel answers or fragments */
	KERNEL_NO_ROOM, /* the kernel refuses to grow or shrink the packet, or would leave it wrong */

	DROP_UNKNOWN_PEER, /* VXLAN for us from an address that is no node's */
	DROP_SPOOFED_SOURCE, /* the inner source is not in the podCIDR of the node that sent it */
	DROP_VXLAN_FROM_POD, /* a pod talks VXLAN to a node */
	DROP_ECN, /* congestion was marked on a packet whose sender cannot hear of it, RFC 6040 section 4.2 */
	DROP_OTHER_VLAN, /* decapsulated by XDP, which could not see that the frame was some VLAN's */

	REASONS,
};

/* Per CPU. The empty arrays take no room: they say in BTF what the map is indexed by. */
struct counter {
	__u64 packets; /* skbs: a GSO super-packet counts once */
	__u64 bytes;
	enum hook by_hook[0];
	enum reason by_reason[0];
};
