// SPDX-License-Identifier: Apache-2.0
/** How this folder uses the netlink client: devices by name, and failures by key. */
import { setImmediate } from 'node:timers/promises';
import { listLinks, type NetlinkError, NetlinkSocket, type Request } from '#netlink';
import { errorText } from '../errors.ts';
import type { Failures } from '../reconcile/target.ts';
import type { RunOptions } from './run.ts';

/** In which network namespace. */
export type Where = Pick<RunOptions, 'netns'>;

/** A socket for links, addresses, routes and neighbours; declare it with `using`. */
export function openNetlink({ netns }: Where): NetlinkSocket {
  return NetlinkSocket.open('route', netns);
}

class MissingDevice extends Error {
  constructor(device: string) {
    super(`there is no network device ${device}; see "ip link"`);
  }
}

/**
 * The index of each device by its name. The kernel is asked once for each name, so use it for one short task only.
 * @throws Error when there is no such device.
 */
export function ifindexes(socket: NetlinkSocket): (device: string) => number {
  const known = new Map<string, number | undefined>();
  return (device) => {
    if (!known.has(device)) known.set(device, socket.indexOf(device));
    const ifindex = known.get(device);
    if (ifindex === undefined) throw new MissingDevice(device);
    return ifindex;
  };
}

/** Names of devices by index. */
export function linkNames(socket: NetlinkSocket): Map<number, string> {
  return new Map(listLinks(socket).map(({ ifindex, name }) => [ifindex, name]));
}

/** Makes the requests that write an entry. It may throw: then the entry has failed. */
export type RequestsOf<V> = (
  key: string,
  value: V,
  ifindexOf: (device: string) => number,
) => readonly Request[];

/** How many requests are sent at once. */
const CHUNK = 64;
/** After this long, other work of the event loop gets its turn. */
const TURN_MS = 4;

/** Write all entries, in order. One that fails does not keep others from being written. */
export function writeEach<V>(
  where: Where,
  entries: ReadonlyMap<string, V>,
  requestsOf: RequestsOf<V>,
): Promise<Failures> {
  return sendEach(where, entries, requestsOf, () => true);
}

const GONE = new Set(['ENOENT', 'ESRCH', 'ENODEV', 'EADDRNOTAVAIL']);

/** Remove all entries. One that does not exist, or whose device does not, is no failure. */
export function removeEach<V>(
  where: Where,
  entries: ReadonlyMap<string, V>,
  requestsOf: RequestsOf<V>,
): Promise<Failures> {
  const isFailure = (error: unknown): boolean =>
    !(error instanceof MissingDevice) && !GONE.has((error as NetlinkError).code);
  return sendEach(where, entries, requestsOf, isFailure);
}

async function sendEach<V>(
  where: Where,
  entries: ReadonlyMap<string, V>,
  requestsOf: RequestsOf<V>,
  isFailure: (error: unknown) => boolean,
): Promise<Failures> {
  const failures = new Map<string, string>();
  if (entries.size === 0) return failures;
  using socket = openNetlink(where);
  const ifindexOf = ifindexes(socket);
  let keys: string[] = [];
  let requests: Request[] = [];
  const send = (): void => {
    for (const [i, error] of socket.writeAll(requests).entries()) {
      const key = keys[i]!;
      if (error && isFailure(error) && !failures.has(key)) failures.set(key, error.message);
    }
    [keys, requests] = [[], []];
  };
  let begunAt = performance.now();
  for (const [key, value] of entries) {
    try {
      for (const request of requestsOf(key, value, ifindexOf)) {
        keys.push(key);
        requests.push(request);
      }
    } catch (error) {
      if (isFailure(error)) failures.set(key, errorText(error));
    }
    if (requests.length < CHUNK) continue;
    send();
    if (performance.now() - begunAt > TURN_MS) {
      await setImmediate();
      begunAt = performance.now();
    }
  }
  send();
  return failures;
}
