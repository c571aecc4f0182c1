// SPDX-License-Identifier: Apache-2.0
import { admitNode } from './node-rules.ts';
import type { Admit, KubeObject } from './objects.ts';

/** One kind of object that the server keeps. */
export interface Resource {
  /** API group, `''` for core. */
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  readonly singular: string;
  readonly kind: string;
  readonly namespaced: boolean;
  readonly shortNames: readonly string[];
  /** Whether `…/status` is written apart from the rest. */
  readonly status: boolean;
  /** Whether metadata.generation counts the changes of the spec. */
  readonly generation: boolean;
  /** Fields a fieldSelector may name, besides metadata.name and metadata.namespace. */
  readonly fields: readonly string[];
  /** Defaults and checks of this kind alone. */
  readonly admit: Admit;
}

const asIs: Admit = (_current, proposed) => ({ object: proposed, causes: [] });

function core(
  plural: string,
  kind: string,
  shortName: string,
  more: Partial<Omit<Resource, 'plural' | 'kind'>> = {},
): Resource {
  return {
    group: '',
    version: 'v1',
    plural,
    singular: kind.toLowerCase(),
    kind,
    shortNames: [shortName],
    namespaced: true,
    status: true,
    generation: false,
    fields: [],
    admit: asIs,
    ...more,
  };
}

/** All kinds that the server serves. */
export const resources = {
  nodes: core('nodes', 'Node', 'no', {
    namespaced: false,
    fields: ['spec.unschedulable'],
    admit: admitNode,
  }),
  namespaces: core('namespaces', 'Namespace', 'ns', { namespaced: false, fields: ['status.phase'] }),
  pods: core('pods', 'Pod', 'po', { generation: true, fields: ['spec.nodeName', 'status.phase'] }),
  services: core('services', 'Service', 'svc', { fields: ['spec.clusterIP', 'spec.type'] }),
  events: core('events', 'Event', 'ev', {
    status: false,
    fields: ['involvedObject.kind', 'involvedObject.name', 'reason', 'type'],
  }),
  endpointslices: core('endpointslices', 'EndpointSlice', 'eps', {
    group: 'discovery.k8s.io',
    status: false,
    generation: true,
  }),
  networkpolicies: core('networkpolicies', 'NetworkPolicy', 'netpol', {
    group: 'networking.k8s.io',
    status: false,
    generation: true,
  }),
} as const satisfies Record<string, Resource>;

/** The plural name of a kind the server serves. */
export type ResourceName = keyof typeof resources;

export function groupVersion(resource: Resource): string {
  return resource.group === '' ? resource.version : `${resource.group}/${resource.version}`;
}

/** The key of an object among those of its kind. Keys sort like etcd's. */
export function objectKey(resource: Resource, namespace: string | undefined, name: string): string {
  return resource.namespaced ? `${namespace ?? ''}/${name}` : name;
}

export function keyOf(resource: Resource, object: KubeObject): string {
  return objectKey(resource, object.metadata.namespace, object.metadata.name);
}
