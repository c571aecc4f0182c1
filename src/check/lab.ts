// SPDX-License-Identifier: Apache-2.0
/** A check in a lab: in the namespaces of its own pods and nodes, with a Service for each node while it runs. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { join } from 'node:path';
import { readFlows } from '../cli/flows.ts';
import type * as labModule from '../lab/index.ts';
import type { Lab, NodeState, PodState, ServicePort } from '../lab/index.ts';
import { errorText, RipstopError } from '../errors.ts';
import { addressAt, parseCidr, withPort } from '../net/ip.ts';
import type { CheckNode, Place, Skipped } from './plan.ts';
import { PORT } from './prober.ts';
import type { Failed, Site } from './run.ts';
import type { ProberProcess } from './session.ts';

/** The lab needs its sources, which the image does not have: it is loaded only when there is one. */
type LabModule = typeof labModule;

/** ClusterIPs from here on, one for each node: others take them from the beginning of their network. */
const FIRST_CLUSTER_IP = 0x7f00;

/**
 * Prepare a lab: its nodes with kube-proxy get the check's Services beside those that they have.
 * @param chosen the nodes that take part
 */
export async function prepareLab(module: LabModule, name: string, chosen: readonly string[]): Promise<Site> {
  if (process.getuid?.() !== 0)
    throw new RipstopError('a check in a lab enters network namespaces and needs root; run it with sudo');
  const lab = module.openLab(name);
  const states = lab.state.nodes.filter((node) => chosen.includes(node.name));
  const services = states.flatMap((node) => servicesOf(module, node));
  const nodes = states.map((node) => checkNode(node, services));
  const proxied = states.filter(({ kubeProxy }) => kubeProxy);
  const close = () => setOurServices(module, name, proxied, []);
  try {
    await setOurServices(module, name, proxied, services);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    name: `lab ${name}`,
    nodes,
    skipped: skippedIn(states),
    start: (place, serve) => startProber(module, lab, place, serve),
    isLearned: (node, source, destination) =>
      isLearned(module.nodeDir(lab, { name: node }), source, destination),
    patienceMs: 0,
    next: (failed) => nextInLab(lab, failed),
    close,
  };
}

const NAMESPACE = 'ripstop-check/';

/** The Service of a node, whose backend is the node's first pod, in each family. */
function servicesOf(module: LabModule, node: NodeState): ServicePort[] {
  const [pod] = podsOf(node);
  if (!pod) return [];
  return ([4, 6] as const).flatMap((family) => {
    const backend = family === 4 ? pod.ip : pod.ip6;
    if (backend === undefined) return [];
    const clusterIp = addressAt(parseCidr(module.serviceNetwork(family)), FIRST_CLUSTER_IP + node.index);
    return (['tcp', 'udp'] as const).map((protocol) => ({
      service: `${NAMESPACE}${node.name}`,
      name: protocol,
      protocol,
      clusterIp,
      port: PORT,
      endpoints: [{ ip: backend, port: PORT }],
    }));
  });
}

/** Give the kube-proxy of these nodes the Services of a check, in place of those of an earlier one. */
async function setOurServices(
  { openLab, findNode, setServices }: LabModule,
  name: string,
  nodes: readonly NodeState[],
  services: readonly ServicePort[],
): Promise<void> {
  // The lab may have changed since, by another process.
  const lab = openLab(name);
  for (const { name: nodeName } of nodes) {
    const node = findNode(lab, nodeName);
    const others = (node.kubeProxy?.services ?? []).filter(({ service }) => !service.startsWith(NAMESPACE));
    if (node.kubeProxy) await setServices(lab, node, [...others, ...services]);
  }
}

const podsOf = ({ pods }: NodeState): PodState[] => pods.filter(({ ip }) => ip !== '');

function placeOf(name: string, node: string, { ip, ip6 }: { ip: string; ip6?: string }): Place {
  return { name, node, addresses: ip6 === undefined ? [ip] : [ip, ip6] };
}

function checkNode(node: NodeState, services: readonly ServicePort[]): CheckNode {
  const { name, kubeProxy, datapath } = node;
  const own = services.filter(({ service }) => service === `${NAMESPACE}${name}`);
  return {
    ...placeOf(name, name, node),
    pods: podsOf(node)
      .slice(0, 2)
      .map((pod) => placeOf(`${name}-${pod.name}`, name, pod)),
    clusterIps: [...new Set(own.map(({ clusterIp }) => clusterIp))],
    hasServices: kubeProxy !== undefined,
    ripstop: datapath === 'ripstop',
  };
}

function skippedIn(states: readonly NodeState[]): Skipped[] {
  return [
    { kind: 'dns', why: 'a lab has no DNS' },
    ...states
      .filter((node) => !node.kubeProxy && podsOf(node).length > 0)
      .map(({ name }): Skipped => ({ kind: 'service', node: name, why: 'it has no kube-proxy of the lab' })),
  ];
}

function startProber({ labCommand }: LabModule, lab: Lab, place: Place, serve: boolean): ProberProcess {
  const command = ['ripstop', 'check-prober', ...(serve ? ['--serve', String(PORT)] : [])];
  const { program, args, env } = labCommand(lab, place.name, command);
  // Node strips the types from every source at each start, unless it may keep the result.
  const NODE_COMPILE_CACHE = join(lab.dir, 'compiled');
  const child = spawn(program, args, { env: { NODE_COMPILE_CACHE, ...env }, stdio: 'pipe' });
  const said = text(child.stderr);
  const ended = once(child, 'close').then(
    () => said,
    (error: unknown) => errorText(error),
  );
  return { stdin: child.stdin, stdout: child.stdout, ended };
}

async function isLearned(nodeDir: string, source: string, destination: string): Promise<boolean> {
  const flows = await readFlows(join(nodeDir, 'bpf'), join(nodeDir, 'run'));
  return flows.some(
    (flow) =>
      flow.protocol === 'udp' &&
      flow.source === source &&
      flow.destination === destination &&
      flow.state === 'valid',
  );
}

/** The command to run next, in the lab: a trace where ripstop runs, otherwise what every node has. */
function nextInLab(lab: Lab, { kind, lookAt, sender, address, from, probe, outcome }: Failed): string {
  const exec = `ripstop lab exec${lab.name === 'lab' ? '' : ` --name ${lab.name}`}`;
  if (sender === undefined || address === undefined) return `${exec} ${lookAt} -- ip route`;
  const node = lab.state.nodes.find(({ name }) => name === lookAt);
  if (node?.datapath === 'ripstop' && sender.name !== sender.node) {
    // An answer goes to a port that nobody has any more.
    const isAnswer = sender !== from || !('port' in probe);
    const to = isAnswer ? address : withPort(address, probe.port);
    const proto = isAnswer ? 'icmp' : probe.protocol === 'tcp' ? 'tcp' : 'udp';
    return `${exec} ${lookAt} -- ripstop trace --from ${sender.addresses[0]} --to ${to} --proto ${proto}`;
  }
  if (kind === 'service') return `${exec} ${lookAt} -- sh -c 'iptables-save | grep ${address}'`;
  // ping counts neither the IP header nor its own.
  const size = kind === 'mtu' ? ` -M do -s ${outcome.mtu! - (address.includes(':') ? 48 : 28)}` : '';
  return `${exec} ${sender.name} -- ping -c 3${size} ${address}`;
}
