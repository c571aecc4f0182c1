// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { nodeDir, restartAgent } from '../../src/lab/index.ts';
import { listNodes } from '../../src/lab/kube.ts';
import { installInto, parseManifest, rendered, shapes } from '../support/manifest.ts';
import { askOverHttp, inNetns, missingHere, ping, podOf, talkTcp, serveIn, useLab } from './support.ts';

const IMAGE = join(import.meta.dirname, '../../build');

/** The net-conf.json that k3s writes for its own flannel, which ripstop can use as it is. */
const K3S_NET_CONF = `{
	"Network": "10.42.0.0/16",
	"EnableIPv6": false,
	"EnableIPv4": true,
	"IPv6Network": "::/0",
	"Backend": {
	"Type": "vxlan"
}
}
`;

interface Case {
  name: string;
  /** Its row in deploy/README.md. */
  row: number;
  network: string;
  /** Of the uplinks. */
  mtu: number;
  /** The operator's other settings. */
  env?: Record<string, string>;
  netConf?: string;
  /** Whether the Node's condition NetworkUnavailable is cleared. */
  condition: boolean;
}

const CASES: Case[] = [
  {
    name: 'k3s, its directories and its net-conf.json',
    row: 2,
    network: '10.42.0.0/16',
    mtu: 1500,
    env: {
      FLANNELD_SET_NODE_NETWORK_UNAVAILABLE: 'false',
      FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE: 'true',
      RIPSTOP_HEALTHZ_ADDR: ':8081',
    },
    netConf: K3S_NET_CONF,
    condition: false,
  },
  {
    name: 'RKE2 on Google Cloud, with annotations of its own',
    row: 1,
    network: '10.42.0.0/16',
    mtu: 1460,
    env: { FLANNELD_KUBE_ANNOTATION_PREFIX: 'example.com/blue' },
    condition: true,
  },
  { name: 'kubeadm and minikube', row: 0, network: '10.244.0.0/16', mtu: 1500, condition: true },
];

describe.skipIf(missingHere()).each(CASES)(
  'A cluster as of $name',
  ({ row, network, mtu, env = {}, netConf, condition }) => {
    // Agents inherit this environment.
    beforeAll(() => {
      for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
    });
    afterAll(() => void vi.unstubAllEnvs());
    const cluster = useLab(`shape${row}`, { nodes: 2, pods: 1, network, mtu });
    const shape = shapes[row]!;
    const [base] = network.split('.0.0/');

    beforeAll(async () => {
      if (netConf === undefined) return;
      writeFileSync(join(cluster.lab.dir, 'net-conf.json'), netConf);
      for (const node of cluster.nodes) await restartAgent(cluster.lab, node);
    });

    it('is the one of the manifest’s edit, and has its files where its runtime looks', async () => {
      const manifest = parseManifest(await rendered(shape.edit));
      expect(JSON.parse(manifest.config.data!['net-conf.json']!)).toMatchObject({ Network: network });
      const root = join(cluster.lab.dir, 'root');
      expect(await installInto(root, manifest, IMAGE)).toEqual(
        [`${shape.confDir}/10-flannel.conflist 644`, `${shape.binDir}/ripstop-cni 755`].toSorted(),
      );
      // A runtime asks this of a plugin; it needs neither a node nor an agent.
      const versions = await run(join(root, shape.binDir, 'ripstop-cni'), [], {
        env: { CNI_COMMAND: 'VERSION' },
        stdin: '{"cniVersion":"1.0.0"}',
      });
      expect(JSON.parse(versions)).toMatchObject({
        supportedVersions: expect.arrayContaining(['1.0.0']) as string[],
      });
    });

    it('carries packets of full size between pods of two nodes', async () => {
      const [one, two] = cluster.nodes.map((node) => podOf(node));
      await ping(one!, two!.ip);
      await ping(two!, one!.ip);
      await serveIn(two!);
      await talkTcp(one!, two!.ip, 1 << 20);
    });

    it.each([1, 2])('gives node %i and its pod devices and addresses of the network', async (number) => {
      const node = cluster.nodes[number - 1]!;
      const subnet = `${base}.${number - 1}`;
      expect(readFileSync(join(nodeDir(cluster.lab, node), 'subnet.env'), 'utf8')).toBe(
        [
          `FLANNEL_NETWORK=${network}`,
          `FLANNEL_SUBNET=${subnet}.1/24`,
          `FLANNEL_MTU=${mtu - 50}`,
          'FLANNEL_IPMASQ=true\n',
        ].join('\n'),
      );
      expect(podOf(node).ip).toMatch(new RegExp(`^${subnet.replaceAll('.', '\\.')}\\.\\d+$`));
      const [eth0] = await ipJson<{ mtu: number }>(['link', 'show', 'eth0'], inNetns(podOf(node)));
      expect(eth0!.mtu).toBe(mtu - 50);
      const rules = await run('nft', ['list', 'table', 'inet', 'ripstop'], inNetns(node));
      expect(
        rules.split('\n').flatMap((line) => / saddr (?:!= )?(\S+) .*masquerade/.exec(line)?.[1] ?? []),
      ).toEqual([network, network]);
      const random = env['FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE'] ? 0 : 2;
      expect(rules.match(/masquerade fully-random/g) ?? []).toHaveLength(random);
      expect(rules).toContain(`ip saddr ${subnet}.0/24 ip daddr ${network} return`);
    });

    if (env['RIPSTOP_HEALTHZ_ADDR'])
      it('answers probes that were written for flannel, on 8081', async () => {
        const node = cluster.nodes[0]!;
        const at = `${node.ip}:8081`;
        for (const path of ['/healthz', '/readyz'])
          expect(await askOverHttp(node, path, at)).toMatchObject({ status: 200, body: 'ok\n' });
        expect(await askOverHttp(node, '/metrics', at)).toMatchObject({ status: 404 });
        expect(await askOverHttp(node, '/metrics')).toMatchObject({ status: 200 });
      });

    it('publishes its leases with the given prefix', async () => {
      const prefix = env['FLANNELD_KUBE_ANNOTATION_PREFIX'];
      const key = prefix === undefined ? 'flannel.alpha.coreos.com/public-ip' : `${prefix}-public-ip`;
      const published = (await listNodes(cluster.lab)).map(({ metadata }) =>
        Object.entries(metadata.annotations ?? {}).filter(([name]) => name.endsWith('public-ip')),
      );
      expect(published).toEqual(cluster.nodes.map(({ ip }) => [[key, ip]]));
    });

    it(`${condition ? 'clears' : 'leaves'} the Nodes' condition NetworkUnavailable`, async () => {
      const conditions = async () => {
        const nodes = (await listNodes(cluster.lab)) as {
          status?: { conditions?: { type: string; status: string; reason: string }[] };
        }[];
        return nodes.map(({ status }) =>
          status?.conditions?.map(({ type, status, reason }) => `${type}=${status} ${reason}`),
        );
      };
      const cleared = ['NetworkUnavailable=False FlannelIsUp'];
      await expect.poll(conditions).toEqual(condition ? [cleared, cleared] : [undefined, undefined]);
    });
  },
);
