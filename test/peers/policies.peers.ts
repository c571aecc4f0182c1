// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { gatewayAddress } from '../../src/lab/addresses.ts';
import { kubeconfigText } from '../../src/lab/apiserver/index.ts';
import { startDaemon } from '../../src/lab/daemon.ts';
import { type Lab, labDown, netnsPath, nodeDir, type NodeState, type PodState } from '../../src/lab/index.ts';
import type { ApiAccess } from '../../src/lab/kube.ts';
import { type Background, tracesOf } from '../../src/lab/lab.support.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { type Family, withPort } from '../../src/net/ip.ts';
import { FRESH, KINDS, NUMBERS_PORT, PAIR, Receiver, sendTo } from '../cluster/arrivals.ts';
import { monotonicMs } from '../cluster/numbers.ts';
import {
  addressesOf,
  addressOf,
  carriedDuring,
  FAMILIES,
  inNetns,
  podOf,
  PORT,
  serveIn,
  talkTcp,
} from '../cluster/support.ts';
import { kubeNetworkPolicies, whyNoQueue } from '../support/kube-network-policies.ts';
import { withDebianProgram } from '../support/debian-programs.ts';
import { peerPath } from '../support/peer-programs.ts';
import { clientOf, labNameFor, realLab } from './support.ts';

/** A port that no policy allows. */
const OTHER_PORT = PORT + 3;
/** The Services of the two servers, on the client's node and on another. */
const SERVICES = {
  near: { 4: '10.43.0.50', 6: 'fd00:43::50' },
  far: { 4: '10.43.0.60', 6: 'fd00:43::60' },
} as const;
const POLICIES = '/apis/networking.k8s.io/v1/namespaces/default/networkpolicies';
/** How long an engine may take to carry out a policy. */
const ENGINE_MS = 15_000;

interface Command {
  readonly argv: readonly string[];
  readonly env: NodeJS.ProcessEnv;
}

interface Engine {
  readonly name: 'kube-router' | 'kube-network-policies';
  /** The command for a node, and its environment. */
  readonly command: (node: NodeState, api: ApiAccess, kubeconfig: string) => Command;
  /** Why it cannot work on this kernel, in one line; undefined when it can. */
  readonly missing: () => Promise<string | undefined>;
  /** The families of clients that it can allow. */
  readonly allows: readonly Family[];
  /** Where it listens on its node once it runs. */
  readonly port: number;
}

const ENGINES: Engine[] = [
  {
    name: 'kube-router',
    command: ({ name }, _api, kubeconfig) => ({
      argv: [
        peerPath('kube-router'),
        '--run-firewall=true',
        '--run-router=false',
        '--run-service-proxy=false',
        '--run-loadbalancer=false',
        '--enable-ipv6=true',
        '--service-cluster-ip-range=10.43.0.0/16',
        '--service-cluster-ip-range=fd00:43::/112',
        `--hostname-override=${name}`,
        `--kubeconfig=${kubeconfig}`,
      ],
      env: withDebianProgram('ipset'),
    }),
    missing: () => Promise.resolve(undefined),
    // Its rules for IPv6 name sets that do not exist, on a node of plain flannel as well.
    allows: [4],
    port: 20244,
  },
  {
    name: 'kube-network-policies',
    command: ({ name }, api) => kubeNetworkPolicies(peerPath('kube-network-policies'), name, api),
    missing: whyNoQueue,
    allows: FAMILIES,
    port: 9080,
  },
];

for (const engine of ENGINES) {
  const missing = await engine.missing();
  if (missing) console.log(`skipped: ${missing}`);
  describe.skipIf(missing).each(['cni', 'boost'])(`NetworkPolicies by ${engine.name}, in mode %s`, (mode) => {
    const purpose = `policies${engine.name.replaceAll('-', '')}${mode}`;
    let lab: Lab;
    const node = (i: number): NodeState => lab.state.nodes[i - 1]!;
    const client = (): PodState => podOf(node(1));
    const stranger = (): PodState => podOf(node(1), 2);
    const servers = { near: () => podOf(node(1), 1), far: () => podOf(node(2)) };
    const allowed = KINDS.filter((kind) => engine.allows.some((family) => kind.endsWith(String(family))));
    const receivers: Partial<Record<(typeof PAIR)[number], Receiver>> = {};
    let sender: Background | undefined;

    async function create(path: string, body: object): Promise<void> {
      const api = clientOf(lab);
      const { code, text } = await api.post(path, body);
      expect({ code, text }).toMatchObject({ code: 201 });
      api.close();
    }

    async function remove(path: string): Promise<void> {
      const api = clientOf(lab);
      expect(await api.request(path, { method: 'DELETE' })).toMatchObject({ code: 200 });
      api.close();
    }

    /** The Pod of the API for one of the lab, running and ready, as kubelet reports it. */
    async function createPod(of: NodeState, pod: PodState, role: string): Promise<void> {
      const path = '/api/v1/namespaces/default/pods';
      const name = `${of.name}-${pod.name}`;
      await create(path, {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name, labels: { role } },
        spec: { nodeName: of.name, containers: [{ name: 'main', image: 'none' }] },
      });
      const podIPs = addressesOf(pod).map((ip) => ({ ip }));
      const conditions = [{ type: 'Ready', status: 'True' }];
      const status = { phase: 'Running', hostIP: of.ip, podIP: pod.ip, podIPs, conditions };
      const api = clientOf(lab);
      const type = 'application/merge-patch+json';
      const { code, text } = await api.request(`${path}/${name}/status`, {
        method: 'PATCH',
        body: { status },
        type,
      });
      expect({ code, text }).toMatchObject({ code: 200 });
      api.close();
    }

    async function createService(name: (typeof PAIR)[number]): Promise<void> {
      const ports = [NUMBERS_PORT, PORT].flatMap((port) =>
        ['TCP', 'UDP'].map((protocol) => ({ name: `${protocol.toLowerCase()}-${port}`, protocol, port })),
      );
      const clusterIPs = FAMILIES.map((family) => SERVICES[name][family]);
      await create('/api/v1/namespaces/default/services', {
        apiVersion: 'v1',
        kind: 'Service',
        metadata: { name },
        spec: { ipFamilyPolicy: 'RequireDualStack', clusterIP: clusterIPs[0], clusterIPs, ports },
      });
      for (const family of FAMILIES)
        await create('/apis/discovery.k8s.io/v1/namespaces/default/endpointslices', {
          apiVersion: 'discovery.k8s.io/v1',
          kind: 'EndpointSlice',
          metadata: { name: `${name}-${family}`, labels: { 'kubernetes.io/service-name': name } },
          addressType: `IPv${family}`,
          endpoints: [{ addresses: [addressOf(servers[name](), family)], conditions: { ready: true } }],
          ports,
        });
    }

    /** kube-proxy writes no more than once a second, and rejects meanwhile what is sent to a new Service. */
    async function untilServicesLead(): Promise<void> {
      for (const family of FAMILIES) {
        const program = family === 4 ? 'iptables-save' : 'ip6tables-save';
        const rules = (): Promise<string> => run(program, ['-t', 'nat'], inNetns(node(1)));
        for (const name of PAIR) {
          const server = withPort(addressOf(servers[name](), family), NUMBERS_PORT);
          await expect.poll(rules).toContain(`--to-destination ${server}\n`);
        }
      }
    }

    async function startEngine(of: NodeState): Promise<void> {
      const { ca, token } = JSON.parse(readFileSync(join(lab.dir, 'apiserver.json'), 'utf8')) as ApiAccess;
      const kubeconfig = join(nodeDir(lab, of), 'engine.kubeconfig');
      const url = `https://${gatewayAddress(lab.state.options.underlay)}:6443`;
      writeFileSync(kubeconfig, kubeconfigText(url, ca, token), { mode: 0o600 });
      const { argv, env } = engine.command(of, { url, ca, token }, kubeconfig);
      await startDaemon({
        name: `${engine.name} of ${of.name}`,
        argv: ['nsenter', `--net=${netnsPath(of.netns)}`, '--', ...argv],
        logFile: join(nodeDir(lab, of), 'engine.log'),
        env,
        notReady: async () => {
          const { stdout } = await tryRun('ss', ['-Hltn', `sport = :${engine.port}`], inNetns(of));
          return stdout === '' ? 'it does not listen yet' : undefined;
        },
      });
    }

    beforeAll(async () => {
      lab = await realLab(purpose, ['ripstop', 'ripstop'], {
        pods: 3,
        ipv6: true,
        kubeProxy: 'iptables',
        mode,
      });
      await create('/api/v1/namespaces/default/serviceaccounts', { metadata: { name: 'default' } });
      await createPod(node(1), client(), 'client');
      await createPod(node(1), stranger(), 'stranger');
      for (const name of PAIR) {
        await createPod(node(name === 'near' ? 1 : 2), servers[name](), 'server');
        await createService(name);
        receivers[name] = await Receiver.start(servers[name]());
        for (const port of [PORT, OTHER_PORT]) await serveIn(servers[name](), '::', port);
      }
      await Promise.all([1, 2].map((i) => startEngine(node(i))));
    });
    afterAll(async () => {
      await Promise.all([sender, ...Object.values(receivers)].map(async (one) => one?.stop()));
      await labDown(labNameFor(purpose));
      expect(await tracesOf(labNameFor(purpose))).toEqual([]);
    });

    /** Send from this pod in place of another, to both servers: to themselves, or to their Services. */
    async function sendFrom(pod: PodState, to: 'pods' | 'services'): Promise<void> {
      await sender?.stop();
      const addresses = PAIR.flatMap((name) =>
        to === 'pods' ? addressesOf(servers[name]()) : FAMILIES.map((family) => SERVICES[name][family]),
      );
      sender = sendTo(pod, addresses);
    }

    const arrive = (kinds = KINDS): Promise<unknown> =>
      Promise.all(PAIR.map((name) => receivers[name]!.takes(kinds)));

    /** Nothing of these kinds arrives for a while. */
    async function expectNone(kinds = KINDS): Promise<void> {
      const sinceMs = monotonicMs();
      await sleep(1500);
      for (const name of PAIR)
        expect(receivers[name]!.since(sinceMs).filter((kind) => kinds.includes(kind))).toEqual([]);
    }

    /** Resolves when new flows do not arrive any more while held ones do: a machine that stalls ends both for a while. */
    async function untilFreshEnd(): Promise<number> {
      const begunMs = monotonicMs();
      const arriving = (name: (typeof PAIR)[number]): { held: boolean; fresh: string[] } => {
        const kinds = receivers[name]!.since(monotonicMs() - 500);
        const fresh = kinds.filter((kind) => FRESH.includes(kind));
        return { held: kinds.length > fresh.length, fresh };
      };
      for (const name of PAIR)
        await expect.poll(() => arriving(name), { timeout: ENGINE_MS }).toEqual({ held: true, fresh: [] });
      return Math.round(monotonicMs() - begunMs);
    }

    /** The share of the packets of much data, to both servers, that takes the fast path. */
    async function fastShare(addresses: readonly string[]): Promise<number> {
      const carried = await carriedDuring(lab, lab.state.nodes, async () => {
        for (const address of addresses) await talkTcp(client(), address, 50 << 20);
      });
      const fast = carried.reduce((sum, one) => sum + one.fast, 0);
      const kernel = carried.reduce((sum, one) => sum + one.vtep + one.forwarded, 0);
      return fast / (fast + kernel);
    }

    const ingress = (name: string, rules: readonly object[]): object => ({
      apiVersion: 'networking.k8s.io/v1',
      kind: 'NetworkPolicy',
      metadata: { name },
      spec: { podSelector: { matchLabels: { role: 'server' } }, policyTypes: ['Ingress'], ingress: rules },
    });

    it('deny new flows beside those that are under way, to pods and to Services', async () => {
      await untilServicesLead();
      await sendFrom(client(), 'services');
      await arrive();
      await create(POLICIES, ingress('deny', []));
      console.log(`${engine.name}: new flows ended after ${await untilFreshEnd()} ms`);
      await expectNone(FRESH);
    });

    it.each(['pods', 'services'] as const)('deny everything from the beginning, to %s', async (to) => {
      await sendFrom(client(), to);
      await expectNone();
    });

    it('allow one client and port, on the fast path, and nobody else', async () => {
      const ports = [NUMBERS_PORT, PORT].flatMap((port) =>
        ['TCP', 'UDP'].map((protocol) => ({ port, protocol })),
      );
      const from = [{ podSelector: { matchLabels: { role: 'client' } } }];
      await create(POLICIES, ingress('allow', [{ from, ports }]));
      await sendFrom(client(), 'services');
      for (const name of PAIR)
        await expect
          .poll(() => receivers[name]!.since(monotonicMs() - 500), { timeout: ENGINE_MS })
          .toEqual(allowed);
      await sender?.stop();
      sender = undefined;
      const direct = await fastShare(
        PAIR.flatMap((name) => engine.allows.map((family) => addressOf(servers[name](), family))),
      );
      const translated = await fastShare(
        PAIR.flatMap((name) => engine.allows.map((family) => SERVICES[name][family])),
      );
      console.log(
        `${engine.name}: fast path ${direct.toFixed(4)}, through Services ${translated.toFixed(4)}`,
      );
      expect(direct).toBeGreaterThan(0.95);
      expect(translated).toBeGreaterThan(0.95);
      for (const name of PAIR) {
        const attempt = talkTcp(client(), servers[name]().ip, 100, OTHER_PORT);
        expect(
          await Promise.race([attempt.catch(() => 'refused'), sleep(1500, 'silence')]),
        ).not.toHaveProperty('bytes');
      }
      for (const to of ['pods', 'services'] as const) {
        await sendFrom(stranger(), to);
        await expectNone();
      }
    });

    it('deny it again when they are changed under way', async () => {
      await sendFrom(client(), 'pods');
      await arrive(allowed);
      await remove(`${POLICIES}/allow`);
      console.log(`${engine.name}: new flows ended after ${await untilFreshEnd()} ms`);
      await expectNone(FRESH);
      await remove(`${POLICIES}/deny`);
      for (const name of PAIR)
        await expect
          .poll(() => receivers[name]!.since(monotonicMs() - 500), { timeout: ENGINE_MS })
          .toEqual(expect.arrayContaining(FRESH));
      // Of a connection that was denied, TCP tries the next time after up to half a minute.
      await sendFrom(client(), 'pods');
      await arrive();
    });
  });
}
