/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN (RFC 7348) as flannel speaks it: encapsulate from a peer's template, decapsulate, and carry ECN across (RFC 6040). */
#pragma once

#include "parse.h"
#include "maps.h"
#include "stats.h"

#define VXLAN_HAS_VNI bpf_htonl(0x08000000)

#define ECN_MASK 3
#define ECN_NOT_ECT 0
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3

/* Where an address of the cluster network finds its node in `peers`. */
static __always_inline __u32 peer_slot(__be32 address)
{
	return bpf_ntohl(address & ~config.network_mask) >> config.subnet_shift;
}

/* Where an address of this node's podCIDR finds its pod in `endpoints`. */
static __always_inline __u32 endpoint_slot(__be32 address)
{
	return bpf_ntohl(address & ~config.pod_cidr_mask);
}

static __always_inline bool in_network(__be32 address)
{
	return (address & config.network_mask) == config.network;
}

static __always_inline bool in_pod_cidr(__be32 address)
{
	return (address & config.pod_cidr_mask) == config.pod_cidr;
}

static __always_inline struct peer *find_peer(__be32 address)
{
	__u32 slot = peer_slot(address);
	struct peer *peer = bpf_map_lookup_elem(&peers, &slot);

	return peer && peer->flags & PEER_PRESENT ? peer : NULL;
}

static __always_inline struct endpoint *find_endpoint(__u32 slot)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &slot);

	return endpoint && endpoint->ifindex ? endpoint : NULL;
}

/*
 * Whether the IP packet behind the frame's Ethernet header fits `mtu`. Of a GSO super-packet each segment must: the
 * headers once, and gso_size of payload.
 */
static __always_inline bool fits(const struct __sk_buff *skb, struct cursor behind_ip, __u8 protocol, __u32 mtu)
{
	__u32 gso_size = skb->gso_size;

	if (!gso_size)
		return skb->len - sizeof(struct ether) <= mtu;

	if (protocol == PROTOCOL_TCP) {
		struct tcp *tcp = parse_tcp(&behind_ip);
		return tcp && sizeof(struct ipv4) + (tcp->offset >> 4) * 4 + gso_size <= mtu;
	}
	return sizeof(struct ipv4) + sizeof(struct udp) + gso_size <= mtu;
}

/*
 * A flow's outer source port, as udp_flow_src_port() makes it: hashed into the local port range, so that one flow keeps
 * one path through the underlay. The sender's socket has mostly left a hash in the skb; where not, the tuple makes one.
 * What has no ports, fragments and pings, takes the path of its addresses.
 */
static __always_inline __u16 source_port(const struct __sk_buff *skb, const struct ipv4 *ip, struct cursor behind_ip)
{
	__u32 hash = skb->hash;

	if (!hash) {
		struct ports *ports = has_ports(ip) ? parse_ports(&behind_ip) : NULL;
		__u64 mix = ((__u64)ip->src << 32 | ip->dst) * 0x9e3779b97f4a7c15; /* 2^64 / golden ratio: Knuth's hashing */

		mix ^= (ports ? *(__u32 *)ports : 0) ^ (__u32)ip->protocol << 16;
		mix *= 0x9e3779b97f4a7c15;
		hash = mix >> 32;
	}
	return (((__u64)(hash ^ hash << 16) * config.source_port_count) >> 32) + config.source_port_min;
}

/*
 * Put the peer's outer header before the packet's IP header. On success the packet starts with the outer Ethernet
 * header and has been counted; on failure it is as it was. `tos` is the inner packet's.
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct peer *peer, __u8 tos, __u16 source_port)
{
	if (bpf_skb_adjust_room(skb, ENCAP_LEN, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
					BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ether)) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH))
		return -1;

	void *data = (void *)(long)skb->data;
	struct ipv4 *inner_ip = data + OUTER_LEN;

	if ((void *)(inner_ip + 1) > (void *)(long)skb->data_end)
		return -1; /* cannot be: the header was there before */

	const __u64 *from = (const void *)&peer->header;
	__u64 *to = data;

#pragma unroll
	for (int word = 0; word < OUTER_LEN / 8; word++)
		to[word] = from[word];

	struct ipv4 *ip = data + sizeof(struct ether);
	struct udp *udp = (void *)(ip + 1);
	__u32 length = skb->len - sizeof(struct ether);
	__be16 total_length = bpf_htons(length);
	/*
	 * The packet may be fragmented on its way (DF is clear, as flannel has it), so its id should not come again soon:
	 * what this CPU has sent, in units smaller than any packet, so that a super-packet's segments find ids too.
	 */
	__u16 id = count(skb, HOOK_FROM_POD, FAST_ENCAP) >> 6;

	tos &= ECN_MASK;
	ip->tos = tos;
	ip->total_length = total_length;
	ip->id = id;
	ip->checksum = ~fold(peer->checksum_base + bpf_htons(tos) + total_length + id);
	udp->src_port = bpf_htons(source_port);
	udp->length = bpf_htons(length - sizeof(*ip));

	decrement_ttl(inner_ip);
	return 0;
}

/* What the ECN field of a decapsulated packet becomes, or -1: drop it. RFC 6040 section 4.2, figure 4. */
static __always_inline int ecn_decapsulated(__u8 inner, __u8 outer)
{
	if (outer == ECN_CE)
		return inner == ECN_NOT_ECT ? -1 : ECN_CE;
	if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		return ECN_ECT_1;
	return inner;
}
