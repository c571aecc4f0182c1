// SPDX-License-Identifier: Apache-2.0
/** The targets that the agent reconciles. */
import type { Logger } from 'pino';
import { linksTarget, type XdpAnswers } from '../dataplane/links.ts';
import { mapTargets } from '../dataplane/map-targets.ts';
import type { ProgramSet } from '../dataplane/programs.ts';
import { kernelModulesTarget } from '../host/conntrack.ts';
import { filesTarget } from '../host/files.ts';
import { flannelRulesTarget } from '../host/flannel-rules.ts';
import { idleBridgesTarget, proxyTarget } from '../host/pod-bridge.ts';
import { podRouteTarget } from '../host/pod-routes.ts';
import { rulesTarget } from '../host/rules.ts';
import { sysctlTarget } from '../host/sysctl.ts';
import { flannelRoutesTarget } from '../host/takeover.ts';
import { vtepDevicesTarget } from '../host/vtep-device.ts';
import { vtepSetTarget } from '../host/vtep-set.ts';
import { fdbTarget, neighbourTarget, peerRouteTarget } from '../host/vxlan-target.ts';
import { RipstopError } from '../errors.ts';
import { LogOnce } from '../log-once.ts';
import type { Cidr } from '../net/ip.ts';
import { Reconciled } from '../reconcile/reconciled.ts';

export interface TargetOptions {
  readonly programs: ProgramSet;
  readonly xdp: XdpAnswers;
  readonly linkPins: string;
  readonly podCidrs: readonly Cidr[];
  /** The VTEP devices, by name; none without tunnels. */
  readonly vtepNames: readonly string[];
  readonly log: Logger;
}

export type Targets = ReturnType<typeof createTargets>;

/** Create all targets, in the order in which they are reconciled. */
export function createTargets({ programs, xdp, linkPins, podCidrs, vtepNames, log }: TargetOptions) {
  const flannelRulesStay = new LogOnce(log, "some of flannel's rules stay");
  const logSetting = (change: object): void => log.info(change, 'set a kernel setting');
  const maps = mapTargets(
    () => programs.current.tables,
    () => programs.current.moveEpoch('marked'),
  );
  const links = {
    pinDir: linkPins,
    program: (hook: keyof typeof programs.current.programs) => {
      const program = programs.current.programs[hook];
      if (!program) throw new RipstopError(`the program ${hook} is not loaded`);
      return program;
    },
  };
  return {
    vtepDevices: new Reconciled(
      vtepDevicesTarget((device, changes) => log.info({ device, changes }, 'changed the VTEP device')),
    ),
    kernelModules: new Reconciled(kernelModulesTarget()),
    sysctls: new Reconciled(sysctlTarget('sysctls', logSetting)),
    rules: new Reconciled(rulesTarget()),
    files: new Reconciled(filesTarget()),
    flannelRoutes: new Reconciled(flannelRoutesTarget(vtepNames)),
    flannelRules: new Reconciled(
      flannelRulesTarget((needed) => {
        if (needed.length > 0) flannelRulesStay.met(`pods would lose traffic without ${needed.join('; ')}`);
        else flannelRulesStay.over();
      }),
    ),
    idleBridges: new Reconciled(idleBridgesTarget(podCidrs)),
    programs: new Reconciled(
      programs.programsTarget((pending) =>
        log.warn(pending, 'maps must differ from those in use: created new ones'),
      ),
    ),
    vtepSet: new Reconciled(vtepSetTarget()),
    neighbours: new Reconciled(neighbourTarget()),
    fdb: new Reconciled(fdbTarget()),
    peerRoutes: new Reconciled(peerRouteTarget()),
    vteps: new Reconciled(maps.vteps),
    peers: new Reconciled(maps.peers),
    peers6: new Reconciled(maps.peers6),
    podSysctls: new Reconciled(sysctlTarget('pod-sysctls', logSetting), { remembers: true }),
    podRoutes: new Reconciled(podRouteTarget(), { remembers: true }),
    proxies: new Reconciled(proxyTarget(), { remembers: true }),
    endpoints: new Reconciled(maps.endpoints, { remembers: true }),
    endpoints6: new Reconciled(maps.endpoints6, { remembers: true }),
    podLinks: new Reconciled(linksTarget({ ...links, name: 'pod-links', hooks: ['to_pod', 'from_pod'] }), {
      remembers: true,
    }),
    nodeLinks: new Reconciled(
      linksTarget({
        ...links,
        name: 'node-links',
        hooks: ['to_wire', 'to_vtep', 'from_vtep', 'from_wire', 'xdp_from_wire'],
        xdp,
      }),
    ),
    maps: new Reconciled(programs.mapsTarget()),
    changes: new Reconciled(
      programs.changesTarget((report) => log.debug(report, 'asked the kernel to tell of its changes')),
    ),
  };
}
