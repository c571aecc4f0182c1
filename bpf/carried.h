/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counts what the kernel path has carried between pods, where it leaves the kernel path. */
#pragma once

#include "lookup.h"
#include "parse.h"

/* Atomic: the packets of a party leave on any CPU. A function of its own, since the programs call it three times. */
static __noinline void count_party(const struct party *party, __u32 bytes)
{
	struct carried *sum = bpf_map_lookup_elem(&carried, party);
	struct carried first = { .packets = 1, .bytes = bytes };

	if (!sum) {
		bpf_map_update_elem(&carried, party, &first, BPF_ANY);
		return;
	}
	__sync_fetch_and_add(&sum->packets, 1);
	__sync_fetch_and_add(&sum->bytes, bytes);
}

static __always_inline void count_end(const void *address, bool v6, __u32 bytes)
{
	struct party party = { .address = to_address(address, v6) };

	if (!in_pod_cidr(address, v6)) {
		if (v6)
			party.address = pod_cidr_base6(address);
		else
			party.address.words[3] &= config.pod_cidr_mask;
	}
	count_party(&party, bytes);
}

/* A packet that leaves for a pod, or for the wire. */
static __always_inline void count_carried(const struct ip *ip)
{
	bool v6 = ip->v6;

	if (!is_pods(ip->src, v6) || !is_pods(ip->dst, v6))
		return;
	count_end(ip->src, v6, ip->bytes);
	count_end(ip->dst, v6, ip->bytes);
}

/*
 * The same packet, if its flow is translated: a Service's address is where it went before, or what it comes from now. So
 * is the address behind which others are hidden (masquerading): whoever reads the sums must know the Services.
 */
static __always_inline void count_service(const struct flow6 *in, const struct flow6 *out, __u32 bytes)
{
	bool is_forward = in->dst_port != out->dst_port || !same_address(&in->dst, &out->dst, true);
	struct party party = { .protocol = in->protocol };

	if (!is_forward && in->src_port == out->src_port && same_address(&in->src, &out->src, true))
		return;
	party.address = is_forward ? in->dst : out->src;
	party.port = is_forward ? in->dst_port : out->src_port;
	count_party(&party, bytes);
}
