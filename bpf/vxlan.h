/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* VXLAN (RFC 7348) as flannel speaks it: encapsulation from a peer's template, and ECN across the tunnel (RFC 6040). */
#pragma once

#include "parse.h"
#include "lookup.h"

#define VXLAN_HAS_VNI bpf_htonl(0x08000000)

#define AF_INET 2
#define AF_INET6 10
#define OUTER_TTL 64 /* as the kernel's VXLAN device sends it */

/*
 * In skb->cb[0] of packets that from_pod sends to the uplink, so that to_wire need not look at them. A packet of the
 * kernel path that has it by chance is not learned from.
 */
#define FROM_FAST_PATH 0x72697073

/* OUTER_LEN: all headers before the inner IP header. ENCAP_LEN: what encapsulation adds, one Ethernet header less. */
#define OUTER_LEN(v6) ((v6) ? sizeof(struct outer_header6) : sizeof(struct outer_header))
#define ENCAP_LEN(v6) (OUTER_LEN(v6) - sizeof(struct ether))

/* The bytes of an IP packet; of a GSO super-packet those of a segment, which has the headers and gso_size bytes of payload. */
static __always_inline __u32 packet_bytes(const struct __sk_buff *skb, const struct ip *ip)
{
	struct cursor payload = ip->payload;
	__u32 gso_size = skb->gso_size;
	struct tcp *tcp;

	if (!gso_size)
		return ip->bytes;
	if (ip->protocol != PROTOCOL_TCP)
		return IP_LEN(ip->v6) + sizeof(struct udp) + gso_size;
	tcp = parse_tcp(&payload);
	return tcp ? IP_LEN(ip->v6) + (tcp->offset >> 4) * 4 + gso_size : ip->bytes;
}

/* Fill in the fields that differ from packet to packet. `length` is the outer IP packet's. */
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
 * The next outer IP id. The packet may be fragmented on the underlay (DF is clear, as with flannel), so its id should
 * not repeat soon, and each segment of a super-packet needs one.
 */
static __always_inline __u16 next_ip_id(const struct __sk_buff *skb)
{
	__u32 key = 0;
	__u32 *id = bpf_map_lookup_elem(&ip_ids, &key);

	if (!id)
		return 0;
	return bpf_htons((*id += skb->gso_segs ? skb->gso_segs : 1));
}

/*
 * Put the peer's outer header before the packet's IP header. On success the packet starts with the outer Ethernet
 * header; on failure it is unchanged. `ecn` is the inner packet's. `is_routed`: the kernel has taken a hop off the TTL.
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct peer_head *peer, bool v6, __u8 ecn,
				       __be16 source_port, bool is_routed)
{
	if (bpf_skb_adjust_room(skb, ENCAP_LEN(v6), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
					(v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) |
					BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ether))))
		return -1;

	void *data = PACKET_POINTER(skb, data);
	void *inner = data + OUTER_LEN(v6);

	if (inner + IP_LEN(v6) > PACKET_POINTER(skb, data_end))
		return -1; /* impossible: the header was there before */

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
	if (v6)
		finish_ipv6(ip, length, ecn);
	else
		finish_ipv4(ip, peer, length, ecn, next_ip_id(skb));
	udp->src_port = source_port;
	udp->length = bpf_htons(length - IP_LEN(v6));

	if (!is_routed)
		decrement_ttl(inner, v6);
	return 0;
}

/* Send a packet to the uplink, for the peer's next hop. What follows on the way need not look at it. */
static __always_inline void send_to_uplink(struct __sk_buff *skb, const struct peer_head *peer, bool v6)
{
	struct bpf_redir_neigh next_hop = { .nh_family = v6 ? AF_INET6 : AF_INET };

	if (v6)
		__builtin_memcpy(next_hop.ipv6_nh, &peer->next_hop, sizeof(next_hop.ipv6_nh));
	else
		next_hop.ipv4_nh = peer->next_hop.words[3];
	skb->cb[0] = FROM_FAST_PATH;
	bpf_redirect_neigh(config.uplink_ifindex, &next_hop, sizeof(next_hop), 0);
}

/*
 * The ECN field of the outer header, as the kernel's VXLAN device makes it: the inner one, but ECT(0) in place of CE, so
 * that congestion in the tunnel is told from congestion before it (INET_ECN_encapsulate() in net/inet_ecn.h).
 */
static __always_inline __u8 ecn_encapsulated(__u8 inner)
{
	return inner == ECN_CE ? ECN_ECT_0 : inner;
}

/* The ECN field of the decapsulated packet, or -1 when the packet must be dropped. RFC 6040 section 4.2, figure 4. */
static __always_inline int ecn_decapsulated(__u8 inner, __u8 outer)
{
	if (outer == ECN_CE)
		return inner == ECN_NOT_ECT ? -1 : ECN_CE;
	if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		return ECN_ECT_1;
	return inner;
}
