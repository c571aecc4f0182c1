/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What pods send: tc ingress of the host side of each pod's veth. */
#include "flows.h"
#include "parse.h"
#include "stats.h"
#include "vxlan.h"

/* A packet that leaves the cluster network is the stack's, unless it is meant to forge what only nodes may say. */
static __always_inline int leave_cluster(const struct __sk_buff *skb, const struct ipv4 *ip, void *end)
{
	if (ip->protocol == PROTOCOL_UDP && !(ip->fragment & IPV4_FRAGMENT_OFFSET)) {
		struct cursor behind_ip = { (void *)ip + ipv4_header_length(ip), end };
		struct ports *ports = parse_ports(&behind_ip);

		if (ports && ports->dst == config.vxlan_port && bpf_map_lookup_elem(&vteps, &ip->dst))
			return drop(skb, HOOK_FROM_POD, DROP_VXLAN_FROM_POD);
	}
	return to_stack(skb, HOOK_FROM_POD, STACK_OUTSIDE);
}

/* To a pod on this node: one L2 hop, as the bridge was, so the TTL stays. */
static __always_inline int deliver(struct __sk_buff *skb, struct ether *ether, const struct ipv4 *ip, struct cursor behind_ip)
{
	__u32 slot = endpoint_slot(ip->dst);
	struct endpoint *endpoint = find_endpoint(slot);

	if (!endpoint || endpoint->ifindex == skb->ifindex)
		return to_stack(skb, HOOK_FROM_POD, STACK_NO_ENDPOINT);
	if (endpoint->flags & ENDPOINT_SLOW)
		return to_stack(skb, HOOK_FROM_POD, STACK_SLOW);
	if (is_stack_flow(slot, ip, behind_ip))
		return to_stack(skb, HOOK_FROM_POD, STACK_TRANSLATED);
	if (!fits(skb, behind_ip, ip->protocol, endpoint->mtu))
		return to_stack(skb, HOOK_FROM_POD, STACK_TOO_BIG);

	ether->dst = endpoint->pod_mac;
	ether->src = endpoint->host_mac;
	count(skb, HOOK_FROM_POD, FAST_LOCAL);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/* To a pod on another node. */
static __always_inline int send(struct __sk_buff *skb, const struct ipv4 *ip, struct cursor behind_ip)
{
	struct peer *peer = find_peer(ip->dst);

	if (!peer)
		return to_stack(skb, HOOK_FROM_POD, STACK_NO_PEER);
	if (ip->ttl <= 1)
		return to_stack(skb, HOOK_FROM_POD, STACK_TTL);
	if (!fits(skb, behind_ip, ip->protocol, config.pod_mtu))
		return to_stack(skb, HOOK_FROM_POD, STACK_TOO_BIG);
	if (encapsulate(skb, peer, ip->tos, source_port(skb, ip, behind_ip)))
		return to_stack(skb, HOOK_FROM_POD, STACK_NO_ROOM);

	struct bpf_redir_neigh next_hop = { .nh_family = 2 /* AF_INET */, .ipv4_nh = peer->next_hop };

	return bpf_redirect_neigh(config.uplink_ifindex, &next_hop, sizeof(next_hop), 0);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IPV4_MAX_HEADER + sizeof(struct tcp));
	__u32 length = skb->len - sizeof(struct ether);
	struct ether *ether = parse_ether(&at);

	if (!ether)
		return to_stack(skb, HOOK_FROM_POD, STACK_TRUNCATED);
	if (!is_ipv4(skb, ether))
		return to_stack(skb, HOOK_FROM_POD, STACK_NOT_IPV4);

	struct ipv4 *ip = parse_ipv4(&at);

	if (!ip || bpf_ntohs(ip->total_length) < sizeof(*ip) || bpf_ntohs(ip->total_length) > length)
		return to_stack(skb, HOOK_FROM_POD, STACK_TRUNCATED);
	if (!in_network(ip->dst))
		return leave_cluster(skb, ip, at.end);
	if (ip->version_ihl != IPV4_NO_OPTIONS)
		return to_stack(skb, HOOK_FROM_POD, STACK_IP_OPTIONS);

	__u32 slot = endpoint_slot(ip->src);
	struct endpoint *sender = in_pod_cidr(ip->src) ? find_endpoint(slot) : NULL;

	if (!sender || sender->ifindex != skb->ifindex)
		return to_stack(skb, HOOK_FROM_POD, STACK_OTHER_SOURCE);
	if (sender->flags & ENDPOINT_SLOW)
		return to_stack(skb, HOOK_FROM_POD, STACK_SLOW);
	if (is_stack_flow(slot, ip, at))
		return to_stack(skb, HOOK_FROM_POD, STACK_TRANSLATED);

	return in_pod_cidr(ip->dst) ? deliver(skb, ether, ip, at) : send(skb, ip, at);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
