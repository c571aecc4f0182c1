// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { addressAt, type Cidr, type Family, formatCidr, parseMaskedCidr } from '../net/ip.ts';
import { readIfThere } from './files.ts';
import type { PodNetwork } from './pod-network.ts';

/** What /run/flannel/subnet.env tells CNI plugins about the node. */
export interface SubnetEnv {
  /** IPv4 before IPv6. */
  networks: readonly PodNetwork[];
  /** The pods' MTU in bytes. */
  mtu: number;
  /** Whether the node masquerades for pods, so that the CNI plugin need not. */
  ipMasq: boolean;
}

/** The file's text, byte for byte as flanneld writes it. */
export function renderSubnetEnv({ networks, mtu, ipMasq }: SubnetEnv): string {
  const lines: string[] = [];
  for (const { network, podCidr } of networks) {
    const prefix = network.family === 6 ? 'FLANNEL_IPV6_' : 'FLANNEL_';
    lines.push(`${prefix}NETWORK=${formatCidr(network)}`);
    // flannel writes the bridge's address, the base + 1, with the subnet's length.
    lines.push(`${prefix}SUBNET=${addressAt(podCidr, 1)}/${podCidr.length}`);
  }
  return [...lines, `FLANNEL_MTU=${mtu}`, `FLANNEL_IPMASQ=${ipMasq}`, ''].join('\n');
}

/**
 * The inverse of {@link renderSubnetEnv}; keys that flannel does not know are ignored, as are blank lines and comments.
 * @throws RipstopError naming the line or the key that is wrong.
 */
export function parseSubnetEnv(text: string): SubnetEnv {
  const values = new Map<string, string>();
  for (const [i, raw] of text.split('\n').entries()) {
    const row = raw.trim();
    if (row === '' || row.startsWith('#')) continue;
    const match = /^([A-Z0-9_]+)="?([^"]*)"?$/.exec(row);
    if (!match) throw new RipstopError(`subnet.env, line ${i + 1}: "${row}" is not KEY=value`);
    values.set(match[1]!, match[2]!);
  }
  const networks = ([4, 6] as const).flatMap((family) => {
    const prefix = family === 6 ? 'FLANNEL_IPV6_' : 'FLANNEL_';
    const [network, subnet] = [values.get(`${prefix}NETWORK`), values.get(`${prefix}SUBNET`)];
    if (network === undefined && subnet === undefined) return [];
    if (network === undefined || subnet === undefined) {
      throw new RipstopError(
        `subnet.env: ${prefix}${network === undefined ? 'NETWORK' : 'SUBNET'} is missing`,
      );
    }
    return [
      {
        network: ofFamily(parseMaskedCidr(network), family, `${prefix}NETWORK`),
        podCidr: ofFamily(parseMaskedCidr(subnet), family, `${prefix}SUBNET`),
      },
    ];
  });
  if (networks.length === 0) throw new RipstopError('subnet.env: FLANNEL_NETWORK is missing');
  const mtu = Number(values.get('FLANNEL_MTU') ?? Number.NaN);
  if (!Number.isInteger(mtu) || mtu < 68 || mtu > 65_535) {
    throw new RipstopError(`subnet.env: FLANNEL_MTU "${values.get('FLANNEL_MTU') ?? ''}" is not an MTU`);
  }
  return { networks, mtu, ipMasq: values.get('FLANNEL_IPMASQ') === 'true' };
}

function ofFamily(cidr: Cidr, family: Family, key: string): Cidr {
  if (cidr.family === family) return cidr;
  throw new RipstopError(`subnet.env: ${key} is ${formatCidr(cidr)}, not IPv${family}`);
}

/** The parsed file; undefined when it does not exist. @throws RipstopError when it is malformed or unreadable. */
export async function readSubnetEnv(path: string): Promise<SubnetEnv | undefined> {
  const text = await readIfThere(path);
  return text === undefined ? undefined : parseSubnetEnv(text);
}
