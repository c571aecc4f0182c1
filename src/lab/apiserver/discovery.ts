// SPDX-License-Identifier: Apache-2.0
import { groupVersion, type Resource, resources } from './resources.ts';

const all: readonly Resource[] = Object.values(resources);
const verbs = ['create', 'delete', 'get', 'list', 'patch', 'update', 'watch'];

const version = {
  major: '1',
  minor: '34',
  gitVersion: 'v1.34.0+ripstop.lab',
  gitCommit: '',
  gitTreeState: 'clean',
  buildDate: '1970-01-01T00:00:00Z',
  goVersion: '',
  compiler: '',
  platform: `linux/${process.arch}`,
};

/** The answer to a path that is about the server itself, or undefined. This is all that kubectl needs. */
export function discovery(path: string): object | undefined {
  if (path === '/version') return version;
  if (path === '/api') {
    const serverAddressByClientCIDRs = [{ clientCIDR: '0.0.0.0/0', serverAddress: '' }];
    return { kind: 'APIVersions', versions: ['v1'], serverAddressByClientCIDRs };
  }
  if (path === '/apis') {
    const groups = [...new Set(all.map(({ group }) => group))].filter((group) => group !== '').map(apiGroup);
    return { kind: 'APIGroupList', apiVersion: 'v1', groups };
  }
  const named = /^\/apis\/([^/]+)$/.exec(path)?.[1];
  if (named !== undefined && all.some(({ group }) => group === named)) {
    return { kind: 'APIGroup', apiVersion: 'v1', ...apiGroup(named) };
  }
  const requested = /^\/(?:api|apis)\/(.+)$/.exec(path)?.[1];
  const served = all.filter((resource) => groupVersion(resource) === requested);
  return served.length === 0
    ? undefined
    : {
        kind: 'APIResourceList',
        apiVersion: 'v1',
        groupVersion: requested,
        resources: served.flatMap(apiResources),
      };
}

function apiGroup(name: string): object {
  const versions = all
    .filter(({ group }) => group === name)
    .map((resource) => ({ groupVersion: groupVersion(resource), version: resource.version }));
  return { name, versions: [versions[0]], preferredVersion: versions[0] };
}

function apiResources(resource: Resource): object[] {
  const { plural, singular, namespaced, kind, shortNames, status } = resource;
  const object = { name: plural, singularName: singular, namespaced, kind, verbs, shortNames };
  const statusPart = { name: `${plural}/status`, singularName: '', namespaced, kind };
  return status ? [object, { ...statusPart, verbs: ['get', 'patch', 'update'] }] : [object];
}
