/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow table as the fast path uses it: which flow a packet belongs to, whether the flow is valid, and the rewriting
 * of addresses and ports that the kernel path was seen to do.
 */
#pragma once

#include "lookup.h"
#include "parse.h"

/*
 * How long no packet of a flow must come before it changes to the fast path; and after how long it changes without such a
 * gap. TCP bears it well when packets overtake each other.
 */
#define GAP_NS 2000000
#define WITHOUT_GAP_NS(protocol) ((protocol) == PROTOCOL_TCP ? 20000000 : 50000000)

/* Flags of TCP: RFC 9293 section 3.1. */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* What the flow table needs to know of a packet. */
struct flow_packet {
	struct flow6 flow;
	__u32 frame_dst; /* see struct arrival */
	__u8 tcp_flags;
	bool is_bare_ack; /* TCP without payload: no harm if others overtake it */
};

/* Whether it answers a SYN. */
static __always_inline bool is_syn_ack(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == (TCP_SYN | TCP_ACK);
}

/*
 * The flow that a packet belongs to. KERNEL_NEW_FLOW when it may be in the flow table; else the reason why the packet
 * belongs to the kernel path.
 */
static __always_inline enum reason read_flow(const struct ip *ip, struct flow_packet *packet)
{
	struct flow6 *flow = &packet->flow;
	struct cursor payload = ip->payload;
	enum reason reason = KERNEL_NEW_FLOW;

	if (ip->options)
		return KERNEL_IP_OPTIONS;
	if (ip->fragment)
		return KERNEL_FRAGMENT;
	*packet = (struct flow_packet){
		.flow = {
			.src = to_address(ip->src, ip->v6),
			.dst = to_address(ip->dst, ip->v6),
			.protocol = ip->protocol,
		},
	};
	if (is_icmp(ip)) {
		struct icmp_echo *echo = parse_icmp_echo(&payload);

		if (!echo || !is_echo(echo, ip->v6))
			return KERNEL_PROTOCOL;
		flow->src_port = echo->id;
		flow->dst_port = bpf_htons(echo->type);
	} else if (ip->protocol == PROTOCOL_TCP) {
		struct tcp *tcp = parse_tcp(&payload);

		if (!tcp)
			return KERNEL_MALFORMED;
		if (tcp->flags & (TCP_FIN | TCP_SYN | TCP_RST))
			reason = KERNEL_HANDSHAKE;
		packet->tcp_flags = tcp->flags;
		packet->is_bare_ack = ip->bytes == IP_LEN(ip->v6) + (tcp->offset >> 4) * 4;
		flow->src_port = tcp->ports.src;
		flow->dst_port = tcp->ports.dst;
	} else if (ip->protocol == PROTOCOL_UDP) {
		struct udp *udp = parse_udp(&payload);

		if (!udp)
			return KERNEL_MALFORMED;
		flow->src_port = udp->src_port;
		flow->dst_port = udp->dst_port;
	} else {
		return KERNEL_PROTOCOL;
	}
	return reason;
}

/* The key of flows4. The compiler drops the detour over struct flow6. */
static __always_inline struct flow4 to_flow4(const struct flow6 *flow)
{
	return (struct flow4){
		.src = flow->src.words[3],
		.dst = flow->dst.words[3],
		.src_port = flow->src_port,
		.dst_port = flow->dst_port,
		.protocol = flow->protocol,
	};
}

/* What was learned of a flow: a `struct learned4` or `struct learned6`, by its first member. */
static __always_inline struct learned *find_learned(const struct flow6 *flow, bool v6)
{
	if (v6)
		return bpf_map_lookup_elem(&flows6, flow);

	struct flow4 key = to_flow4(flow);

	return bpf_map_lookup_elem(&flows4, &key);
}

static __always_inline __u32 current_epoch(void)
{
	__u32 key = 0;
	__u32 *now = bpf_map_lookup_elem(&epoch, &key);

	return now ? *(volatile __u32 *)now : 0;
}

/* The address that the flow's packets leave for, in the form that packets have. */
static __always_inline const void *learned_dst(const struct learned *learned, bool v6)
{
	if (v6)
		return &((const struct learned6 *)learned)->out.dst;
	return &((const struct learned4 *)learned)->out.dst;
}

/* The same, of a packet that came in. An entry that translates nothing need not be read to its end. */
static __always_inline const void *leaving_dst(const struct learned *learned, const struct ip *ip)
{
	return learned->is_translated ? learned_dst(learned, ip->v6) : ip->dst;
}

/* ---- Arrivals: what was left to the kernel path, as it came in ---- */

static __always_inline __u32 slot_of(const struct flow6 *flow)
{
	__u64 mix = flow->src.halves[1] * 0x9e3779b97f4a7c15 ^ flow->dst.halves[1];

	mix = (mix ^ flow->src_port ^ (__u32)flow->dst_port << 16) * 0x9e3779b97f4a7c15; /* 2^64 / golden ratio */
	return (mix >> 32) & (ARRIVALS - 1);
}

static __always_inline struct arrival *find_arrival(const struct flow6 *flow)
{
	__u32 slot = slot_of(flow);

	return bpf_map_lookup_elem(&arrivals, &slot);
}

/* The slot of the last packet that this CPU has left to the kernel path. */
static __always_inline __u32 *last_slot(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&last_arrival, &key);
}

static __always_inline bool same_flow(const struct flow6 *a, const struct flow6 *b)
{
	return same_address(&a->src, &b->src, true) && same_address(&a->dst, &b->dst, true) &&
	       a->src_port == b->src_port && a->dst_port == b->dst_port && a->protocol == b->protocol;
}

/*
 * A packet is left to the kernel path. `learned`: what is known of its flow; NULL when nothing is. Where that is valid,
 * but this packet does not suit the fast path (`reason`), those that follow had better not overtake it. A packet that is
 * larger than those before it waits in no queue on its way to the wire: from_pod and to_wire run one after the other,
 * unless it is `queued` first.
 */
static __always_inline void note_arrival(const struct __sk_buff *skb, const struct flow_packet *packet,
					 const struct ip *ip, struct learned *learned, enum reason reason, bool queued)
{
	const struct flow6 *flow = &packet->flow;
	struct arrival *arrival = find_arrival(flow);
	__u32 *last = last_slot();
	__u64 now = bpf_ktime_get_ns();
	__u64 noted = now, since = now;
	bool may_suit = reason == KERNEL_NEW_FLOW || reason == KERNEL_OLD_EPOCH || reason == KERNEL_EXPIRED ||
			reason == KERNEL_UNSETTLED;

	if (!arrival || !last)
		return;
	*last = slot_of(flow);

	bool is_known = same_flow(&arrival->flow, flow);

	if (is_known && may_suit && now - arrival->noted_ns < GAP_NS)
		since = arrival->since_ns;
	if (packet->is_bare_ack) {
		noted = is_known ? arrival->noted_ns : 0;
	} else if (learned && (queued || reason != KERNEL_TOO_BIG || in_pod_cidr(learned_dst(learned, ip->v6), ip->v6))) {
		learned->is_settled = 0;
		learned->noted_ns = now;
	}
	*arrival = (struct arrival){
		.flow = *flow,
		.noted_ns = noted,
		.since_ns = since,
		.epoch = current_epoch(),
		.ifindex = skb->ifindex,
		.frame_dst = packet->frame_dst,
		.dscp = ip->tos >> 2,
		.ttl = ip->ttl,
	};
}

/* The other direction of a conversation, by the flow that this one leaves as. */
static __always_inline struct flow6 opposite(const struct flow6 *out)
{
	return (struct flow6){
		.src = out->dst,
		.dst = out->src,
		.src_port = out->dst_port,
		.dst_port = out->src_port,
		.protocol = out->protocol,
	};
}

/*
 * What was learned of the other direction of a conversation; NULL when nothing was. Its packets come in as those of this
 * direction leave, the other way round.
 */
static __always_inline struct learned *find_other(const struct learned *learned, bool v6)
{
	const struct flow4 *out4 = &((const struct learned4 *)learned)->out;
	const struct flow6 *out6 = &((const struct learned6 *)learned)->out;

	if (v6) {
		struct flow6 key = opposite(out6);

		return bpf_map_lookup_elem(&flows6, &key);
	}

	struct flow4 key = {
		.src = out4->dst,
		.dst = out4->src,
		.src_port = out4->dst_port,
		.dst_port = out4->src_port,
		.protocol = out4->protocol,
	};

	return bpf_map_lookup_elem(&flows4, &key);
}

/*
 * Whether a flow that has just been learned may change to the fast path. Its last packets may still wait in one of the
 * kernel path's queues (of a pod's veth, of a tunnel), and the next one would overtake them. So the change is made once
 * the other side has answered, or in a gap; and after a while in any case, since a busy flow may have none.
 */
static __always_inline bool is_settled(const struct learned *learned, const struct flow6 *flow, bool v6)
{
	const struct arrival *arrival = find_arrival(flow);
	const struct learned *other = find_other(learned, v6);
	__u64 now = bpf_ktime_get_ns();

	if (other && other->noted_ns > learned->noted_ns)
		return true;
	return !arrival || !same_flow(&arrival->flow, flow) || now - arrival->noted_ns >= GAP_NS ||
	       now - arrival->since_ns >= WITHOUT_GAP_NS(flow->protocol);
}

/* ---- The verdict ---- */

/* The next connection with the same ports may be translated in another way. */
static __always_inline void forget_flow(const struct flow6 *flow, bool v6)
{
	struct flow4 key = to_flow4(flow);

	if ((v6 ? bpf_map_delete_elem(&flows6, flow) : bpf_map_delete_elem(&flows4, &key)) == 0)
		note_flow(FLOW_REMOVED, v6);
}

/* Whether what was learned of a flow still holds: FAST_DECAP when it does. */
static __always_inline enum reason judge_learned(struct learned *learned, const struct flow_packet *packet,
						 const struct ip *ip, __u32 ifindex)
{
	if (learned->ifindex != ifindex || learned->frame_dst != packet->frame_dst)
		return KERNEL_OTHER_WAY;
	if (learned->ttl != ip->ttl || learned->dscp != ip->tos >> 2)
		return KERNEL_OTHER_WAY;
	if (learned->epoch != current_epoch())
		return KERNEL_OLD_EPOCH;
	if (bpf_ktime_get_coarse_ns() - learned->learned_ns > config.lifetime_ns)
		return KERNEL_EXPIRED;
	if (!learned->is_settled) {
		if (!is_settled(learned, &packet->flow, ip->v6))
			return KERNEL_UNSETTLED;
		learned->is_settled = 1;
		learned->noted_ns = bpf_ktime_get_ns();
	}
	return FAST_DECAP;
}

/* Whether conntrack has seen the other direction's FIN. Then it counts down, and need not see this one's. */
static __always_inline bool is_other_ending(const struct learned *learned, bool v6)
{
	const struct learned *other = find_other(learned, v6);

	return other && other->is_ending;
}

/*
 * Whether a packet that comes in at this interface belongs to a flow that is valid: FAST_DECAP, and `learned` tells what
 * to do with it. Else the reason for the kernel path; the packet's flow has a protocol when it may be learned.
 */
static __always_inline enum reason judge_flow(const struct ip *ip, __u32 ifindex, __u32 frame_dst,
					      struct flow_packet *packet, struct learned **found)
{
	struct flow6 *flow = &packet->flow;
	enum reason reason = is_sound(ip) ? read_flow(ip, packet) : KERNEL_MALFORMED;
	bool is_handshake = reason == KERNEL_HANDSHAKE, is_its_own;
	struct learned *learned;

	packet->frame_dst = frame_dst;
	if (reason != KERNEL_NEW_FLOW && !is_handshake) {
		flow->protocol = 0;
		return reason;
	}
	learned = find_learned(flow, ip->v6);
	/* A packet with a forged source ends no connection: it comes in elsewhere. */
	is_its_own = learned && learned->ifindex == ifindex;
	if (packet->tcp_flags & (TCP_SYN | TCP_RST)) {
		if (is_its_own)
			forget_flow(flow, ip->v6);
		*found = is_its_own ? NULL : learned;
		if (!is_syn_ack(packet->tcp_flags))
			flow->protocol = 0;
		return reason;
	}
	if (learned)
		reason = judge_learned(learned, packet, ip, ifindex);
	*found = learned;
	if (!is_handshake || (reason == FAST_DECAP && is_other_ending(learned, ip->v6)))
		return reason;
	/* A first FIN. */
	if (is_its_own)
		learned->is_ending = 1;
	flow->protocol = 0;
	return KERNEL_HANDSHAKE;
}

/*
 * Count a packet that takes the fast path. These are plain adds to an entry that the packet's CPU has read already: a flow's
 * packets come in on one CPU, as a rule. When two CPUs count at the same moment, one of the two packets is missing from
 * the sums, which no decision rests on.
 */
static __always_inline void count_in_flow(struct learned *learned, __u32 bytes)
{
	learned->packets++;
	learned->bytes += bytes;
}

/* ---- Rewriting ---- */

/* Offsets of checksums in their headers: RFC 791, RFC 9293, RFC 768. */
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6

/* Replace a field. Returns how the one's complement sum changes, 0 if it does not; `bytes` is constant and even. */
static __always_inline __u32 replace(void *field, const void *with, __u32 bytes)
{
	__u32 from = fold(sum16(field, bytes)), to = fold(sum16(with, bytes));

	__builtin_memcpy(field, with, bytes);
	return from == to ? 0 : to + (__u16)~from;
}

/*
 * Give the IP packet at `offset` the addresses and ports that its flow leaves with. False when the packet is too short,
 * which its parsing has excluded. All pointers into the packet are invalid afterwards.
 *
 * Checksums stay right whatever state they are in (linux/skbuff.h). In a partial one only the pseudo header is summed, so
 * only the addresses change it. A complete one sums the whole IP packet: in IPv4 the header's own checksum makes up for
 * the addresses, and in IPv6 the transport checksum does, which bpf_l4_csum_replace() takes for a change of the sum.
 */
static __always_inline bool rewrite(struct __sk_buff *skb, __u32 offset, bool v6, const struct learned *learned)
{
	const struct learned4 *to4 = (const void *)learned;
	const struct learned6 *to6 = (const void *)learned;
	__u8 protocol = v6 ? to6->out.protocol : to4->out.protocol;
	struct ports to = v6 ? (struct ports){ to6->out.src_port, to6->out.dst_port } :
			       (struct ports){ to4->out.src_port, to4->out.dst_port };
	__u32 checksum = offset + IP_LEN(v6) + (protocol == PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
	__u64 zero = protocol == PROTOCOL_TCP ? 0 : BPF_F_MARK_MANGLED_0; /* UDP without a checksum stays without */
	struct cursor at = { PACKET_POINTER(skb, data) + offset, PACKET_POINTER(skb, data_end) };
	void *header = at.pos;
	struct ports *ports;
	__u32 change, ports_change;

	at.pos += IP_LEN(v6);
	ports = parse_ports(&at);
	if (!ports)
		return false;
	if (v6) {
		struct ipv6 *ip = header;

		change = replace(&ip->src, &to6->out.src, sizeof(ip->src)) + replace(&ip->dst, &to6->out.dst, sizeof(ip->dst));
	} else {
		struct ipv4 *ip = header;

		change = replace(&ip->src, &to4->out.src, sizeof(ip->src)) + replace(&ip->dst, &to4->out.dst, sizeof(ip->dst));
		ip->checksum = ~fold((__u16)~ip->checksum + fold(change));
	}
	ports_change = replace(ports, &to, sizeof(to));
	bpf_l4_csum_replace(skb, checksum, 0, fold(change), zero | BPF_F_PSEUDO_HDR);
	if (v6)
		bpf_csum_update(skb, fold(change));
	if (ports_change)
		bpf_l4_csum_replace(skb, checksum, 0, fold(ports_change), zero);
	return true;
}
