/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every way out of a program passes here, so that every packet is counted under the reason for its verdict. */
#pragma once

#include <linux/pkt_cls.h>

#include "maps.h"

/*
 * Go on to the next program on this hook, and then to the kernel path. TC_ACT_OK would skip all tcx programs and qdisc
 * filters that come after this one, such as those of the bandwidth plugin.
 */
#define TO_KERNEL TC_ACT_UNSPEC

/* Count a frame of `length` bytes. Returns how many bytes this CPU has counted under this reason. */
static __always_inline __u64 count(__u32 length, enum hook hook, enum reason reason)
{
	__u32 key = hook * REASONS + reason;
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);

	if (!counter)
		return 0;
	counter->packets++;
	return counter->bytes += length;
}

static __always_inline int to_kernel(const struct __sk_buff *skb, enum hook hook, enum reason reason)
{
	count(skb->len, hook, reason);
	return TO_KERNEL;
}

static __always_inline int drop(const struct __sk_buff *skb, enum hook hook, enum reason reason)
{
	count(skb->len, hook, reason);
	return TC_ACT_SHOT;
}
