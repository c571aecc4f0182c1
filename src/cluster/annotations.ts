// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';

export const DEFAULT_ANNOTATION_PREFIX = 'flannel.alpha.coreos.com';

/** The annotation keys of one address family's part of a lease. */
export interface FamilyKeys {
  readonly backendData: string;
  readonly publicIp: string;
  /** The user's input: acts as `--public-ip`, must be local to the node. */
  readonly nodePublicIp: string;
  /** The user's input: the address to publish in place of the real one, for a node behind NAT. */
  readonly publicIpOverwrite: string;
}

/** The keys by which nodes tell each other how to be reached: flannel's, and ripstop's own. */
export interface AnnotationKeys {
  readonly managed: string;
  readonly backendType: string;
  readonly v4: FamilyKeys;
  readonly v6: FamilyKeys;
  /** ripstop's own: `"true"` on a node that accepts VXLAN over IPv6 with an outer UDP checksum of zero. */
  readonly zeroChecksum: string;
  /**
   * ripstop's own: the Node's podCIDRs as in its spec, joined with commas, for those who watch metadata only. Whoever
   * may patch nodes/status can change it, as they can public-ip and VtepMAC; a known spec takes precedence.
   */
  readonly podCidrs: string;
  /** Every key that a lease consists of or is steered by. */
  readonly all: readonly string[];
}

/**
 * The annotation keys under a prefix, joined as flannel's `--kube-annotation-prefix` is: `host.name` gives
 * `host.name/public-ip`, `host.name/team` gives `host.name/team-public-ip`. It does not change ripstop's own keys.
 * @throws RipstopError when the prefix cannot begin an annotation's key.
 */
export function annotationKeys(prefix: string = DEFAULT_ANNOTATION_PREFIX): AnnotationKeys {
  if (!/^([a-z0-9_-]+\.)+[a-z0-9_-]+(\/([a-z0-9_-]+)?)?$/.test(prefix)) {
    throw new RipstopError(
      `annotation prefix "${prefix}" is not of the form host.name or host.name/word; ` +
        `the default is ${DEFAULT_ANNOTATION_PREFIX}`,
      { exitCode: 2 },
    );
  }
  const withSlash = prefix.includes('/') ? prefix : `${prefix}/`;
  const start = /[/-]$/.test(withSlash) ? withSlash : `${withSlash}-`;
  const keys = {
    managed: `${start}kube-subnet-manager`,
    backendType: `${start}backend-type`,
    v4: {
      backendData: `${start}backend-data`,
      publicIp: `${start}public-ip`,
      nodePublicIp: `${start}node-public-ip`,
      publicIpOverwrite: `${start}public-ip-overwrite`,
    },
    v6: {
      backendData: `${start}backend-v6-data`,
      publicIp: `${start}public-ipv6`,
      nodePublicIp: `${start}node-public-ipv6`,
      publicIpOverwrite: `${start}public-ipv6-overwrite`,
    },
    zeroChecksum: 'ripstop.io/udp6-zero-checksum',
    podCidrs: 'ripstop.io/pod-cidrs',
  };
  const { managed, backendType, v4, v6, zeroChecksum, podCidrs } = keys;
  const all = [managed, backendType, ...Object.values(v4), ...Object.values(v6), zeroChecksum, podCidrs];
  return { ...keys, all };
}

/** The annotations that belong to a lease. */
export function leaseAnnotations(
  annotations: Readonly<Record<string, string>> | null | undefined,
  keys: AnnotationKeys,
): Record<string, string> {
  const result: Record<string, string> = {};
  for (const key of keys.all) {
    const value = annotations?.[key];
    if (value !== undefined) result[key] = value;
  }
  return result;
}
