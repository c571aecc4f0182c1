/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Learning: a packet has left the kernel path. Conntrack says what its flow is translated to, and the note of its arrival
 * says that nothing else about it was changed. Only what is certain is learned.
 */
#pragma once

#include "carried.h"
#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "vxlan.h"

/* ---- conntrack, as the kernel offers it to tc programs (net/netfilter/nf_conntrack_bpf.c, Linux 6.1) ---- */

/* linux/netfilter/nf_conntrack_common.h */
#define IPS_SEEN_REPLY (1 << 1)
#define IPS_CONFIRMED (1 << 3)
#define IPS_SEQ_ADJUST (1 << 6)
#define IPS_DYING (1 << 9)
#define IPS_HELPER (1 << 13)
#define IP_CT_DIR_ORIGINAL 0
/* linux/netfilter/nf_conntrack_tcp.h: from ESTABLISHED to CLOSE_WAIT data flows in one direction at least. */
#define TCP_CONNTRACK_SYN_RECV 2
#define TCP_CONNTRACK_ESTABLISHED 3
#define TCP_CONNTRACK_CLOSE_WAIT 5

#define KERNEL_STRUCT __attribute__((preserve_access_index))

union nf_inet_addr {
	__be32 all[4];
} KERNEL_STRUCT;

union nf_conntrack_man_proto {
	__be16 all;
} KERNEL_STRUCT;

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
} KERNEL_STRUCT;

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
	} dst;
} KERNEL_STRUCT;

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} KERNEL_STRUCT;

struct ip_ct_tcp {
	__u8 state;
} KERNEL_STRUCT;

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} KERNEL_STRUCT;

struct nf_conn {
	unsigned long status;
	struct nf_conntrack_tuple_hash tuplehash[2];
	union nf_conntrack_proto proto;
} KERNEL_STRUCT;

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
				  struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
void bpf_ct_release(struct nf_conn *conn) __ksym;

/* The connection of which this flow is one direction, after translation: its reversed tuple is what conntrack knows. */
static __always_inline struct nf_conn *find_connection(struct __sk_buff *skb, const struct flow6 *out, bool v6,
						       struct bpf_ct_opts *opts)
{
	struct bpf_sock_tuple tuple = {};

	if (v6) {
		__builtin_memcpy(tuple.ipv6.saddr, &out->dst, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &out->src, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = out->dst_port;
		tuple.ipv6.dport = out->src_port;
		return bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), opts, sizeof(*opts));
	}
	tuple.ipv4.saddr = out->dst.words[3];
	tuple.ipv4.daddr = out->src.words[3];
	tuple.ipv4.sport = out->dst_port;
	tuple.ipv4.dport = out->src_port;
	return bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), opts, sizeof(*opts));
}

static __always_inline struct address tuple_address(const union nf_inet_addr *address, bool v6)
{
	if (v6)
		return (struct address){
			.words = { address->all[0], address->all[1], address->all[2], address->all[3] }
		};
	return (struct address){ .words = { 0, 0, IPV4_MAPPED, address->all[0] } };
}

#define TUPLE_FLOW(connection, direction, v6)                                              \
	((struct flow6){                                                                   \
		.src = tuple_address(&(connection)->tuplehash[direction].tuple.src.u3, v6), \
		.dst = tuple_address(&(connection)->tuplehash[direction].tuple.dst.u3, v6), \
		.src_port = (connection)->tuplehash[direction].tuple.src.u.all,            \
		.dst_port = (connection)->tuplehash[direction].tuple.dst.u.all,            \
	})

/*
 * Whether this connection's packets may bypass conntrack: it is confirmed and lives; it needs no helper, and no adjusted
 * sequence numbers; and TCP is past its handshake, of which the SYN-ACK is the last packet in its direction.
 */
static __always_inline bool is_learnable(const struct nf_conn *connection, const struct flow_packet *out)
{
	unsigned long status = connection->status;
	__u8 state = connection->proto.tcp.state;

	if ((status & (IPS_CONFIRMED | IPS_DYING | IPS_SEQ_ADJUST | IPS_HELPER)) != IPS_CONFIRMED)
		return false;
	if (out->flow.protocol != PROTOCOL_TCP)
		return true;
	if (!(status & IPS_SEEN_REPLY))
		return false;
	if (is_syn_ack(out->tcp_flags))
		return state == TCP_CONNTRACK_SYN_RECV;
	return state >= TCP_CONNTRACK_ESTABLISHED && state <= TCP_CONNTRACK_CLOSE_WAIT;
}

/*
 * The flow as it came in, by the flow as it leaves, and whether it answers another one. KERNEL_LEARNED when it may be
 * learned; else the reason why not. There is no connection where nothing uses conntrack, where rules exempt the packet
 * from it, and for ICMP, which the kernel's lookup does not know. Then the packet left as it came in, or it was made to
 * look like another flow's. So the packet that came in last must be of this flow.
 */
static __always_inline enum reason find_origin(struct __sk_buff *skb, const struct flow_packet *packet, bool v6,
					       struct flow6 *in, bool *is_answer)
{
	const struct flow6 *out = &packet->flow;
	struct bpf_ct_opts opts = { .netns_id = -1 /* the device's own */, .l4proto = out->protocol };
	struct nf_conn *connection = NULL;
	const __u32 *last = last_slot();
	bool learnable;

	*in = *out;
	*is_answer = false;
	if (out->protocol == PROTOCOL_TCP || out->protocol == PROTOCOL_UDP)
		connection = find_connection(skb, out, v6, &opts);
	if (!connection) {
		*is_answer = out->protocol != PROTOCOL_TCP && out->protocol != PROTOCOL_UDP &&
			     out->dst_port == bpf_htons(ECHO_REPLY(v6));
		return last && *last == slot_of(in) ? KERNEL_LEARNED : KERNEL_NOT_SEEN;
	}
	learnable = is_learnable(connection, packet);
	*is_answer = opts.dir == IP_CT_DIR_ORIGINAL; /* of the reversed tuple */
	if (*is_answer)
		*in = TUPLE_FLOW(connection, 1, v6);
	else
		*in = TUPLE_FLOW(connection, 0, v6);
	bpf_ct_release(connection);
	in->protocol = out->protocol;
	return learnable ? KERNEL_LEARNED : KERNEL_NOT_ESTABLISHED;
}

/*
 * How large the flow's next packets may be: as large as one that the kernel path has carried. The route that it takes may
 * have an MTU of its own, or know of a narrow place farther on. Below these sizes there are no such (the kernel's least
 * path MTU, net.ipv4.route.min_pmtu; RFC 8200). `before`: what was known before and is valid; or 0.
 */
static __always_inline __u32 carried_bytes(const struct __sk_buff *skb, const struct ip *ip, __u32 before)
{
	__u32 bytes = packet_bytes(skb, ip), least = ip->v6 ? 1280 : 552;

	if (bytes < least)
		bytes = least;
	return before > bytes ? before : bytes;
}

/*
 * The first answer has come. From now on conntrack takes the questions for packets of an established connection, and rules
 * may treat them in another way than before. So what was learned of them is forgotten. Of TCP, nothing is learned before
 * the first answer.
 */
static __always_inline void forget_question(const struct flow6 *answer, bool v6)
{
	struct flow6 question = opposite(answer);

	if (answer->protocol == PROTOCOL_TCP)
		return;
	if (answer->protocol != PROTOCOL_UDP) { /* an ICMP echo: see read_flow() */
		question.src_port = answer->src_port;
		question.dst_port = bpf_htons(ECHO_REQUEST(v6));
	}
	forget_flow(&question, v6);
}

/* Learn that packets of flow `in` leave as `out`. @returns 0 when the table took it. */
static __always_inline long store(const struct flow6 *in, const struct flow6 *out, bool v6, const struct learned *head)
{
	if (v6) {
		struct learned6 learned = { .head = *head, .out = *out };

		return bpf_map_update_elem(&flows6, in, &learned, BPF_ANY);
	}

	struct flow4 key = to_flow4(in);
	struct learned4 learned = { .head = *head, .out = to_flow4(out) };

	return bpf_map_update_elem(&flows4, &key, &learned, BPF_ANY);
}

/* Whether a packet that has left the kernel path can teach its flow: KERNEL_NEW_FLOW when it can; else why not. */
static __always_inline enum reason may_teach(const struct ip *ip, struct flow_packet *packet)
{
	enum reason reason = read_flow(ip, packet);

	return reason == KERNEL_HANDSHAKE && is_syn_ack(packet->tcp_flags) ? KERNEL_NEW_FLOW : reason;
}

/*
 * Learn the flow of a packet that may teach it, and that has left the kernel path to a local pod or to the wire. `mtu`:
 * of the way that it takes. `source_port`: of the outer header, if there is one.
 */
static __always_inline enum reason learn(struct __sk_buff *skb, const struct ip *ip, const struct flow_packet *packet,
					 bool to_wire, __u32 mtu, __be16 source_port)
{
	bool v6 = ip->v6;
	const struct flow6 *out = &packet->flow;
	struct flow6 in;
	bool is_answer;
	enum reason reason = find_origin(skb, packet, v6, &in, &is_answer);

	if (reason == KERNEL_LEARNED || reason == KERNEL_NOT_ESTABLISHED)
		count_service(&in, out, ip->bytes);
	if (reason != KERNEL_LEARNED)
		return reason;

	const struct arrival *arrival = find_arrival(&in);

	if (!arrival || !same_flow(&arrival->flow, &in) || arrival->dscp != ip->tos >> 2 ||
	    (__u8)(arrival->ttl - ip->ttl) > 1)
		return KERNEL_NOT_SEEN;

	const struct learned *before = find_learned(&in, v6);
	enum flow_change change = before ? FLOW_RENEWED : FLOW_ADDED;
	__u64 now = bpf_ktime_get_coarse_ns();
	/* What another CPU counts from here on is missing from the sums. */
	__u64 packets = before ? before->packets : 0, fast_bytes = before ? before->bytes : 0;

	if (before && (before->epoch != arrival->epoch || now - before->learned_ns > config.lifetime_ns))
		before = NULL;

	__u32 bytes = to_wire ? carried_bytes(skb, ip, before ? before->mtu : 0) : mtu;
	struct learned head = {
		.learned_ns = now,
		.noted_ns = arrival->noted_ns,
		.packets = packets,
		.bytes = fast_bytes,
		.epoch = arrival->epoch,
		.ifindex = arrival->ifindex,
		.mtu = bytes < mtu ? bytes : mtu,
		.mark = skb->mark,
		.priority = skb->priority,
		.frame_dst = arrival->frame_dst,
		.is_translated = !same_flow(&in, out),
		.is_settled = before && before->is_settled, /* only a larger packet than before leaves it so */
		.hops = arrival->ttl - ip->ttl,
		.ttl = arrival->ttl,
		.dscp = arrival->dscp,
		.source_port = source_port,
	};

	if (store(&in, out, v6, &head) == 0)
		note_flow(change, v6);
	if (is_answer && change == FLOW_ADDED)
		forget_question(out, v6);
	return KERNEL_LEARNED;
}
