// SPDX-License-Identifier: Apache-2.0
/** Node objects as a large cluster has them, and how they change. Pure: the same number gives the same Node. */
import type { ObjectInput } from '../src/lab/apiserver/index.ts';
import { addressAt, parseCidr } from '../src/net/ip.ts';

/** Room for the /24s of all Nodes; the lab's own 10.42.0.0/16 is in it. */
export const CLUSTER_NETWORK = '10.0.0.0/8';
const POD_CIDRS = parseCidr('10.64.0.0/10');
/** The part of the lab's underlay, 172.31.0.0/16, that no node of a lab has. */
const ADDRESSES = parseCidr('172.31.64.0/18');

/** What ripstop is to make of a Node. */
export interface Lease {
  readonly podCidr: string;
  readonly publicIp: string;
  readonly vtepMac: string;
}

/** @param generation a Node gets another MAC with each, as a machine that was set up anew. */
export function leaseOf(i: number, generation = 0): Lease {
  const bytes = [generation, i >> 16, i >> 8, i].map((byte) => (byte & 255).toString(16).padStart(2, '0'));
  return {
    podCidr: `${addressAt(POD_CIDRS, i * 256)}/24`,
    publicIp: addressAt(ADDRESSES, i),
    vtepMac: `0a:64:${bytes.join(':')}`,
  };
}

export function nodeName(i: number): string {
  return `ip-10-${100 + (i >> 16)}-${(i >> 8) & 255}-${i & 255}.eu-central-1.compute.internal`;
}

/** The annotations of a lease as flannel writes them. */
export function leaseAnnotations({ publicIp, vtepMac }: Lease): Record<string, string> {
  const prefix = 'flannel.alpha.coreos.com';
  return {
    [`${prefix}/backend-data`]: JSON.stringify({ VNI: 1, VtepMAC: vtepMac }),
    [`${prefix}/backend-type`]: 'vxlan',
    [`${prefix}/kube-subnet-manager`]: 'true',
    [`${prefix}/public-ip`]: publicIp,
  };
}

/**
 * A Node of 11 to 28 KB: what kubelet, a cloud's controller manager and flannel write, with the names of the 20 to 50
 * largest images and the ownership of every field.
 */
export function realisticNode(i: number): ObjectInput {
  const name = nodeName(i);
  const lease = leaseOf(i);
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name,
      labels: labelsOf(name, i),
      annotations: {
        ...leaseAnnotations(lease),
        'alpha.kubernetes.io/provided-node-ip': lease.publicIp,
        'csi.volume.kubernetes.io/nodeid': JSON.stringify({ 'ebs.csi.aws.com': digest(i).slice(0, 19) }),
        'node.alpha.kubernetes.io/ttl': '0',
        'volumes.kubernetes.io/controller-managed-attach-detach': 'true',
      },
      finalizers: ['node.kubernetes.io/load-balancer-cleanup'],
      managedFields: managedFields(name),
    },
    spec: {
      podCIDR: lease.podCidr,
      podCIDRs: [lease.podCidr],
      providerID: `aws:///eu-central-1${'abc'[i % 3]}/i-${digest(i).slice(0, 17)}`,
    },
    status: {
      capacity: resources('16', '65022244Ki'),
      allocatable: resources('15890m', '63974756Ki'),
      conditions: conditionsAt(new Date(Date.UTC(2026, 0, 1, 0, 0, i % 60))),
      addresses: [
        { type: 'InternalIP', address: lease.publicIp },
        { type: 'InternalDNS', address: name },
        { type: 'Hostname', address: name },
      ],
      daemonEndpoints: { kubeletEndpoint: { Port: 10250 } },
      nodeInfo: {
        architecture: 'amd64',
        bootID: uuid(i + 1),
        containerRuntimeVersion: 'containerd://2.1.4',
        kernelVersion: '6.12.48+deb13-cloud-amd64',
        kubeProxyVersion: '',
        kubeletVersion: 'v1.35.2',
        machineID: digest(i + 2).slice(0, 32),
        operatingSystem: 'linux',
        osImage: 'Debian GNU/Linux 13 (trixie)',
        systemUUID: uuid(i + 3),
      },
      images: Array.from({ length: 20 + ((i * 7) % 31) }, (_, n) => image(i, n)),
      volumesAttached: Array.from({ length: i % 5 }, (_, n) => volume(i + n)),
      volumesInUse: Array.from({ length: i % 5 }, (_, n) => volume(i + n).name),
    },
  };
}

/** What kubelet writes every five minutes on a Node where nothing has happened. */
export function conditionsAt(now: Date): object[] {
  const beat = now.toISOString().replace(/\.\d+Z$/, 'Z');
  const condition = (type: string, status: string, reason: string, message: string): object => ({
    type,
    status,
    lastHeartbeatTime: beat,
    lastTransitionTime: '2026-01-01T00:00:00Z',
    reason,
    message,
  });
  return [
    condition('NetworkUnavailable', 'False', 'FlannelIsUp', 'Flannel is running on this node'),
    condition(
      'MemoryPressure',
      'False',
      'KubeletHasSufficientMemory',
      'kubelet has sufficient memory available',
    ),
    condition('DiskPressure', 'False', 'KubeletHasNoDiskPressure', 'kubelet has no disk pressure'),
    condition('PIDPressure', 'False', 'KubeletHasSufficientPID', 'kubelet has sufficient PID available'),
    condition('Ready', 'True', 'KubeletReady', 'kubelet is posting ready status'),
  ];
}

function labelsOf(name: string, i: number): Record<string, string> {
  const zone = `eu-central-1${'abc'[i % 3]}`;
  return {
    'beta.kubernetes.io/arch': 'amd64',
    'beta.kubernetes.io/instance-type': 'm6i.4xlarge',
    'beta.kubernetes.io/os': 'linux',
    'failure-domain.beta.kubernetes.io/region': 'eu-central-1',
    'failure-domain.beta.kubernetes.io/zone': zone,
    'kubernetes.io/arch': 'amd64',
    'kubernetes.io/hostname': name,
    'kubernetes.io/os': 'linux',
    'node.kubernetes.io/instance-type': 'm6i.4xlarge',
    'topology.ebs.csi.aws.com/zone': zone,
    'topology.kubernetes.io/region': 'eu-central-1',
    'topology.kubernetes.io/zone': zone,
  };
}

function resources(cpu: string, memory: string): Record<string, string> {
  return {
    cpu,
    'ephemeral-storage': '209702892Ki',
    'hugepages-1Gi': '0',
    'hugepages-2Mi': '0',
    memory,
    pods: '110',
  };
}

/** Each image is known by its digest and by its tag. */
function image(i: number, n: number): object {
  const repository = `registry.example.com/platform/team-${(i + n) % 40}/service-${(i * 13 + n * 7) % 400}`;
  return {
    names: [
      `${repository}@sha256:${digest(i * 64 + n)}${digest(i + n)}`,
      `${repository}:release-2026.${n % 12}.${i % 28}-${digest(n).slice(0, 8)}`,
    ],
    sizeBytes: 20_000_000 + ((i * 7919 + n * 104_729) % 900_000_000),
  };
}

function volume(i: number): { name: string; devicePath: string } {
  return { name: `kubernetes.io/csi/ebs.csi.aws.com^vol-${digest(i).slice(0, 17)}`, devicePath: '' };
}

/** Who owns which field, as server-side apply records it: nested objects of `f:` keys. */
function managedFields(name: string): object[] {
  const keys = (...names: string[]): object => Object.fromEntries(names.map((key) => [`f:${key}`, {}]));
  const condition = (type: string): [string, object] => [
    `k:{"type":"${type}"}`,
    { '.': {}, ...keys('lastHeartbeatTime', 'lastTransitionTime', 'message', 'reason', 'status', 'type') },
  ];
  const entry = (manager: string, fieldsV1: object, subresource?: string): object => ({
    manager,
    operation: 'Update',
    apiVersion: 'v1',
    time: '2026-01-01T00:00:00Z',
    fieldsType: 'FieldsV1',
    fieldsV1,
    ...(subresource && { subresource }),
  });
  return [
    entry('kubelet', {
      'f:metadata': {
        'f:annotations': { '.': {}, ...keys('volumes.kubernetes.io/controller-managed-attach-detach') },
        'f:labels': { '.': {}, ...keys(...Object.keys(labelsOf(name, 0))) },
      },
      'f:spec': keys('providerID'),
    }),
    entry('kube-controller-manager', {
      'f:metadata': { 'f:annotations': keys('node.alpha.kubernetes.io/ttl') },
      'f:spec': { ...keys('podCIDR'), 'f:podCIDRs': { '.': {}, 'v:"10.64.0.0/24"': {} } },
    }),
    entry(
      'flanneld',
      {
        'f:metadata': { 'f:annotations': keys(...Object.keys(leaseAnnotations(leaseOf(0)))) },
        'f:status': { 'f:conditions': Object.fromEntries([condition('NetworkUnavailable')]) },
      },
      'status',
    ),
    entry(
      'kubelet',
      {
        'f:metadata': { 'f:annotations': keys('csi.volume.kubernetes.io/nodeid') },
        'f:status': {
          'f:addresses': keys('InternalIP', 'InternalDNS', 'Hostname'),
          'f:allocatable': keys(...Object.keys(resources('', ''))),
          'f:capacity': keys(...Object.keys(resources('', ''))),
          'f:conditions': Object.fromEntries(
            ['DiskPressure', 'MemoryPressure', 'PIDPressure', 'Ready'].map(condition),
          ),
          'f:images': {},
          'f:nodeInfo': keys(
            'bootID',
            'containerRuntimeVersion',
            'kernelVersion',
            'kubeletVersion',
            'machineID',
          ),
          'f:volumesAttached': {},
          'f:volumesInUse': {},
        },
      },
      'status',
    ),
  ];
}

/** 32 characters that look like chance and are always the same (Knuth's multiplicative hash, repeated). */
function digest(i: number): string {
  let state = (i + 1) >>> 0;
  return Array.from({ length: 4 }, () => {
    state = (Math.imul(state, 2_654_435_761) + 0x9e37_79b9) >>> 0;
    return state.toString(16).padStart(8, '0');
  }).join('');
}

function uuid(i: number): string {
  return digest(i).replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
