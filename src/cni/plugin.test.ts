// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { RipstopError } from '../errors.ts';
import { type Attached, type CniOps, dispatch } from './plugin.ts';
import { CniCode, CniError } from './spec.ts';

const attached: Attached = {
  hostIfname: 'veth01234567',
  hostMac: '02:00:00:00:00:01',
  podMac: '02:00:00:00:00:02',
  addresses: [{ ip: '10.42.1.5', gateway: '10.42.1.1', routes: ['10.42.0.0/16', '0.0.0.0/0'] }],
  stepsMs: {},
};
const dualStack: Attached = {
  ...attached,
  addresses: [
    ...attached.addresses,
    { ip: 'fd00:42:0:1::5', gateway: 'fd00:42:0:1::1', routes: ['fd00:42::/56', '::/0'], routeMtu: 1430 },
  ],
};

/** Operations that only write down how they were called. */
function recorder(overrides: Partial<CniOps> = {}): { ops: CniOps; calls: unknown[] } {
  const calls: unknown[] = [];
  const note = (name: string) => async (call: unknown) => void calls.push({ [name]: call });
  const ops: CniOps = {
    add: async (call) => {
      calls.push({ add: call });
      return attached;
    },
    del: note('del'),
    check: note('check'),
    status: note('status'),
    gc: note('gc'),
    ...overrides,
  };
  return { ops, calls };
}

const environment = {
  CNI_COMMAND: 'ADD',
  CNI_CONTAINERID: 'c0ffee',
  CNI_IFNAME: 'eth0',
  CNI_NETNS: '/run/netns/pod',
  CNI_PATH: '/opt/cni/bin',
};
const config = { cniVersion: '1.0.0', name: 'cbr0', type: 'ripstop' };

/** Dispatch, and the answer as the runtime would read it. */
async function call(
  env: Record<string, string | undefined>,
  input: unknown = config,
  ops: CniOps = recorder().ops,
): Promise<{ exitCode: number; output: unknown }> {
  const given = Object.entries({ ...environment, ...env }).filter(([, value]) => value !== undefined);
  const stdin = Buffer.from(typeof input === 'string' ? input : JSON.stringify(input));
  const { exitCode, stdout } = await dispatch({ env: Object.fromEntries(given), stdin }, ops);
  const text = Buffer.from(stdout).toString();
  return { exitCode, output: text === '' ? '' : JSON.parse(text) };
}

describe('ADD', () => {
  it('hands over what the runtime said, and answers with the result of the specification', async () => {
    const { ops, calls } = recorder();
    const dns = { nameservers: ['10.43.0.10'], search: ['svc.cluster.local'] };
    const args = 'IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns-0;K8S_POD_UID=';
    const answer = await call({ CNI_ARGS: args }, { ...config, dns }, ops);
    expect(calls).toEqual([
      {
        add: {
          network: 'cbr0',
          containerId: 'c0ffee',
          ifname: 'eth0',
          netns: '/run/netns/pod',
          podNamespace: 'kube-system',
          podName: 'dns-0',
        },
      },
    ]);
    expect(answer).toEqual({
      exitCode: 0,
      output: {
        cniVersion: '1.0.0',
        interfaces: [
          { name: 'veth01234567', mac: '02:00:00:00:00:01', sandbox: '' },
          { name: 'eth0', mac: '02:00:00:00:00:02', sandbox: '/run/netns/pod' },
        ],
        ips: [{ interface: 1, address: '10.42.1.5/32', gateway: '10.42.1.1' }],
        routes: [
          { dst: '10.42.0.0/16', gw: '10.42.1.1' },
          { dst: '0.0.0.0/0', gw: '10.42.1.1' },
        ],
        dns,
      },
    });
  });

  it.each(['0.3.1', '0.4.0'])(
    'names the family of the address in %s, which still had that field',
    async (version) => {
      const { output } = await call({}, { ...config, cniVersion: version });
      expect(output).toMatchObject({ cniVersion: version, ips: [{ version: '4', address: '10.42.1.5/32' }] });
    },
  );

  it.each([
    ['0.4.0', { version: '4' }, { version: '6' }, {}],
    ['1.0.0', {}, {}, {}],
    ['1.1.0', {}, {}, { mtu: 1430 }],
  ])('answers with both families in the words of %s', async (cniVersion, v4, v6, mtu) => {
    const { ops } = recorder({ add: async () => dualStack });
    const { output } = await call({}, { ...config, cniVersion }, ops);
    const [gateway4, gateway6] = ['10.42.1.1', 'fd00:42:0:1::1'];
    expect(output).toMatchObject({
      ips: [
        { ...v4, interface: 1, address: '10.42.1.5/32', gateway: gateway4 },
        { ...v6, interface: 1, address: 'fd00:42:0:1::5/128', gateway: gateway6 },
      ],
    });
    expect((output as { routes: unknown }).routes).toEqual([
      { dst: '10.42.0.0/16', gw: gateway4 },
      { dst: '0.0.0.0/0', gw: gateway4 },
      { dst: 'fd00:42::/56', gw: gateway6, ...mtu },
      { dst: '::/0', gw: gateway6, ...mtu },
    ]);
  });

  it.each([
    ['create-PodSandbox_0001', 'create-PodSandbox_0001'],
    ['a pod/with ünïcode', 'a pod/with ünïcode'],
    ['../../etc/passwd', '../../etc/passwd'],
    ['\x1b[2J\u202e', '\\u001b[2J\\u202e'],
    ['x'.repeat(300), `${'x'.repeat(252)}…`],
  ])('serves a sandbox of any name, fit to be shown: %j', async (name, shown) => {
    const { ops, calls } = recorder();
    await call({ CNI_ARGS: `K8S_POD_NAMESPACE=${name};K8S_POD_NAME=${name}` }, config, ops);
    expect(calls).toMatchObject([{ add: { podNamespace: shown, podName: shown } }]);
  });

  it.each<[string, string, object, object]>([
    [
      'CNI_ARGS',
      'IP=10.42.1.7/24;MAC=02-11-22-33-44-AA',
      {},
      { ips: ['10.42.1.7'], mac: '02:11:22:33:44:aa' },
    ],
    ['args.cni', '', { args: { cni: { ips: ['::ffff:10.42.1.7'] } } }, { ips: ['10.42.1.7'] }],
    [
      'capabilities',
      '',
      { runtimeConfig: { ips: ['10.42.1.7', 'FD00::7'], mac: '0211.2233.44aa' } },
      { ips: ['10.42.1.7', 'fd00::7'], mac: '02:11:22:33:44:aa' },
    ],
    [
      'all of them',
      'IP=10.42.1.7;MAC=02:00:00:00:00:01',
      { runtimeConfig: { ips: ['10.42.1.7'], mac: '02:00:00:00:00:02' } },
      { ips: ['10.42.1.7'], mac: '02:00:00:00:00:02' },
    ],
    [
      'blocks',
      '',
      {
        runtimeConfig: { ipRanges: [[{ subnet: '10.42.1.1/24' }], [{ subnet: 'fd00:42:0:1::/64' }]] },
        ipam: { type: '', ranges: [[{ subnet: '10.42.0.0/16' }]], subnet: '10.43.0.0/16' },
      },
      { ranges: ['10.42.1.0/24', 'fd00:42:0:1::/64', '10.42.0.0/16', '10.43.0.0/16'] },
    ],
  ])('hands over the addresses that are asked for by %s', async (_, args, fields, asked) => {
    const { ops, calls } = recorder();
    await call({ CNI_ARGS: args }, { ...config, ...fields }, ops);
    expect(calls).toMatchObject([{ add: asked }]);
  });

  it('asks for nothing when nothing is asked for', async () => {
    const { ops, calls } = recorder();
    await call({ CNI_ARGS: 'IP=;MAC=' }, { ...config, runtimeConfig: { ips: [''], mac: '' } }, ops);
    expect(calls).not.toContainEqual({ add: expect.objectContaining({ ips: expect.anything() }) });
    expect(calls).not.toContainEqual({ add: expect.objectContaining({ mac: expect.anything() }) });
  });

  it('leaves fields of others alone', async () => {
    const others = { capabilities: { portMappings: true }, runtimeConfig: {}, args: { x: 1 }, ipam: {} };
    expect((await call({}, { ...config, ...others })).exitCode).toBe(0);
  });
});

describe('the other commands', () => {
  it.each(['DEL', 'GC'])('%s does not look at what it does not need', async (command) => {
    const strange = { prevResult: { ips: 'x' }, dns: 7, runtimeConfig: { ips: ['x'] }, args: [] };
    const input = { ...config, cniVersion: '1.1.0', ...strange, ipam: { type: 'dhcp', ranges: 7 } };
    const answer = await call({ CNI_COMMAND: command, CNI_ARGS: 'IP=x;y' }, input);
    expect(answer).toMatchObject({ exitCode: 0 });
  });

  it('DEL needs neither a namespace nor a prevResult, and prints nothing', async () => {
    const { ops, calls } = recorder();
    expect(
      await call({ CNI_COMMAND: 'DEL', CNI_NETNS: undefined, CNI_PATH: undefined }, config, ops),
    ).toEqual({
      exitCode: 0,
      output: '',
    });
    expect(calls).toEqual([{ del: { network: 'cbr0', containerId: 'c0ffee', ifname: 'eth0' } }]);
  });

  it('CHECK hands over the prevResult, and is an error without one', async () => {
    const { ops, calls } = recorder();
    const prevResult = { cniVersion: '1.0.0', ips: [{ address: '10.42.1.5/32', gateway: '10.42.1.1' }] };
    expect((await call({ CNI_COMMAND: 'CHECK' }, { ...config, prevResult }, ops)).exitCode).toBe(0);
    expect(calls).toMatchObject([
      { check: { prevResult: { interfaces: [], ips: [{ address: '10.42.1.5/32' }] } } },
    ]);
    expect((await call({ CNI_COMMAND: 'CHECK' })).output).toMatchObject({ code: CniCode.config });
  });

  it('GC hands over what is to stay, and never takes a missing list for an empty one', async () => {
    const { ops, calls } = recorder();
    const gc = { ...config, cniVersion: '1.1.0' };
    for (const key of ['cni.dev/valid-attachments', 'cni.dev/attachments']) {
      const valid = { [key]: [{ containerID: 'a', ifname: 'eth0' }] };
      await call({ CNI_COMMAND: 'GC', CNI_CONTAINERID: undefined }, { ...gc, ...valid }, ops);
      expect(calls.splice(0)).toMatchObject([
        { gc: { validAttachments: [{ containerId: 'a', ifname: 'eth0' }] } },
      ]);
    }
    expect(await call({ CNI_COMMAND: 'GC' }, gc, ops)).toMatchObject({ exitCode: 0 });
    expect(calls).toEqual([]);
  });

  it('VERSION lists the versions, whatever the input', async () => {
    const supportedVersions = ['0.3.1', '0.4.0', '1.0.0', '1.1.0'];
    const { output } = await call({ CNI_COMMAND: 'VERSION' }, { cniVersion: '0.4.0' });
    expect(output).toEqual({ cniVersion: '0.4.0', supportedVersions });
    expect((await call({ CNI_COMMAND: 'VERSION' }, 'x')).output).toMatchObject({ supportedVersions });
  });
});

describe('null', () => {
  const nothing = {
    ipam: null,
    dns: null,
    args: null,
    capabilities: null,
    runtimeConfig: null,
    prevResult: null,
    'cni.dev/attachments': null,
    plugins: [null],
  };
  const inside = {
    ipam: { type: null, ranges: null },
    dns: { nameservers: null, domain: null, search: [null, 'svc'], options: null },
    args: { cni: null },
    runtimeConfig: { ips: null, mac: null, portMappings: null },
    prevResult: { interfaces: null, ips: null, routes: null, dns: null },
  };
  const known = { cniVersion: '1.1.0', name: 'cbr0' };

  it.each(['ADD', 'DEL', 'STATUS'])('is left out, anywhere, for %s', async (command) => {
    for (const fields of [nothing, inside])
      expect((await call({ CNI_COMMAND: command }, { ...known, ...fields })).exitCode).toBe(0);
  });

  it('is left out of what CHECK compares with', async () => {
    const ips = [null, { address: '10.42.1.5/32', gateway: null, interface: null }];
    const prevResult = { interfaces: [{ name: 'eth0', mac: null, sandbox: null }], ips };
    const { ops, calls } = recorder();
    await call({ CNI_COMMAND: 'CHECK' }, { ...known, prevResult }, ops);
    expect(calls).toMatchObject([
      { check: { prevResult: { interfaces: [{ name: 'eth0' }], ips: [{ address: '10.42.1.5/32' }] } } },
    ]);
    expect((await call({ CNI_COMMAND: 'CHECK' }, { ...known, prevResult: null })).output).toMatchObject({
      code: CniCode.config,
    });
  });

  it('as the list of valid attachments says that there are none, as libcni does', async () => {
    const { ops, calls } = recorder();
    const gc = (valid: unknown) =>
      call({ CNI_COMMAND: 'GC' }, { ...known, 'cni.dev/valid-attachments': valid }, ops);
    await gc(null);
    await gc([null, { containerID: null, ifname: 'eth0' }, { containerID: 'of others/?', ifname: 'é' }]);
    expect(calls).toMatchObject([
      { gc: { validAttachments: [] } },
      { gc: { validAttachments: [{ containerId: '' }, { containerId: 'of others/?' }] } },
    ]);
  });

  it('is no configuration', async () => {
    expect((await call({}, 'null')).output).toMatchObject({ code: CniCode.decode });
  });
});

describe('errors', () => {
  const { incompatibleVersion, unsupportedField, environment: env, decode, config: wrong } = CniCode;
  it.each<[string, Record<string, string | undefined>, unknown, number, string]>([
    ['no command', { CNI_COMMAND: undefined }, config, env, 'CNI_COMMAND is ""'],
    ['an unknown command', { CNI_COMMAND: 'constructor' }, config, env, 'one of ADD, DEL, CHECK'],
    ['no container', { CNI_CONTAINERID: undefined }, config, env, 'ADD needs CNI_CONTAINERID'],
    [
      'a container that is a path',
      { CNI_CONTAINERID: '../../etc' },
      config,
      env,
      'CNI_CONTAINERID "../../etc"',
    ],
    ['an endless container', { CNI_CONTAINERID: 'a'.repeat(500) }, config, env, 'CNI_CONTAINERID "aaa'],
    ['no interface', { CNI_IFNAME: '' }, config, env, 'ADD needs CNI_IFNAME'],
    ['an interface name of 16 bytes', { CNI_IFNAME: 'a'.repeat(16) }, config, env, 'CNI_IFNAME'],
    [
      'an interface that is a command',
      { CNI_IFNAME: 'x\nlink del' },
      config,
      env,
      'CNI_IFNAME "x\\nlink del"',
    ],
    ['no namespace for ADD', { CNI_NETNS: undefined }, config, env, 'ADD needs CNI_NETNS'],
    ['a namespace that is no absolute path', { CNI_NETNS: 'pod' }, config, env, 'CNI_NETNS "pod"'],
    ['a namespace of two lines', { CNI_NETNS: '/a\nb' }, config, env, 'CNI_NETNS "/a\\nb"'],
    ['malformed arguments', { CNI_ARGS: 'A=1;B' }, config, env, 'CNI_ARGS holds "B"'],
    ['an IP address that is none', { CNI_ARGS: 'IP=10.42.1' }, config, env, 'IP address "10.42.1"'],
    ['a prefix that is too long', { CNI_ARGS: 'IP=10.42.1.5/33' }, config, env, 'IP address "10.42.1.5/33"'],
    ['a MAC address that is none', { CNI_ARGS: 'MAC=02:00' }, config, env, 'MAC address "02:00"'],
    ['a multicast MAC address', { CNI_ARGS: 'MAC=01:00:5e:00:00:01' }, config, env, 'must be a unicast one'],
    [
      'a capability that asks for nonsense',
      {},
      { ...config, runtimeConfig: { ips: ['x'] } },
      wrong,
      'runtimeConfig asks for the IP address "x"',
    ],
    ['no configuration', {}, '', decode, 'not a JSON object'],
    ['half a configuration', {}, '{"cniVersion":"1.0.0"', decode, 'not a JSON object'],
    ['a configuration that is a list', {}, [], decode, 'not a JSON object'],
    ['no version', {}, { name: 'cbr0' }, incompatibleVersion, '"0.1.0" is not supported'],
    ['a version too old', {}, { ...config, cniVersion: '0.2.0' }, incompatibleVersion, '"0.2.0" is not supp'],
    ['a version too new', {}, { ...config, cniVersion: '9.0.0' }, incompatibleVersion, 'use one of 0.3.1'],
    [
      'CHECK before 0.4.0',
      { CNI_COMMAND: 'CHECK' },
      { ...config, cniVersion: '0.3.1' },
      incompatibleVersion,
      'no CHECK',
    ],
    ['STATUS before 1.1.0', { CNI_COMMAND: 'STATUS' }, config, incompatibleVersion, '1.0.0 has no STATUS'],
    ['GC before 1.1.0', { CNI_COMMAND: 'GC' }, config, incompatibleVersion, '1.0.0 has no GC'],
    ['no network name', {}, { cniVersion: '1.0.0' }, wrong, 'wrong at name'],
    ['a network name that is a path', {}, { ...config, name: '../x' }, wrong, 'wrong at name'],
    ['dns that is none', {}, { ...config, dns: { search: 'x' } }, wrong, 'wrong at dns.search'],
    [
      'another address plugin',
      {},
      { ...config, ipam: { type: 'dhcp' } },
      unsupportedField,
      'ipam.type "dhcp"',
    ],
    [
      'a part of a block',
      {},
      { ...config, ipam: { subnet: '10.42.1.0/24', rangeStart: '10.42.1.9' } },
      unsupportedField,
      'the range "10.42.1.9-" of "10.42.1.0/24"',
    ],
    [
      'a block that is none',
      {},
      { ...config, runtimeConfig: { ipRanges: [[{ subnet: 'x' }]] } },
      wrong,
      'asks for a block of addresses: "x" is not a CIDR block',
    ],
  ])('%s', async (_, env, input, code, message) => {
    const { ops, calls } = recorder();
    const { exitCode, output } = await call(env, input, ops);
    expect(output).toMatchObject({ code, msg: expect.stringContaining(message) });
    expect(exitCode).toBe(1);
    expect(calls).toEqual([]);
  });

  it('echo the version of the configuration, unless it is not fit to be echoed', async () => {
    const bad = { CNI_COMMAND: 'x' };
    expect((await call(bad, { ...config, cniVersion: '0.4.0' })).output).toMatchObject({
      cniVersion: '0.4.0',
    });
    expect((await call(bad, { ...config, cniVersion: '"' })).output).toMatchObject({ cniVersion: '1.0.0' });
    expect((await call(bad, 'x')).output).toMatchObject({ cniVersion: '1.0.0' });
  });

  it.each([
    [
      'of ours keep their code and details',
      new CniError(11, 'wait', { details: 'long' }),
      11,
      'wait',
      'long',
    ],
    ['of the rest of ripstop get code 100', new RipstopError('no', { details: 'log' }), 100, 'no', 'log'],
    ['of any kind are told on one line', new Error('a\n  b'), 100, 'a · b', undefined],
  ])('%s', async (_, thrown, code, msg, details) => {
    const { ops } = recorder({ add: () => Promise.reject(thrown) });
    expect(await call({}, config, ops)).toEqual({
      exitCode: 1,
      output: { cniVersion: '1.0.0', code, msg, ...(details !== undefined && { details }) },
    });
  });
});
