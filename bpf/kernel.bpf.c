/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets that leave the kernel path: tc egress of the host veths and of flannel.1. Nothing is redirected here.
 * Translated flows are learned, so that their replies take the kernel path too; the sweep removes them once
 * conntrack has.
 */
#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"

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

/* The NAT bits of the connection that this flow belongs to: 0 when it is not translated, -1 when there is none. */
static __always_inline long nat_status(struct __sk_buff *skb, const struct flow *flow)
{
	struct bpf_ct_opts opts = { .netns_id = -1 /* the device's own */, .l4proto = flow->protocol };
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *conn;
	long status;

	if (is_ipv4_mapped(&flow->src)) {
		tuple.ipv4.saddr = flow->src.words[3];
		tuple.ipv4.daddr = flow->dst.words[3];
		tuple.ipv4.sport = flow->src_port;
		tuple.ipv4.dport = flow->dst_port;
		conn = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &flow->src, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &flow->dst, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = flow->src_port;
		tuple.ipv6.dport = flow->dst_port;
		conn = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!conn)
		return -1;
	status = conn->status & (IPS_SRC_NAT | IPS_DST_NAT);
	bpf_ct_release(conn);
	return status;
}

/* Remember a flow of the local pod at `local`. It is counted before it is stored, so the count is never too low. */
static __always_inline void remember(const void *local, bool v6, const struct flow *flow)
{
	struct endpoint_state *state = find_state(local, v6);
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
 * Look at a packet that has left the kernel path. Conntrack knows a translated connection by its original tuple and by
 * its reply tuple. After NAT the packet carries the reply tuple reversed, so that is what is looked up; it is also what
 * the replies carry when they reach from_pod or from_wire.
 */
static __always_inline int track_ip(struct __sk_buff *skb, enum hook hook, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct ipv6_fragment));
	struct flow flow;
	struct ip ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return to_kernel(skb, hook, KERNEL_MALFORMED);
	if (ip.options)
		return to_kernel(skb, hook, KERNEL_IP_OPTIONS);

	/* Only a flow between two pods can come back on the fast path. */
	if (!in_network(ip.src, v6) || !in_network(ip.dst, v6))
		return to_kernel(skb, hook, KERNEL_OUTSIDE);

	/* The local end: the receiver at to_pod, the sender at to_vtep (where it may also be a process of the node). */
	const void *local = hook == HOOK_TO_POD ? ip.dst : ip.src;

	if (!in_pod_cidr(local, v6) || !find_endpoint(local, v6))
		return to_kernel(skb, hook, KERNEL_NO_ENDPOINT);
	if (!read_flow(&ip, &flow))
		return to_kernel(skb, hook, KERNEL_UNTRANSLATED);

	struct flow reply = {
		.src = flow.dst,
		.dst = flow.src,
		.src_port = flow.dst_port,
		.dst_port = flow.src_port,
		.protocol = flow.protocol,
	};

	if (bpf_map_lookup_elem(&stack_flows, &reply))
		return to_kernel(skb, hook, KERNEL_TRANSLATED);
	if (nat_status(skb, &reply) <= 0)
		return to_kernel(skb, hook, KERNEL_UNTRANSLATED);
	remember(local, v6, &reply);
	return to_kernel(skb, hook, KERNEL_TRANSLATED);
}

static __always_inline int track(struct __sk_buff *skb, enum hook hook)
{
	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);

	if (ether && ether->type == ETHERTYPE_IPV4)
		return track_ip(skb, hook, false);
	if (ether && ether->type == ETHERTYPE_IPV6)
		return track_ip(skb, hook, true);
	return to_kernel(skb, hook, KERNEL_NOT_IP);
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

static __always_inline bool is_local(const struct address *address)
{
	return is_ipv4_mapped(address) ? in_pod_cidr(&address->words[3], false) : in_pod_cidr(address, true);
}

/*
 * The slot where a flow is counted. Between two local pods that is the reply's sender, which was the receiver at
 * to_pod.
 */
static __always_inline __u32 owner_slot(const struct flow *reply)
{
	const struct address *owner = is_local(&reply->src) ? &reply->src : &reply->dst;

	return is_ipv4_mapped(owner) ? state_slot(&owner->words[3], false) : state_slot(owner, true);
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

struct search {
	__u32 slot;
	bool found;
};

static long compare_slot(void *map, struct address *address, struct endpoint *endpoint, struct search *search)
{
	struct address copy = *address;

	search->found |= state_slot(&copy, true) == search->slot;
	return search->found;
}

/* Whether an endpoint uses this slot of endpoint_state. */
static __always_inline bool is_used(__u32 slot)
{
	if (slot < config.endpoint_slots) {
		struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &slot);
		return endpoint && endpoint->ifindex;
	}
	struct search search = { .slot = slot };

	bpf_for_each_map_elem(&endpoints6, compare_slot, &search, 0);
	return search.found;
}

/*
 * Reset a slot that no endpoint uses any more. Until then both flags stay: nobody knows which flows found no room in
 * stack_flows, and an endpoint that has forwarded packets will do so again.
 */
static long reset_unused(void *map, __u32 *slot, struct endpoint_state *state, struct sweep *sweep)
{
	if ((state->overflow | state->forwards) && !is_used(*slot))
		state->overflow = state->forwards = 0;
	return 0;
}

/* Remove the flows that conntrack no longer has. The agent runs this as a test run, in the node's network namespace. */
SEC("tc")
int sweep_flows(struct __sk_buff *skb)
{
	struct sweep sweep = { .skb = skb };

	bpf_for_each_map_elem(&stack_flows, sweep_one, &sweep, 0);
	bpf_for_each_map_elem(&endpoint_state, reset_unused, &sweep, 0);
	return sweep.forgotten;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
