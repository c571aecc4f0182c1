/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that pods send: tc ingress of each host veth. */
#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"
#include "vxlan.h"

#define AF_INET 2
#define AF_INET6 10

/*
 * Whether the packet is VXLAN to a node, which only nodes may send. A first fragment shows that as well as a whole
 * packet. IPv6 extension headers hide the ports, so any such packet to a VTEP address counts as VXLAN.
 */
static __always_inline bool is_vxlan_to_node(const struct __sk_buff *skb, const struct ip *ip)
{
	__u32 header_length = ip->v6 ? sizeof(struct ipv6) + (ip->fragment ? sizeof(struct ipv6_fragment) : 0) :
				       ipv4_header_length(ip->header);
	struct ports ports;

	if (ip->later_fragment)
		return false;
	if (ip->v6 && ip->options)
		return find_vtep(ip->dst, true);
	return ip->protocol == PROTOCOL_UDP && header_length >= IP_LEN(ip->v6) &&
	       !bpf_skb_load_bytes(skb, sizeof(struct ether) + header_length, &ports, sizeof(ports)) &&
	       ports.dst == config.vxlan_port && find_vtep(ip->dst, ip->v6);
}

/* To a pod on this node. The TTL stays, as it does across flannel's bridge. */
static __always_inline int deliver(struct __sk_buff *skb, struct ether *ether, const struct ip *ip)
{
	struct endpoint *endpoint = find_endpoint(ip->dst, ip->v6);

	if (!endpoint || endpoint->ifindex == skb->ifindex)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_NO_ENDPOINT);
	if (endpoint->flags & ENDPOINT_KERNEL_PATH)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MARKED);
	if (needs_kernel_path(ip->dst, ip))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_TRANSLATED);
	if (!fits(skb, ip, endpoint->mtu))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_TOO_BIG);

	ether->dst = endpoint->pod_mac;
	ether->src = endpoint->host_mac;
	count(skb->len, HOOK_FROM_POD, FAST_LOCAL);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/*
 * The kernel refuses to encapsulate a super-packet that is marked as encapsulated. Decapsulation leaves these marks on
 * a packet, so the pod forwards what it has received: it may be a load balancer, or a VPN.
 */
static __always_inline void remember_forwarder(__u32 slot)
{
	struct endpoint_state *state = bpf_map_lookup_elem(&endpoint_state, &slot);

	if (state)
		state->forwards = 1;
}

/* To a pod on another node. */
static __always_inline int send(struct __sk_buff *skb, const struct ip *ip)
{
	const struct peer_head *peer = find_peer(ip->dst, ip->v6);
	struct bpf_redir_neigh next_hop = { .nh_family = ip->v6 ? AF_INET6 : AF_INET };

	if (!peer)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_NO_PEER);
	if (peer->flags & PEER_KERNEL_PATH)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MARKED);
	if (ip->ttl <= 1)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_TTL);
	if (ip->v6)
		__builtin_memcpy(next_hop.ipv6_nh, &peer->next_hop, sizeof(next_hop.ipv6_nh));
	else
		next_hop.ipv4_nh = peer->next_hop.words[3];

	if (config.direct_routing && peer->flags & PEER_DIRECT) {
		if (!fits(skb, ip, config.uplink_mtu))
			return to_kernel(skb, HOOK_FROM_POD, KERNEL_TOO_BIG);
		decrement_ttl(ip->header, ip->v6);
		count(skb->len, HOOK_FROM_POD, FAST_DIRECT);
	} else {
		if (!fits(skb, ip, ip->v6 ? config.pod_mtu6 : config.pod_mtu))
			return to_kernel(skb, HOOK_FROM_POD, KERNEL_TOO_BIG);

		__u32 slot = state_slot(ip->src, ip->v6);

		if (encapsulate(skb, peer, ip->v6, ip->tos & ECN_MASK, source_port(skb, ip))) {
			if (skb->gso_size)
				remember_forwarder(slot);
			return to_kernel(skb, HOOK_FROM_POD, KERNEL_NO_ROOM);
		}
	}
	return bpf_redirect_neigh(config.uplink_ifindex, &next_hop, sizeof(next_hop), 0);
}

static __always_inline int from_pod_ip(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct ether *ether = parse_ether(&at);
	struct ip ip;

	if (!ether || !read_ip(&at, skb->len - sizeof(*ether), v6, &ip))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MALFORMED);
	if (!in_network(ip.dst, v6)) {
		/*
		 * What leaves the cluster network belongs to the kernel path, unless it forges VXLAN, which only nodes
		 * may send.
		 */
		if (is_vxlan_to_node(skb, &ip))
			return drop(skb, HOOK_FROM_POD, DROP_VXLAN_FROM_POD);
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_OUTSIDE);
	}
	if (skb->pkt_type != PACKET_HOST)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_OTHER_MAC);
	if (!is_sound(&ip))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MALFORMED);
	if (ip.options)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_IP_OPTIONS);
	if (ip.fragment)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_FRAGMENT);
	if (is_neighbour_discovery(&ip))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_NEIGHBOUR);

	struct endpoint *sender = in_pod_cidr(ip.src, v6) ? find_endpoint(ip.src, v6) : NULL;

	if (!sender || sender->ifindex != skb->ifindex)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_OTHER_SOURCE);
	if (sender->flags & ENDPOINT_KERNEL_PATH)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MARKED);
	if (needs_kernel_path(ip.src, &ip))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_TRANSLATED);

	return in_pod_cidr(ip.dst, v6) ? deliver(skb, ether, &ip) : send(skb, &ip);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);

	if (!ether)
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_MALFORMED);
	if (!is_untagged(skb))
		return to_kernel(skb, HOOK_FROM_POD, KERNEL_NOT_IP);
	if (ether->type == ETHERTYPE_IPV4)
		return from_pod_ip(skb, false);
	if (ether->type == ETHERTYPE_IPV6)
		return from_pod_ip(skb, true);
	return to_kernel(skb, HOOK_FROM_POD, KERNEL_NOT_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
