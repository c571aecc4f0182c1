/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, and the configuration. The manager pins every map, so all objects share them, and sets max_entries of the
 * indexed ones before load: peers to the number of podCIDRs in the cluster network, endpoints to that of addresses in one,
 * endpoint_state to twice that.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

const volatile struct config config = {};

/* Nodes, indexed by podCIDR: one load, however many there are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct peer);
} peers SEC(".maps");

/* Nodes by the base of their IPv6 podCIDR: an index over 2^64 would have holes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct peer6);
} peers6 SEC(".maps");

/* Underlay addresses of all nodes, ours too. Read only on the way to a drop. */
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
 * Beside endpoints: the first half has the same index. The second half is for IPv6, by the lowest bits of the address: two
 * that share a slot only share their numbers, and go to the kernel path more often than they must.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct endpoint_state);
} endpoint_state SEC(".maps");

/* Replies that must not overtake conntrack. Swept against conntrack; never evicted, since an idle connection lives. */
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
