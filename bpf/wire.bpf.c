/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the underlay brings: tc ingress of the uplink. Everything that is not surely a pod's packet stays as it came. */
#include "flows.h"
#include "parse.h"
#include "stats.h"
#include "vxlan.h"

/*
 * Whether the node that sent this may speak for the inner source: FAST_DECAP if so, STACK_NO_PEER when it is a node that
 * the peers map cannot tell of, else the reason to drop.
 */
static __always_inline enum reason judge_sender(const struct ipv4 *outer, const struct ipv4 *inner)
{
	struct peer *peer = in_network(inner->src) ? find_peer(inner->src) : NULL;

	if (peer && (peer->vtep_ip == outer->src || peer->flags & PEER_BEHIND_NAT))
		return FAST_DECAP;

	struct vtep *sender = bpf_map_lookup_elem(&vteps, &outer->src);

	if (!sender || !(sender->flags & VTEP_REMOTE))
		return DROP_UNKNOWN_PEER;
	return sender->flags & VTEP_UNINDEXED ? STACK_NO_PEER : DROP_SPOOFED_SOURCE;
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	struct cursor at = packet(skb, OUTER_LEN + sizeof(struct ipv4) + sizeof(struct ports));
	struct ether *ether = parse_ether(&at);

	if (!ether || !is_ipv4(skb, ether))
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NOT_IPV4);

	struct ipv4 *outer = parse_ipv4(&at);

	if (!outer || outer->protocol != PROTOCOL_UDP)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NOT_VXLAN);
	if (outer->version_ihl != IPV4_NO_OPTIONS)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_IP_OPTIONS);
	if (outer->fragment & IPV4_FRAGMENT)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_OUTER_FRAGMENT);

	struct udp *udp = parse_udp(&at);

	if (!udp || udp->dst_port != config.vxlan_port || outer->dst != config.vtep_ip)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NOT_VXLAN);

	struct vxlan *vxlan = parse_vxlan(&at);
	struct ether *inner_ether = parse_ether(&at);

	if (!vxlan || !inner_ether)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_TRUNCATED);
	if (vxlan->flags != VXLAN_HAS_VNI || vxlan->vni != bpf_htonl(config.vni << 8))
		return to_stack(skb, HOOK_FROM_WIRE, STACK_OTHER_VNI);
	if (!mac_equal(&inner_ether->dst, &config.vtep_mac))
		return to_stack(skb, HOOK_FROM_WIRE, STACK_OTHER_MAC);
	if (inner_ether->type != ETHERTYPE_IPV4)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NOT_IPV4);

	struct ipv4 *inner = parse_ipv4(&at);
	__u32 outer_length = skb->len - sizeof(struct ether);

	if (!inner || bpf_ntohs(outer->total_length) != outer_length ||
	    bpf_ntohs(udp->length) != outer_length - sizeof(*outer) ||
	    bpf_ntohs(inner->total_length) < sizeof(*inner) || bpf_ntohs(inner->total_length) > skb->len - OUTER_LEN)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_TRUNCATED);
	if (inner->version_ihl != IPV4_NO_OPTIONS)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_IP_OPTIONS);

	enum reason judgement = judge_sender(outer, inner);

	if (judgement == STACK_NO_PEER)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NO_PEER);
	if (judgement != FAST_DECAP)
		return drop(skb, HOOK_FROM_WIRE, judgement);

	/*
	 * Zero means that the sender made none (RFC 7348); else only the NIC can say for nothing that it is right. Of a
	 * super-packet GRO has checked every part before it put them together.
	 */
	if (udp->checksum && !skb->gso_size && bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_OUTER_CHECKSUM);

	__u32 slot = endpoint_slot(inner->dst);
	struct endpoint *endpoint = in_pod_cidr(inner->dst) ? find_endpoint(slot) : NULL;

	if (!endpoint)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NO_ENDPOINT);
	if (endpoint->flags & ENDPOINT_SLOW)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_SLOW);
	if (is_stack_flow(slot, inner, at))
		return to_stack(skb, HOOK_FROM_WIRE, STACK_TRANSLATED);
	if (inner->ttl <= 1)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_TTL);
	if (!skb->gso_size && bpf_ntohs(inner->total_length) > endpoint->mtu)
		return to_stack(skb, HOOK_FROM_WIRE, STACK_TOO_BIG);

	__u8 ecn = inner->tos & ECN_MASK;
	int new_ecn = ecn_decapsulated(ecn, outer->tos & ECN_MASK);

	if (new_ecn < 0)
		return drop(skb, HOOK_FROM_WIRE, DROP_ECN);
	if (bpf_skb_adjust_room(skb, -ENCAP_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return to_stack(skb, HOOK_FROM_WIRE, STACK_NO_ROOM);

	at = packet(skb, 0);
	ether = parse_ether(&at);
	inner = parse_ipv4(&at);
	if (!ether || !inner)
		return drop(skb, HOOK_FROM_WIRE, DROP_UNKNOWN_PEER); /* cannot be: both were there before */

	ether->dst = endpoint->pod_mac;
	ether->src = endpoint->host_mac;
	decrement_ttl(inner);
	if (new_ecn != ecn) {
		__u8 tos = (inner->tos & ~ECN_MASK) | new_ecn;

		inner->checksum = checksum_replace(inner->checksum, bpf_htons(inner->tos), bpf_htons(tos));
		inner->tos = tos;
	}
	count(skb, HOOK_FROM_WIRE, FAST_DECAP);
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
