/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Lookups of an address in the configuration and in the maps. `address` points to a `__be32` or a `struct address`. */
#pragma once

#include "maps.h"
#include "parse.h"

/* Configuration is volatile: otherwise the compiler would assume the zeros that it is initialized with. */
static __always_inline bool in_prefix6(const struct address *address, const volatile struct address *base,
				       const volatile struct address *mask)
{
	return (address->halves[0] & mask->halves[0]) == base->halves[0] &&
	       (address->halves[1] & mask->halves[1]) == base->halves[1];
}

static __always_inline bool in_network(const void *address, bool v6)
{
	if (v6)
		return in_prefix6(address, &config.network6, &config.network6_mask);
	return (*(const __be32 *)address & config.network_mask) == config.network;
}

static __always_inline bool in_pod_cidr(const void *address, bool v6)
{
	if (v6)
		return in_prefix6(address, &config.pod_cidr6, &config.pod_cidr6_mask);
	return (*(const __be32 *)address & config.pod_cidr_mask) == config.pod_cidr;
}

/* Whether it is this node's VTEP address. */
static __always_inline bool is_our_vtep(const void *address, bool v6)
{
	if (v6) {
		const struct address *a = address;
		return a->halves[0] == config.vtep_ip6.halves[0] && a->halves[1] == config.vtep_ip6.halves[1];
	}
	return *(const __be32 *)address == config.vtep_ip;
}

/* The base of the podCIDR that contains an IPv6 address, if it is as long as ours. */
static __always_inline struct address pod_cidr_base6(const struct address *address)
{
	return (struct address){ .halves = { address->halves[0] & config.pod_cidr6_mask.halves[0],
					     address->halves[1] & config.pod_cidr6_mask.halves[1] } };
}

/* The peer whose podCIDR contains an address of the cluster network. */
static __always_inline const struct peer_head *find_peer(const void *address, bool v6)
{
	if (v6) {
		struct address base = pod_cidr_base6(address);
		struct peer6 *peer = bpf_map_lookup_elem(&peers6, &base);

		return peer ? &peer->head : NULL;
	}
	__u32 slot = bpf_ntohl(*(const __be32 *)address & ~config.network_mask) >> config.subnet_shift;
	struct peer *peer = bpf_map_lookup_elem(&peers, &slot);

	return peer && peer->head.flags & PEER_PRESENT ? &peer->head : NULL;
}

/* The Ethernet header of inner packets to a peer. */
static __always_inline const struct ether *inner_template(const struct peer_head *peer, bool v6)
{
	return v6 ? &((const struct peer6 *)peer)->header.inner_ether : &((const struct peer *)peer)->header.inner_ether;
}

static __always_inline __u32 endpoint_slot(__be32 address)
{
	return bpf_ntohl(address & ~config.pod_cidr_mask);
}

/* The endpoint that has an address of this node's podCIDR. */
static __always_inline struct endpoint *find_endpoint(const void *address, bool v6)
{
	struct endpoint *endpoint;

	if (v6) {
		struct address key = *(const struct address *)address; /* a map key must not point into the packet */

		endpoint = bpf_map_lookup_elem(&endpoints6, &key);
	} else {
		__u32 slot = endpoint_slot(*(const __be32 *)address);

		endpoint = bpf_map_lookup_elem(&endpoints, &slot);
	}
	return endpoint && endpoint->ifindex ? endpoint : NULL;
}

/* Whether an address is a pod's, as far as can be told: nodes have addresses in their podCIDRs, too. */
static __always_inline bool is_pods(const void *address, bool v6)
{
	return in_network(address, v6) && (!in_pod_cidr(address, v6) || find_endpoint(address, v6));
}

/* See endpoint_state in maps.h. */
static __always_inline __u32 state_slot(const void *address, bool v6)
{
	if (v6)
		return config.endpoint_slots +
		       (bpf_ntohl(((const struct address *)address)->words[3]) & (config.endpoint_slots - 1));
	return endpoint_slot(*(const __be32 *)address);
}

static __always_inline struct endpoint_state *find_state(const void *address, bool v6)
{
	__u32 slot = state_slot(address, v6);

	return bpf_map_lookup_elem(&endpoint_state, &slot);
}

static __always_inline bool same_address(const void *a, const void *b, bool v6)
{
	if (v6) {
		const struct address *x = a, *y = b;
		return x->halves[0] == y->halves[0] && x->halves[1] == y->halves[1];
	}
	return *(const __be32 *)a == *(const __be32 *)b;
}

/* An address from a map, in the form that packets have. */
static __always_inline const void *from_address(const struct address *address, bool v6)
{
	return v6 ? (const void *)address : &address->words[3];
}

/* The node that has an underlay address. */
static __always_inline struct vtep *find_vtep(const void *address, bool v6)
{
	struct address key = to_address(address, v6);

	return bpf_map_lookup_elem(&vteps, &key);
}
