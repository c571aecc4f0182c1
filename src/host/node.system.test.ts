// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { listLinks } from './links.ts';
import { monitorNode } from './monitor.ts';
import { ensureBpffs, isBpffs } from './mount.ts';
import { lookupNextHops } from './neighbours.ts';
import { testNetns, testNode, whyNoNetns } from './netns.support.ts';
import { gatherHostFacts, missingRequirements } from './requirements.ts';
import { tryRun } from './run.ts';
import { ensureSysctls, nodeSysctls, podVethSysctls, readSysctl, vtepSysctls } from './sysctl.ts';
import { findUplink } from './uplink.ts';

const skip = await whyNoNetns();
const title = (text: string): string => (skip ? `${text} (skipped: ${skip})` : text);

describe(title('links'), { skip: skip !== undefined }, () => {
  it('are read with their peers, masters and addresses', async () => {
    await using node = await testNode();
    await using pod = await testNetns();
    await node.ip(
      `link add vethA type veth peer name eth0 netns ${pod.path}`,
      'link add cni0 type bridge',
      'link set vethA master cni0',
    );
    const links = await listLinks(node.options);
    expect([...links.keys()].sort()).toEqual(['cni0', 'eth0', 'lo', 'vethA', 'wire']);
    expect(links.get('lo')).toMatchObject({ loopback: true, up: true, kind: undefined });
    expect(links.get('eth0')).toMatchObject({
      kind: 'veth',
      peer: { name: 'wire' },
      up: true,
      running: true,
    });
    const inPod = (await listLinks(pod.options)).get('eth0');
    expect(links.get('vethA')).toMatchObject({
      master: 'cni0',
      up: false,
      peer: { ifindex: inPod?.ifindex, netnsId: expect.any(Number) as number },
    });
    expect(links.get('eth0')?.addresses.filter((one) => one.scope === 'global')).toEqual([
      { family: 4, ip: '192.168.9.1', length: 24, scope: 'global', primary: true },
      { family: 6, ip: 'fd09::1', length: 64, scope: 'global', primary: true },
    ]);
  });
});

describe(title('sysctls'), { skip: skip !== undefined }, () => {
  it('are set in the namespace, reported, and not written twice', async () => {
    await using node = await testNode();
    const outside = await readSysctl('net/ipv4/ip_forward');
    await ensureSysctls([{ path: 'net/ipv4/ip_forward', value: '0', why: 'to begin with' }], node.options);
    const wanted = [
      ...nodeSysctls([4, 6], ['eth0']),
      ...vtepSysctls('eth0', 4),
      ...podVethSysctls('wire', [4, 6]),
    ];
    const { changed, missing } = await ensureSysctls(wanted, node.options);
    expect(missing).toEqual([]);
    expect(changed.find((one) => one.path === 'net/ipv4/ip_forward')).toMatchObject({
      before: '0',
      after: '1',
    });
    expect(await readSysctl('net/ipv4/ip_forward', node.options)).toBe('1');
    expect(await readSysctl('net/ipv6/conf/eth0/accept_ra', node.options)).toBe('2');
    expect(await ensureSysctls(wanted, node.options)).toEqual({ changed: [], missing: [] });
    expect(await readSysctl('net/ipv4/ip_forward')).toBe(outside);
  });

  it('that this kernel lacks are reported', async () => {
    const setting = { path: 'net/ipv4/no_such_thing', value: '1', why: 'a test' };
    expect(await ensureSysctls([setting])).toEqual({ changed: [], missing: [setting] });
  });

  it('that the kernel refuses are an error', async () => {
    await using node = await testNetns();
    const setting = { path: 'net/ipv4/ip_forward', value: 'maybe', why: 'a test' };
    await expect(ensureSysctls([setting], node.options)).rejects.toThrow(
      'cannot set net.ipv4.ip_forward to maybe',
    );
  });
});

describe(title('the uplink'), { skip: skip !== undefined }, () => {
  it('is found from what the kernel lists', async () => {
    await using node = await testNode();
    await node.ip('addr add 10.5.0.1/24 dev wire', 'route add 203.0.113.0/24 via 10.5.0.9');
    const eth0 = (await listLinks(node.options)).get('eth0');
    expect(await findUplink({ families: [4] }, await listLinks(node.options), node.options)).toEqual({
      name: 'eth0',
      ifindex: eth0?.ifindex,
      ips: { v4: '192.168.9.1' },
      mtu: 1500,
      advertised: [],
      explanation: 'eth0 (192.168.9.1): it carries the default route',
    });
    expect(await findUplink({ families: [6] }, await listLinks(node.options), node.options)).toMatchObject({
      ips: { v6: 'fd09::1' },
    });
    expect(
      await findUplink(
        { families: [4], ifaceCanReach: '203.0.113.7' },
        await listLinks(node.options),
        node.options,
      ),
    ).toMatchObject({
      name: 'wire',
      ips: { v4: '10.5.0.1' },
    });
    await expect(
      findUplink({ families: [4], iface: ['ens3'] }, await listLinks(node.options), node.options),
    ).rejects.toThrow('choose with --iface among wire (10.5.0.1), eth0 (192.168.9.1)');
    await node.ip('route del default');
    await expect(
      findUplink({ families: [4], ifaceCanReach: '8.8.8.8' }, await listLinks(node.options), node.options),
    ).rejects.toThrow('no route leads to 8.8.8.8');
  });
});

describe(title('the next hop to a peer'), { skip: skip !== undefined }, () => {
  it('is on link, through a gateway, or nowhere', async () => {
    await using node = await testNode();
    await node.ip('route add unreachable 10.99.0.0/16');
    const hops = await lookupNextHops(
      ['192.168.9.2', '8.8.8.8', '10.99.1.1', '192.168.9.1', 'fd09:0::2', '2001:db8::1'],
      {},
      node.options,
    );
    expect(Object.fromEntries(hops)).toEqual({
      '192.168.9.2': { dev: 'eth0', gateway: undefined },
      '8.8.8.8': { dev: 'eth0', gateway: '192.168.9.254' },
      'fd09:0::2': { dev: 'eth0', gateway: undefined },
      '2001:db8::1': { dev: 'eth0', gateway: 'fd09::fe' },
    });
  });
});

describe(title('the monitor'), { skip: skip !== undefined }, () => {
  /** What has happened since the last call, by kind. */
  function listen(options: { netns?: string }) {
    const kinds: string[] = [];
    const monitor = monitorNode((events) => void kinds.push(...events.map(({ kind }) => kind)), options);
    return { monitor, kinds, take: () => new Set(kinds.splice(0)) };
  }

  it('reports changes until it is closed', async () => {
    await using node = await testNode();
    const { monitor, kinds, take } = listen(node.options);
    {
      using _ = monitor;
      const provoke = async (command: string, ...expected: string[]): Promise<void> => {
        take();
        await node.ip(command);
        await vi.waitFor(() => expect(kinds).toEqual(expect.arrayContaining(expected)), 1000);
      };
      await provoke('link set eth0 mtu 1450', 'link');
      await provoke('addr add 10.5.0.1/24 dev eth0', 'network');
      await provoke('route add 10.6.0.0/16 via 10.5.0.9', 'network');
      await provoke('rule add to 10.7.0.0/16 table 7', 'network');
      await provoke('link add veth01234567 up type veth peer name pod0', 'pod-link');
      await provoke('route add 10.42.1.5 dev veth01234567 scope link proto 82', 'pod-route');
      await sleep(50);
      take();
      // Only bridges of pods have neighbours that matter, and this is no bridge: see BridgedPods.
      await node.ip('neigh replace 10.5.0.9 lladdr 02:00:00:00:00:09 dev eth0');
      await sleep(100);
      expect(take()).toEqual(new Set(['bridge']));
    }
    take();
    await node.ip('link set eth0 mtu 1400');
    await sleep(100);
    expect(take()).toEqual(new Set());
  });

  it('reports changes of our nft table, and of others only what flannel adds', async () => {
    await using node = await testNode();
    const { monitor, take } = listen(node.options);
    using _ = monitor;
    const nft = async (commands: string): Promise<Set<string>> => {
      await node.run('nft', commands);
      await sleep(200);
      return take();
    };
    const made = await nft(
      'add table inet ripstop; add chain inet ripstop forward; add set inet ripstop vteps4 { type ipv4_addr; }',
    );
    expect(made).toContain('rules');
    const others = await nft('add table inet other; add chain inet other forward; delete table inet other');
    expect([...others]).not.toContain('rules');
    const element = 'element inet ripstop vteps4 { 192.0.2.1 }';
    expect([...(await nft(`add ${element}; delete ${element}`))]).not.toContain('rules');
    for (const change of [
      'add rule inet ripstop forward accept',
      'flush chain inet ripstop forward',
      'flush ruleset',
    ]) {
      expect(await nft(change)).toContain('rules');
    }
    expect(await nft('add table ip flannel-ipv4')).toContain('flannel-rules');
  });
});

describe(title('bpffs'), { skip: skip !== undefined }, () => {
  it('is mounted where it is missing, once', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'bpffs-'));
    const path = join(directory, 'deep', 'bpf');
    try {
      expect(await isBpffs(path)).toBe(false);
      expect(await ensureBpffs(path)).toBe(true);
      expect(await isBpffs(path)).toBe(true);
      expect(await ensureBpffs(path)).toBe(false);
    } finally {
      await tryRun('umount', [path]);
      await rm(directory, { recursive: true });
    }
  });

  it('says what to do when it cannot be mounted', async () => {
    await expect(ensureBpffs('/proc/nothing/bpf')).rejects.toThrow(
      /^there is no BPF file system at \/proc\/nothing\/bpf and none can be mounted \(mkdir .*mount one/,
    );
  });
});

describe(title('this machine'), { skip: skip !== undefined }, () => {
  it('has what ripstop needs', async () => {
    expect(missingRequirements(await gatherHostFacts())).toEqual([]);
  });
});
