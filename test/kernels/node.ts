// SPDX-License-Identifier: Apache-2.0
/**
 * A node of the story in scenario.ts, run in its network namespace: the agent's packet path without an API server.
 *
 *   node.ts pass NODE   load the programs and bring everything to what the node should have, as a start or restart does
 *   node.ts strip NODE  take the programs off
 *
 * NODE is a NodeSpec as JSON; prints a PassReport.
 */
import { join } from 'node:path';
import type { Logger } from 'pino';
import { NodePath } from '../../src/agent/node-path.ts';
import { AttachmentStore } from '../../src/cni/attachments.ts';
import type { Peer } from '../../src/dataplane/desired.ts';
import type { Ingress } from '../../src/dataplane/ingress.ts';
import { removePins } from '../../src/dataplane/programs.ts';
import { type Outcome, reconcile } from '../../src/dataplane/reconcile.ts';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { type Attachment, listLinks } from '../../src/dataplane/targets.ts';
import { parseCidr } from '../../src/net/ip.ts';

export interface NodeSpec {
  readonly name: string;
  readonly ip: string;
  readonly uplink: string;
  readonly podCidr: string;
  readonly vtepMac: string;
  readonly network: string;
  readonly bpffs: string;
  readonly runDir: string;
  readonly peers: readonly {
    readonly name: string;
    readonly ip: string;
    readonly podCidr: string;
    readonly vtepMac: string;
  }[];
}

export interface PassReport {
  /** What could not be made, in words. */
  readonly problems: readonly string[];
  /** Of a second pass in the same process, which should find nothing to do. */
  readonly again: readonly Outcome[];
  /** What was attached before, and is now. */
  readonly found: Readonly<Record<string, Attachment>>;
  readonly attached: Readonly<Record<string, Attachment>>;
  /** Where the uplink's packets are decapsulated, and why there. */
  readonly ingress?: Ingress | undefined;
}

function silence(): void {}

async function pass(spec: NodeSpec): Promise<PassReport> {
  const { name, ip, bpffs, runDir } = spec;
  const podCidr = parseCidr(spec.podCidr);
  const found = attachedIn(bpffs);
  using path = new NodePath({
    options: {
      nodeName: name,
      netConf: '',
      mode: 'cni',
      ingress: 'auto',
      iface: [spec.uplink],
      bpffs,
      runDir,
      subnetFile: join(runDir, 'subnet.env'),
      metricsAddr: '',
      ipMasq: false,
      setNodeNetworkUnavailable: false,
      ipamDir: '',
      stateDir: runDir,
    },
    netConf: {
      enableIpv4: true,
      enableIpv6: false,
      network: parseCidr(spec.network),
      backend: { type: 'vxlan', vni: 1, port: 8472, directRouting: false },
    },
    own: {
      name,
      uid: name,
      podCidrs: [podCidr],
      annotations: {},
      vtepMac: { v4: spec.vtepMac },
      nodePublicIp: {},
      internalIp: { v4: ip },
      flannelIsUp: false,
    },
    families: [{ family: 4, network: parseCidr(spec.network), podCidr }],
    store: new AttachmentStore(runDir),
    log: { debug: silence, info: silence, warn: silence } as unknown as Logger,
  });
  const peers = spec.peers.map((peer): Peer => ({
    ...peer,
    podCidr: parseCidr(peer.podCidr),
    vtepIp: peer.ip,
    behindNat: false,
  }));
  const made = await path.ensure(peers, true);
  const outcomes = await reconcile(await path.steps(peers, true));
  const again = await reconcile(await path.steps(peers, true));
  const failed = [...made, ...outcomes, ...again].filter(({ error }) => error !== undefined);
  const problems = failed.map(({ target, error }) => `${target}: ${error}`);
  return { problems, again, found, attached: attachedIn(bpffs), ingress: path.ingress };
}

function strip({ bpffs }: NodeSpec): PassReport {
  const found = attachedIn(bpffs);
  removePins(pinPaths(bpffs));
  return { problems: [], again: [], found, attached: attachedIn(bpffs) };
}

function attachedIn(bpffs: string): Record<string, Attachment> {
  return Object.fromEntries(listLinks(pinPaths(bpffs).links));
}

const [command, spec = ''] = process.argv.slice(2);
const act = { pass, strip }[command ?? ''];
if (!act) throw new Error(`no such command: ${command}`);
console.log(JSON.stringify(await act(JSON.parse(spec) as NodeSpec)));
