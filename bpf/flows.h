/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * stack_flows holds the flows that conntrack must translate back, and which therefore must not bypass the kernel path.
 * When a packet leaves the kernel path, after NAT, conntrack is asked about it. If it is translated, the flow of its
 * replies is remembered, with the addresses and ports that they will carry at from_pod or from_wire.
 */
#pragma once

#include "lookup.h"
#include "parse.h"

/* The packet's flow. False when the packet shows no ports (a fragment, or neither TCP nor UDP). */
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
 * Whether an ICMP packet belongs to the kernel path. All packets of a connection must take the same path: conntrack
 * calls a connection INVALID when it sees only some of its packets, and kube-proxy drops those. So an ICMP error takes
 * the path of the flow that it is about, whose packets go in the opposite direction. All other ICMP, which nobody
 * translates between pods, takes the fast path.
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
		.src = flow.dst,
		.dst = flow.src,
		.src_port = flow.dst_port,
		.dst_port = flow.src_port,
		.protocol = flow.protocol,
	};

	return bpf_map_lookup_elem(&stack_flows, &reversed);
}

/*
 * Whether this packet, from or to the local pod at `local`, belongs to the kernel path because of conntrack. For an
 * endpoint without translated flows this costs one test. Where there are such flows, a packet that shows no ports may
 * belong to one. SCTP always belongs there, since the lookup in conntrack knows only TCP and UDP.
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
