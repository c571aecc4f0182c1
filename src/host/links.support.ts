// SPDX-License-Identifier: Apache-2.0
import type { Link } from './links.ts';

/** A device without anything special, which is up; what a test is about is given. */
export function link(name: string, more: Partial<Link> = {}): Link {
  const { ifindex = 2 } = more;
  return {
    name,
    ifindex,
    mac: `02:00:00:00:01:${ifindex.toString(16).padStart(2, '0')}`,
    mtu: 1500,
    gsoMaxSegs: 65535,
    up: true,
    running: true,
    kind: undefined,
    loopback: false,
    master: undefined,
    peer: undefined,
    vxlan: undefined,
    addresses: [],
    ...more,
  };
}
