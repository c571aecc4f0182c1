// SPDX-License-Identifier: Apache-2.0
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { AgentOptions } from '../agent/options.ts';
import { type AgentFlags, agentOptions } from './agent.ts';
import { ignoredFlannelVariables } from './flannel-env.ts';
import { createProgram } from './program.ts';

afterEach(() => vi.unstubAllEnvs());

/** The options of an agent with this command line and environment. The agent is not started. */
async function optionsOf(argv: readonly string[], env: Record<string, string> = {}): Promise<AgentOptions> {
  for (const name of ['RIPSTOP_NODE_NAME', 'NODE_NAME']) vi.stubEnv(name, undefined);
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
  const program = createProgram({ writeErr: () => {} });
  const agent = program.commands.find((command) => command.name() === 'agent')!;
  let options: AgentOptions | undefined;
  agent.exitOverride().action((flags: AgentFlags) => {
    options = agentOptions(flags);
  });
  await program.parseAsync(['agent', ...argv], { from: 'user' });
  return options!;
}

describe('flannel’s variables', () => {
  it('mean the same as for flannel', async () => {
    const options = await optionsOf([], {
      NODE_NAME: 'node7',
      FLANNELD_IFACE: 'eth1',
      FLANNELD_IFACE_REGEX: '^10\\.[0-9]{1,3}\\.',
      FLANNELD_IFACE_CAN_REACH: '192.0.2.1',
      FLANNELD_PUBLIC_IP: '10.0.0.7',
      FLANNELD_PUBLIC_IPV6: 'FD00:0::7',
      FLANNELD_IP_MASQ: 'false',
      FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE: 'true',
      FLANNELD_SUBNET_FILE: '/run/other/subnet.env',
      FLANNELD_NET_CONFIG_PATH: '/etc/other/net-conf.json',
      FLANNELD_KUBECONFIG_FILE: '/etc/other/kubeconfig',
      FLANNELD_KUBE_ANNOTATION_PREFIX: 'example.com/blue',
      FLANNELD_SET_NODE_NETWORK_UNAVAILABLE: '0',
    });
    expect(options).toMatchObject({
      nodeName: 'node7',
      iface: ['eth1'],
      ifaceRegex: ['^10\\.[0-9]{1,3}\\.'],
      ifaceCanReach: '192.0.2.1',
      publicIp: { v4: '10.0.0.7', v6: 'fd00::7' },
      ipMasq: false,
      ipMasqFullyRandomDisable: true,
      subnetFile: '/run/other/subnet.env',
      netConf: '/etc/other/net-conf.json',
      kubeconfig: '/etc/other/kubeconfig',
      annotationPrefix: 'example.com/blue',
      setNodeNetworkUnavailable: false,
    });
  });

  it('are overridden by ripstop’s own, and those by flags', async () => {
    const flannel = { NODE_NAME: 'flannel', FLANNELD_IFACE: 'eth1', FLANNELD_IP_MASQ: 'false' };
    const own = { RIPSTOP_NODE_NAME: 'own', RIPSTOP_IFACE: 'eth2', RIPSTOP_IP_MASQ: 'true' };
    const pick = ({ nodeName, iface, ipMasq }: AgentOptions) => ({ nodeName, iface, ipMasq });
    expect(pick(await optionsOf(['--node-name=flag', '--iface=eth3', '--ip-masq'], flannel))).toEqual({
      nodeName: 'flag',
      iface: ['eth3'],
      ipMasq: true,
    });
    expect(pick(await optionsOf([], { ...flannel, ...own }))).toEqual({
      nodeName: 'own',
      iface: ['eth2'],
      ipMasq: true,
    });
  });

  it('count as unset when they are empty, as in many manifests', async () => {
    const options = await optionsOf(['--node-name=n'], { FLANNELD_IFACE: '', FLANNELD_PUBLIC_IP: '' });
    expect(options).not.toHaveProperty('iface');
    expect(options.publicIp).toEqual({});
    expect(options).toMatchObject({
      setNodeNetworkUnavailable: true,
      ipMasq: true,
      ipMasqFullyRandomDisable: false,
    });
  });

  it.each([
    [{ FLANNELD_PUBLIC_IP: 'fd00::7' }, /FLANNELD_PUBLIC_IP.*Give an IPv4 address/],
    [{ FLANNELD_PUBLIC_IPV6: '10.0.0.7' }, /FLANNELD_PUBLIC_IPV6.*Give an IPv6 address/],
    [{ FLANNELD_IP_MASQ: 'yes' }, /FLANNELD_IP_MASQ.*Give true or false/],
  ])('are named in the error when they are wrong: %j', async (env, message) => {
    await expect(optionsOf(['--node-name=n'], env)).rejects.toThrow(message);
  });

  it('that ripstop ignores are listed, unless they are empty', () => {
    const env = {
      FLANNELD_IFACE: 'eth0',
      FLANNELD_HEALTHZ_PORT: '8081',
      FLANNELD_IPTABLES_RESYNC: '',
      FLANNELD_FROBNICATE: 'true',
      EVENT_QUEUE_DEPTH: '5000',
      PATH: '/bin',
    };
    expect(ignoredFlannelVariables(env, new Set(['FLANNELD_IFACE']))).toEqual({
      EVENT_QUEUE_DEPTH: expect.stringContaining('no queue') as string,
      FLANNELD_FROBNICATE: 'ripstop has no such setting',
      FLANNELD_HEALTHZ_PORT: expect.stringContaining('--healthz-addr') as string,
    });
  });
});

describe('the uplink', () => {
  it('may be given several times, or as a list', async () => {
    const { iface, ifaceRegex } = await optionsOf([
      '--node-name=n',
      '--iface=eth0,10.0.0.7',
      '--iface=eth1',
      '--iface-regex=^en{1,2}',
      '--iface-regex=^bond',
    ]);
    expect(iface).toEqual(['eth0', '10.0.0.7', 'eth1']);
    expect(ifaceRegex).toEqual(['^en{1,2}', '^bond']);
  });
});

describe('the device of a new pod', () => {
  const deviceOf = async (argv: string[], env: Record<string, string> = {}) =>
    (await optionsOf(['--node-name=n', ...argv], env)).podDevice;

  it('is chosen by the agent, or by a flag or its variable', async () => {
    expect(await deviceOf([])).toBe('auto');
    expect(await deviceOf(['--pod-device=netkit'])).toBe('netkit');
    expect(await deviceOf([], { RIPSTOP_POD_DEVICE: 'veth' })).toBe('veth');
    await expect(deviceOf(['--pod-device=macvlan'])).rejects.toThrow(/auto, veth, netkit/);
  });
});

describe('the flow table', () => {
  const sizeOf = async (...argv: string[]) => (await optionsOf(['--node-name=n', ...argv])).flowTableSize;

  it('has room for as many flows as asked', async () => {
    expect(await sizeOf()).toBe(131_072);
    expect(await sizeOf('--flow-table-size=1024')).toBe(1024);
  });

  it.each(['0', '1023', '1.5e4x', '16777217', 'many'])('cannot have room for %s', async (size) => {
    await expect(sizeOf(`--flow-table-size=${size}`)).rejects.toThrow(/Give a whole number from 1024/);
  });
});

describe('the metrics', () => {
  const topOf = async (...argv: string[]) => (await optionsOf(['--node-name=n', ...argv])).metricsTop;

  it('name as many peers and pods as asked', async () => {
    expect(await topOf()).toBe(250);
    expect(await topOf('--metrics-top=0')).toBe(0);
  });

  it.each(['-1', '1.5', '1001', 'all', ''])('cannot name %o', async (top) => {
    await expect(topOf(`--metrics-top=${top}`)).rejects.toThrow(/Give a whole number from 0/);
  });
});

describe('subnets', () => {
  const etcdOf = async (argv: readonly string[], env: Record<string, string> = {}) =>
    (await optionsOf(['--node-name=n', ...argv], env)).etcd;

  it('come from Kubernetes by default', async () => {
    expect(await etcdOf([])).toBeUndefined();
    expect(await etcdOf(['--kube-subnet-mgr'])).toBeUndefined();
    expect(await etcdOf(['--kube-subnet-mgr', '--etcd-endpoints=http://10.0.0.1:2379'])).toBeUndefined();
    expect(
      await etcdOf([], { FLANNELD_KUBE_SUBNET_MGR: 'true', FLANNELD_ETCD_ENDPOINTS: 'x:1' }),
    ).toBeUndefined();
  });

  it('come from etcd with flanneld’s flags for it', async () => {
    expect(await etcdOf(['--kube-subnet-mgr=false'])).toEqual({
      endpoints: ['http://127.0.0.1:4001', 'http://127.0.0.1:2379'],
      prefix: '/coreos.com/network',
    });
    const env = {
      FLANNELD_ETCD_ENDPOINTS: 'https://10.0.0.1:2379, https://10.0.0.2:2379',
      FLANNELD_ETCD_PREFIX: '/blue',
      FLANNELD_ETCD_CAFILE: '/ca.pem',
      FLANNELD_ETCD_CERTFILE: '/cert.pem',
      FLANNELD_ETCD_KEYFILE: '/key.pem',
      FLANNELD_ETCD_USERNAME: 'flannel',
      FLANNELD_ETCD_PASSWORD: 'secret',
    };
    expect(await etcdOf([], env)).toEqual({
      endpoints: ['https://10.0.0.1:2379', 'https://10.0.0.2:2379'],
      prefix: '/blue',
      cafile: '/ca.pem',
      certfile: '/cert.pem',
      keyfile: '/key.pem',
      username: 'flannel',
      password: 'secret',
    });
  });
});
