/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN (RFC 7348) as flannel speaks it: encapsulate from a peer's template, and what both ways need of ECN (RFC 6040). */
#pragma once

#include "parse.h"
#include "lookup.h"
#include "stats.h"

#define VXLAN_HAS_VNI bpf_htonl(0x08000000)

/* The headers of a tunnelled frame up to the inner IP header, and all of them but one Ethernet header: what the tunnel adds. */
#define OUTER_LEN(v6) ((v6) ? sizeof(struct outer_header6) : sizeof(struct outer_header))
#define ENCAP_LEN(v6) (OUTER_LEN(v6) - sizeof(struct ether))

/*
 * Whether the IP packet behind the frame's Ethernet header fits `mtu`. Of a GSO super-packet each segment must: the
 * headers once, and gso_size of payload.
 */
static __always_inline bool fits(const struct __sk_buff *skb, const struct ip *ip, __u32 mtu)
{
	__u32 gso_size = skb->gso_size;

	if (!gso_size)
		return skb->len - sizeof(struct ether) <= mtu;

	if (ip->protocol == PROTOCOL_TCP) {
		struct cursor payload = ip->payload;
		struct tcp *tcp = parse_tcp(&payload);
		return tcp && IP_LEN(ip->v6) + (tcp->offset >> 4) * 4 + gso_size <= mtu;
	}
	return IP_LEN(ip->v6) + sizeof(struct udp) + gso_size <= mtu;
}

/*
 * A flow's outer source port, as udp_flow_src_port() makes it: hashed into the local port range, so that one flow keeps
 * one path through the underlay. The sender's socket has mostly left a hash in the skb; where not, the tuple makes one.
 * What has no ports, fragments and pings, takes the path of its addresses.
 */
static __always_inline __u16 source_port(const struct __sk_buff *skb, const struct ip *ip)
{
	__u32 hash = skb->hash;

	if (!hash) {
		struct ports *ports = ip_ports(ip);
		__u64 mix;

		if (ip->v6) {
			const struct address *src = ip->src, *dst = ip->dst;
			mix = src->halves[0] ^ src->halves[1] * 31 ^ dst->halves[0] ^ dst->halves[1];
		} else {
			mix = (__u64) * (const __be32 *)ip->src << 32 | *(const __be32 *)ip->dst;
		}
		mix *= 0x9e3779b97f4a7c15; /* 2^64 / golden ratio: Knuth's hashing */
		mix ^= (ports ? *(__u32 *)ports : 0) ^ (__u32)ip->protocol << 16;
		mix *= 0x9e3779b97f4a7c15;
		hash = mix >> 32;
	}
	return (((__u64)(hash ^ hash << 16) * config.source_port_count) >> 32) + config.source_port_min;
}

/* Fill in what differs from packet to packet. `length` is that of the outer IP packet, `header` its start. */
static __always_inline void finish_ipv4(struct ipv4 *ip, const struct peer_head *peer, __u32 length, __u8 ecn, __u16 id)
{
	ip->tos = ecn;
	ip->total_length = bpf_htons(length);
	ip->id = id;
	ip->checksum = ~fold(peer->checksum_base + bpf_htons(ecn) + ip->total_length + id);
}

static __always_inline void finish_ipv6(struct ipv6 *ip, __u32 length, __u8 ecn)
{
	ip->version_class_flow |= bpf_htonl((__u32)ecn << 20);
	ip->payload_length = bpf_htons(length - sizeof(*ip));
}

/*
 * Put the peer's outer header before the packet's IP header. On success the packet starts with the outer Ethernet
 * header and has been counted; on failure it is as it was. `ecn` is the inner packet's.
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct peer_head *peer, bool v6, __u8 ecn, __u16 source_port)
{
	if (bpf_skb_adjust_room(skb, ENCAP_LEN(v6), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
					(v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) |
					BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ether))))
		return -1;

	void *data = PACKET_POINTER(skb, data);
	void *inner = data + OUTER_LEN(v6);

	if (inner + IP_LEN(v6) > PACKET_POINTER(skb, data_end))
		return -1; /* cannot be: the header was there before */

	const __u32 *from = (const void *)(peer + 1);
	__u32 *to = data;

#pragma unroll
	for (__u32 word = 0; word < OUTER_LEN(v6) / 8; word++)
		((__u64 *)to)[word] = ((const __u64 *)from)[word];
	if (OUTER_LEN(v6) % 8)
		to[OUTER_LEN(v6) / 4 - 1] = from[OUTER_LEN(v6) / 4 - 1];

	void *ip = data + sizeof(struct ether);
	struct udp *udp = ip + IP_LEN(v6);
	__u32 length = skb->len - sizeof(struct ether);
	/*
	 * The packet may be fragmented on its way (DF is clear, as flannel has it), so its id should not come again soon:
	 * what this CPU has sent, in units smaller than any packet, so that a super-packet's segments find ids too.
	 */
	__u16 id = count(skb->len, HOOK_FROM_POD, FAST_ENCAP) >> 6;

	if (v6)
		finish_ipv6(ip, length, ecn);
	else
		finish_ipv4(ip, peer, length, ecn, id);
	udp->src_port = bpf_htons(source_port);
	udp->length = bpf_htons(length - IP_LEN(v6));

	decrement_ttl(inner, v6);
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
