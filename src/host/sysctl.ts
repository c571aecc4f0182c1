// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from 'node:fs';
import { inNetns } from '#netlink';
import { errorText, RipstopError } from '../errors.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import type { Family } from '../net/ip.ts';
import type { RunOptions } from './run.ts';

/** A kernel setting and the value that it must have. */
export interface Sysctl {
  /** Path below /proc/sys, e.g. `net/ipv4/ip_forward` (slashes, since device names may hold dots). */
  path: string;
  value: string;
  /** Set it only if this is its present value. */
  onlyWhen?: string;
  /** Why ripstop needs it, for the log. */
  why: string;
}

export interface SysctlReport {
  changed: { path: string; before: string; after: string; why: string }[];
  /** Settings that the kernel does not have at present, since a module is not loaded or IPv6 is off. */
  missing: Sysctl[];
}

/** The one setting that flows on the fast path need. */
export const CONNTRACK_LIBERAL: Sysctl = {
  path: 'net/netfilter/nf_conntrack_tcp_be_liberal',
  value: '1',
  why: 'conntrack sees a flow that leaves the fast path only from then on, and must not call it INVALID',
};

/**
 * The settings that the kernel path needs on any node.
 * @param uplinks the uplink, and the devices on which the node accepts router advertisements: it keeps accepting them.
 */
export function nodeSysctls(families: readonly Family[], uplinks: readonly string[]): Sysctl[] {
  const settings: Sysctl[] = [CONNTRACK_LIBERAL];
  if (families.includes(4)) {
    settings.push({ path: 'net/ipv4/ip_forward', value: '1', why: 'the node routes for its pods' });
  }
  if (families.includes(6)) {
    // To be set before forwarding: else the kernel drops default routes from advertisements when forwarding is switched
    // on.
    for (const device of new Set(uplinks)) {
      settings.push({
        path: `net/ipv6/conf/${device}/accept_ra`,
        value: '2',
        onlyWhen: '1',
        why: 'by default a router ignores advertisements, so the node would lose its default route',
      });
    }
    settings.push({
      path: 'net/ipv6/conf/all/forwarding',
      value: '1',
      why: 'the node routes for its pods',
    });
  }
  return settings;
}

/** The settings that the VTEP device of a family needs. */
export function vtepSysctls(device: string, family: Family): Sysctl[] {
  if (family === 6) {
    return [
      {
        path: `net/ipv6/conf/${device}/disable_ipv6`,
        value: '0',
        why: 'the node may have IPv6 off for new devices',
      },
      {
        path: `net/ipv6/conf/${device}/accept_ra`,
        value: '0',
        why: 'there is no router in the tunnel, so advertisements from there are forged',
      },
    ];
  }
  return [
    {
      path: `net/ipv4/conf/${device}/rp_filter`,
      value: '2',
      why: 'packets may come through the tunnel from peers that are routed directly (DirectRouting, the fast path)',
    },
  ];
}

/** A host veth's rp_filter: 1 is what it needs. */
export function podRpFilter(device: string, value = 1): Sysctl {
  return {
    path: `net/ipv4/conf/${device}/rp_filter`,
    value: String(value),
    why: 'a pod must not send from an address that is not its own',
  };
}

/** The settings that a host veth needs. */
export function podVethSysctls(device: string, families: readonly Family[]): Sysctl[] {
  const settings: Sysctl[] = [];
  if (families.includes(4)) settings.push(podRpFilter(device));
  if (families.includes(6)) {
    settings.push({
      path: `net/ipv6/conf/${device}/accept_ra`,
      value: '0',
      why: 'a pod must not give the node routes',
    });
  }
  return settings;
}

/**
 * Set these values, in the given order. Settings that have their value already are not written.
 * @throws RipstopError when the kernel refuses one.
 */
export async function ensureSysctls(
  settings: readonly Sysctl[],
  { netns }: Pick<RunOptions, 'netns'> = {},
): Promise<SysctlReport> {
  return inNetns(netns, () => {
    const report: SysctlReport = { changed: [], missing: [] };
    for (const setting of settings) {
      const { path, value, onlyWhen, why } = setting;
      const before = read(path);
      if (before === undefined) report.missing.push(setting);
      else if (before !== value && (onlyWhen === undefined || before === onlyWhen)) {
        write(path, value);
        report.changed.push({ path, before, after: value, why });
      }
    }
    return report;
  });
}

/** The value of a setting without its line end; undefined when the kernel does not have the setting. */
export async function readSysctl(
  path: string,
  { netns }: Pick<RunOptions, 'netns'> = {},
): Promise<string | undefined> {
  return inNetns(netns, () => read(path));
}

/* Synchronous, since /proc/sys/net shows the network namespace of the thread that reads it. */

function read(path: string): string | undefined {
  try {
    return readFileSync(`/proc/sys/${path}`, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** Settings by path. None is ever reset: ripstop knows neither the value of before nor who else needs this one. */
export function sysctlTarget(
  name: string,
  onChange: (change: SysctlReport['changed'][number]) => void,
): Target<Sysctl> {
  return {
    name,
    list: async () => new Map(),
    read: async (settings) => {
      const found = new Map<string, Sysctl>();
      for (const [path, setting] of settings) {
        const actual = await readSysctl(path);
        const { onlyWhen = actual } = setting;
        // A setting that the kernel does not have at present cannot be wrong.
        const isFree = actual === undefined || actual !== onlyWhen;
        found.set(path, isFree ? setting : { ...setting, value: actual });
      }
      return found;
    },
    upsert: async (entries) => {
      const failures = new Map<string, string>();
      for (const [path, setting] of entries) {
        try {
          const { changed } = await ensureSysctls([setting]);
          for (const change of changed) onChange(change);
        } catch (error) {
          failures.set(path, errorText(error));
        }
      }
      return failures;
    },
    remove: async () => noFailures,
  };
}

function write(path: string, value: string): void {
  try {
    writeFileSync(`/proc/sys/${path}`, value);
  } catch (error) {
    throw new RipstopError(
      `cannot set ${path.replaceAll('/', '.')} to ${value} (${errorText(error)}); ` +
        'the agent must run as root, with /proc/sys writable',
      { cause: error },
    );
  }
}
