/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * stack_flows: the flows whose replies conntrack must translate back, and which therefore must not overtake the stack.
 * On a packet's way out of the stack, after NAT, conntrack is asked about it; a translated flow is remembered by the tuple
 * that its packets of the other direction will carry when they meet from_pod or from_wire.
 */
#pragma once

#include "parse.h"
#include "vxlan.h"

/* The tuple of a packet whose cursor stands behind its IP header. False: no ports to be had (a fragment, or not TCP/UDP). */
static __always_inline bool read_flow(const struct ipv4 *ip, struct cursor behind_ip, struct flow *flow)
{
	struct ports *ports = has_ports(ip) ? parse_ports(&behind_ip) : NULL;

	if (!ports)
		return false;
	*flow = (struct flow){
		.src = ip->src, .dst = ip->dst, .src_port = ports->src, .dst_port = ports->dst, .protocol = ip->protocol,
	};
	return true;
}

/*
 * Whether this packet, from or to the local endpoint in `slot`, belongs to the stack. An endpoint without translated
 * flows pays one test. With such flows about, a packet without ports of its own may belong to one: a fragment, an ICMP
 * error that quotes one. Of SCTP it cannot be known, since conntrack is asked about TCP and UDP only.
 */
static __always_inline bool is_stack_flow(__u32 slot, const struct ipv4 *ip, struct cursor behind_ip)
{
	struct endpoint_state *state = bpf_map_lookup_elem(&endpoint_state, &slot);
	struct flow flow;

	if (ip->protocol == PROTOCOL_SCTP)
		return true;
	if (!state || !(state->stack_flows | state->overflow))
		return false;
	if (state->overflow || !read_flow(ip, behind_ip, &flow))
		return true;
	return bpf_map_lookup_elem(&stack_flows, &flow);
}
