// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseNetConf } from '../cluster/index.ts';
import { RipstopError } from '../errors.ts';
import type { Link } from '../host/links.ts';
import { flannelVxlan, link } from '../host/links.support.ts';
import { parseCidr } from '../net/ip.ts';
import { chooseMode, describeFlannel, type FlannelFacts, type ModeFacts } from './boost.ts';

const nobody: ModeFacts = { programs: [], hasDevice: false, isOurs: false };

describe('--mode auto', () => {
  it.each<[string, Partial<ModeFacts>, 'boost' | 'cni', string]>([
    ['flanneld runs', { programs: ['flanneld'] }, 'boost', 'flanneld runs on this node'],
    [
      'k3s runs its flannel',
      { programs: ['k3s'], hasDevice: true },
      'boost',
      'k3s runs on this node with its flannel',
    ],
    ['k3s runs without flannel', { programs: ['k3s'] }, 'cni', 'no flannel runs on this node'],
    [
      'k3s runs, and flannel’s device is ours',
      { programs: ['k3s'], hasDevice: true, isOurs: true },
      'cni',
      'no flannel',
    ],
    [
      'only the device of a flannel of before is there',
      { hasDevice: true },
      'cni',
      'no flannel runs on this node',
    ],
  ])('when %s', (_, facts, mode, why) => {
    expect(chooseMode('auto', { ...nobody, ...facts })).toEqual({
      mode,
      why: expect.stringContaining(why) as string,
    });
  });

  it('is only for those who do not choose', () => {
    expect(chooseMode('cni', { ...nobody, programs: ['flanneld'] })).toEqual({
      mode: 'cni',
      why: '--mode cni asks for it',
    });
  });
});

const flannel = (vni: number): Link => link(`flannel.${vni}`, { kind: 'vxlan', vxlan: flannelVxlan(vni) });
const subnetEnv = {
  networks: [{ network: parseCidr('10.42.0.0/16'), podCidr: parseCidr('10.42.1.0/24') }],
  mtu: 1450,
  ipMasq: true,
};
const conf = (backend: string, network = '10.42.0.0/16') =>
  parseNetConf(`{"Network": "${network}", "Backend": ${backend}}`);

const facts = (of: Partial<FlannelFacts> & { devices?: readonly Link[] }): FlannelFacts => ({
  links: new Map((of.devices ?? [flannel(1)]).map((one) => [one.name, one])),
  routed: new Set(),
  subnetEnv,
  netConf: undefined,
  hasDirectRoutes: false,
  isOurs: false,
  ...of,
});

describe('the flannel that runs here', () => {
  it('is known without net-conf.json: from its device, and from subnet.env', () => {
    expect(describeFlannel(facts({ devices: [flannel(7)] }))).toMatchObject({
      netConf: {
        network: parseCidr('10.42.0.0/16'),
        backend: { type: 'vxlan', vni: 7, port: 8472, directRouting: false },
      },
      tunnel: { vni: 7, port: 8472, uplink: 'eth0' },
      contradictions: [],
    });
  });

  it('is the one that routes to other nodes, where a device of its former VNI is left', () => {
    const devices = [flannel(1), { ...flannel(7), ifindex: 77 }];
    expect(describeFlannel(facts({ devices, routed: new Set([77]) })).tunnel).toMatchObject({ vni: 7 });
    const both = new Set([77, devices[0]!.ifindex]);
    expect(() => describeFlannel(facts({ devices, routed: both }))).toThrow('several networks');
  });

  it('wins over a net-conf.json that says something else, and that is told', () => {
    const { netConf, contradictions } = describeFlannel(
      facts({ netConf: conf('{"Type": "vxlan", "VNI": 4096, "Port": 4789}', '10.44.0.0/16') }),
    );
    expect(netConf.backend).toMatchObject({ vni: 1, port: 8472 });
    expect(contradictions).toEqual([
      'net-conf.json has the VNI 4096, and flannel uses 1',
      'net-conf.json has the port 4789, and flannel uses 8472',
      'net-conf.json has the network 10.44.0.0/16, and flannel uses 10.42.0.0/16',
    ]);
  });

  it('may route without tunnels', () => {
    expect(describeFlannel(facts({ devices: [], netConf: conf('{"Type": "host-gw"}') }))).toMatchObject({
      netConf: { backend: { type: 'host-gw' } },
      tunnel: undefined,
    });
  });

  it.each<[string, Parameters<typeof facts>[0], string]>([
    ['there is none', { devices: [] }, 'there is no device flannel.<VNI> on this node'],
    [
      'it is of another backend',
      { devices: [], netConf: new RipstopError('Backend.Type "wireguard" is not supported') },
      'Backend.Type "wireguard" is not supported',
    ],
    [
      'there are two',
      { devices: [flannel(1), flannel(2)] },
      'devices of several networks here: flannel.1, flannel.2',
    ],
    ['ripstop is the network', { isOurs: true }, 'ripstop uninstall --restore-flannel'],
    ['nothing tells its network', { subnetEnv: undefined }, 'nothing says what the cluster network is'],
  ])('is refused when %s', (_, of, why) => {
    expect(() => describeFlannel(facts(of))).toThrow(why);
  });
});
