/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, and the configuration. The agent pins every map, so all objects share them. Before it loads them, it sets
 * max_entries of the arrays: peers to the number of podCIDRs in the cluster network, endpoints to the number of
 * addresses in a podCIDR, endpoint_state to twice that.
 */
#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define ARRIVALS 1024 /* a power of two, as the next one */
#define TUNNEL_ARRIVALS 256

const volatile struct config config = {};

/* Peers, indexed by podCIDR: a lookup is one load, however many peers there are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct peer);
} peers SEC(".maps");

/* Peers by the base address of their IPv6 podCIDR: the range is too sparse for an array. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct peer6);
} peers6 SEC(".maps");

/*
 * Underlay addresses of all nodes, ours included, and of IPv6 ones also the last 32 bits alone (see from_vtep). Looked
 * up only when the sender does not have the address that the inner source's peer publishes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct vtep);
} vteps SEC(".maps");

/* Local pods, indexed by the host part of their address. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Local pods by their IPv6 address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct endpoint);
} endpoints6 SEC(".maps");

/*
 * The lower slots have the indexes of endpoints. The upper slots are for IPv6, indexed by the lowest bits of the
 * address: endpoints that share a slot share its state, and so take the kernel path more often than they must.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct endpoint_state);
} endpoint_state SEC(".maps");

/*
 * The flow table: what the kernel path was seen to do with the packets of a flow, by the flow as it comes in. Losing an
 * entry costs speed only. The agent sets max_entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow4);
	__type(value, struct learned4);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow6);
	__type(value, struct learned6);
} flows6 SEC(".maps");

/*
 * What the kernel path has carried between pods, as the flow table counts what the fast path carries. It costs a packet
 * of the kernel path about 75 ns. Losing an entry loses its sums only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct party);
	__type(value, struct carried);
} carried SEC(".maps");

/*
 * The node-wide epoch. It moves when something changes on which the kernel path's decisions may rest: rules, routes,
 * policies, settings.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} epoch SEC(".maps");

/*
 * Packets that this CPU has left to the kernel path lately, in a slot by the hash of their flow. The kernel path carries
 * a packet through on one CPU; where it does not, the flow is not learned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ARRIVALS);
	__type(key, __u32);
	__type(value, struct arrival);
} arrivals SEC(".maps");

/* The slot of the latest one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} last_arrival SEC(".maps");

/* Tunnels that the kernel path was seen to use. Losing an entry costs speed only. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tunnel_key);
	__type(value, struct tunnel);
} tunnels SEC(".maps");

/* As arrivals, of packets in tunnels, in a slot by the inner addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TUNNEL_ARRIVALS);
	__type(key, __u32);
	__type(value, struct tunnel_arrival);
} tunnel_arrivals SEC(".maps");

/*
 * By address. The agent compares them with what the bridge knows, makes endpoints of them, and deletes them.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, struct sighting);
} sightings SEC(".maps");

/* The last IP id of an outer header that this CPU has made. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ip_ids SEC(".maps");

/* Indexed by hook * REASONS + reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS * REASONS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

/* How the flow table changes, indexed by enum flow_change. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FLOW_CHANGES);
	__type(key, __u32);
	__type(value, struct flow_count);
} flow_changes SEC(".maps");

/* How often the epoch has moved, indexed by enum cause. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CAUSES);
	__type(key, __u32);
	__type(value, struct invalidation);
} invalidations SEC(".maps");

/* Who listens to events. Written by `ripstop monitor`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct listener);
} listeners SEC(".maps");

/* The listener's ring buffer, which is there only while somebody listens. User space reads its id as the value. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 1 << 20);
	});
} events SEC(".maps");

/* Count a change of the flow table. */
static __always_inline void note_flow(enum flow_change change, bool v6)
{
	__u32 key = change;
	struct flow_count *count = bpf_map_lookup_elem(&flow_changes, &key);

	if (!count)
		return;
	if (v6)
		count->ipv6++;
	else
		count->ipv4++;
}
