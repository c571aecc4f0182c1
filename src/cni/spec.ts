// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';

/** Constants and types of the CNI specification: versions, error codes, names, the result. */

/** The supported versions of the specification, oldest first. */
export const supportedVersions = ['0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const;
export type CniVersion = (typeof supportedVersions)[number];

/** Whether `version` is at least `since`. */
export function versionAtLeast(version: CniVersion, since: CniVersion): boolean {
  return supportedVersions.indexOf(version) >= supportedVersions.indexOf(since);
}

/** The specification's "Well-known error codes"; codes from 100 on are our own. */
export const CniCode = {
  incompatibleVersion: 1,
  unsupportedField: 2,
  unknownContainer: 3,
  environment: 4,
  io: 5,
  decode: 6,
  config: 7,
  tryAgain: 11,
  notAvailable: 50,
  /** As 50, and pods that are there may have lost a part of their network. */
  limited: 51,
  /** An operation on the node failed; the message has the reason. */
  failed: 100,
  /** The attachment, or an interface of that name in the pod, exists already. */
  exists: 101,
  /** There is no address for the pod, e.g. because all are taken. */
  ipam: 102,
  /** CHECK found something that is missing or differs. */
  drifted: 103,
} as const;
export type CniCode = (typeof CniCode)[keyof typeof CniCode];

/** An error with the code for the container runtime. */
export class CniError extends RipstopError {
  readonly code: CniCode;

  constructor(code: CniCode, message: string, options: { cause?: unknown; details?: string } = {}) {
    super(message, options);
    this.code = code;
  }
}

/** A container ID or network name: the specification's characters, short enough to be part of a file name. */
export const namePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/;

/**
 * An interface name: up to 15 common characters. The kernel allows more (anything but `/`, `:` and white space), but
 * names become part of file names and of log lines.
 */
export const ifnamePattern = /^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$/;

/** An absolute path, of what can be shown: runtimes name namespaces after sandboxes, whose names may be any. */
export const netnsPattern = /^\/[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\uFFFD]{1,1024}$/u;

/** The network's DNS settings, copied from the configuration to the result. */
export interface CniDns {
  nameservers?: string[] | undefined;
  domain?: string | undefined;
  search?: string[] | undefined;
  options?: string[] | undefined;
}

/** The result of ADD. Only versions before 1.0.0 have `version` in `ips`; only 1.1.0 has `mtu` in `routes`. */
export interface CniResult {
  cniVersion: CniVersion;
  interfaces: { name: string; mac: string; sandbox: string }[];
  ips: { version?: '4' | '6'; interface: number; address: string; gateway: string }[];
  routes: { dst: string; gw: string; mtu?: number }[];
  dns: CniDns;
}
