/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, and the configuration. The agent pins every map, so all objects share them. Before it loads them, it sets
 * max_entries of the arrays: peers to the number of podCIDRs in the cluster network, endpoints to the number of
 * addresses in a podCIDR, endpoint_state to twice that.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

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

/* Underlay addresses of all nodes, ours included. Looked up only before a drop. */
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
 * address: endpoints that share a slot share its numbers, and so take the kernel path more often than they must.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct endpoint_state);
} endpoint_state SEC(".maps");

/*
 * Flows whose packets conntrack must translate. Entries are swept when conntrack has forgotten them, and never evicted,
 * since an idle connection is still there. (The name is that of the pinned map in version 0.1.0.)
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct stack_flow);
} stack_flows SEC(".maps");

/* Indexed by hook * REASONS + reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS * REASONS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");
