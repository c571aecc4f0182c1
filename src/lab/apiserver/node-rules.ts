// SPDX-License-Identifier: Apache-2.0
import { isIP } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import type { Admit, ObjectInput } from './objects.ts';
import type { StatusCause } from './status.ts';

function podCidrs(node: ObjectInput): string[] {
  const { podCIDR, podCIDRs } = node.spec ?? {};
  if (Array.isArray(podCIDRs) && podCIDRs.length > 0) return podCIDRs.map(String);
  return typeof podCIDR === 'string' && podCIDR !== '' ? [podCIDR] : [];
}

/**
 * 4 or 6 for an `address/length` of that family, else 0. Host bits may be set, which Kubernetes allows for old objects.
 */
function cidrFamily(text: string): number {
  const match = /^([^/]+)\/(\d{1,3})$/.exec(text);
  const family = match ? isIP(match[1]!) : 0;
  return Number(match?.[2]) <= (family === 4 ? 32 : 128) ? family : 0;
}

/**
 * The defaults and checks of Kubernetes for a Node: podCIDR is podCIDRs[0], and each sets the other; there is at most
 * one CIDR for each family; podCIDRs and providerID can be set once, and not changed.
 */
export const admitNode: Admit = (current, proposed) => {
  const cidrs = podCidrs(proposed);
  const object =
    cidrs.length === 0
      ? proposed
      : { ...proposed, spec: { podCIDR: cidrs[0]!, ...proposed.spec, podCIDRs: cidrs } };

  const causes: StatusCause[] = [];
  const families = cidrs.map(cidrFamily);
  for (const [index, family] of families.entries()) {
    const field = `spec.podCIDRs[${index}]`;
    if (family === 0) {
      causes.push({ field, reason: 'FieldValueInvalid', message: `"${cidrs[index]}" is not a CIDR block` });
    } else if (families.indexOf(family) !== index) {
      const message = `${JSON.stringify(cidrs)}: may have one CIDR block for each family`;
      causes.push({ field: 'spec.podCIDRs', reason: 'FieldValueInvalid', message });
    }
  }
  const forbid = (field: string): void => {
    const message = `Forbidden: node updates may not change ${field} except from "" to valid`;
    causes.push({ field: `spec.${field}`, reason: 'FieldValueForbidden', message });
  };
  const mismatch = cidrs.length > 0 && object.spec?.['podCIDR'] !== cidrs[0];
  const before = current ? podCidrs(current) : [];
  if (before.length > 0 && (mismatch || !isDeepStrictEqual(before, cidrs))) forbid('podCIDRs');
  else if (mismatch) {
    const message = 'differs from spec.podCIDRs[0]';
    causes.push({ field: 'spec.podCIDR', reason: 'FieldValueInvalid', message });
  }
  const provider = current?.spec?.['providerID'];
  if (provider && provider !== proposed.spec?.['providerID']) forbid('providerID');
  return { object, causes };
};
