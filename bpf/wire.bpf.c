/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets from the underlay: tc ingress of the uplink. What is not certainly for a pod is left unchanged to the kernel
 * path.
 */
#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"
#include "tunnel.h"
#include "vxlan.h"

#define IPV6_BEFORE_ADDRESSES 8 /* bytes; every field that changes here is among them */

/*
 * Deliver to the pod: its MAC addresses, and one hop less, as if the kernel routed it. `new_ecn` -1 leaves ECN alone.
 */
static __always_inline int deliver(struct __sk_buff *skb, const struct endpoint *endpoint, bool v6, int new_ecn,
				   enum reason reason)
{
	struct cursor at = packet(skb, 0);
	struct ether *ether = parse_ether(&at);

	if (!ether || at.pos + IP_LEN(v6) > at.end)
		return drop(skb, HOOK_FROM_WIRE, KERNEL_MALFORMED); /* impossible: both were there before */

	__u32 before = v6 ? sum16(at.pos, IPV6_BEFORE_ADDRESSES) : 0;

	ether->dst = endpoint->pod_mac;
	ether->src = endpoint->host_mac;
	decrement_ttl(at.pos, v6);
	if (new_ecn >= 0)
		set_ecn(at.pos, v6, new_ecn);
	/*
	 * The NIC may have computed the sum of the whole IP packet. Every IPv4 header has the same sum, since its
	 * own checksum makes up for every change. An IPv6 header has no checksum, so its sum changes.
	 */
	if (v6)
		bpf_csum_update(skb, sum16(at.pos, IPV6_BEFORE_ADDRESSES) + (__u16)~fold(before));
	count(skb->len, HOOK_FROM_WIRE, reason);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/* A plain packet for a local pod: fast if its sender is a peer that we, too, reach without encapsulation. */
static __always_inline int from_direct_peer(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct ip packet_ip, *ip = &packet_ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, ip))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_MALFORMED);

	const struct peer_head *peer = in_network(ip->src, v6) ? find_peer(ip->src, v6) : NULL;

	if (!peer || !(peer->flags & PEER_DIRECT))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_NOT_VXLAN);

	/* A short packet may have been padded. The receiving kernel cuts the padding off, in the pod as on the node. */
	__u32 length = ip_length(ip);

	if (ip->bytes == ETHERNET_SHORTEST_PAYLOAD && length < ip->bytes &&
	    length >= IP_LEN(ip->v6) + sizeof(struct udp))
		ip->bytes = length;

	struct endpoint *endpoint;
	enum reason reason = judge_delivery(ip, &endpoint);

	if (reason != FAST_DECAP)
		return to_kernel(skb, HOOK_FROM_WIRE, reason);
	if (!fits(skb, ip, endpoint->mtu))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_TOO_BIG);
	return deliver(skb, endpoint, ip->v6, -1, FAST_DIRECT);
}

/* Whether xdp_from_wire has decapsulated this frame. */
static __always_inline bool is_marked(const struct __sk_buff *skb, const struct ether *frame)
{
	const struct mark *mark = PACKET_POINTER(skb, data_meta);

	return (void *)(mark + 1) <= (void *)frame && mark->magic == MARK_MAGIC && mark->vni == config.vni;
}

/* A frame that XDP has decapsulated. XDP found nothing against it, but the maps may have changed since. */
static __always_inline int from_xdp(struct __sk_buff *skb, const struct ip *ip)
{
	struct endpoint *endpoint;
	enum reason reason = judge_delivery(ip, &endpoint);

	if (reason != FAST_DECAP)
		return to_kernel(skb, HOOK_FROM_WIRE, reason);
	return deliver(skb, endpoint, ip->v6, -1, FAST_DECAP);
}

/*
 * Whether a super-packet can be decapsulated. Shrinking leaves it marked as encapsulated (at least up to Linux 6.18).
 * TCP is segmented rightly all the same. UDP is segmented as if it were still in the tunnel, and a receiver that did
 * not ask for super-packets (UDP_GRO) would get nothing. And if the pod forwards the packet, it cannot be encapsulated
 * at from_pod.
 */
static __always_inline bool may_shrink(const struct ip *inner)
{
	struct endpoint_state *state = find_state(inner->dst, inner->v6);

	return inner->protocol == PROTOCOL_TCP && !(state && state->forwards);
}

/*
 * Whether the outer checksum was left to a NIC, and no NIC has seen the packet: the field holds the pseudo header's
 * sum. Then the packet comes from this machine, through a veth or from another VM. Shrinking clears the kernel's note
 * of that (Linux 6.2, and 6.1 since its first weeks), so the pod's kernel verifies the inner checksum.
 */
static __always_inline bool is_unsummed(const struct arrival *arrival)
{
	return arrival->udp->checksum == fold(pseudo_header_sum(&arrival->outer, bpf_ntohs(arrival->udp->length)));
}

static __always_inline int from_wire_ip(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct udp));
	struct ether *ether = parse_ether(&at);
	struct ip outer;

	if (!ether || !read_ip(&at, skb->len - sizeof(struct ether), v6, &outer))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_MALFORMED);
	if (is_marked(skb, ether))
		return from_xdp(skb, &outer);
	if (config.direct_routing && in_pod_cidr(outer.dst, v6))
		return from_direct_peer(skb, v6);

	/* Most packets are not for us. Judge them by their first bytes, before more of the packet is asked for. */
	enum reason reason = judge_outer(&outer);

	if (reason != FAST_DECAP)
		return to_kernel(skb, HOOK_FROM_WIRE, reason);

	struct arrival arrival;

	at = packet(skb, OUTER_LEN(v6) + IP_LEN(v6) + sizeof(struct udp));
	reason = judge_arrival(at, skb->len, v6, &arrival);
	if (reason >= DROP_UNKNOWN_PEER)
		return drop(skb, HOOK_FROM_WIRE, reason);
	if (reason != FAST_DECAP)
		return to_kernel(skb, HOOK_FROM_WIRE, reason);

	struct endpoint *endpoint = arrival.endpoint;

	if (!skb->gso_size && skb->len - OUTER_LEN(v6) > endpoint->mtu)
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_TOO_BIG);
	/*
	 * GRO has verified every packet that it merged into a super-packet. Otherwise the NIC may have verified the
	 * checksum, or the headers may prove it.
	 */
	if (arrival.udp->checksum && !skb->gso_size && bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0 &&
	    !is_unsummed(&arrival) && !headers_verify(&arrival))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_OUTER_CHECKSUM);

	__u8 ecn = arrival.inner.tos & ECN_MASK;
	int new_ecn = ecn_decapsulated(ecn, arrival.outer.tos & ECN_MASK);

	if (new_ecn < 0)
		return drop(skb, HOOK_FROM_WIRE, DROP_ECN);
	if (skb->gso_size && !may_shrink(&arrival.inner))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_NO_ROOM);
	if (bpf_skb_adjust_room(skb, -(int)ENCAP_LEN(v6), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_NO_ROOM);
	return deliver(skb, endpoint, v6, new_ecn == ecn ? -1 : new_ecn, FAST_DECAP);
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);

	if (!ether)
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_MALFORMED);
	if (!is_untagged(skb))
		return is_marked(skb, ether) ? drop(skb, HOOK_FROM_WIRE, DROP_OTHER_VLAN) :
					       to_kernel(skb, HOOK_FROM_WIRE, KERNEL_NOT_IP);
	if (skb->pkt_type != PACKET_HOST)
		return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_OTHER_MAC);
	if (ether->type == ETHERTYPE_IPV4)
		return from_wire_ip(skb, false);
	if (ether->type == ETHERTYPE_IPV6)
		return from_wire_ip(skb, true);
	return to_kernel(skb, HOOK_FROM_WIRE, KERNEL_NOT_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
