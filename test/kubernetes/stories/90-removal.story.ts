// SPDX-License-Identifier: Apache-2.0
import { beforeAll, describe, expect, it } from 'vitest';
import { changesSinceFirst, type Dump } from '../dump.ts';
import { apply, kubectl, tryKubectl } from '../kubectl.ts';
import { tryInNode } from '../node.ts';
import { commandsOf } from '../../support/commands.ts';
import { takeOff, type } from '../readme.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { inventory, unharmed } from '../traffic.ts';
import { until } from '../until.ts';
import {
  deletePod,
  installRipstop,
  podObject,
  podReady,
  podsGone,
  removeWorkload,
  runPod,
} from '../workload.ts';

/** ripstop is taken away: first its DaemonSet alone, then all of it. Told last, since no network is left at its end. */

const cluster = storyCluster();
const { nodes } = cluster;
const SLEEP = ['sleep', '100000'];
const inventories = () => Promise.all(nodes.map(inventory));
let before: Record<string, string[]>[];

beforeAll(async () => {
  before = await inventories();
  await Promise.all(nodes.map((node) => runPod(cluster, `goes-${node.name}`, node, SLEEP)));
});

/** What uninstall leaves on a node, as deploy/README.md says; `+` is new, `-` what it was before. */
const STAYS: Dump = {
  // A router's, until a reboot: ip_forward, with what the kernel changes along with it.
  settings: [
    '+ net.ipv4.conf.all.accept_redirects = 0',
    ...['all', 'default', 'eth0', 'lo'].map((device) => `+ net.ipv4.conf.${device}.forwarding = 1`),
    '+ net.ipv4.ip_forward = 1',
    '+ net.netfilter.nf_conntrack_tcp_be_liberal = 1',
    '- net.ipv4.conf.all.accept_redirects = 1',
    ...['all', 'default', 'eth0', 'lo'].map((device) => `- net.ipv4.conf.${device}.forwarding = 0`),
    '- net.ipv4.ip_forward = 0',
    '- net.netfilter.nf_conntrack_tcp_be_liberal = 0',
  ],
  // Empty; and what runtimes and iptables have.
  '/run': ['+ /run/flannel', '+ /run/netns', '+ /run/ripstop', '+ /run/xtables.lock'],
  disk: [
    '+ /opt/cni/bin/ripstop-cni',
    '+ /var/lib/cni',
    '+ /var/lib/cni/networks',
    '+ /var/lib/cni/networks/cbr0',
    '+ /var/lib/cni/networks/cbr0/last_reserved_ip.0',
    '+ /var/lib/cni/results',
    '+ /var/lib/ripstop',
  ],
};

/** The lock of host-local itself, which the previous release and flannel run in earlier stories. */
const HOST_LOCALS = '+ /var/lib/cni/networks/cbr0/lock';

/** The DELs that wait for an agent. */
async function deferred(node: ClusterNode): Promise<number> {
  const { stdout } = await tryInNode(node, 'ls', '/var/lib/ripstop/deferred');
  return stdout.split('\n').filter((line) => line !== '').length;
}

describe('kubectl delete -f deploy/ripstop.yml, without uninstall', () => {
  it('pods talk on, and can be deleted', async () => {
    await unharmed(cluster, nodes, async () => {
      await type(cluster, 'kubectl delete -f deploy/ripstop.yml');
      await podsGone(cluster, 'app=ripstop');
      await Promise.all(nodes.map((node) => deletePod(cluster, `goes-${node.name}`)));
    });
    for (const node of nodes) expect(await deferred(node), node.name).toBe(1);
  });

  it('what deploy/README.md lists stays', async () => {
    for (const node of nodes) {
      const stays = await changesSinceFirst(cluster, node);
      expect(stays).toMatchObject({
        links: expect.arrayContaining(['+ flannel.1']) as string[],
        'nft tables': ['+ table inet ripstop'],
        '/run': expect.arrayContaining(['+ /run/ripstop/endpoints', '+ /run/flannel/subnet.env']) as string[],
        annotations: expect.arrayContaining(['+ flannel.alpha.coreos.com/backend-data']) as string[],
      });
      const peers = nodes.length - 1;
      expect(stays['routes']!.filter((line) => line.includes('dev flannel.1 proto 82'))).toHaveLength(peers);
      expect(stays['BPF file system']).toContain('+ /sys/fs/bpf/ripstop/links/from_wire@eth0');
      for (const path of [
        '/etc/cni/net.d/10-flannel.conflist',
        '/opt/cni/bin/ripstop-cni',
        '/var/lib/ripstop',
      ])
        expect(stays['disk']).toContain(`+ ${path}`);
    }
  });

  it('a new pod waits; the manifest brings all back, and gives the deleted pods’ addresses free', async () => {
    await apply(
      cluster,
      nodes.map((node) => podObject(`waits-${node.name}`, node, SLEEP)),
    );
    for (const node of nodes) {
      await until(`the pod of ${node.name} is told to wait`, 60_000, async () =>
        (
          await kubectl(
            cluster,
            'get',
            'events',
            '--field-selector',
            `involvedObject.name=waits-${node.name}`,
          )
        ).includes('FailedCreatePodSandBox'),
      );
    }
    await unharmed(cluster, nodes, async () => {
      await installRipstop(cluster);
      await Promise.all(nodes.map((node) => podReady(cluster, `waits-${node.name}`)));
    });
    for (const node of nodes) expect(await deferred(node), node.name).toBe(0);
    await Promise.all(nodes.map((node) => deletePod(cluster, `waits-${node.name}`)));
    await expect.poll(inventories).toEqual(before);
  });
});

describe('deploy/README.md, "Roll back": nothing of ripstop is left', () => {
  const [remove] = commandsOf('- To flannel:') as [string];

  it('uninstall says what it has done', async () => {
    await removeWorkload(cluster);
    await takeOff(cluster, (command) => command.replace(' --restore-flannel', ''));
    await type(cluster, remove);
    await podsGone(cluster, 'app=ripstop');
    for (const kind of ['clusterrole', 'clusterrolebinding', 'validatingadmissionpolicy']) {
      expect(await kubectl(cluster, 'get', kind, '-l', 'k8s-app=ripstop', '-o', 'name'), kind).toBe('');
    }
    expect((await tryKubectl(cluster, 'get', 'namespace', 'kube-ripstop')).code).not.toBe(0);
  });

  it.each(nodes)('$name is as it was before any network, but for what the README names', async (node) => {
    const changes = await changesSinceFirst(cluster, node);
    const disk = (changes['disk'] ?? []).filter((line) => line !== HOST_LOCALS);
    expect({ ...changes, disk }).toEqual(STAYS);
  });
});
