/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * stack_flows: the flows whose replies conntrack must translate back, and which therefore must not overtake the kernel path.
 * On a packet's way out of the kernel path, after NAT, conntrack is asked about it; a translated flow is remembered by the tuple
 * that its packets of the other direction will carry when they meet from_pod or from_wire.
 */
#pragma once

#include "lookup.h"
#include "parse.h"

/* The packet's tuple. False: no ports to be had (a fragment, or not TCP/UDP). */
static __always_inline bool read_flow(const struct ip *ip, struct flow *flow)
{
	struct ports *ports = ip_ports(ip);

	if (!ports)
		return false;
	*flow = (struct flow){
		.src = to_address(ip->src, ip->v6),
		.dst = to_address(ip->dst, ip->v6),
		.src_port = ports->src,
		.dst_port = ports->dst,
		.protocol = ip->protocol,
	};
	return true;
}

/*
 * Whether ICMP belongs to the kernel path. All packets of a conversation must go the same way, or conntrack sees a part of it,
 * calls that INVALID, and kube-proxy drops it. So an error goes as the flow does that it tells of, in whose other direction it
 * goes; and the rest, pings above all, which nobody translates between pods, goes past the kernel path.
 */
static __always_inline bool icmp_needs_kernel_path(const struct ip *ip)
{
	struct cursor at = ip->payload;
	struct icmp *icmp = parse_icmp(&at);
	struct ip quoted;
	struct flow flow;

	if (icmp && !is_icmp_error(icmp, ip->v6))
		return false;
	at.pos += 4; /* pointer, next-hop MTU, or unused */
	if (!icmp || !read_ip(&at, 0, ip->v6, &quoted))
		return true;
	if (is_icmp(&quoted))
		return false;
	if (quoted.options || !read_flow(&quoted, &flow))
		return true;

	struct flow reversed = {
		.src = flow.dst, .dst = flow.src, .src_port = flow.dst_port, .dst_port = flow.src_port, .protocol = flow.protocol,
	};

	return bpf_map_lookup_elem(&stack_flows, &reversed);
}

/*
 * Whether this packet, from or to the local pod at `local`, belongs to the kernel path. An endpoint without translated flows
 * pays one test. With such flows about, a packet without ports of its own may belong to one. Of SCTP it cannot be known,
 * since conntrack is asked about TCP and UDP only.
 */
static __always_inline bool needs_kernel_path(const void *local, const struct ip *ip)
{
	struct endpoint_state *state = find_state(local, ip->v6);
	struct flow flow;

	if (ip->protocol == PROTOCOL_SCTP)
		return true;
	if (!state || !(state->stack_flows | state->overflow))
		return false;
	if (state->overflow)
		return true;
	if (is_icmp(ip))
		return icmp_needs_kernel_path(ip);
	if (!read_flow(ip, &flow))
		return true;
	return bpf_map_lookup_elem(&stack_flows, &flow);
}
