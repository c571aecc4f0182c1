/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Parts of ripstop's programs, each as a program of its own. What the first costs, which does nothing, is the counting. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define TC_ACT_UNSPEC (-1)
#define ROOM 50 /* outer Ethernet, IPv4, UDP and VXLAN headers */

struct key {
	__u8 bytes[16];
};

struct value {
	__u8 bytes[56];
};

/* As large as the flow table. */
#define FLOWS(name)                                    \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);   \
		__uint(max_entries, 131072);           \
		__type(key, struct key);               \
		__type(value, struct value);           \
	} name SEC(".maps")

FLOWS(flows);
FLOWS(many_flows);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct value);
} peers SEC(".maps");

SEC("tc") int empty(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_UNSPEC;
}

SEC("tc") int read_clock(struct __sk_buff *skb)
{
	(void)skb;
	return bpf_ktime_get_ns() ? TC_ACT_UNSPEC : 0;
}

SEC("tc") int look_up_peer(struct __sk_buff *skb)
{
	__u32 key = skb->ingress_ifindex & 255;
	const struct value *value = bpf_map_lookup_elem(&peers, &key);

	return value ? value->bytes[0] - 1 : 0;
}

SEC("tc") int look_up_flow(struct __sk_buff *skb)
{
	struct key key = {};
	const struct value *value = bpf_map_lookup_elem(&flows, &key);

	(void)skb;
	return value ? value->bytes[0] - 1 : 0;
}

SEC("tc") int look_up_flow_among_many(struct __sk_buff *skb)
{
	struct key key = {};
	const struct value *value = bpf_map_lookup_elem(&many_flows, &key);

	(void)skb;
	return value ? value->bytes[0] - 1 : 0;
}

SEC("tc") int make_room(struct __sk_buff *skb)
{
	if (bpf_skb_adjust_room(skb, ROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return 0;
	return bpf_skb_adjust_room(skb, -ROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ? 0 : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
