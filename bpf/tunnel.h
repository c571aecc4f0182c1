/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What tc and XDP think of a VXLAN packet from the wire: only the packet's bytes are needed. A verdict is given as its
 * reason; FAST_DECAP means that nothing speaks against the fast path.
 */
#pragma once

#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "vxlan.h"

struct tunnelled {
	struct ip outer;
	struct udp *udp;
	struct ip inner;
	struct learned *learned;
	const struct endpoint *endpoint;
	bool is_proven; /* sent by the peer that the inner source belongs to; not if that is behind NAT, or marked */
};

/* Whether it may be VXLAN for us, judged by the IP and UDP headers alone. */
static __always_inline enum reason judge_outer(const struct ip *outer)
{
	struct cursor payload = outer->payload;
	struct udp *udp;

	if (outer->protocol != PROTOCOL_UDP)
		return KERNEL_NOT_VXLAN;
	if (outer->options)
		return KERNEL_IP_OPTIONS;
	if (outer->fragment)
		return KERNEL_FRAGMENT;
	udp = parse_udp(&payload);
	if (!udp || udp->dst_port != config.vxlan_port || !is_our_vtep(outer->dst, outer->v6))
		return KERNEL_NOT_VXLAN;
	return FAST_DECAP;
}

/*
 * Whether `from` is an address of the node that publishes `vtep_ip`. Of an IPv6 one, the last 32 bits may be all that is
 * known.
 */
static __always_inline bool is_of_node(const struct address *from, const struct vtep *sender,
				       const struct address *vtep_ip)
{
	bool is_short = !(from->halves[0] | from->words[2]);

	return same_address(&sender->vtep_ip, vtep_ip, true) || (is_short && from->words[3] == vtep_ip->words[3]);
}

/*
 * Whether a node may send for an inner source, when it did not send from the address that the peer `owner` publishes,
 * or no peer's podCIDR contains the source. `from`: the outer source, or its last 32 bits alone.
 *
 * What belongs to a node, only that node sends: its podCIDR, and its own addresses. What belongs to none may come
 * through any: a LAN behind it, for example.
 */
static __always_inline enum reason judge_claim(const struct peer_head *owner, const struct ip *inner,
					       const struct address *from)
{
	const struct vtep *sender = bpf_map_lookup_elem(&vteps, from), *node;

	if (!sender || !(sender->flags & VTEP_REMOTE))
		return config.admits_strangers ? KERNEL_NO_PEER : DROP_UNKNOWN_PEER;
	if (owner)
		return is_of_node(from, sender, &owner->vtep_ip) ? FAST_DECAP : DROP_SPOOFED_SOURCE;
	node = find_vtep(inner->src, inner->v6);
	if (in_pod_cidr(inner->src, inner->v6) || (node && !is_of_node(from, sender, &node->vtep_ip)))
		return DROP_SPOOFED_SOURCE;
	return sender->flags & VTEP_UNINDEXED ? KERNEL_NO_PEER : KERNEL_OUTSIDE;
}

/*
 * Whether the node that sent this may send for the inner source. FAST_DECAP if it may; a reason for the kernel path
 * when the source is no pod's, when the peers maps do not know the node, or when it is marked; else the reason to drop.
 */
static __always_inline enum reason judge_sender(const struct ip *outer, const struct ip *inner,
						bool *is_proven)
{
	bool v6 = outer->v6;
	const struct peer_head *peer = in_network(inner->src, v6) ? find_peer(inner->src, v6) : NULL;
	enum reason reason = FAST_DECAP;

	if (!peer || !(peer->flags & PEER_BEHIND_NAT || same_address(outer->src, from_address(&peer->vtep_ip, v6), v6))) {
		struct address from = to_address(outer->src, v6);

		reason = judge_claim(peer, inner, &from);
	} else {
		*is_proven = !(peer->flags & (PEER_BEHIND_NAT | PEER_KERNEL_PATH));
	}
	return reason == FAST_DECAP && peer && peer->flags & PEER_KERNEL_PATH ? KERNEL_MARKED : reason;
}

/* Whether a valid flow's packet may be delivered to the pod that the flow leads to. */
static __always_inline enum reason judge_delivery(const struct ip *ip, const struct learned *learned,
						  const struct endpoint **found)
{
	const void *dst = leaving_dst(learned, ip);
	struct endpoint *endpoint = in_pod_cidr(dst, ip->v6) ? find_endpoint(dst, ip->v6) : NULL;

	if (!endpoint)
		return KERNEL_NO_ENDPOINT;
	if (endpoint->flags & ENDPOINT_KERNEL_PATH)
		return KERNEL_MARKED;
	if (ip->ttl <= 1)
		return KERNEL_TTL;
	*found = endpoint;
	return FAST_DECAP;
}

/*
 * The whole verdict except for size, outer checksum and ECN. The cursor is at the start of a frame of `bytes` bytes
 * that judge_outer() takes for VXLAN. `known` becomes the inner packet's: see judge_flow().
 */
static __always_inline enum reason judge_tunnelled(struct cursor at, __u32 bytes, bool v6, __u32 ifindex,
						   struct tunnelled *packet, struct flow_packet *known)
{
	struct ether *ether = parse_ether(&at);

	if (!ether || !read_ip(&at, bytes - sizeof(*ether), v6, &packet->outer))
		return KERNEL_MALFORMED;

	struct udp *udp = parse_udp(&at);

	if (!udp || bpf_ntohs(udp->length) != bytes - sizeof(*ether) - IP_LEN(v6) || !is_sound(&packet->outer))
		return KERNEL_MALFORMED;

	struct vxlan *vxlan = parse_vxlan(&at);

	if (!vxlan)
		return KERNEL_MALFORMED;

	struct ether *inner_ether = parse_ether(&at);

	if (!inner_ether)
		return KERNEL_MALFORMED;
	if (vxlan->flags != VXLAN_HAS_VNI || vxlan->vni != bpf_htonl(config.vni << 8))
		return KERNEL_OTHER_VNI;
	if (!mac_equal(&inner_ether->dst, v6 ? &config.vtep_mac6 : &config.vtep_mac))
		return KERNEL_OTHER_MAC;
	if (inner_ether->type != (v6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4))
		return KERNEL_NOT_IP;
	if (!read_ip(&at, bytes - OUTER_LEN(v6), v6, &packet->inner))
		return KERNEL_MALFORMED;
	packet->udp = udp;

	enum reason reason = judge_sender(&packet->outer, &packet->inner, &packet->is_proven);

	if (reason == FAST_DECAP)
		reason = judge_flow(&packet->inner, ifindex, 0, known, &packet->learned);
	if (reason == FAST_DECAP)
		reason = judge_delivery(&packet->inner, packet->learned, &packet->endpoint);
	return reason;
}

/*
 * The one's complement sum of an IP packet's pseudo header. `length` is that of the transport header and its payload.
 */
static __always_inline __u32 pseudo_header_sum(const struct ip *ip, bool v6, __u32 length)
{
	return sum16(ip->src, 2 * (v6 ? sizeof(struct address) : sizeof(__be32))) + bpf_htons(ip->protocol) +
	       bpf_htons(length);
}

/*
 * Whether the outer UDP checksum is right, computed from the headers alone. What a transport checksum covers sums up to
 * the complement of its pseudo header; the sender's kernel relies on that too ("local checksum offload",
 * Documentation/networking/checksum-offloads.rst). If the outer checksum does not match, the kernel path verifies it in
 * full. If the inner checksum is wrong, the pod's kernel notices, as it does with the kernel's VXLAN device.
 */
static __always_inline bool headers_verify(const struct tunnelled *packet, bool v6)
{
	const struct ip *outer = &packet->outer, *inner = &packet->inner;
	const __u32 behind_outer = sizeof(struct udp) + sizeof(struct vxlan) + sizeof(struct ether);
	__u32 udp_length = bpf_ntohs(packet->udp->length);
	__u32 inner_length = udp_length - behind_outer - IP_LEN(v6);
	struct cursor payload = inner->payload;
	__u32 inner_pseudo = 0;

	/* No inner checksum covers fragments, options and padding. */
	if (inner->fragment || inner->options || ip_length(inner) != inner->bytes)
		return false;
	if (inner->protocol == PROTOCOL_UDP) {
		struct udp *udp = parse_udp(&payload);

		if (!udp || !udp->checksum || bpf_ntohs(udp->length) != inner_length)
			return false;
	} else if (inner->protocol != PROTOCOL_TCP && !is_icmp(inner)) {
		return false;
	}
	if (v6 || inner->protocol != PROTOCOL_ICMP) /* RFC 792's checksum has no pseudo header */
		inner_pseudo = pseudo_header_sum(inner, v6, inner_length);

	__u32 sum = pseudo_header_sum(outer, v6, udp_length) + sum16(packet->udp, behind_outer + IP_LEN(v6)) +
		    (__u16)~fold(inner_pseudo);

	return fold(sum) == 0xffff;
}
