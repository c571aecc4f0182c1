/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows end with their connection. The agent holds a netlink socket to which conntrack tells which connections it has
 * destroyed, and this program is the socket's filter: it removes the flows, and the agent need not be woken. kube-proxy
 * destroys UDP connections when an endpoint of a Service goes.
 */
#include "maps.h"

#define AF_INET 2
#define AF_INET6 10
#define CONNECTION_DELETED (1 << 8 | 2) /* NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE */

/* ---- Messages as the kernel writes them: net/netfilter/nf_conntrack_netlink.c. Numbers are in host byte order. ---- */

struct attribute { /* linux/netlink.h: struct nlattr */
	__u16 length;
	__u16 type;
};

struct message { /* linux/netlink.h: struct nlmsghdr, and linux/netfilter/nfnetlink.h: struct nfgenmsg */
	__u32 length;
	__u16 type;
	__u16 flags;
	__u32 sequence;
	__u32 port;
	__u8 family;
	__u8 version;
	__be16 resource;
};

/* The rest of a tuple, after its addresses. */
struct tuple_protocol {
	struct attribute protocol, number_attribute;
	__u8 number;
	__u8 unused[3];
	struct attribute src_port_attribute;
	__be16 src_port;
	__u8 unused2[2];
	struct attribute dst_port_attribute;
	__be16 dst_port;
	__u8 unused3[2];
};

struct tuple4 {
	struct attribute tuple, ip, src_attribute;
	__be32 src;
	struct attribute dst_attribute;
	__be32 dst;
	struct tuple_protocol protocol;
};

struct tuple6 {
	struct attribute tuple, ip, src_attribute;
	__be32 src[4];
	struct attribute dst_attribute;
	__be32 dst[4];
	struct tuple_protocol protocol;
};

/* The two tuples come first, as its packets came in: the flows of both directions. */
struct deleted4 {
	struct message message;
	struct tuple4 tuples[2];
};

struct deleted6 {
	struct message message;
	struct tuple6 tuples[2];
};

static __always_inline void remove4(const struct tuple4 *tuple)
{
	struct flow4 flow = {
		.src = tuple->src,
		.dst = tuple->dst,
		.src_port = tuple->protocol.src_port,
		.dst_port = tuple->protocol.dst_port,
		.protocol = tuple->protocol.number,
	};

	if (bpf_map_delete_elem(&flows4, &flow) == 0)
		note_flow(FLOW_REMOVED, false);
}

static __always_inline void remove6(const struct tuple6 *tuple)
{
	struct flow6 flow = {
		.src = { .words = { tuple->src[0], tuple->src[1], tuple->src[2], tuple->src[3] } },
		.dst = { .words = { tuple->dst[0], tuple->dst[1], tuple->dst[2], tuple->dst[3] } },
		.src_port = tuple->protocol.src_port,
		.dst_port = tuple->protocol.dst_port,
		.protocol = tuple->protocol.number,
	};

	if (bpf_map_delete_elem(&flows6, &flow) == 0)
		note_flow(FLOW_REMOVED, true);
}

/* Returns how many bytes of the message the agent shall get: none. */
SEC("socket")
int connection_deleted(struct __sk_buff *skb)
{
	struct message message;

	if (bpf_skb_load_bytes(skb, 0, &message, sizeof(message)) || message.type != CONNECTION_DELETED)
		return 0;
	if (message.family == AF_INET) {
		struct deleted4 deleted;

		if (bpf_skb_load_bytes(skb, 0, &deleted, sizeof(deleted)))
			return 0;
		remove4(&deleted.tuples[0]);
		remove4(&deleted.tuples[1]);
	} else if (message.family == AF_INET6) {
		struct deleted6 deleted;

		if (bpf_skb_load_bytes(skb, 0, &deleted, sizeof(deleted)))
			return 0;
		remove6(&deleted.tuples[0]);
		remove6(&deleted.tuples[1]);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
