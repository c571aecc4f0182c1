/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The pods' devices: packets that pods send (tc ingress of a host veth; the hook of a netkit's peer), and packets that the
 * kernel path delivers to them (tc egress of the host's end).
 */
#include "carried.h"
#include "flows.h"
#include "learn.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"
#include "vxlan.h"

/*
 * Whether an address may be a node's, apart from those of VTEPs. Nobody knows all that nodes have, but no pod has one outside
 * of the cluster network. In it, nodes have the first two of each podCIDR (the VTEP device's and the bridge's), and broadcasts
 * reach them, too.
 */
static __always_inline bool may_be_nodes(const void *address, bool v6)
{
	if (!in_network(address, v6))
		return true;
	if (v6) {
		const struct address *a = address;

		return !(a->halves[0] & ~config.pod_cidr6_mask.halves[0]) &&
		       bpf_be64_to_cpu(a->halves[1] & ~config.pod_cidr6_mask.halves[1]) < 2;
	}

	__u32 host = endpoint_slot(*(const __be32 *)address), last = bpf_ntohl(~config.pod_cidr_mask);

	return host < 2 || host == last;
}

/* Whether VXLAN at this place of a packet may be of our VNI. A fragment may hide it. */
static __always_inline bool may_be_our_vni(const struct __sk_buff *skb, __u32 at, const struct ip *ip)
{
	struct vxlan vxlan;

	if (bpf_skb_load_bytes(skb, at, &vxlan, sizeof(vxlan)))
		return ip->fragment;
	return bpf_ntohl(vxlan.vni) >> 8 == config.vni;
}

/*
 * Whether the packet is VXLAN to a node, which only nodes may send. A first fragment shows that as well as a whole
 * packet. IPv6 extension headers hide the ports, so any such packet to a VTEP address counts as VXLAN. Other addresses of
 * nodes are the business of our rules, but beside flannel there are none.
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
	if (ip->protocol != PROTOCOL_UDP || header_length < IP_LEN(ip->v6) ||
	    bpf_skb_load_bytes(skb, sizeof(struct ether) + header_length, &ports, sizeof(ports)) ||
	    ports.dst != config.vxlan_port)
		return false;
	return find_vtep(ip->dst, ip->v6) ||
	       (config.bridge_ifindex && may_be_nodes(ip->dst, ip->v6) &&
		may_be_our_vni(skb, sizeof(struct ether) + header_length + sizeof(struct udp), ip));
}

/*
 * Where a packet is that a pod sends. A netkit runs its program when the pod sends, in the pod's own turn: before the
 * queue in which a packet of a veth waits, and before the kernel has read the frame.
 */
enum stage { RECEIVED, SENT };

/* To a pod on this node. */
static __always_inline enum reason deliver(struct __sk_buff *skb, const struct ip *ip, struct learned *learned,
					   enum stage stage)
{
	const struct endpoint *endpoint = find_endpoint(leaving_dst(learned, ip), ip->v6);

	if (!endpoint || endpoint->ifindex == skb->ifindex)
		return KERNEL_NO_ENDPOINT;
	if (endpoint->flags & ENDPOINT_KERNEL_PATH)
		return KERNEL_MARKED;
	if (learned->hops && ip->ttl <= 1)
		return KERNEL_TTL;
	if (packet_bytes(skb, ip) > endpoint->mtu)
		return KERNEL_TOO_BIG;
	/* A bridge also delivers frames that are for a group, or for a MAC address that it does not know. */
	if (learned->frame_dst && learned->frame_dst != mac_end(&endpoint->pod_mac) &&
	    learned->frame_dst != mac_end(&endpoint->host_mac))
		return KERNEL_OTHER_MAC;
	if (learned->is_translated && !rewrite(skb, sizeof(struct ether), ip->v6, learned))
		return KERNEL_MALFORMED; /* impossible: its ports were read before */

	struct cursor at = packet(skb, 0);
	struct ether *ether = parse_ether(&at);

	if (!ether || at.pos + IP_LEN(ip->v6) > at.end)
		return KERNEL_MALFORMED; /* impossible: both were there before */
	if (learned->hops)
		decrement_ttl(at.pos, ip->v6);
	if (learned->hops || !learned->frame_dst) /* else it is bridged, and keeps its sender's */
		ether->src = endpoint->host_mac;
	ether->dst = endpoint->pod_mac;
	if (stage == SENT) /* the kernel takes it for that, whatever the frame says */
		ether->type = ip->v6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
	if (skb->pkt_type != PACKET_HOST) /* as it may be at a bridge's port */
		bpf_skb_change_type(skb, PACKET_HOST);
	count_in_flow(learned, ip->bytes);
	if (stage == SENT) {
		/* The kernel moves a packet into another namespace at once only where it was received. */
		skb->cb[0] = FROM_FAST_PATH;
		bpf_redirect(endpoint->ifindex, 0);
	} else {
		bpf_redirect_peer(endpoint->ifindex, 0);
	}
	return FAST_LOCAL;
}

/*
 * The kernel refuses to encapsulate a super-packet that is marked as encapsulated. Decapsulation leaves these marks on
 * a packet, so the pod forwards what it has received: it may be a load balancer, or a VPN.
 */
static __always_inline void note_forwarder(const void *address, bool v6)
{
	struct endpoint_state *state = find_state(address, v6);

	if (state)
		state->forwards = 1;
}

/* To a pod on another node. */
static __always_inline enum reason send(struct __sk_buff *skb, const struct ip *ip, struct learned *learned)
{
	bool v6 = ip->v6;
	const struct peer_head *peer = find_peer(leaving_dst(learned, ip), v6);
	__u32 ip_at = sizeof(struct ether);

	if (!peer)
		return KERNEL_NO_PEER;
	if (peer->flags & PEER_KERNEL_PATH)
		return KERNEL_MARKED;
	if (ip->ttl <= 1)
		return KERNEL_TTL;
	if (packet_bytes(skb, ip) > learned->mtu)
		return KERNEL_TOO_BIG;

	bool is_direct = config.direct_routing && peer->flags & PEER_DIRECT;

	/* Of what BPF encapsulates the kernel does not know how many segments it has, so it would not keep the limit. */
	if (!is_direct && skb->gso_segs > config.uplink_gso_segs)
		return KERNEL_NO_ROOM;
	if (is_direct) {
		decrement_ttl(ip->header, v6);
	} else {
		struct address sender = to_address(ip->src, v6);

		if (encapsulate(skb, peer, v6, ecn_encapsulated(ip->tos & ECN_MASK), learned->source_port, false)) {
			if (skb->gso_size)
				note_forwarder(from_address(&sender, v6), v6);
			return KERNEL_NO_ROOM;
		}
		ip_at = OUTER_LEN(v6);
	}
	if (learned->is_translated)
		rewrite(skb, ip_at, v6, learned);
	skb->mark = learned->mark;
	skb->priority = learned->priority;
	count_in_flow(learned, ip->bytes);
	send_to_uplink(skb, peer, v6);
	return is_direct ? FAST_DIRECT : FAST_ENCAP;
}

/*
 * Whether a packet's source is none that could be somebody's: the unspecified address, as in DHCP and in duplicate
 * address detection, or a link-local IPv6 one, as in neighbour discovery. The kernel forwards no such packets.
 */
static __always_inline bool is_nobodys(const void *src, bool v6)
{
	const struct address *address = src;

	if (!v6)
		return *(const __be32 *)src == 0;
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       !(address->halves[0] | address->halves[1]);
}

static __always_inline void note_sighting(const struct __sk_buff *skb, const struct ip *ip)
{
	struct address address = to_address(ip->src, ip->v6);
	struct sighting sighting = { .ifindex = skb->ifindex };

	if (!bpf_skb_load_bytes(skb, sizeof(struct mac), &sighting.mac, sizeof(sighting.mac)))
		bpf_map_update_elem(&sightings, &address, &sighting, BPF_ANY);
}

/*
 * A source address that is not known to be the pod's own. It may be nobody's; and a pod may be a router: who gives the
 * node a route through the pod allows it to send from there. On a bridge, the agent learns whose an address is after
 * the kernel does: until then it may be this pod's. And the node's routes name the bridge, not the pod.
 */
static __always_inline enum reason judge_other_source(struct __sk_buff *skb, const struct ip *ip)
{
	struct bpf_fib_lookup way = { .family = ip->v6 ? AF_INET6 : AF_INET, .ifindex = skb->ifindex };
	long result;

	if (is_nobodys(ip->src, ip->v6))
		return KERNEL_LINK_LOCAL;
	if (config.bridge_ifindex && in_pod_cidr(ip->src, ip->v6)) {
		if (find_endpoint(ip->src, ip->v6))
			return DROP_OTHER_SOURCE;
		note_sighting(skb, ip);
		return KERNEL_NO_ENDPOINT;
	}
	if (ip->v6)
		__builtin_memcpy(way.ipv6_dst, ip->src, sizeof(way.ipv6_dst));
	else
		way.ipv4_dst = *(const __be32 *)ip->src;
	result = bpf_fib_lookup(skb, &way, sizeof(way), BPF_FIB_LOOKUP_OUTPUT);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_OTHER_SOURCE;
	if (way.ifindex == skb->ifindex || way.ifindex == config.bridge_ifindex)
		return KERNEL_ROUTED_SOURCE;
	return DROP_OTHER_SOURCE;
}

/* A packet for the kernel path. What it does with the packet can be learned only if the arrival was noted. */
static __always_inline enum reason leave_to_kernel(struct __sk_buff *skb, const struct ip *ip, const struct flow_packet *packet,
						   struct learned *learned, enum reason reason, enum stage stage)
{
	bool v6 = ip->v6;

	if (is_vxlan_to_node(skb, ip))
		return DROP_VXLAN_FROM_POD;

	struct endpoint *sender = in_pod_cidr(ip->src, v6) ? find_endpoint(ip->src, v6) : NULL;

	if (!sender || sender->ifindex != skb->ifindex)
		return judge_other_source(skb, ip);
	if (sender->flags & ENDPOINT_KERNEL_PATH)
		return KERNEL_MARKED;
	if (packet->flow.protocol)
		note_arrival(skb, packet, ip, learned, reason, stage == SENT);
	return reason;
}

static __always_inline enum reason from_pod_ip(struct __sk_buff *skb, enum stage stage, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct learned *learned = NULL;
	struct flow_packet known = {};
	struct ether *ether = parse_ether(&at);
	struct ip ip;

	if (!ether || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;

	/* A bridge's port takes frames for every MAC, also for the bridge's. */
	bool is_ours = skb->pkt_type == PACKET_HOST;
	__u32 frame_dst = is_ours ? 0 : mac_end(&ether->dst);
	enum reason reason = is_ours || config.bridge_ifindex ?
				     judge_flow(&ip, skb->ifindex, frame_dst, &known, &learned) :
				     KERNEL_OTHER_MAC;

	if (reason == FAST_DECAP)
		reason = in_pod_cidr(leaving_dst(learned, &ip), v6) ? deliver(skb, &ip, learned, stage) :
									send(skb, &ip, learned);
	if (verdict_of(reason) == FAST)
		return reason;
	/* The packet is unchanged, but pointers to it may have become invalid. */
	at = packet(skb, sizeof(struct ether) + IP_LEN(v6));
	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;
	return leave_to_kernel(skb, &ip, &known, learned, reason, stage);
}

/* A packet behind a tag, which the kernel path gets as it is, unless it is an attack. */
static __always_inline enum reason from_pod_tagged_ip(struct __sk_buff *skb, enum stage stage, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6));
	const struct flow_packet none = {};
	struct ip ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;
	return leave_to_kernel(skb, &ip, &none, NULL, KERNEL_NOT_IP, stage);
}

/*
 * A frame with a tag. On a bridge, those of VLAN 0 come to pods and to the node, which take them as untagged: also behind
 * further tags, which hide their source.
 */
static __always_inline enum reason judge_tagged(struct __sk_buff *skb, const struct ether *ether, enum stage stage)
{
	if (!config.bridge_ifindex || skb->vlan_tci & VLAN_ID)
		return KERNEL_NOT_IP;
	if (is_tag(ether->type))
		return DROP_OTHER_SOURCE; /* or as good as that: nobody needs two */
	return BY_FAMILY(skb->protocol, from_pod_tagged_ip, skb, stage);
}

/* The family is the one that the kernel takes the packet for. Where it has read the frame, the frame says the same. */
static __always_inline enum reason judge_from_pod(struct __sk_buff *skb, enum stage stage)
{
	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);

	if (!ether)
		return KERNEL_MALFORMED;
	return is_untagged(skb) ? BY_FAMILY(skb->protocol, from_pod_ip, skb, stage) : judge_tagged(skb, ether, stage);
}

/* At tc ingress of a host veth. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	/* Not of what a bridge may carry: it delivers tags, and has no rules for tagged packets. */
	if (!config.bridge_ifindex)
		remove_priority_tag(skb);
	return finish(skb, HOOK_FROM_POD, judge_from_pod(skb, RECEIVED));
}

/*
 * The same at the hook of a netkit's peer, which is the pod's device. There a raw socket may have given any protocol to any
 * frame, and tags are still in the frame.
 */
SEC("tc")
int from_netkit(struct __sk_buff *skb)
{
	remove_priority_tag(skb);
	remove_written_priority_tag(skb);
	return finish(skb, HOOK_FROM_POD, judge_from_pod(skb, SENT));
}

/* A packet that the kernel path delivers to a pod: learn its flow. */
static __always_inline enum reason to_pod_ip(struct __sk_buff *skb, bool v6)
{
	struct cursor at = packet(skb, sizeof(struct ether) + IP_LEN(v6) + sizeof(struct tcp));
	struct flow_packet known = {};
	struct endpoint *endpoint;
	enum reason reason;
	struct ip ip;

	if (!parse_ether(&at) || !read_ip(&at, skb->len - sizeof(struct ether), v6, &ip))
		return KERNEL_MALFORMED;
	endpoint = in_pod_cidr(ip.dst, v6) ? find_endpoint(ip.dst, v6) : NULL;
	if (!endpoint || endpoint->ifindex != skb->ifindex)
		return KERNEL_NO_ENDPOINT;
	count_carried(&ip);
	if (endpoint->flags & ENDPOINT_KERNEL_PATH)
		return KERNEL_MARKED;
	reason = may_teach(&ip, &known);
	if (reason == KERNEL_NEW_FLOW)
		reason = learn(skb, &ip, &known, false, endpoint->mtu, 0);
	/* What a service answers is learned, too, but what comes from elsewhere never is: no arrival was noted. */
	return reason == KERNEL_LEARNED || is_pods(ip.src, v6) ? reason : KERNEL_OUTSIDE;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	/* from_netkit has counted it already. */
	if (skb->cb[0] == FROM_FAST_PATH)
		return KERNEL;

	struct cursor at = packet(skb, sizeof(struct ether));
	struct ether *ether = parse_ether(&at);
	enum reason reason = KERNEL_NOT_IP;

	if (ether && is_untagged(skb))
		reason = BY_FAMILY(ether->type, to_pod_ip, skb);
	return finish(skb, HOOK_TO_POD, reason);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
