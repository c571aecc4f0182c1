/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A cursor over a packet, and parsers that all work alike: they check the bounds, advance, and return the header or
 * NULL. A helper that may move the packet invalidates all pointers into it; take a new cursor then.
 */
#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define ETHERTYPE_IPV4 bpf_htons(0x0800)
#define ETHERTYPE_IPV6 bpf_htons(0x86dd)
#define IPV4_NO_OPTIONS 0x45 /* version 4, five words */
#define IPV4_FRAGMENT bpf_htons(0x3fff) /* more-fragments, or any offset */
#define IPV4_FRAGMENT_OFFSET bpf_htons(0x1fff) /* of the first fragment: 0 */
#define IPV6_FRAGMENT_OFFSET bpf_htons(0xfff8)
#define ETHERNET_SHORTEST_PAYLOAD 46 /* IEEE 802.3; NICs pad shorter ones */
#define PACKET_HOST 0 /* linux/if_packet.h: addressed to this device */
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_IPV6_FRAGMENT 44
#define PROTOCOL_ICMPV6 58
#define ECN_MASK 3 /* of a TOS byte or traffic class, RFC 3168 */
#define ECN_NOT_ECT 0
#define ECN_ECT_1 1
#define ECN_ECT_0 2
#define ECN_CE 3
#define IPV4_MAPPED bpf_htonl(0xffff) /* the third word of struct address */

#define IP_LEN(v6) ((v6) ? sizeof(struct ipv6) : sizeof(struct ipv4)) /* without options */

struct cursor {
	void *pos;
	void *end;
};

/*
 * A packet pointer from the context. In C the member has 32 bits, and the compiler may copy it as such, which the
 * verifier does not accept for a pointer. So it is loaded by an instruction that the compiler cannot change.
 */
#define PACKET_POINTER(context, member)                                                                   \
	({                                                                                                \
		void *pointer;                                                                            \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                                     \
			     : "=r"(pointer)                                                              \
			     : "r"(context), "i"(__builtin_offsetof(typeof(*(context)), member)));        \
		pointer;                                                                                  \
	})

/*
 * A cursor at the packet's start, with at least `want` readable bytes if the packet has them: bytes of a non-linear
 * packet are pulled into its head first. A shorter packet gives a shorter cursor, which the parsers below notice. Ask
 * for no more than a TCP segment has before its payload: pulling more copies the packet's head, for most packets.
 */
static __always_inline struct cursor packet(struct __sk_buff *skb, __u32 want)
{
	struct cursor at = { PACKET_POINTER(skb, data), PACKET_POINTER(skb, data_end) };

	if (at.pos + want > at.end && at.pos + skb->len > at.end) {
		bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
		at.pos = PACKET_POINTER(skb, data);
		at.end = PACKET_POINTER(skb, data_end);
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

/* The beginning of both TCP's and UDP's header. */
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

struct icmp_echo { /* RFC 792, RFC 4443 section 4 */
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

struct ipv6_fragment { /* RFC 8200 section 4.5 */
	__u8 next_header;
	__u8 reserved;
	__be16 offset; /* in the upper 13 bits */
	net32 id;
};

PARSER(ether)
PARSER(ipv4)
PARSER(ipv6)
PARSER(ipv6_fragment)
PARSER(udp)
PARSER(vxlan)
PARSER(ports)
PARSER(tcp)
PARSER(icmp_echo)

/*
 * Whether the frame belongs to this device itself, not to a VLAN. The kernel takes the tag off before tc, so the frame
 * does not show it, and puts it back on whatever a program redirects.
 */
static __always_inline bool is_untagged(const struct __sk_buff *skb)
{
	return !skb->vlan_present;
}

#define VLAN_ID 0x0fff /* of a tag, IEEE 802.1Q */

/* Whether another tag follows the one that the kernel has taken off: IEEE 802.1Q, 802.1ad. */
static __always_inline bool is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(0x8100) || ethertype == bpf_htons(0x88a8);
}

/*
 * A tag of VLAN 0 gives a priority only, and the frame belongs to the device itself. Take it off, as the kernel will.
 * All pointers into the packet are invalid afterwards.
 */
static __always_inline void remove_priority_tag(struct __sk_buff *skb)
{
	if (skb->vlan_present && !(skb->vlan_tci & VLAN_ID))
		bpf_skb_vlan_pop(skb);
}

/* The same where the kernel has not taken tags off yet: the first one of those that the frame itself has. */
static __always_inline void remove_written_priority_tag(struct __sk_buff *skb)
{
	__be16 tci;

	if (!skb->vlan_present && is_tag(skb->protocol) && !bpf_skb_load_bytes(skb, sizeof(struct ether), &tci, sizeof(tci)) &&
	    !(tci & bpf_htons(VLAN_ID)))
		bpf_skb_vlan_pop(skb);
}

/*
 * The reason that `handle(arguments, v6)` gives for an IP packet of this ethertype. Each family gets its own code, since
 * `v6` is a constant.
 */
#define BY_FAMILY(ethertype, handle, arguments...)                  \
	((ethertype) == ETHERTYPE_IPV4 ? handle(arguments, false) : \
	 (ethertype) == ETHERTYPE_IPV6 ? handle(arguments, true) :  \
					 KERNEL_NOT_IP)

/*
 * What the programs read of an IP packet of either family. `v6` is a constant wherever this is used, since all
 * functions are inlined: each family gets its own code. The pointers to addresses are to a `__be32` or a `struct
 * address`.
 */
struct ip {
	bool v6;
	bool options; /* or extension headers other than one fragment header */
	bool fragment;
	bool later_fragment; /* not the first */
	__u8 protocol; /* the fragment header's where there is one */
	__u8 tos; /* or traffic class */
	__u8 ttl; /* or hop limit */
	__u32 bytes; /* to the frame's end, this header included */
	void *header;
	const void *src;
	const void *dst;
	struct cursor payload; /* after the header, and after a fragment header */
};

/* RFC 1071: fold a sum of 16-bit words to 16 bits. Folding twice takes in all carries. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The one's complement sum of 16-bit words. `bytes` is constant and even; the caller has checked the bounds. */
static __always_inline __u32 sum16(const void *data, __u32 bytes)
{
	const __u16 *words = data;
	__u32 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / 2; i++)
		sum += words[i];
	return sum;
}

static __always_inline bool read_ipv4(struct cursor *at, __u32 bytes, struct ip *ip)
{
	struct ipv4 *header = parse_ipv4(at);

	if (!header || header->version_ihl >> 4 != 4)
		return false;
	*ip = (struct ip){
		.options = header->version_ihl != IPV4_NO_OPTIONS,
		.fragment = header->fragment & IPV4_FRAGMENT,
		.later_fragment = header->fragment & IPV4_FRAGMENT_OFFSET,
		.protocol = header->protocol,
		.tos = header->tos,
		.ttl = header->ttl,
		.bytes = bytes,
		.header = header,
		.src = &header->src,
		.dst = &header->dst,
		.payload = *at,
	};
	return true;
}

/*
 * Headers that may come before the transport header, which only the kernel understands: IANA's list (RFC 7045) and "no
 * next header", but without ESP, after which nothing can be read, and without the numbers for experiments.
 */
static __always_inline bool is_extension_header(__u8 protocol)
{
	switch (protocol) {
	case 0: /* hop-by-hop options */
	case 43: /* routing */
	case 51: /* authentication */
	case 59: /* no next header */
	case 60: /* destination options */
	case 135: /* mobility */
	case 139: /* host identity */
	case 140: /* shim6 */
		return true;
	}
	return false;
}

static __always_inline bool read_ipv6(struct cursor *at, __u32 bytes, struct ip *ip)
{
	struct ipv6 *header = parse_ipv6(at);

	if (!header || bpf_ntohl(header->version_class_flow) >> 28 != 6)
		return false;

	__u8 protocol = header->next_header;
	bool fragment = protocol == PROTOCOL_IPV6_FRAGMENT, later_fragment = false;

	if (fragment) {
		struct ipv6_fragment *part = parse_ipv6_fragment(at);

		if (!part)
			return false;
		protocol = part->next_header;
		later_fragment = part->offset & IPV6_FRAGMENT_OFFSET;
	}
	*ip = (struct ip){
		.v6 = true,
		.options = is_extension_header(protocol) || protocol == PROTOCOL_IPV6_FRAGMENT, /* a second one */
		.fragment = fragment,
		.later_fragment = later_fragment,
		.protocol = protocol,
		.tos = bpf_ntohl(header->version_class_flow) >> 20,
		.ttl = header->hop_limit,
		.bytes = bytes,
		.header = header,
		.src = &header->src,
		.dst = &header->dst,
		.payload = *at,
	};
	return true;
}

/* Read the IP header at the cursor, `bytes` before the frame's end. False when there is none of this family. */
static __always_inline bool read_ip(struct cursor *at, __u32 bytes, bool v6, struct ip *ip)
{
	return v6 ? read_ipv6(at, bytes, ip) : read_ipv4(at, bytes, ip);
}

/* The packet's length according to its header, the header included. */
static __always_inline __u32 ip_length(const struct ip *ip)
{
	if (ip->v6)
		return bpf_ntohs(((struct ipv6 *)ip->header)->payload_length) + sizeof(struct ipv6);
	return bpf_ntohs(((struct ipv4 *)ip->header)->total_length);
}

/* Whether the packet fills its frame exactly and its header's checksum is right. */
static __always_inline bool is_sound(const struct ip *ip)
{
	return ip_length(ip) == ip->bytes &&
	       (ip->v6 || ip->options || fold(sum16(ip->header, sizeof(struct ipv4))) == 0xffff);
}

/*
 * The ports of TCP and UDP. NULL for other protocols, for fragments, of which only the first would have ports, and
 * where the packet ends before them.
 */
static __always_inline struct ports *ip_ports(const struct ip *ip)
{
	struct cursor payload = ip->payload;

	if ((ip->protocol != PROTOCOL_TCP && ip->protocol != PROTOCOL_UDP) || ip->fragment)
		return NULL;
	return parse_ports(&payload);
}

/* An address from a packet, in the form that maps have. */
static __always_inline struct address to_address(const void *address, bool v6)
{
	if (v6)
		return *(const struct address *)address;
	return (struct address){ .words = { 0, 0, IPV4_MAPPED, *(const __be32 *)address } };
}

static __always_inline bool is_icmp(const struct ip *ip)
{
	return ip->protocol == (ip->v6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP);
}

/* Types of ICMP messages: RFC 792, RFC 4443 section 4. */
#define ECHO_REQUEST(v6) ((v6) ? 128 : 8)
#define ECHO_REPLY(v6) ((v6) ? 129 : 0)

/* Whether it is an echo request or reply. */
static __always_inline bool is_echo(const struct icmp_echo *echo, bool v6)
{
	return echo->type == ECHO_REQUEST(v6) || echo->type == ECHO_REPLY(v6);
}

/* The header's length, options included: 20 to 60 bytes, or less when it is broken. */
static __always_inline __u32 ipv4_header_length(const struct ipv4 *ip)
{
	return (ip->version_ihl & 0x0f) * 4;
}

/* Volatile, since one of the two may be configuration: see in_prefix6() in lookup.h. */
static __always_inline bool mac_equal(const volatile struct mac *a, const volatile struct mac *b)
{
	const volatile __u16 *x = (const volatile __u16 *)a;
	const volatile __u16 *y = (const volatile __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/* The last four bytes of a MAC, which differ between the devices of a node. */
static __always_inline __u32 mac_end(const struct mac *mac)
{
	const __u16 *words = (const __u16 *)mac;

	return words[1] | (__u32)words[2] << 16;
}

/* Change one 16-bit word under a checksum: RFC 1624 equation 3. */
static __always_inline __u16 checksum_replace(__u16 checksum, __u16 from, __u16 to)
{
	return ~fold((__u16)~checksum + (__u16)~from + to);
}

/* Take one hop off. The caller has checked that the TTL is over 1. */
static __always_inline void decrement_ttl(void *header, bool v6)
{
	if (v6) {
		((struct ipv6 *)header)->hop_limit--;
		return;
	}
	struct ipv4 *ip = header;

	/*
	 * The TTL is the upper byte of its 16-bit word: one less takes 0x0100 off the sum, so the checksum gains that
	 * much. Of the two zeros of one's complement the result is 0, as in the kernel and in RFC 1624.
	 */
	__u32 sum = (__u32)ip->checksum + bpf_htons(0x0100);

	ip->checksum = sum + (sum >= 0xffff);
	ip->ttl--;
}

static __always_inline void set_ecn(void *header, bool v6, __u8 ecn)
{
	if (v6) {
		struct ipv6 *ip = header;
		ip->version_class_flow = (ip->version_class_flow & ~bpf_htonl(ECN_MASK << 20)) |
					 bpf_htonl((__u32)ecn << 20);
		return;
	}
	struct ipv4 *ip = header;
	__u8 tos = (ip->tos & ~ECN_MASK) | ecn;

	ip->checksum = checksum_replace(ip->checksum, bpf_htons(ip->tos), bpf_htons(tos));
	ip->tos = tos;
}
