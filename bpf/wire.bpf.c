/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The uplink: packets from the underlay (tc ingress), and packets that the kernel path sends there (tc egress). The VTEP
 * devices: packets that the kernel path has decapsulated (tc ingress), or sends to a peer (tc egress).
 */
#include <bpf/bpf_core_read.h>

#include "carried.h"
#include "flows.h"
#include "learn.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"
#include "tunnel.h"
#include "tunnels.h"
#include "vxlan.h"

#define IPV6_BEFORE_ADDRESSES 8 /* bytes; every field that changes here is among them */

/*
 * Deliver to the pod: its MAC addresses, and one hop less, as if the kernel routed it. `new_ecn` -1 leaves ECN alone.
 * `ip`: the packet to deliver, as it was read; of a tunnelled one the inner packet. What xdp_from_wire has decapsulated is
 * counted here as well, and only here.
 */
static __always_inline enum reason deliver(struct __sk_buff *skb, const struct endpoint *endpoint,
					   const struct ip *ip, struct learned *learned, int new_ecn, enum reason reason)
{
	bool v6 = ip->v6;

	if (learned->is_translated && !rewrite(skb, sizeof(struct ether), v6, learned))
		return KERNEL_MALFORMED; /* impossible: its ports were read before */

	struct cursor at = packet(skb, 0);
	struct ether *ether = parse_ether(&at);

	if (!ether || at.pos + IP_LEN(v6) > at.end)
		return KERNEL_MALFORMED; /* impossible: both were there before */

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
	count_in_flow(learned, ip->bytes);
	bpf_redirect_peer(endpoint->ifindex, 0);
	return reason;
}

/*
 * A plain packet for a pod of ours: fast if its sender is a peer that we, too, reach without encapsulation, and its flow
 * is valid.
 */
static __always_inline enum reason from_direct_peer(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct ip packet_ip, *ip = &packet_ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, ip))
		return KERNEL_MALFORMED;

	const struct peer_head *peer = in_network(ip->src, v6) ? find_peer(ip->src, v6) : NULL;

	if (!peer || !(peer->flags & PEER_DIRECT))
		return KERNEL_NOT_VXLAN;

	/* A short packet may have been padded. The receiving kernel cuts the padding off, in the pod as on the node. */
	__u32 length = ip_length(ip);

	__u32 transport = ip->protocol == PROTOCOL_TCP ? sizeof(struct tcp) : sizeof(struct udp);

	if (ip->bytes == ETHERNET_SHORTEST_PAYLOAD && length < ip->bytes && length >= IP_LEN(ip->v6) + transport)
		ip->bytes = length;

	const struct endpoint *endpoint;
	struct learned *learned = NULL;
	struct flow_packet known = {};
	enum reason reason = judge_flow(ip, skb->ifindex, 0, &known, &learned);

	if (reason == FAST_DECAP)
		reason = judge_delivery(ip, learned, &endpoint);
	if (reason == FAST_DECAP && packet_bytes(skb, ip) > endpoint->mtu)
		reason = KERNEL_TOO_BIG;
	if (reason == FAST_DECAP)
		return deliver(skb, endpoint, ip, learned, -1, FAST_DIRECT);
	if (known.flow.protocol)
		note_arrival(skb, &known, ip, learned, reason, false);
	return reason;
}

/* Whether xdp_from_wire has decapsulated this frame. */
static __always_inline bool is_marked(const struct __sk_buff *skb, const struct ether *frame)
{
	const struct mark *mark = PACKET_POINTER(skb, data_meta);

	return (void *)(mark + 1) <= (void *)frame && mark->magic == MARK_MAGIC && mark->vni == config.vni;
}

/*
 * A frame that XDP has decapsulated, for XDP found its flow valid. What has changed in the moment since does not matter:
 * outside its tunnel, the kernel path would take the packet for another.
 */
static __always_inline enum reason from_xdp(struct __sk_buff *skb, const struct ip *ip)
{
	const struct endpoint *endpoint;
	struct learned *learned;
	struct flow_packet known;
	enum reason reason = read_flow(ip, &known);

	if (reason != KERNEL_NEW_FLOW)
		return reason;
	learned = find_learned(&known.flow, ip->v6);
	if (!learned)
		return KERNEL_NEW_FLOW;
	reason = judge_delivery(ip, learned, &endpoint);
	if (reason != FAST_DECAP)
		return reason;
	return deliver(skb, endpoint, ip, learned, -1, FAST_DECAP);
}

/* linux/bpf.h has it since 2026. The loader looks in the kernel's BTF whether it knows it, and which bit it is. */
enum bpf_adj_room_flags___decap {
	BPF_F_ADJ_ROOM_DECAP_L4_UDP___decap = 1 << 10,
};

/* The flag that makes shrinking remove a super-packet's mark as encapsulated; 0 on kernels without it. */
static __always_inline __u64 unmark_flag(void)
{
	if (!bpf_core_enum_value_exists(enum bpf_adj_room_flags___decap, BPF_F_ADJ_ROOM_DECAP_L4_UDP___decap))
		return 0;
	return bpf_core_enum_value(enum bpf_adj_room_flags___decap, BPF_F_ADJ_ROOM_DECAP_L4_UDP___decap);
}

/*
 * Whether a super-packet can be decapsulated. Without unmark_flag() shrinking leaves it marked as encapsulated. TCP is
 * segmented rightly all the same. UDP is segmented as if it were still in the tunnel, and a receiver that did not ask for
 * super-packets (UDP_GRO) would get nothing. And if the pod forwards the packet, it cannot be encapsulated at from_pod.
 */
static __always_inline bool may_shrink(const struct ip *inner)
{
	struct endpoint_state *state = find_state(inner->dst, inner->v6);

	if (unmark_flag())
		return true;
	return inner->protocol == PROTOCOL_TCP && !(state && state->forwards);
}

/*
 * Whether the outer checksum was left to a NIC, and no NIC has seen the packet: the field holds the pseudo header's
 * sum. Then the packet comes from this machine, through a veth or from another VM. Shrinking clears the kernel's note
 * of that (Linux 6.2, and 6.1 since its first weeks), so the pod's kernel verifies the inner checksum.
 */
static __always_inline bool is_unsummed(const struct tunnelled *packet, bool v6)
{
	return packet->udp->checksum == fold(pseudo_header_sum(&packet->outer, v6, bpf_ntohs(packet->udp->length)));
}

/*
 * Remove the outer headers. FAST_DECAP when they are off; else why not, and the packet is unchanged. `new_ecn` becomes the
 * ECN field that the packet is to get, or -1 when it has it already.
 */
static __always_inline enum reason decapsulate(struct __sk_buff *skb, bool v6, const struct tunnelled *packet, int *new_ecn)
{
	/*
	 * GRO has verified every packet that it merged into a super-packet. Otherwise the NIC may have verified the
	 * checksum, or the headers may prove it.
	 */
	if (packet->udp->checksum && !skb->gso_size && bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0 &&
	    !is_unsummed(packet, v6) && !headers_verify(packet, v6))
		return KERNEL_OUTER_CHECKSUM;

	__u8 ecn = packet->inner.tos & ECN_MASK;

	*new_ecn = ecn_decapsulated(ecn, packet->outer.tos & ECN_MASK);
	if (*new_ecn < 0)
		return DROP_ECN;
	if (*new_ecn == ecn)
		*new_ecn = -1;
	if (skb->gso_size && !may_shrink(&packet->inner))
		return KERNEL_NO_ROOM;
	/*
	 * As the kernel's tunnel devices do: of the checksums that a NIC or GRO has verified, the outermost one goes, and
	 * the others stay verified. GRO lists (rx-gro-list) depend on it, for nobody can verify theirs again.
	 */
	if (bpf_skb_adjust_room(skb, -(int)ENCAP_LEN(v6), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | unmark_flag()))
		return KERNEL_NO_ROOM;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return FAST_DECAP;
}

/* A VXLAN packet of a valid flow, which leads to `packet->endpoint`. */
static __always_inline enum reason deliver_tunnelled(struct __sk_buff *skb, bool v6, const struct tunnelled *packet)
{
	enum reason reason;
	int new_ecn;

	if (!skb->gso_size && packet->inner.bytes > packet->endpoint->mtu)
		return KERNEL_TOO_BIG;
	reason = decapsulate(skb, v6, packet, &new_ecn);
	if (reason != FAST_DECAP)
		return reason;
	return deliver(skb, packet->endpoint, &packet->inner, packet->learned, new_ecn, FAST_DECAP);
}

/* Whether a device with this index is there still. A VTEP device that was made anew has another one. */
static __always_inline bool is_there(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, ifindex, &mtu, 0, 0) >= 0; /* else -ENODEV */
}

/* Hand a decapsulated packet to the VTEP device, as if that had decapsulated it. False when it is too short. */
static __always_inline bool hand_to_vtep(struct __sk_buff *skb, bool v6, const struct peer_head *peer, __u32 ifindex,
					 int new_ecn)
{
	const struct ether *template = inner_template(peer, v6);
	struct cursor at = { PACKET_POINTER(skb, data), PACKET_POINTER(skb, data_end) };
	struct ether *ether = parse_ether(&at);

	if (!ether || at.pos + IP_LEN(v6) > at.end)
		return false; /* impossible: both were there before */

	ether->dst = template->src;
	ether->src = template->dst;
	if (new_ecn >= 0) {
		__u32 before = v6 ? sum16(at.pos, IPV6_BEFORE_ADDRESSES) : 0;

		set_ecn(at.pos, v6, new_ecn);
		if (v6) /* see deliver() */
			bpf_csum_update(skb, sum16(at.pos, IPV6_BEFORE_ADDRESSES) + (__u16)~fold(before));
	}
	skb->cb[0] = FROM_FAST_PATH;
	skb->priority = 0; /* from_vtep would take it for a sender */
	bpf_redirect(ifindex, BPF_F_INGRESS);
	return true;
}

/*
 * Hand a VXLAN packet of a proven peer to the VTEP device, if the kernel path was seen to do so with others: then the kernel
 * path decides about the inner packet only. False when the kernel path must have the packet as it is.
 */
static __always_inline bool carry_inward(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, OUTER_LEN(v6) + IP_LEN(v6) + sizeof(struct tcp));
	struct ether *ether = parse_ether(&at);
	const struct endpoint *receiver;
	const struct peer_head *peer;
	const struct tunnel *tunnel;
	struct tunnelled inside = {};
	int new_ecn;

	if (!ether || !read_ip(&at, skb->len - sizeof(*ether), v6, &inside.outer))
		return false;
	inside.udp = parse_udp(&at);
	if (!inside.udp || !parse_vxlan(&at) || !parse_ether(&at) || !read_ip(&at, skb->len - OUTER_LEN(v6), v6, &inside.inner))
		return false;
	peer = find_peer(inside.inner.src, v6);
	receiver = in_pod_cidr(inside.inner.dst, v6) ? find_endpoint(inside.inner.dst, v6) : NULL;
	if (!peer || (receiver && receiver->flags & ENDPOINT_KERNEL_PATH))
		return false;

	struct tunnel_key key = inward(skb, peer, &inside.inner);

	key.sender = ether->src;
	key.ttl = inside.outer.ttl;
	key.tos = inside.outer.tos;
	tunnel = find_tunnel(&key);
	if (!tunnel || !is_there(skb, tunnel->ifindex)) {
		note_tunnelling(&key, &inside.inner);
		return false;
	}
	/* The kernel path may forward a super-packet to anywhere; see may_shrink(). */
	if ((skb->gso_size && !unmark_flag()) || decapsulate(skb, v6, &inside, &new_ecn) != FAST_DECAP)
		return false;
	return hand_to_vtep(skb, v6, peer, tunnel->ifindex, new_ecn);
}

/* Beside a reason for the kernel path: carry_inward() may be tried. */
#define IS_PROVEN (1 << 8)

/* The reason, perhaps with IS_PROVEN. */
static __always_inline __u32 from_wire_ip(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct udp));
	struct ether *ether = parse_ether(&at);
	struct ip outer;

	if (!ether || !read_ip(&at, skb->len - sizeof(struct ether), v6, &outer))
		return KERNEL_MALFORMED;
	if (is_marked(skb, ether)) {
		at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
		if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &outer))
			return KERNEL_MALFORMED;
		return from_xdp(skb, &outer);
	}
	if (config.direct_routing && in_pod_cidr(outer.dst, v6))
		return from_direct_peer(skb, v6);

	/* Most packets are not for us. Judge them by their first bytes, before more of the packet is asked for. */
	enum reason reason = judge_outer(&outer);

	if (reason != FAST_DECAP)
		return reason;

	struct tunnelled inside = {};
	struct flow_packet known = {}; /* apart, for the compiler does not see through what has its address taken */

	at = packet(skb, OUTER_LEN(v6) + IP_LEN(v6) + sizeof(struct tcp));
	reason = judge_tunnelled(at, skb->len, v6, skb->ifindex, &inside, &known);
	if (reason == FAST_DECAP)
		reason = deliver_tunnelled(skb, v6, &inside);
	if (verdict_of(reason) != KERNEL)
		return reason;
	if (known.flow.protocol)
		note_arrival(skb, &known, &inside.inner, inside.learned, reason, false);
	return inside.is_proven && reason != KERNEL_MARKED ? reason | IS_PROVEN : reason;
}

/* Functions of their own: the stack has room for one of them at a time. */
static __noinline __u32 from_wire_ipv4(struct __sk_buff *skb)
{
	return from_wire_ip(skb, false);
}

static __noinline __u32 from_wire_ipv6(struct __sk_buff *skb)
{
	return from_wire_ip(skb, true);
}

static __noinline bool carry_inward_ipv4(struct __sk_buff *skb)
{
	return carry_inward(skb, false);
}

static __noinline bool carry_inward_ipv6(struct __sk_buff *skb)
{
	return carry_inward(skb, true);
}

static __always_inline enum reason from_wire_family(struct __sk_buff *skb, bool *is_carried, bool v6)
{
	__u32 judged = v6 ? from_wire_ipv6(skb) : from_wire_ipv4(skb);

	if (judged & IS_PROVEN)
		*is_carried = v6 ? carry_inward_ipv6(skb) : carry_inward_ipv4(skb);
	return judged & ~IS_PROVEN;
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	remove_priority_tag(skb);

	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);
	enum reason reason = KERNEL_NOT_IP;
	bool is_carried = false;

	if (!ether)
		reason = KERNEL_MALFORMED;
	else if (!is_untagged(skb))
		reason = is_marked(skb, ether) ? DROP_OTHER_VLAN : KERNEL_NOT_IP;
	else if (skb->pkt_type != PACKET_HOST)
		reason = KERNEL_OTHER_MAC;
	else
		reason = BY_FAMILY(ether->type, from_wire_family, skb, &is_carried);
	return is_carried ? finish_carried(skb, HOOK_FROM_WIRE, reason) : finish(skb, HOOK_FROM_WIRE, reason);
}

/* ---- From the VTEP device ---- */

static __always_inline enum reason from_vtep_ip(struct __sk_buff *skb, __be32 sender, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct ports));
	struct address from = { .words = { 0, 0, v6 ? 0 : IPV4_MAPPED, sender } };
	const struct peer_head *peer;
	struct ip ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;
	peer = in_network(ip.src, v6) ? find_peer(ip.src, v6) : NULL;
	if (peer && (!sender || peer->flags & PEER_BEHIND_NAT || peer->vtep_ip.words[3] == sender)) {
		struct tunnel_key key = inward(skb, peer, &ip);

		/* What from_wire has handed over shows nothing, even if it looks like the packet that was noted last. */
		if (skb->cb[0] != FROM_FAST_PATH)
			see_tunnelling(skb, &key, &ip, 0, skb->ifindex);
		return KERNEL_FROM_PEER;
	}
	if (!sender)
		return KERNEL_FROM_PEER;

	enum reason reason = judge_claim(peer, &ip, &from);

	return reason == FAST_DECAP ? KERNEL_FROM_PEER : reason;
}

/* A frame that no node sends as VXLAN to another one. */
static __always_inline enum reason judge_odd_frame(__be32 sender)
{
	return sender ? DROP_SPOOFED_SOURCE : KERNEL_NOT_IP; /* or as good as spoofed */
}

/*
 * A packet that the kernel path has decapsulated. Its sender is judged here, because here it has one shape, whatever
 * the outer packet's was: padded, with options, in fragments, on another interface than the uplink. Our nft rules have
 * put the outer source address into the packet's priority, of an IPv6 address the last 32 bits; the priority means
 * nothing on the way in. Without it nothing is judged: from_wire has handed the packet over, and judged it; or there are no
 * such rules. In boost mode there never are. Otherwise somebody has removed them, and the agent restores them.
 */
SEC("tc")
int from_vtep(struct __sk_buff *skb)
{
	__be32 sender = skb->priority;

	if (!sender && skb->cb[0] != FROM_FAST_PATH && !config.admits_strangers)
		return finish(skb, HOOK_FROM_VTEP, KERNEL_NOT_SEEN);
	skb->priority = 0;
	remove_priority_tag(skb);

	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);
	enum reason reason;

	if (!ether)
		reason = KERNEL_MALFORMED;
	else if (!is_untagged(skb) || is_tag(ether->type))
		reason = judge_odd_frame(sender);
	else
		reason = BY_FAMILY(ether->type, from_vtep_ip, skb, sender);
	return finish(skb, HOOK_FROM_VTEP, reason);
}

/* ---- To the wire ---- */

/*
 * Whether the kernel path sends to the peer by the way that from_pod would take: the same next hop. `mtu` becomes the
 * largest packet that this way carries; routes, and what was learned of the path, may allow less than the uplink.
 */
static __always_inline bool is_our_way(struct __sk_buff *skb, const struct ether *ether, const struct peer_head *peer,
				       const void *src, const void *dst, bool v6, __u32 *mtu)
{
	struct bpf_fib_lookup way = {
		.family = v6 ? AF_INET6 : AF_INET,
		.l4_protocol = PROTOCOL_UDP,
		.tot_len = 1, /* asks for the route's MTU */
		.ifindex = config.uplink_ifindex,
	};
	const void *next_hop;

	if (v6) {
		__builtin_memcpy(way.ipv6_src, src, sizeof(way.ipv6_src));
		__builtin_memcpy(way.ipv6_dst, dst, sizeof(way.ipv6_dst));
	} else {
		way.ipv4_src = *(const __be32 *)src;
		way.ipv4_dst = *(const __be32 *)dst;
	}
	if (bpf_fib_lookup(skb, &way, sizeof(way), BPF_FIB_LOOKUP_OUTPUT) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	*mtu = way.mtu_result;
	next_hop = v6 ? (const void *)way.ipv6_dst : &way.ipv4_dst;
	return way.ifindex == config.uplink_ifindex && mac_equal(&ether->dst, (const struct mac *)way.dmac) &&
	       same_address(next_hop, from_address(&peer->next_hop, v6), v6);
}

/* Whether an outer header is the one that encapsulate() would make. */
static __always_inline bool is_our_header(const struct ip *outer, const struct ip *inner, const struct peer_head *peer)
{
	bool v6 = outer->v6;

	return same_address(outer->dst, from_address(&peer->vtep_ip, v6), v6) && outer->ttl == OUTER_TTL &&
	       outer->tos == ecn_encapsulated(inner->tos & ECN_MASK) && !outer->options && !outer->fragment &&
	       (v6 || !(((struct ipv4 *)outer->header)->fragment));
}

/* Learn the flow of a packet that goes to a peer, if it may teach it. `mtu`: of inner packets on the way there. */
static __always_inline enum reason teach_outward(struct __sk_buff *skb, const struct ip *inner, __u32 mtu, __be16 source_port)
{
	struct flow_packet known = {};
	enum reason reason = may_teach(inner, &known);

	return reason == KERNEL_NEW_FLOW ? learn(skb, inner, &known, true, mtu, source_port) : reason;
}

/* A packet that the kernel path has encapsulated. */
static __always_inline enum reason to_peer(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, OUTER_LEN(v6) + IP_LEN(v6) + sizeof(struct tcp));
	struct ether *ether = parse_ether(&at), *inner_ether;
	const struct peer_head *peer;
	struct tunnel_key key;
	struct vxlan *vxlan;
	struct udp *udp;
	struct ip outer, inner;
	__u32 mtu;

	if (!ether || !read_ip(&at, skb->len - sizeof(*ether), v6, &outer))
		return KERNEL_MALFORMED;
	udp = parse_udp(&at);
	vxlan = parse_vxlan(&at);
	inner_ether = parse_ether(&at);
	if (!udp || !vxlan || !inner_ether)
		return KERNEL_MALFORMED;
	if (vxlan->flags != VXLAN_HAS_VNI || vxlan->vni != bpf_htonl(config.vni << 8))
		return KERNEL_OTHER_VNI;
	if (inner_ether->type != (v6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4))
		return KERNEL_NOT_IP;
	if (!read_ip(&at, skb->len - OUTER_LEN(v6), v6, &inner))
		return KERNEL_MALFORMED;
	count_carried(&inner);
	peer = in_network(inner.dst, v6) ? find_peer(inner.dst, v6) : NULL;
	if (!peer)
		return KERNEL_NO_PEER;
	if (peer->flags & PEER_KERNEL_PATH)
		return KERNEL_MARKED;
	if (!is_our_header(&outer, &inner, peer))
		return KERNEL_OTHER_WAY;

	if (!is_our_way(skb, ether, peer, outer.src, outer.dst, v6, &mtu))
		return KERNEL_OTHER_WAY;

	__u32 room = (mtu < peer->mtu ? mtu : peer->mtu) - ENCAP_LEN(v6);
	__u32 most = v6 ? config.pod_mtu6 : config.pod_mtu;

	if (room > most)
		room = most;
	key = outward(skb, peer, &inner);
	see_tunnelling(skb, &key, &inner, room, 0);
	return teach_outward(skb, &inner, room, udp->src_port);
}

/* A packet for another node that the kernel path sends without encapsulation. */
static __always_inline enum reason to_direct_peer(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct ether *ether = parse_ether(&at);
	const struct peer_head *peer;
	struct flow_packet known = {};
	struct ip ip;
	__u32 mtu;

	if (!ether || !read_ip(&at, skb->len - sizeof(*ether), v6, &ip))
		return KERNEL_MALFORMED;
	count_carried(&ip);
	peer = find_peer(ip.dst, v6);
	if (!peer || !(peer->flags & PEER_DIRECT))
		return KERNEL_NO_PEER;

	enum reason reason = may_teach(&ip, &known);

	if (reason != KERNEL_NEW_FLOW)
		return reason;
	if (!is_our_way(skb, ether, peer, ip.src, ip.dst, v6, &mtu))
		return KERNEL_OTHER_WAY;
	return learn(skb, &ip, &known, true, mtu < peer->mtu ? mtu : peer->mtu, 0);
}

static __always_inline enum reason to_wire_ip(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct udp));
	struct udp *udp;
	struct ip ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;
	if (config.direct_routing && in_network(ip.dst, v6))
		return to_direct_peer(skb, v6);
	udp = ip.protocol == PROTOCOL_UDP ? parse_udp(&ip.payload) : NULL;
	if (!udp || udp->dst_port != config.vxlan_port || !is_our_vtep(ip.src, v6))
		return KERNEL_NOT_VXLAN;
	return to_peer(skb, v6);
}

SEC("tc")
int to_wire(struct __sk_buff *skb)
{
	/* from_pod has counted it already. */
	if (skb->cb[0] == FROM_FAST_PATH)
		return KERNEL;

	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);
	enum reason reason = KERNEL_NOT_IP;

	if (ether && is_untagged(skb))
		reason = BY_FAMILY(ether->type, to_wire_ip, skb);
	return finish(skb, HOOK_TO_WIRE, reason);
}

/* ---- To the VTEP device ---- */

/*
 * The source port that the kernel's VXLAN device would give the packet: by its flow (udp_flow_src_port() in net/udp.h), so
 * that all packets of a flow take one way through the underlay, whoever encapsulates them.
 */
static __always_inline __be16 source_port_of(struct __sk_buff *skb)
{
	__u32 hash = bpf_get_hash_recalc(skb);

	hash ^= hash << 16;
	return bpf_htons(((__u64)hash * config.source_ports >> 32) + config.source_port);
}

/*
 * Encapsulate a packet that the kernel path sends to a peer, and send it to the uplink, if the kernel path was seen to do
 * so with others. False when the kernel's VXLAN device must do it: then the packet is unchanged.
 */
static __always_inline bool carry_outward(struct __sk_buff *skb, bool v6, enum reason *reason)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct ether *ether = parse_ether(&at);
	const struct endpoint *sender;
	const struct peer_head *peer;
	const struct tunnel *tunnel;
	struct ip ip;

	if (!ether || !read_ip(&at, skb->len - sizeof(*ether), v6, &ip))
		return false;
	sender = in_pod_cidr(ip.src, v6) ? find_endpoint(ip.src, v6) : NULL;
	peer = in_network(ip.dst, v6) ? find_peer(ip.dst, v6) : NULL;
	if (!peer || peer->flags & (PEER_KERNEL_PATH | PEER_DIRECT) || !mac_equal(&ether->dst, &inner_template(peer, v6)->dst) ||
	    (sender && sender->flags & ENDPOINT_KERNEL_PATH))
		return false;

	struct tunnel_key key = outward(skb, peer, &ip);

	tunnel = find_tunnel(&key);
	if (!tunnel || packet_bytes(skb, &ip) > tunnel->carried) {
		note_tunnelling(&key, &ip);
		return false;
	}

	__be16 source_port = source_port_of(skb);

	if (skb->gso_segs > config.uplink_gso_segs ||
	    encapsulate(skb, peer, v6, ecn_encapsulated(ip.tos & ECN_MASK), source_port, true))
		return false;
	at = packet(skb, OUTER_LEN(v6) + IP_LEN(v6) + sizeof(struct tcp));
	at.pos += OUTER_LEN(v6);
	*reason = KERNEL_MALFORMED; /* impossible: it was read before */
	if (read_ip(&at, skb->len - OUTER_LEN(v6), v6, &ip)) {
		count_carried(&ip);
		*reason = teach_outward(skb, &ip, tunnel->mtu, source_port);
	}
	send_to_uplink(skb, peer, v6);
	return true;
}

/* What it does not carry, to_wire sees and counts. */
SEC("tc")
int to_vtep(struct __sk_buff *skb)
{
	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);
	enum reason reason = KERNEL_NOT_IP;
	bool is_carried = false;

	if (ether && is_untagged(skb) && ether->type == ETHERTYPE_IPV4)
		is_carried = carry_outward(skb, false, &reason);
	else if (ether && is_untagged(skb) && ether->type == ETHERTYPE_IPV6)
		is_carried = carry_outward(skb, true, &reason);
	return is_carried ? finish_carried(skb, HOOK_TO_VTEP, reason) : KERNEL;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
