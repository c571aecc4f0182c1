// SPDX-License-Identifier: Apache-2.0
/** Who has a UDP port that a VXLAN device cannot get: in words, as far as the kernel tells. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { inNetns } from '#netlink';
import { quote } from '../errors.ts';
import type { Link } from './links.ts';
import type { Where } from './netlink.ts';

/** A line of /proc/net/udp (proc_net_udp(5)): the local address and port, and the socket's inode; 0: the kernel's own. */
interface UdpSocket {
  readonly port: number;
  readonly inode: number;
}

/** Devices that hold UDP ports which the kernel does not list with them. */
const TUNNELS = ['geneve', 'wireguard', 'bareudp', 'gtp', 'amt'];

/**
 * Name the holders of a UDP port, and what to do about them.
 * @param name of the VTEP device that needs the port.
 */
export function describePortHolder(
  port: number,
  name: string,
  links: ReadonlyMap<string, Link>,
  where: Where = {},
): string {
  const device = [...links.values()].find(
    (link) => link.name !== name && link.up && link.vxlan?.port === port,
  );
  if (device)
    return `the VXLAN device ${device.name} has it; delete that with "ip link delete ${device.name}"`;
  const sockets = inNetns(where.netns, () => ['udp', 'udp6'].flatMap(readSockets));
  const inodes = sockets.filter((socket) => socket.port === port).map(({ inode }) => inode);
  const process = findProcess(new Set(inodes.filter((inode) => inode !== 0)));
  if (process) return `the process ${quote(process.command)} (PID ${process.pid}) has it; stop that`;
  if (inodes.some((inode) => inode !== 0)) {
    return 'a process that cannot be seen from here has it; find it with "ss -lunp" on the node';
  }
  const tunnels = [...links.values()].filter(({ kind }) => kind !== undefined && TUNNELS.includes(kind));
  const suspects = tunnels.map((link) => `${link.name} (${link.kind})`).join(', ');
  return `another tunnel of the kernel has it${suspects && `, perhaps ${suspects}`}; see "ip -d link"`;
}

function readSockets(table: string): UdpSocket[] {
  let text: string;
  try {
    text = readFileSync(`/proc/thread-self/net/${table}`, 'utf8');
  } catch {
    return []; // IPv6 is off
  }
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields.length > 9)
    .map((fields) => ({ port: Number.parseInt(fields[1]!.split(':')[1]!, 16), inode: Number(fields[9]) }));
}

/** The first process that has one of these sockets open. */
function findProcess(inodes: ReadonlySet<number>): { pid: number; command: string } | undefined {
  if (inodes.size === 0) return undefined;
  const sockets = new Set([...inodes].map((inode) => `socket:[${inode}]`));
  for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      const files = `/proc/${pid}/fd`;
      if (!readdirSync(files).some((fd) => sockets.has(readlinkSync(`${files}/${fd}`)))) continue;
      return { pid: Number(pid), command: readFileSync(`/proc/${pid}/comm`, 'utf8').trim() };
    } catch {
      continue; // it has ended, or closed a file meanwhile
    }
  }
  return undefined;
}
