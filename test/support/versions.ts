// SPDX-License-Identifier: Apache-2.0
/**
 * The versions of all real programs that tests run beside ripstop (test:peers, test:kubernetes, test:tools). They are pinned only
 * here. Images and etcd follow the version of Kubernetes, as its test suite expects.
 */
export const versions = {
  kubernetes: '1.36.3',
  // The release of the client in this kube-apiserver's go.mod. (With Debian 12's etcd 3.4, watches with
  // sendInitialEvents fail, since it cannot report its progress.)
  etcd: '3.6.8',
  coredns: '1.14.7',
  // On one of the nodes; the others have Debian's containerd 1.6.
  containerd: '2.2.9',
  flannel: '0.28.4',
  // flannel's CNI plugin, from the reference plugins before it moved to its own repository.
  flannelPlugin: '0.9.1',
  // The reference plugins, and the library that runtimes call plugins with: containerd 2's, and containerd 1.7's.
  cniPlugins: '1.9.1',
  libcni: '1.3.0',
  oldLibcni: '1.1.2',
  // Istio tags no versions of its module: this is 1.31.
  istio: '0.0.0-20260827124520-eed52ebb66ad',
  // Runs Kubernetes' tests in parallel; the version in Kubernetes' go.mod.
  ginkgo: '2.28.1',
  // The NetworkPolicy engine of k3s, and the one of flannel's chart, kube-network-policies.
  kubeRouter: '2.1.0',
  kubeNetworkPolicies: '0.8.0',
  // Renders the chart (test:tools).
  helm: '4.3.1',
} as const;

/** Images that Kubernetes' own tests use (test/utils/image/manifest.go), built here from its sources. */
export const images = {
  agnhost: 'registry.k8s.io/e2e-test-images/agnhost:2.63.0',
  busybox: 'registry.k8s.io/e2e-test-images/busybox:1.37.0-1',
  distrolessIptables: 'registry.k8s.io/build-image/distroless-iptables:v0.9.6',
  dnsTesting: 'registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0',
  pause: 'registry.k8s.io/pause:3.10.2',
  regression: 'registry.k8s.io/e2e-test-images/regression-issue-74839:1.4',
} as const;
