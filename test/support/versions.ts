// SPDX-License-Identifier: Apache-2.0
/**
 * The versions of all the real programs that tests put beside ripstop (test:peers, test:kubernetes), pinned here and
 * nowhere else. What a program of Kubernetes' test suite expects (images, etcd) goes with Kubernetes' version.
 */
export const versions = {
  kubernetes: '1.36.3',
  // The release that this kube-apiserver's go.mod has the client of. (With Debian 12's 3.4 watches with
  // sendInitialEvents fail: it cannot be asked how far it is.)
  etcd: '3.6.8',
  coredns: '1.14.7',
  // Beside Debian's containerd 1.6, on one of the nodes.
  containerd: '2.2.9',
  flannel: '0.28.4',
  // flannel's CNI plugin as it last was among the reference plugins; it moved into a repository of its own afterwards.
  cniPlugins: '0.9.1',
  // Runs Kubernetes' tests side by side; the version that its go.mod has.
  ginkgo: '2.28.1',
  // k3s' engine of NetworkPolicies, and kube-network-policies, which flannel's chart can bring.
  kubeRouter: '2.1.0',
  kubeNetworkPolicies: '0.8.0',
} as const;

/** Images that Kubernetes' own tests of that version start (test/utils/image/manifest.go), built here from its sources. */
export const images = {
  agnhost: 'registry.k8s.io/e2e-test-images/agnhost:2.63.0',
  busybox: 'registry.k8s.io/e2e-test-images/busybox:1.37.0-1',
  distrolessIptables: 'registry.k8s.io/build-image/distroless-iptables:v0.9.6',
  dnsTesting: 'registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0',
  pause: 'registry.k8s.io/pause:3.10.2',
  regression: 'registry.k8s.io/e2e-test-images/regression-issue-74839:1.4',
} as const;
