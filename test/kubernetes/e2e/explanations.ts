// SPDX-License-Identifier: Apache-2.0
import type { Spec } from './report.ts';

/** Explanations of known failures. */
const EXPLANATIONS: readonly { readonly spec: RegExp; readonly text: string }[] = [
  {
    spec: /should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes/,
    text:
      'a node asks its own NodePort, the pod is on another node and must see that node’s address. kube-proxy masquerades what ' +
      'comes from the node itself (“masquerade LOCAL traffic”), and the address of the device that it leaves by is ' +
      'flannel.1’s',
  },
];

export function explanationOf({ name }: Spec): string | undefined {
  return EXPLANATIONS.find(({ spec }) => spec.test(name))?.text;
}
