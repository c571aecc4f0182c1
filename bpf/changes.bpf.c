/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The epoch moves. Only programs move it, for the kernel adds atomically: the agent runs move_epoch when an event tells
 * it of a change. Where the kernel lets it, the agent also attaches programs at the exit of those functions of the kernel
 * that make changes: they move the epoch at once, while no agent runs, too, and for changes that no event tells of. Each
 * of them is optional: the kernel may lack the function, or its module may not be loaded.
 */
#include <linux/rtnetlink.h>
#include <bpf/bpf_tracing.h>

#include "lookup.h"

#define RTPROT_RIPSTOP 0x52 /* src/host/routes.ts */

/* ---- The kernel's structs, as far as they matter here ---- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	struct nsproxy *nsproxy;
};

struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct sk_buff {
	struct sock *sk;
};

struct nfnl_info {
	struct net *net;
};

struct genl_info {
	possible_net_t _net;
};

struct km_event {
	struct net *net;
};

struct fib_config {
	__u8 fc_protocol;
	__be32 fc_dst;
};

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct rt6key {
	struct in6_addr addr;
};

struct fib6_info {
	struct rt6key fib6_dst;
	__u8 fib6_protocol;
};

struct nl_info {
	struct net *nl_net;
};

#pragma clang attribute pop

/* ---- The programs ---- */

static __always_inline int move(__u32 cause)
{
	__u32 key = 0;
	__u32 *now = bpf_map_lookup_elem(&epoch, &key);
	struct invalidation *invalidation = bpf_map_lookup_elem(&invalidations, &cause);

	if (now)
		__sync_fetch_and_add(now, 1);
	if (invalidation)
		__sync_fetch_and_add(&invalidation->times, 1);
	return 0;
}

/* The packet's payload is the cause. */
SEC("tc")
int move_epoch(struct __sk_buff *skb)
{
	__u32 cause = CAUSES;

	bpf_skb_load_bytes(skb, sizeof(struct ether), &cause, sizeof(cause));
	return move(cause);
}

/* Something has changed in this network namespace. Those of pods do not matter. */
static __always_inline int changed(const struct net *net, enum cause cause)
{
	return net->ns.inum == config.netns ? move(cause) : 0;
}

#define AT_EXIT(function, ...)     \
	SEC("?fexit/" #function)   \
	int BPF_PROG(function, __VA_ARGS__)

/* Rules: nftables; iptables-legacy, whose function does not know the namespace, but runs in the caller's; ipset; IPVS. */

AT_EXIT(nf_tables_commit, struct net *net)
{
	return changed(net, CAUSE_TRACED_NFTABLES);
}

AT_EXIT(xt_replace_table, void *table)
{
	return changed(bpf_get_current_task_btf()->nsproxy->net_ns, CAUSE_TRACED_IPTABLES);
}

AT_EXIT(ip_set_uadd, struct sk_buff *skb, struct nfnl_info *info)
{
	return changed(info->net, CAUSE_TRACED_IPSET);
}

AT_EXIT(ip_set_udel, struct sk_buff *skb, struct nfnl_info *info)
{
	return changed(info->net, CAUSE_TRACED_IPSET);
}

AT_EXIT(ip_set_flush, struct sk_buff *skb, struct nfnl_info *info)
{
	return changed(info->net, CAUSE_TRACED_IPSET);
}

AT_EXIT(ip_set_swap, struct sk_buff *skb, struct nfnl_info *info)
{
	return changed(info->net, CAUSE_TRACED_IPSET);
}

AT_EXIT(ip_vs_genl_set_cmd, struct sk_buff *skb, struct genl_info *info)
{
	return changed(info->_net.net, CAUSE_TRACED_IPVS);
}

/* IPsec policies. */

AT_EXIT(km_policy_notify, void *policy, int direction, struct km_event *event)
{
	return changed(event->net, CAUSE_TRACED_IPSEC);
}

/* Routing rules and routes. */

AT_EXIT(fib_nl_newrule, struct sk_buff *skb)
{
	return changed(skb->sk->__sk_common.skc_net.net, CAUSE_TRACED_ROUTING_RULES);
}

AT_EXIT(fib_nl_delrule, struct sk_buff *skb)
{
	return changed(skb->sk->__sk_common.skc_net.net, CAUSE_TRACED_ROUTING_RULES);
}

/*
 * Routes to pods and peers do not matter: the programs look both up for each packet. These are ours, and those that the
 * kernel makes for the addresses of host veths: addresses of the cluster network, link-local ones and multicast.
 */
static __always_inline bool leads_to_pods(__u8 protocol, const struct address *dst, bool v6)
{
	if (protocol != RTPROT_KERNEL)
		return protocol == RTPROT_RIPSTOP;
	return in_network(from_address(dst, v6), v6) || (v6 && bpf_ntohl(dst->words[0]) >= 0xfe000000);
}

static __always_inline int route_changed(const struct net *net, const struct fib_config *route)
{
	struct address dst = { .words = { 0, 0, IPV4_MAPPED, route->fc_dst } };

	return leads_to_pods(route->fc_protocol, &dst, false) ? 0 : changed(net, CAUSE_TRACED_ROUTES);
}

static __always_inline int route6_changed(const struct net *net, const struct fib6_info *route)
{
	const __be32 *words = route->fib6_dst.addr.in6_u.u6_addr32;
	struct address dst = { .words = { words[0], words[1], words[2], words[3] } };

	return leads_to_pods(route->fib6_protocol, &dst, true) ? 0 : changed(net, CAUSE_TRACED_ROUTES);
}

AT_EXIT(fib_table_insert, struct net *net, void *table, struct fib_config *route)
{
	return route_changed(net, route);
}

AT_EXIT(fib_table_delete, struct net *net, void *table, struct fib_config *route)
{
	return route_changed(net, route);
}

AT_EXIT(fib6_add, void *root, struct fib6_info *route, struct nl_info *info)
{
	return route6_changed(info->nl_net, route);
}

AT_EXIT(fib6_del, struct fib6_info *route, struct nl_info *info)
{
	return route6_changed(info->nl_net, route);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
