// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { buildOwnProgram } from '../support/go-programs.ts';
import { programs } from '../support/peer-programs.ts';

/** The programs of a cluster, those that build quickly first. */
export const programsOfCluster = [
  programs.etcd,
  programs['kube-apiserver'],
  programs['kube-controller-manager'],
  programs['kube-scheduler'],
  programs.kubelet,
  programs['kube-proxy'],
  programs.kubectl,
  programs.coredns,
  programs.flannel,
  programs.portmap,
  programs.flanneld,
  programs.containerd,
  programs['containerd-shim-runc-v2'],
  programs.ctr,
];

/** The programs that Kubernetes' own tests need in addition. */
export const programsOfE2e = [
  programs.agnhost,
  programs['regression-issue-74839'],
  programs['e2e.test'],
  programs.ginkgo,
  programs['kube-router'],
  programs['kube-network-policies'],
];

/** Programs of Debian that a cluster needs. */
export const debianOfCluster = ['containerd', 'containerd-shim-runc-v2', 'ctr', 'runc', 'busybox'] as const;

/** Build `probe`, which counts lost messages, from its source beside this file. @returns its path. */
export function buildProbe(): Promise<string> {
  return buildOwnProgram('probe', join(import.meta.dirname, 'probe'));
}
