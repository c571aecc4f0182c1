/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Events for `ripstop monitor`: while somebody listens, packets and what became of them go into a ring buffer. Without
 * a listener it costs one lookup and one comparison. Frames that xdp_from_wire has passed on are from_wire's to report.
 */
#pragma once

#include "maps.h"

/* So many events beyond those allowed: nobody has moved on what is allowed for long, so nobody listens any more. */
#define ABANDONED (1 << 20)

static __always_inline struct listener *find_listener(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&listeners, &key);
}

static __always_inline bool is_heard(enum reason reason)
{
	const struct listener *listener = find_listener();

	_Static_assert(REASONS <= 64, "struct listener has a bit for each reason");
	return listener && listener->reasons >> reason & 1;
}

/* Whether the listener gets one more. */
static __always_inline bool is_allowed(struct listener *listener)
{
	__u64 heard;

	if (listener->sample > 1 && bpf_get_prandom_u32() % listener->sample)
		return false;
	heard = __sync_fetch_and_add(&listener->heard, 1);
	if (heard > listener->allowed + ABANDONED)
		listener->reasons = 0;
	return heard < listener->allowed;
}

/* Not inlined, so that it is out of the way of packets that nobody listens to. */
static __attribute__((noinline, unused)) int report(struct __sk_buff *skb, enum hook hook, enum reason reason)
{
	struct listener *listener = find_listener();
	__u32 key = 0, captured = skb->len;
	struct event *event;
	void *ring = bpf_map_lookup_elem(&events, &key);

	/* Every frame has an Ethernet header; Linux 6.1 wants to see that some bytes are read. */
	if (!listener || !ring || captured < sizeof(struct ether) || !is_allowed(listener))
		return 0;
	event = bpf_ringbuf_reserve(ring, sizeof(*event) + EVENT_BYTES, 0);
	if (!event)
		return 0;
	if (captured > EVENT_BYTES)
		captured = EVENT_BYTES;
	*event = (struct event){
		.time_ns = bpf_ktime_get_ns(),
		.ifindex = skb->ifindex,
		.length = skb->len,
		.captured = captured,
		.hook = hook,
		.reason = reason,
	};
	if (bpf_skb_load_bytes(skb, 0, event + 1, captured))
		event->captured = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
