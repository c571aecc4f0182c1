// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readCarried } from '../../src/dataplane/flow-sums.ts';
import { readPinnedConfig } from '../../src/dataplane/rehearsal.ts';
import { openTables } from '../../src/dataplane/tables.ts';
import type { Traffic } from '../../src/cli/traffic.ts';
import { tryRun } from '../../src/host/run.ts';
import { callCni, type NodeState, setServices } from '../../src/lab/index.ts';
import { withPort } from '../../src/net/ip.ts';
import { CNI_PLUGINS } from '../../src/lab/cni.ts';
import type { Family } from '../../src/net/ip.ts';
import {
  addressOf,
  bpffsOf,
  carriedDuring,
  FAMILIES,
  holdFrom,
  inNetns,
  missingHere,
  podOf,
  PORT,
  PROXY_MODES,
  released,
  ripstopJson,
  serveIn,
  serviceOf,
  talkBoth,
  talkTcp,
  useLab,
} from './support.ts';

/** One Service for each backend, so that nothing is random. */
const TO_NEAR = { 4: '10.43.0.10', 6: 'fd00:43::10' };
const TO_FAR = { 4: '10.43.0.20', 6: 'fd00:43::20' };
const TO_SELF = { 4: '10.43.0.30', 6: 'fd00:43::30' };
const NODE_PORT_NEAR = 30_010;
const NODE_PORT_FAR = 30_020;
/** The hostPort of the near backend, by the portmap plugin. The backend sees the client's address. */
const HOST_PORT = 8010;

const inBothFamilies = (work: (family: Family) => Promise<void>): Promise<unknown> =>
  Promise.all(FAMILIES.map(work));

describe.skipIf(missingHere('iptables-restore', 'conntrack', 'nft')).each(PROXY_MODES)(
  'Services by kube-proxy’s rules on a ripstop node, in mode %s,',
  (mode) => {
    const cluster = useLab(`svc-${mode}`, { nodes: 2, pods: 2, ipv6: true, kubeProxy: mode });
    const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
    const client = () => pod(1);
    const near = () => pod(1, 1);
    const far = () => pod(2);
    let node: NodeState;

    beforeAll(async () => {
      node = cluster.nodes[0]!;
      await Promise.all([client(), near(), far()].map((one) => serveIn(one)));
      const services = FAMILIES.flatMap((family) => [
        ...serviceOf('near', TO_NEAR[family], PORT, addressOf(near(), family), NODE_PORT_NEAR),
        ...serviceOf('far', TO_FAR[family], PORT, addressOf(far(), family), NODE_PORT_FAR),
        ...serviceOf('self', TO_SELF[family], PORT, addressOf(client(), family)),
      ]);
      await setServices(cluster.lab, node, services);
      await mapHostPort();
    });

    /** Let the portmap plugin map the node's port to the near backend, like a runtime after the pod's ADD. */
    async function mapHostPort(): Promise<void> {
      const { containerId, netns, name, result } = near();
      const portMappings = ['tcp', 'udp'].map((protocol) => ({
        hostPort: HOST_PORT,
        containerPort: PORT,
        protocol,
      }));
      await callCni({
        plugin: join(CNI_PLUGINS, 'portmap'),
        config: {
          cniVersion: '1.0.0',
          name: 'cbr0',
          type: 'portmap',
          runtimeConfig: { portMappings },
          prevResult: result,
        },
        command: 'ADD',
        hostNetns: node.netns,
        container: { id: containerId, netns, pod: name },
      });
    }

    interface Flow {
      protocol: string;
      source: string;
      destination: string;
      translatedSource?: string;
      translatedDestination?: string;
      state: string;
    }
    const flows = () => ripstopJson<Flow[]>(cluster.lab, node, 'flows');

    it.each([
      { which: 'the client’s own node', service: TO_NEAR, backend: near },
      { which: 'another node', service: TO_FAR, backend: far },
    ])(
      'lead a pod to a backend on $which, fast, and answer from the ClusterIP',
      async ({ service, backend }) => {
        const [carried] = await carriedDuring(cluster.lab, [node], () =>
          inBothFamilies(async (family) => {
            expect(await talkBoth(client(), service[family])).toBe(addressOf(client(), family));
          }),
        );
        // A handshake, and one packet each way, of each conversation.
        expect(carried!.fast).toBeGreaterThan(50);
        expect(carried!.forwarded).toBeLessThan(carried!.fast);
        for (const family of FAMILIES) {
          const held = await holdFrom(client(), service[family]);
          const clusterIp = withPort(service[family], PORT);
          const at = withPort(addressOf(backend(), family), PORT);
          const shown = (await flows()).filter(
            ({ state, protocol }) => state === 'valid' && protocol === 'tcp',
          );
          expect(shown).toContainEqual(
            expect.objectContaining({ destination: clusterIp, translatedDestination: at }),
          );
          expect(shown).toContainEqual(expect.objectContaining({ source: at, translatedSource: clusterIp }));
          const { name } = service === TO_NEAR ? { name: 'near' } : { name: 'far' };
          const ofService = await ripstopJson<Flow[]>(cluster.lab, node, 'flows', '--service', name);
          const ends = ofService.flatMap(({ destination, translatedSource }) => [
            destination,
            translatedSource,
          ]);
          expect(ends).toContain(clusterIp);
          expect(ofService.every(({ protocol }) => !protocol.startsWith('icmp'))).toBe(true);
          expect(await released(held)).not.toHaveProperty('error');
        }
        const { services } = await ripstopJson<Traffic>(
          cluster.lab,
          node,
          'top',
          '-n',
          '1',
          '--interval',
          '0.1',
        );
        const name = `default/${service === TO_NEAR ? 'near' : 'far'}`;
        // Of two families and two protocols, both ways.
        const shown = services.find((row) => row.name === name);
        expect(shown?.flows).toBeGreaterThanOrEqual(8);
        // What the kernel path carries counts for the Service, too: a connection's beginning and end, both ways.
        const bpffs = bpffsOf(cluster.lab, node);
        using tables = openTables(bpffs);
        const byKernel = readCarried(tables, readPinnedConfig(bpffs)!).services;
        for (const family of FAMILIES)
          expect(byKernel.get(`tcp ${withPort(service[family], PORT)}`)?.packets).toBeGreaterThan(1);
      },
    );

    it('lead a pod to itself (row 61)', async () => {
      await inBothFamilies(async (family) => {
        // It must not see its own address as the client's, or it would answer itself directly.
        expect(await talkBoth(client(), TO_SELF[family])).not.toBe(addressOf(client(), family));
      });
    });

    it('lead the node itself to backends near and far', async () => {
      await inBothFamilies(async (family) => {
        for (const service of [TO_NEAR, TO_FAR, TO_SELF]) await talkBoth(node, service[family]);
      });
    });

    it('lead other nodes and their pods through a NodePort to backends near and far', async () => {
      await inBothFamilies(async (family) => {
        for (const port of [NODE_PORT_NEAR, NODE_PORT_FAR]) {
          for (const from of [cluster.nodes[1]!, pod(2, 1), client()])
            await talkBoth(from, addressOf(node, family), port);
        }
      });
    });

    it('lead through a hostPort to its pod, which sees the client’s address', async () => {
      const other = cluster.nodes[1]!;
      await inBothFamilies(async (family) => {
        const address = addressOf(node, family);
        for (const from of [other, client()])
          expect(await talkBoth(from, address, HOST_PORT)).toBe(addressOf(from, family));
        // The pod itself, by its own hostPort, and another node's pod, which its node masquerades.
        await talkBoth(near(), address, HOST_PORT);
        expect(await talkBoth(pod(2, 1), address, HOST_PORT)).toBe(addressOf(other, family));
      });
    });

    it('and plain flows between the same pods are fast side by side', async () => {
      for (const [service, backend, family] of [
        [TO_NEAR, near(), 4],
        [TO_FAR, far(), 4],
        [TO_FAR, far(), 6],
      ] as const) {
        const held = await holdFrom(client(), service[family]);
        const [carried] = await carriedDuring(cluster.lab, [node], () =>
          talkTcp(client(), addressOf(backend, family), 10 << 20),
        );
        expect(carried!.fast).toBeGreaterThan(200);
        expect(carried!.forwarded).toBeLessThan(30);
        expect(await released(held)).not.toHaveProperty('error');
      }
    });

    it('end with their connection: conntrack’s deletion removes both directions', async () => {
      const held = await holdFrom(client(), TO_FAR[4]);
      const ofService = async () => {
        const at = withPort(TO_FAR[4], PORT);
        const rows = await flows();
        return rows.filter((row) => row.destination === at || row.translatedSource === at);
      };
      expect(await ofService()).not.toEqual([]);
      expect(await released(held)).not.toHaveProperty('error');
      await tryRun('conntrack', ['-D', '-d', TO_FAR[4]], inNetns(node));
      // The command returns after the flows are removed.
      expect(await ofService()).toEqual([]);
    });
  },
);
