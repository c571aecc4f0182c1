/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every way out of a program passes here: one function turns the reason into the counter that it moves and the verdict. */
#pragma once

#include <linux/pkt_cls.h>

#include "events.h"
#include "maps.h"

/* Count a frame of `length` bytes. */
static __always_inline void count(__u32 length, enum hook hook, enum reason reason)
{
	__u32 key = hook * REASONS + reason;
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += length;
}

/*
 * The verdict that a reason's name begins with. KERNEL goes on to the next program on this hook, and then to the kernel
 * path; TC_ACT_OK would skip all tcx programs and qdisc filters that come after this one, such as those of the bandwidth
 * plugin. FAST needs a redirect, which the program has already asked for.
 */
enum verdict {
	FAST = TC_ACT_REDIRECT,
	KERNEL = TC_ACT_UNSPEC,
	DROP = TC_ACT_SHOT,
};

#define VERDICT(verdict, why) [verdict##_##why] = verdict,
static const __s8 verdicts[REASONS] = { ALL_REASONS(VERDICT) };
#undef VERDICT

static __always_inline enum verdict verdict_of(enum reason reason)
{
	return reason < REASONS ? verdicts[reason] : KERNEL;
}

static __always_inline int finish(struct __sk_buff *skb, enum hook hook, enum reason reason)
{
	count(skb->len, hook, reason);
	if (is_heard(reason))
		report(skb, hook, reason);
	return verdict_of(reason);
}

/*
 * The same, of a packet that the kernel path decides about, but whose outer headers a program has put on or taken off: see
 * tunnels.h. The program has asked for a redirect.
 */
static __always_inline int finish_carried(struct __sk_buff *skb, enum hook hook, enum reason reason)
{
	finish(skb, hook, reason);
	return TC_ACT_REDIRECT;
}
