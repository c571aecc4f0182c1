// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';

/** What the CNI specification fixes and the rest of this folder speaks: versions, error codes, names, the result's shape. */

/** The versions of the specification that are spoken here, oldest first. */
export const supportedVersions = ['0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const;
export type CniVersion = (typeof supportedVersions)[number];

/** Whether `version` is at least `since`. */
export function versionAtLeast(version: CniVersion, since: CniVersion): boolean {
  return supportedVersions.indexOf(version) >= supportedVersions.indexOf(since);
}

/** CNI specification, "Well-known error codes"; from 100 on the codes are ours. */
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
  /** Something on the node refused: the reason is in the message. */
  failed: 100,
  /** The attachment, or an interface of that name in the pod, is there already. */
  exists: 101,
  /** There is no address for the pod, e.g. because all are taken. */
  ipam: 102,
  /** CHECK found something missing or different. */
  drifted: 103,
} as const;
export type CniCode = (typeof CniCode)[keyof typeof CniCode];

/** An error with the code that the container runtime gets to see. */
export class CniError extends RipstopError {
  readonly code: CniCode;

  constructor(code: CniCode, message: string, options: { cause?: unknown; details?: string } = {}) {
    super(message, options);
    this.code = code;
  }
}

/** A container ID or network name: the specification's alphabet, short enough to be part of a file's name. */
export const namePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/;

/**
 * An interface name: up to 15 of the characters that people use. Narrower than the kernel's rule (anything but `/`, `:`
 * and white space), because names become part of files' names and of lines that people read.
 */
export const ifnamePattern = /^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$/;

/** An absolute path of the characters that people use. */
export const netnsPattern = /^\/[A-Za-z0-9_./:@+-]{1,1024}$/;

/** The network's DNS settings, handed through from the configuration to the result. */
export interface CniDns {
  nameservers?: string[] | undefined;
  domain?: string | undefined;
  search?: string[] | undefined;
  options?: string[] | undefined;
}

/** The result of ADD. `version` inside `ips` belongs to the versions before 1.0.0, `mtu` inside `routes` to 1.1.0. */
export interface CniResult {
  cniVersion: CniVersion;
  interfaces: { name: string; mac: string; sandbox: string }[];
  ips: { version?: '4' | '6'; interface: number; address: string; gateway: string }[];
  routes: { dst: string; gw: string; mtu?: number }[];
  dns: CniDns;
}
