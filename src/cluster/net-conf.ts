// SPDX-License-Identifier: Apache-2.0
import { readFile } from 'node:fs/promises';
import { errorText, RipstopError } from '../errors.ts';
import { type Cidr, type Family, parseMaskedCidr } from '../net/ip.ts';

/** How packets reach other nodes' pods, as net-conf.json sets it. */
export type Backend = VxlanBackend | PlainBackend;
export type BackendType = Backend['type'];

/** Without tunnels. `host-gw` routes to all peers directly; `alloc` only publishes the lease, others do the rest. */
export interface PlainBackend {
  readonly type: 'host-gw' | 'alloc';
}

/** flannel's vxlan backend. Its options GBP and Learning are refused: the fast path would not honour them. */
export interface VxlanBackend {
  readonly type: 'vxlan';
  readonly vni: number;
  /** UDP destination port of the tunnel. */
  readonly port: number;
  /** MTU of the uplink in bytes, when the file overrides what the device says. */
  readonly mtu?: number;
  readonly directRouting: boolean;
}

/** net-conf.json, validated; a family is enabled when its network is present. */
export interface NetConf {
  readonly enableIpv4: boolean;
  readonly enableIpv6: boolean;
  readonly network?: Cidr;
  readonly ipv6Network?: Cidr;
  readonly backend: Backend;
}

/**
 * Read and parse net-conf.json.
 * @throws RipstopError naming the file and every mistake in it.
 */
export async function readNetConf(file: string): Promise<NetConf> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw new RipstopError(
      `cannot read the network configuration ${file}: ${errorText(error)}; ` +
        `mount flannel's ConfigMap there or name it with --net-conf`,
      { cause: error },
    );
  }
  return parseNetConf(text, file);
}

/**
 * Parse net-conf.json's text. Keys match in any case, as Go's decoder has it; keys that only flannel's etcd mode uses
 * (SubnetLen, SubnetMin, …) are ignored, since with Kubernetes each node's subnet is its podCIDR.
 * @param source how to name the text in errors.
 * @throws RipstopError that lists every mistake by its key.
 */
export function parseNetConf(text: string, source = 'net-conf.json'): NetConf {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new RipstopError(`${source} is no JSON: ${errorText(error)}`, { cause: error });
  }
  const mistakes: string[] = [];
  const top = new Fields(json, '', mistakes);
  const enableIpv4 = top.boolean('EnableIPv4', true);
  const enableIpv6 = top.boolean('EnableIPv6', false);
  if (!enableIpv4 && !enableIpv6) mistakes.push('EnableIPv4 and EnableIPv6 are both false; enable one');
  const network = enableIpv4 ? top.network('Network', 4, '10.42.0.0/16') : undefined;
  const ipv6Network = enableIpv6 ? top.network('IPv6Network', 6, 'fd00:42::/56') : undefined;
  const backend = parseBackend(top.get('Backend'), enableIpv6, mistakes);
  if (mistakes.length > 0) throw new RipstopError(`${source}: ${mistakes.join('; ')}`);
  return {
    enableIpv4,
    enableIpv6,
    ...(network && { network }),
    ...(ipv6Network && { ipv6Network }),
    backend,
  };
}

/** IPv4 hosts need not receive more than 576 bytes (RFC 791); IPv6 in a tunnel over IPv6 takes 1280 (RFC 8200) + 70. */
const leastMtu = { ipv4: 576, ipv6: 1350 };

/** The VXLAN port of the Linux kernel, from before IANA assigned one. */
const DEFAULT_PORT = 8472;

/** Why flannel's other backends are not supported. */
const otherBackends: Readonly<Record<string, string>> = {
  udp: 'flannel itself keeps it for debugging only',
  ipip: 'its packets are no VXLAN',
  wireguard: 'ripstop does not encrypt',
  ipsec: 'ripstop does not encrypt',
  extension: 'ripstop runs no commands of the configuration',
  'tencent-vpc': 'ripstop knows no cloud API',
};

function parseBackend(json: unknown, enableIpv6: boolean, mistakes: string[]): Backend {
  const fields = new Fields(json ?? {}, 'Backend.', mistakes);
  const given = fields.get('Type');
  const type = typeof given === 'string' ? given.toLowerCase() : given;
  if (type === 'host-gw' || type === 'alloc') return { type };
  if (type !== 'vxlan') {
    const reason = typeof type === 'string' ? otherBackends[type] : undefined;
    const what =
      type === undefined
        ? 'is missing'
        : `${JSON.stringify(given)} is not supported${reason === undefined ? '' : ` (${reason})`}`;
    mistakes.push(`Backend.Type ${what}; ripstop supports "vxlan", "host-gw" and "alloc"`);
  }
  if (fields.boolean('GBP', false)) {
    mistakes.push(
      'Backend.GBP true is not supported: the fast path carries no group policy marks; leave it out, on all nodes',
    );
  }
  if (fields.boolean('Learning', false)) {
    mistakes.push(
      'Backend.Learning true is not supported: leases say where peers are, ' +
        'and a device that learns believes any sender; leave it out',
    );
  }
  const mtu = fields.integer('MTU', 0, 0, 65_535);
  const family = enableIpv6 ? 'IPv6' : 'IPv4';
  const least = enableIpv6 ? leastMtu.ipv6 : leastMtu.ipv4;
  if (mtu !== 0 && mtu < least) {
    mistakes.push(
      `Backend.MTU ${mtu} is too small for ${family}, which needs ${least}; leave it out to follow the uplink`,
    );
  }
  return {
    type: 'vxlan',
    vni: fields.integer('VNI', 1, 0, 0xff_ffff),
    // The kernel takes 0 for its default.
    port: fields.integer('Port', 0, 0, 65_535) || DEFAULT_PORT,
    ...(mtu !== 0 && { mtu }),
    directRouting: fields.boolean('DirectRouting', false),
  };
}

/** A JSON object read by case-insensitive keys; each mistake is noted with its key's path and reading goes on. */
export class Fields {
  readonly #values = new Map<string, unknown>();
  readonly #path: string;
  readonly #mistakes: string[];

  constructor(json: unknown, path: string, mistakes: string[]) {
    this.#path = path;
    this.#mistakes = mistakes;
    if (typeof json !== 'object' || json === null || Array.isArray(json)) {
      mistakes.push(`${path === '' ? 'the file' : path.slice(0, -1)} is not a JSON object`);
      return;
    }
    // As in Go, of a key that comes twice the last one counts, and null counts as left out.
    for (const [key, value] of Object.entries(json))
      if (value !== null) this.#values.set(key.toLowerCase(), value);
  }

  /** A key's value, or undefined. */
  get(key: string): unknown {
    return this.#values.get(key.toLowerCase());
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value === 'boolean') return value;
    return this.#mistake(key, `${JSON.stringify(value)} is neither true nor false`, fallback);
  }

  integer(key: string, fallback: number, least: number, most: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return value;
    return this.#mistake(
      key,
      `${JSON.stringify(value)} is no whole number from ${least} to ${most}`,
      fallback,
    );
  }

  network(key: string, family: Family, example: string): Cidr | undefined {
    const value = this.get(key);
    if (value === undefined)
      return this.#mistake(key, `is missing; give the cluster network, e.g. ${example}`, undefined);
    try {
      const cidr = parseMaskedCidr(typeof value === 'string' ? value : JSON.stringify(value));
      if (cidr.family === family) return cidr;
      return this.#mistake(key, `${JSON.stringify(value)} is not an IPv${family} block`, undefined);
    } catch (error) {
      return this.#mistake(key, errorText(error), undefined);
    }
  }

  #mistake<T>(key: string, what: string, fallback: T): T {
    this.#mistakes.push(`${this.#path}${key} ${what}`);
    return fallback;
  }
}
