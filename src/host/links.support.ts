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

/** The details of a VXLAN device of flannel's, which sends from 192.0.2.1 over eth0. */
export const flannelVxlan = (vni = 1): NonNullable<Link['vxlan']> => ({
  vni,
  port: 8472,
  local: '192.0.2.1',
  uplink: 'eth0',
  learning: false,
  zeroChecksum6: { tx: false, rx: false },
  extras: [],
});
