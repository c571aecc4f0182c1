/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A program that does nothing: what the kernel counts for its runs is the cost of the counting. */
__attribute__((section("tc"), used)) int empty(void *context)
{
	(void)context;
	return -1; /* TC_ACT_UNSPEC */
}
