/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A cursor over a packet, and parsers of one shape: check the bounds, advance, return the header or NULL.
 * Pointers die with every helper that may move the packet; take a new cursor then.
 */
#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define ETHERTYPE_IPV4 bpf_htons(0x0800)
#define IPV4_NO_OPTIONS 0x45 /* version 4, five words */
#define IPV4_FRAGMENT bpf_htons(0x3fff) /* more-fragments, or any offset */
#define IPV4_FRAGMENT_OFFSET bpf_htons(0x1fff) /* of the first fragment: 0 */
#define IPV4_MAX_HEADER 60
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_SCTP 132

struct cursor {
	void *pos;
	void *end;
};

/*
 * A cursor at the packet's start with at least `want` bytes readable behind it where the packet has them: bytes of a
 * non-linear packet are pulled forward first. A shorter packet gives a shorter cursor; the parsers below notice.
 */
static __always_inline struct cursor packet(struct __sk_buff *skb, __u32 want)
{
	struct cursor at = { (void *)(long)skb->data, (void *)(long)skb->data_end };

	if (at.pos + want > at.end && at.pos + skb->len > at.end) {
		bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
		at.pos = (void *)(long)skb->data;
		at.end = (void *)(long)skb->data_end;
	}
	return at;
}

#define PARSER(header)                                                       \
	static __always_inline struct header *parse_##header(struct cursor *at) \
	{                                                                    \
		struct header *found = at->pos;                              \
		if (at->pos + sizeof(*found) > at->end)                      \
			return NULL;                                         \
		at->pos += sizeof(*found);                                   \
		return found;                                                \
	}

/* The ports are where TCP and UDP agree. */
struct ports {
	__be16 src;
	__be16 dst;
};

struct tcp { /* RFC 9293 */
	struct ports ports;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* header length in words, in the upper four bits */
	__u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

PARSER(ether)
PARSER(ipv4)
PARSER(udp)
PARSER(vxlan)
PARSER(ports)
PARSER(tcp)

/*
 * Whether the frame holds IPv4 and belongs to this device itself. A VLAN's does not, but looks as if: the kernel has taken
 * its tag off before tc, and would put it back on whatever we send out.
 */
static __always_inline bool is_ipv4(const struct __sk_buff *skb, const struct ether *ether)
{
	return ether->type == ETHERTYPE_IPV4 && !skb->vlan_present;
}

/*
 * Whether ports follow the IP header: TCP's and UDP's, but not in fragments, of which only the first has them, and not
 * where the packet ends before them: what stands there then is a frame's padding.
 */
static __always_inline bool has_ports(const struct ipv4 *ip)
{
	return (ip->protocol == PROTOCOL_TCP || ip->protocol == PROTOCOL_UDP) && !(ip->fragment & IPV4_FRAGMENT) &&
	       bpf_ntohs(ip->total_length) >= sizeof(struct ipv4) + sizeof(struct ports);
}

/* Bytes, options included: 20 to 60, or less in a broken header. */
static __always_inline __u32 ipv4_header_length(const struct ipv4 *ip)
{
	return (ip->version_ihl & 0x0f) * 4;
}

/* Volatile, because one of the two is configuration, which the compiler must not take for the zeros that it sees. */
static __always_inline bool mac_equal(const volatile struct mac *a, const volatile struct mac *b)
{
	const volatile __u16 *x = (const volatile __u16 *)a;
	const volatile __u16 *y = (const volatile __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/* RFC 1071: fold a sum of 16-bit words to 16 bits. Four words of carries at most, so twice is enough. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Change one 16-bit word under a checksum: RFC 1624 equation 3. */
static __always_inline __u16 checksum_replace(__u16 checksum, __u16 from, __u16 to)
{
	return ~fold((__u16)~checksum + (__u16)~from + to);
}

/* One hop. The caller has seen that the TTL is over 1. */
static __always_inline void decrement_ttl(struct ipv4 *ip)
{
	/* TTL is the first byte of its 16-bit word: one less is 0x0100 less in network order, so the checksum gains that. */
	ip->checksum = fold((__u32)ip->checksum + bpf_htons(0x0100));
	ip->ttl--;
}
