// SPDX-License-Identifier: Apache-2.0
import type { Spec } from './report.ts';
import type { Suite } from './suites.ts';

/** Explanations of known failures. */
const EXPLANATIONS: readonly { readonly suite: RegExp; readonly spec: RegExp; readonly text: string }[] = [
  {
    suite: /./,
    spec: /should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes/,
    text:
      'a node asks its own NodePort, the pod is on another node and must see that node’s address. kube-proxy masquerades what ' +
      'comes from the node itself (“masquerade LOCAL traffic”), and the address of the device that it leaves by is ' +
      'flannel.1’s',
  },
  {
    suite: /^e2e-policies-/,
    spec: /./,
    text:
      'the fast path does not know policies. The specs ask Services, which the client’s node carries on the kernel path, so ' +
      'egress is enforced; on the server’s node the tunnel’s packets take the fast path past the engine’s rules for ingress',
  },
];

export function explanationOf(suite: Suite, { name }: Spec): string | undefined {
  return EXPLANATIONS.find((known) => known.suite.test(suite.name) && known.spec.test(name))?.text;
}
