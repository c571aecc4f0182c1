/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* For vlan.system.test.ts: a packet as the kernel hands a VLAN's to tc, its tag beside it, on to the program under test. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} under_test SEC(".maps");

SEC("tc")
int tagged(struct __sk_buff *skb)
{
	if (bpf_skb_vlan_push(skb, bpf_htons(0x8100), 5))
		return 100;
	bpf_tail_call(skb, &under_test, 0);
	return 101;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
