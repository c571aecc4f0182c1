// SPDX-License-Identifier: Apache-2.0
import { validate as validateNamespace } from 'kubernetes-models/_schemas/IoK8sApiCoreV1Namespace';
import { validate as validatePod } from 'kubernetes-models/_schemas/IoK8sApiCoreV1Pod';
import { validate as validateService } from 'kubernetes-models/_schemas/IoK8sApiCoreV1Service';
import { describe, expect, it } from 'vitest';
import { namespaceNamed, podsOn, serviceTo } from './cluster.ts';

interface Pod {
  metadata: { name: string; labels: Record<string, string> };
  spec: { hostNetwork: boolean; containers: { securityContext: { capabilities: object } }[] };
}

describe('what a check creates in a cluster', () => {
  const pods = podsOn('worker-1', 3, 'ripstop:1') as Pod[];

  it.each([
    ['namespace', validateNamespace, namespaceNamed('ripstop-check')],
    ['pod', validatePod, pods[0]],
    ['pod on the host network', validatePod, pods[2]],
    ['Service', validateService, serviceTo(3)],
  ])('is a valid %s', (_, validate: { (object: unknown): boolean; errors?: unknown }, object) => {
    expect([validate(object), validate.errors]).toEqual([true, null]);
  });

  it('has one pod behind the Service, and no rights but to send ICMP', () => {
    const { spec } = serviceTo(3) as { spec: { selector: Record<string, string> } };
    const selected = pods.filter(({ metadata }) =>
      Object.entries(spec.selector).every(([key, value]) => metadata.labels[key] === value),
    );
    expect(selected.map(({ metadata }) => metadata.name)).toEqual(['worker-1-pod1']);
    expect(
      pods.map((pod) => [pod.spec.hostNetwork, pod.spec.containers[0]!.securityContext.capabilities]),
    ).toEqual([false, false, true].map((host) => [host, { drop: ['ALL'], add: ['NET_RAW'] }]));
  });
});
