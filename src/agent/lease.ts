// SPDX-License-Identifier: Apache-2.0
import type { OwnLease } from '../cluster/index.ts';
import { acceptsZeroChecksum, vtepDeviceName } from '../host/vtep-device.ts';
import { perFamily, familyKey } from '../net/ip.ts';
import type { AgentOptions } from './options.ts';
import type { KeptPlan } from './plan/index.ts';
import type { NodeSnapshot } from './snapshot.ts';

/** The lease to publish: what other nodes need to know of this one. */
export function leaseOf(
  { plan, node }: { readonly plan: KeptPlan; readonly node: NodeSnapshot },
  { setNodeNetworkUnavailable }: AgentOptions,
): OwnLease {
  const { settings } = plan.outline;
  const { tunnel } = settings;
  const parts = perFamily((family) => {
    const part = settings[familyKey(family)];
    if (!part) return undefined;
    const zeroChecksum =
      tunnel !== undefined && acceptsZeroChecksum(node.links.value.get(vtepDeviceName(6, tunnel.vni)));
    return {
      publicIp: part.vtepIp,
      ...(tunnel && { vtepMac: part.vtepMac }),
      ...(family === 6 && { zeroChecksum }),
    };
  });
  return { ...parts, flannelIsUp: setNodeNetworkUnavailable };
}
