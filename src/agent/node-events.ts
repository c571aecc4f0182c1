// SPDX-License-Identifier: Apache-2.0
import type { Cause } from '../dataplane/changes.ts';
import { isPodVeth } from '../host/links.ts';
import type { NodeEvent } from '../host/monitor.ts';
import { proxyKey } from '../host/pod-bridge.ts';
import { podRpFilter } from '../host/sysctl.ts';
import { type Concern, NODE_PARTS, type NodeObserver } from './observer.ts';
import type { Targets } from './targets.ts';

/**
 * Invalidate what an event concerns. An event about a change of our own, which is known already, invalidates nothing.
 * @returns undefined when nothing is to be done.
 */
export function noteEvent(event: NodeEvent, observer: NodeObserver, targets: Targets): Concern | undefined {
  switch (event.kind) {
    case 'pod-link': {
      const isBridged = observer.noteBridge({ ...event, kind: 'port' });
      return observer.notePodLink(event) ?? (isBridged ? 'pods' : undefined);
    }
    case 'bridge':
      return observer.noteBridge(event.event) ? 'pods' : undefined;
    case 'pod-route': {
      const { dst, deleted, dev } = event;
      const route = dev === undefined ? { unreachable: true as const } : { dev };
      return targets.podRoutes.noteActual(dst, deleted ? undefined : route) ? 'pods' : undefined;
    }
    case 'proxy': {
      const { bridge, address, deleted } = event;
      return targets.proxies.noteActual(proxyKey(bridge, address), deleted ? undefined : true)
        ? 'pods'
        : undefined;
    }
    case 'settings': {
      const { name, rpFilter } = event;
      if (name !== undefined && isPodVeth(name)) {
        if (rpFilter === undefined) return undefined;
        const setting = podRpFilter(name, rpFilter);
        return targets.podSysctls.noteActual(setting.path, setting) ? 'pods' : undefined;
      }
      targets.sysctls.invalidate();
      break;
    }
    case 'peers':
      invalidate(targets.neighbours, targets.fdb, targets.peerRoutes);
      break;
    case 'link':
    case 'network':
      observer.invalidate('links', 'routes', 'nextHops');
      invalidate(
        targets.vtepDevices,
        targets.idleBridges,
        targets.nodeLinks,
        targets.neighbours,
        targets.fdb,
        targets.peerRoutes,
      );
      break;
    case 'rules':
      invalidate(targets.rules, targets.vtepSet);
      break;
    case 'flannel-rules':
      targets.flannelRules.invalidate();
      break;
    case 'shaping':
      return observer.noteShaping(event.ifindex) ? 'node' : undefined;
    // The incarnation has seen to it.
    case 'policy':
      return undefined;
    case 'ipsec':
      observer.invalidate('policies');
      break;
    case 'lost':
      staleAll(observer, targets);
      break;
    default:
      event satisfies never;
  }
  return 'node';
}

/**
 * Why all flows are invalid after an event that tells of something on which the kernel path's decisions may rest: rules,
 * policies, routes, settings, and tc's filters, also those of the uplink. Undefined after other events.
 * Pods and peers come and go without it, since the programs look both up for each packet. Interfaces do, too: what of it
 * matters changes routes; and a VTEP device that is gone is made again.
 */
export function causeOf(event: NodeEvent): Cause | undefined {
  switch (event.kind) {
    case 'settings':
      return event.name === undefined ? 'settings' : undefined;
    case 'flannel-rules':
      return 'flannel_rules';
    case 'network':
    case 'rules':
    case 'policy':
    case 'ipsec':
    case 'shaping':
    case 'lost':
      return event.kind;
    default:
      return undefined;
  }
}

/** Invalidate everything, since events were lost. */
export function staleAll(observer: NodeObserver, targets: Targets): void {
  observer.invalidate(...NODE_PARTS);
  invalidate(...Object.values(targets));
}

/**
 * Invalidate everything, since an audit is due.
 * @param thorough also what only the program `nft` can list: that costs most of an audit, and events tell of its changes.
 */
export function audit(observer: NodeObserver, targets: Targets, thorough: boolean): void {
  const { rules, flannelRules, ...others } = targets;
  observer.invalidate(...NODE_PARTS);
  invalidate(...Object.values(others), ...(thorough ? [rules, flannelRules] : []));
}

function invalidate(...targets: readonly { invalidate(): void }[]): void {
  for (const target of targets) target.invalidate();
}
