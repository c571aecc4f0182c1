/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Packets from the underlay, in the driver. A pod's packet is decapsulated before it becomes an skb, so that GRO sees
 * plain TCP, and marked for from_wire, which delivers it. All other packets go to from_wire unchanged.
 */
#include "flows.h"
#include "lookup.h"
#include "parse.h"
#include "stats.h"
#include "tunnel.h"
#include "vxlan.h"

/*
 * Packets are dropped, and their drops counted, by from_wire: here a VLAN tag may be in the NIC's descriptor, where XDP
 * cannot see it, and then the packet is not for us.
 */
static __always_inline int pass(__u32 length, enum reason reason)
{
	if (verdict_of(reason) != DROP)
		count(length, HOOK_XDP_FROM_WIRE, reason);
	return XDP_PASS;
}

static __always_inline int xdp_from_wire_ip(struct xdp_md *ctx, bool v6)
{
	struct cursor start = { PACKET_POINTER(ctx, data), PACKET_POINTER(ctx, data_end) };
	struct cursor at = start;
	__u32 length = start.end - start.pos;
	struct ether *ether = parse_ether(&at);
	struct tunnelled inside = {};
	struct flow_packet known = {};

	if (!ether || !read_ip(&at, length - sizeof(*ether), v6, &inside.outer))
		return pass(length, KERNEL_MALFORMED);

	enum reason reason = judge_outer(&inside.outer);

	/* Of a bond, XDP would name the NIC here; the flow came in at the bond. */
	if (reason == FAST_DECAP)
		reason = judge_tunnelled(start, length, v6, config.uplink_ifindex, &inside, &known);
	if (reason != FAST_DECAP)
		return pass(length, reason);
	if (length - OUTER_LEN(v6) > inside.endpoint->mtu)
		return pass(length, KERNEL_TOO_BIG);
	if (inside.udp->checksum && !headers_verify(&inside, v6))
		return pass(length, KERNEL_OUTER_CHECKSUM);

	__u8 ecn = inside.inner.tos & ECN_MASK;
	int new_ecn = ecn_decapsulated(ecn, inside.outer.tos & ECN_MASK);

	if (new_ecn < 0)
		return pass(length, DROP_ECN);
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct mark)))
		return pass(length, KERNEL_NO_ROOM);

	struct mark *mark = PACKET_POINTER(ctx, data_meta);
	void *data = PACKET_POINTER(ctx, data);

	if ((void *)(mark + 1) > data || data + OUTER_LEN(v6) + IP_LEN(v6) > PACKET_POINTER(ctx, data_end))
		return pass(length, KERNEL_NO_ROOM); /* impossible */

	/* The frame keeps its MAC addresses, so that the kernel accepts it as addressed to the node. */
	struct ether *outer_ether = data, *inner_ether = data + ENCAP_LEN(v6);

	inner_ether->dst = outer_ether->dst;
	inner_ether->src = outer_ether->src;
	if (new_ecn != ecn)
		set_ecn(data + OUTER_LEN(v6), v6, new_ecn);
	*mark = (struct mark){ .magic = MARK_MAGIC, .vni = config.vni };
	if (bpf_xdp_adjust_head(ctx, ENCAP_LEN(v6)))
		return XDP_DROP; /* impossible: the frame is longer than that */
	return pass(length, FAST_DECAP);
}

SEC("xdp")
int xdp_from_wire(struct xdp_md *ctx)
{
	struct cursor at = { PACKET_POINTER(ctx, data), PACKET_POINTER(ctx, data_end) };
	struct ether *ether = parse_ether(&at);

	if (!ether)
		return pass(0, KERNEL_MALFORMED);
	/* XDP does not learn whom a frame is addressed to, and a promiscuous NIC accepts all. */
	if (!mac_equal(&ether->dst, &config.uplink_mac))
		return pass(at.end - (void *)ether, KERNEL_OTHER_MAC);
	if (ether->type == ETHERTYPE_IPV4)
		return xdp_from_wire_ip(ctx, false);
	if (ether->type == ETHERTYPE_IPV6)
		return xdp_from_wire_ip(ctx, true);
	return pass(at.end - (void *)ether, KERNEL_NOT_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
