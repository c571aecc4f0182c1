/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tunnels: VXLAN to and from a peer, apart from the flows in it. A packet of the kernel path passes the kernel's IP layer
 * twice, as it is and in its outer packet. Once the kernel path was seen to carry outer packets from one address to another, the
 * programs carry those that are alike, and the kernel path decides about the inner packet only.
 *
 * The one rule holds for the outer packet too. Of packets with the same key, rules and routes of the node see the same but
 * for sizes, ports and times. A tunnel is valid for as long as a flow, in the same epoch.
 */
#pragma once

#include "flows.h"
#include "learn.h"
#include "lookup.h"
#include "parse.h"
#include "vxlan.h"

static __always_inline struct tunnel_key outward(const struct __sk_buff *skb, const struct peer_head *peer, const struct ip *inner)
{
	return (struct tunnel_key){
		.vtep_ip = peer->vtep_ip,
		.src = to_address(inner->src, inner->v6),
		.dst = to_address(inner->dst, inner->v6),
		.mark = skb->mark,
		.priority = skb->priority,
		.tos = ecn_encapsulated(inner->tos & ECN_MASK),
	};
}

/* Without what only the outer packet tells. */
static __always_inline struct tunnel_key inward(const struct __sk_buff *skb, const struct peer_head *peer, const struct ip *inner)
{
	return (struct tunnel_key){
		.vtep_ip = peer->vtep_ip,
		.src = to_address(inner->src, inner->v6),
		.dst = to_address(inner->dst, inner->v6),
		.mark = skb->mark,
		.is_inward = 1,
	};
}

/* The tunnel, if it is valid; else NULL. */
static __always_inline const struct tunnel *find_tunnel(const struct tunnel_key *key)
{
	const struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, key);

	if (!tunnel || tunnel->epoch != current_epoch() ||
	    bpf_ktime_get_coarse_ns() - tunnel->seen_ns > config.lifetime_ns)
		return NULL;
	return tunnel;
}

static __always_inline struct tunnel_arrival *find_tunnel_arrival(const struct tunnel_key *key)
{
	__u32 ends = bpf_ntohl(key->src.words[3]) * 31 + bpf_ntohl(key->dst.words[3]);
	__u32 slot = (ends * 2 + key->is_inward) & (TUNNEL_ARRIVALS - 1);

	return bpf_map_lookup_elem(&tunnel_arrivals, &slot);
}

/*
 * What tells a packet from others of the same key, and stays the same in the kernel's tunnel device: the IP id (RFC 791) or
 * flow label (RFC 8200), and the first bytes of what follows, which may be ports.
 */
static __always_inline __u64 tell_packet(const struct ip *ip)
{
	struct cursor payload = ip->payload;
	struct ports *ports = parse_ports(&payload);
	__u64 number = ip->v6 ? ((struct ipv6 *)ip->header)->version_class_flow & bpf_htonl(0xfffff) :
				((struct ipv4 *)ip->header)->id;

	return number << 32 | (ports ? ports->src | (__u32)ports->dst << 16 : 0);
}

/* The kernel path gets a packet for the tunnel, or from it. */
static __always_inline void note_tunnelling(const struct tunnel_key *key, const struct ip *inner)
{
	struct tunnel_arrival *arrival = find_tunnel_arrival(key);

	if (arrival)
		*arrival = (struct tunnel_arrival){ .key = *key, .packet = tell_packet(inner), .epoch = current_epoch() };
}

static __always_inline bool same_tunnel(const struct tunnel_key *a, const struct tunnel_key *b)
{
	return same_address(&a->vtep_ip, &b->vtep_ip, true) && same_address(&a->src, &b->src, true) &&
	       same_address(&a->dst, &b->dst, true) && a->mark == b->mark && a->priority == b->priority &&
	       a->is_inward == b->is_inward;
}

/*
 * A packet has passed the kernel's tunnel device. If it is the one that was noted last, the tunnel is valid from now on.
 * `key` may lack what only the outer packet tells. `mtu`: of the way outward. `ifindex`: of the device inward.
 */
static __always_inline void see_tunnelling(const struct __sk_buff *skb, const struct tunnel_key *key, const struct ip *inner,
					   __u32 mtu, __u32 ifindex)
{
	const struct tunnel_arrival *arrival = find_tunnel_arrival(key);

	if (!arrival || !same_tunnel(&arrival->key, key) || arrival->packet != tell_packet(inner))
		return;

	struct tunnel_key noted = arrival->key;
	const struct tunnel *before = find_tunnel(&noted);
	__u32 bytes = carried_bytes(skb, inner, before ? before->carried : 0);
	struct tunnel tunnel = {
		.seen_ns = bpf_ktime_get_coarse_ns(),
		.epoch = arrival->epoch,
		.mtu = mtu,
		.carried = bytes < mtu ? bytes : mtu,
		.ifindex = ifindex,
	};

	bpf_map_update_elem(&tunnels, &noted, &tunnel, BPF_ANY);
}
