/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What leaves the stack: tc egress of the pods' host veths and of flannel.1. Nothing is redirected here; translated flows
 * are remembered, so that their replies take the stack too. And the sweep that forgets them when conntrack does.
 */
#include "flows.h"
#include "parse.h"
#include "stats.h"
#include "vxlan.h"

/* ---- conntrack, as the kernel offers it to tc programs (net/netfilter/nf_conntrack_bpf.c, Linux 6.1) ---- */

#define IPS_SRC_NAT (1 << 4) /* linux/netfilter/nf_conntrack_common.h */
#define IPS_DST_NAT (1 << 5)

struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

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

/* The NAT bits of the connection that a packet with this tuple belongs to; 0 for a plain one, -1 for none. */
static __always_inline long nat_status(struct __sk_buff *skb, const struct flow *flow)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = { .saddr = flow->src, .daddr = flow->dst, .sport = flow->src_port, .dport = flow->dst_port },
	};
	struct bpf_ct_opts opts = { .netns_id = -1 /* the device's own */, .l4proto = flow->protocol };
	struct nf_conn *conn = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	long status;

	if (!conn)
		return -1;
	status = conn->status & (IPS_SRC_NAT | IPS_DST_NAT);
	bpf_ct_release(conn);
	return status;
}

/* Remember a flow of the endpoint in `slot`. The count goes up before the entry is there, so that none is ever missed. */
static __always_inline void remember(__u32 slot, const struct flow *flow)
{
	struct endpoint_state *state = bpf_map_lookup_elem(&endpoint_state, &slot);
	struct stack_flow value = { .created_ns = bpf_ktime_get_ns() };

	if (!state)
		return;
	__sync_fetch_and_add(&state->stack_flows, 1);

	long error = bpf_map_update_elem(&stack_flows, flow, &value, BPF_NOEXIST);

	if (!error)
		return;
	__sync_fetch_and_add(&state->stack_flows, -1);
	if (error != -17 /* EEXIST: another CPU was first */)
		state->overflow = 1;
}

/*
 * Look at a packet that comes out of the stack. Conntrack's table knows a translated connection by its original tuple
 * and by its reply tuple; after NAT the packet carries neither, but reversed it is the reply's, and that is also what the
 * replies will carry when they meet us.
 */
static __always_inline int track(struct __sk_buff *skb, enum hook hook)
{
	struct cursor at = packet(skb, sizeof(struct ether) + sizeof(struct ipv4) + sizeof(struct ports));
	struct ether *ether = parse_ether(&at);
	struct ipv4 *ip;
	struct flow flow;

	if (!ether || ether->type != ETHERTYPE_IPV4)
		return to_stack(skb, hook, STACK_NOT_IPV4);
	ip = parse_ipv4(&at);
	if (!ip)
		return to_stack(skb, hook, STACK_TRUNCATED);
	if (ip->version_ihl != IPV4_NO_OPTIONS)
		return to_stack(skb, hook, STACK_IP_OPTIONS);

	/* Only a flow between two pods can come back on the fast path. */
	if (!in_network(ip->src) || !in_network(ip->dst))
		return to_stack(skb, hook, STACK_OUTSIDE);

	/* The pod of ours in it: its receiver at to_pod, its sender at to_vtep (or a process of the node's own). */
	__be32 local = hook == HOOK_TO_POD ? ip->dst : ip->src;
	__u32 slot = endpoint_slot(local);

	if (!in_pod_cidr(local) || !find_endpoint(slot))
		return to_stack(skb, hook, STACK_NO_ENDPOINT);
	if (!read_flow(ip, at, &flow))
		return to_stack(skb, hook, STACK_UNTRANSLATED);

	struct flow reply = {
		.src = flow.dst, .dst = flow.src, .src_port = flow.dst_port, .dst_port = flow.src_port, .protocol = flow.protocol,
	};

	if (bpf_map_lookup_elem(&stack_flows, &reply))
		return to_stack(skb, hook, STACK_TRANSLATED);
	if (nat_status(skb, &reply) <= 0)
		return to_stack(skb, hook, STACK_UNTRANSLATED);
	remember(slot, &reply);
	return to_stack(skb, hook, STACK_TRANSLATED);
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return track(skb, HOOK_TO_POD);
}

SEC("tc")
int to_vtep(struct __sk_buff *skb)
{
	return track(skb, HOOK_TO_VTEP);
}

/* ---- The sweep ---- */

struct sweep {
	struct __sk_buff *skb;
	__u32 forgotten;
};

/* A flow of a pair of local pods is counted at the one it was remembered for: the receiver at to_pod, so the reply's sender. */
static __always_inline __u32 owner_slot(const struct flow *reply)
{
	return endpoint_slot(in_pod_cidr(reply->src) ? reply->src : reply->dst);
}

static long sweep_one(void *map, struct flow *reply, struct stack_flow *value, struct sweep *sweep)
{
	struct flow copy = *reply;

	if (nat_status(sweep->skb, &copy) >= 0)
		return 0;
	if (bpf_map_delete_elem(map, &copy))
		return 0;
	sweep->forgotten++;

	__u32 slot = owner_slot(&copy);
	struct endpoint_state *state = bpf_map_lookup_elem(&endpoint_state, &slot);

	if (state)
		__sync_fetch_and_add(&state->stack_flows, -1);
	return 0;
}

/* Flows that found no room are known to nobody, so an endpoint that had one stays slow for as long as it lives. */
static long forgive_one(void *map, __u32 *slot, struct endpoint_state *state, struct sweep *sweep)
{
	if (state->overflow && !find_endpoint(*slot))
		state->overflow = 0;
	return 0;
}

/* Run by the manager (a test run, in the node's network namespace), not by packets: forget what conntrack forgot. */
SEC("tc")
int sweep_flows(struct __sk_buff *skb)
{
	struct sweep sweep = { .skb = skb };

	bpf_for_each_map_elem(&stack_flows, sweep_one, &sweep, 0);
	bpf_for_each_map_elem(&endpoint_state, forgive_one, &sweep, 0);
	return sweep.forgotten;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
