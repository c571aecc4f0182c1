// SPDX-License-Identifier: Apache-2.0
import { type Program, programPath } from './go-programs.ts';
import { versions } from './versions.ts';

/** A program of k8s.io/kubernetes, built as by its own release process. */
function ofKubernetes(name: string, main = `cmd/${name}`): Program {
  const { kubernetes } = versions;
  const [major, minor] = kubernetes.split('.') as [string, string];
  return {
    name,
    module: 'k8s.io/kubernetes',
    version: `v${kubernetes}`,
    main: `k8s.io/kubernetes/${main}`,
    variables: {
      'k8s.io/component-base/version.gitVersion': `v${kubernetes}`,
      'k8s.io/component-base/version.gitMajor': major,
      'k8s.io/component-base/version.gitMinor': minor,
    },
    staging: `v0.${kubernetes.slice(2)}`,
  };
}

/** A reference plugin that is chained to others. */
function chainedPlugin(name: string): Program {
  const module = 'github.com/containernetworking/plugins';
  return { name, module, version: `v${versions.cniPlugins}`, main: `${module}/plugins/meta/${name}` };
}

/** The program that makes a runtime's calls, by the library that runtimes use. */
function cnitool(name: string, version: string): Program {
  const module = 'github.com/containernetworking/cni';
  return { name, module, version: `v${version}`, main: `${module}/cnitool` };
}

/** A program of Istio's CNI agent. */
function ofIstio(name: string): Program {
  const module = 'istio.io/istio';
  return { name, module, version: `v${versions.istio}`, main: `${module}/cni/cmd/${name}` };
}

/** A program of containerd 2. */
function ofContainerd(name: string): Program {
  const module = 'github.com/containerd/containerd/v2';
  return {
    name,
    module,
    version: `v${versions.containerd}`,
    main: `${module}/cmd/${name}`,
    tags: 'no_btrfs no_devmapper no_zfs no_aufs urfave_cli_no_docs',
    variables: { [`${module}/version.Version`]: `v${versions.containerd}` },
  };
}

/** All real programs that tests run beside ripstop. */
export const programs = {
  etcd: {
    name: 'etcd',
    module: 'go.etcd.io/etcd/server/v3',
    version: `v${versions.etcd}`,
    main: 'go.etcd.io/etcd/server/v3',
  },
  flannel: {
    name: 'flannel',
    module: 'github.com/containernetworking/plugins',
    version: `v${versions.flannelPlugin}`,
    main: 'github.com/containernetworking/plugins/plugins/meta/flannel',
  },
  flanneld: {
    name: 'flanneld',
    module: 'github.com/flannel-io/flannel',
    version: `v${versions.flannel}`,
    main: 'github.com/flannel-io/flannel',
    variables: { 'github.com/flannel-io/flannel/pkg/version.Version': `v${versions.flannel}` },
    // A backend for a cloud whose SDK some module proxies lack, and one that is partly in C.
    leftOut: [
      'github.com/flannel-io/flannel/pkg/backend/tencentvpc',
      'github.com/flannel-io/flannel/pkg/backend/udp',
    ],
  },
  'kube-apiserver': ofKubernetes('kube-apiserver'),
  'kube-controller-manager': ofKubernetes('kube-controller-manager'),
  'kube-scheduler': ofKubernetes('kube-scheduler'),
  kubelet: ofKubernetes('kubelet'),
  'kube-proxy': ofKubernetes('kube-proxy'),
  kubectl: ofKubernetes('kubectl'),
  agnhost: ofKubernetes('agnhost', 'test/images/agnhost'),
  'regression-issue-74839': ofKubernetes('regression-issue-74839', 'test/images/regression-issue-74839'),
  'e2e.test': { ...ofKubernetes('e2e.test', 'test/e2e'), test: true },
  ginkgo: {
    name: 'ginkgo',
    module: 'github.com/onsi/ginkgo/v2',
    version: `v${versions.ginkgo}`,
    main: 'github.com/onsi/ginkgo/v2/ginkgo',
  },
  coredns: {
    name: 'coredns',
    module: 'github.com/coredns/coredns',
    version: `v${versions.coredns}`,
    main: 'github.com/coredns/coredns',
  },
  containerd: ofContainerd('containerd'),
  'containerd-shim-runc-v2': ofContainerd('containerd-shim-runc-v2'),
  ctr: ofContainerd('ctr'),
  cnitool: cnitool('cnitool', versions.libcni),
  'old-cnitool': cnitool('old-cnitool', versions.oldLibcni),
  portmap: chainedPlugin('portmap'),
  bandwidth: chainedPlugin('bandwidth'),
  tuning: chainedPlugin('tuning'),
  firewall: chainedPlugin('firewall'),
  sbr: chainedPlugin('sbr'),
  'install-cni': ofIstio('install-cni'),
  'istio-cni': ofIstio('istio-cni'),
  helm: {
    name: 'helm',
    module: 'helm.sh/helm/v4',
    version: `v${versions.helm}`,
    main: 'helm.sh/helm/v4/cmd/helm',
  },
  'kube-router': {
    name: 'kube-router',
    module: 'github.com/cloudnativelabs/kube-router/v2',
    version: `v${versions.kubeRouter}`,
    main: 'github.com/cloudnativelabs/kube-router/v2/cmd/kube-router',
  },
  'kube-network-policies': {
    name: 'kube-network-policies',
    module: 'sigs.k8s.io/kube-network-policies',
    version: `v${versions.kubeNetworkPolicies}`,
    main: 'sigs.k8s.io/kube-network-policies/cmd',
  },
} as const satisfies Record<string, Program>;

export type ProgramName = keyof typeof programs;

/** The path of a program, once it has been built. */
export const peerPath = (name: ProgramName): string => programPath(programs[name]);

/** The programs of test:peers, those that build quickly first. */
export const peersOfLab = [
  programs.flannel,
  programs.cnitool,
  programs['old-cnitool'],
  programs.portmap,
  programs.bandwidth,
  programs.tuning,
  programs.firewall,
  programs.sbr,
  programs.etcd,
  programs.flanneld,
  programs.helm,
  programs['kube-apiserver'],
  programs['kube-proxy'],
  programs['kube-router'],
  programs['kube-network-policies'],
  programs['install-cni'],
  programs['istio-cni'],
];
