// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseNetConf, readNetConf } from './net-conf.ts';

const parse = (json: unknown) => parseNetConf(JSON.stringify(json));

describe('net-conf.json', () => {
  it("has flannel's defaults", () => {
    expect(parse({ Network: '10.42.0.0/16', Backend: { Type: 'vxlan' } })).toEqual({
      enableIpv4: true,
      enableIpv6: false,
      network: { family: 4, base: '10.42.0.0', length: 16 },
      backend: { type: 'vxlan', vni: 1, port: 8472, directRouting: false },
    });
  });

  it('matches keys in any case, as Go does, and skips what only etcd mode uses', () => {
    const text = `{
      "NETWORK": "10.244.0.0/16", "enableipv6": true, "ipv6network": "fd00::/48", "EnableNFTables": true,
      "SubnetLen": 24, "SubnetMin": "10.244.1.0",
      "backend": {"type": "VXLAN", "vni": 4096, "PORT": 4789, "mtu": 1400, "directrouting": true}
    }`;
    expect(parseNetConf(text)).toEqual({
      enableIpv4: true,
      enableIpv6: true,
      network: { family: 4, base: '10.244.0.0', length: 16 },
      ipv6Network: { family: 6, base: 'fd00::', length: 48 },
      backend: {
        type: 'vxlan',
        vni: 4096,
        port: 4789,
        mtu: 1400,
        directRouting: true,
      },
    });
  });

  it('leaves out the network of a family that is off', () => {
    const conf = parse({
      EnableIPv4: false,
      Network: '10.42.0.0/16',
      EnableIPv6: true,
      IPv6Network: 'fd00::/48',
      Backend: { Type: 'vxlan', MTU: 0 },
    });
    expect(conf.network).toBeUndefined();
    expect(conf.ipv6Network?.base).toBe('fd00::');
    expect(conf.backend).not.toHaveProperty('mtu');
  });

  it("takes what Go's parsers take: host bits, a port of 0, null, repeated keys", () => {
    const conf = parseNetConf(`{
      "Network": "10.42.7.1/16", "network": null,
      "EnableIPv4": null, "EnableIPv6": false, "ENABLEIPV6": true, "IPv6Network": "fd00:42::7/48",
      "EnableNFTables": null, "SubnetLen": null, "Unknown": [1],
      "Backend": {"Type": "VXLAN", "VNI": null, "vni": 7, "Port": 0, "MTU": null, "GBP": null, "Learning": null}
    }`);
    expect(conf).toEqual({
      enableIpv4: true,
      enableIpv6: true,
      network: { family: 4, base: '10.42.0.0', length: 16 },
      ipv6Network: { family: 6, base: 'fd00:42::', length: 48 },
      backend: { type: 'vxlan', vni: 7, port: 8472, directRouting: false },
    });
    expect(parse({ Network: '10.42.0.0/16', Backend: { Type: 'vxlan', VNI: 0 } }).backend).toMatchObject({
      vni: 0,
    });
  });

  it('has an MTU that IPv6 can live with in the tunnel, where that is on', () => {
    const conf = (MTU: number): unknown => ({
      Network: '10.42.0.0/16',
      EnableIPv6: true,
      IPv6Network: 'fd00::/48',
      Backend: { Type: 'vxlan', MTU },
    });
    expect(parse(conf(1350)).backend).toMatchObject({ mtu: 1350 });
    expect(() => parse(conf(1349))).toThrow('Backend.MTU 1349 is too small for IPv6, which needs 1350');
  });

  it('names every mistake by its key, all at once', () => {
    const text = JSON.stringify({
      Network: '10.42.0.1/33',
      EnableIPv6: 'yes',
      Backend: { Type: 'vxlan', VNI: 0x100_0000, Port: '8472', MTU: 100, DirectRouting: 1 },
    });
    expect(() => parseNetConf(text, '/etc/net-conf.json')).toThrow(
      '/etc/net-conf.json: EnableIPv6 "yes" is neither true nor false; ' +
        'Network "10.42.0.1/33" is not a CIDR block such as 10.42.0.0/16; ' +
        'Backend.MTU 100 is too small for IPv4, which needs 576; leave it out to follow the uplink; ' +
        'Backend.VNI 16777216 is no whole number from 0 to 16777215; ' +
        'Backend.Port "8472" is no whole number from 0 to 65535; ' +
        'Backend.DirectRouting 1 is neither true nor false',
    );
  });

  it.each(['host-gw', 'alloc', 'Host-GW'])('knows the backend %s, which has no options', (Type) => {
    const conf = parse({ Network: '10.42.0.0/16', Backend: { Type, DirectRouting: true } });
    expect(conf.backend).toEqual({ type: Type.toLowerCase() });
  });

  it.each([
    ['udp', 'for debugging only'],
    ['ipip', 'no VXLAN'],
    ['wireguard', 'does not encrypt'],
    ['ipsec', 'does not encrypt'],
    ['extension', 'runs no commands'],
    ['tencent-vpc', 'no cloud API'],
  ])('refuses the backend %s, says why, and names those that there are', (Type, why) => {
    const refused = () => parse({ Network: '10.42.0.0/16', Backend: { Type } });
    expect(refused).toThrow(`Backend.Type "${Type}" is not supported (`);
    expect(refused).toThrow(why);
    expect(refused).toThrow('ripstop supports "vxlan", "host-gw" and "alloc"');
  });

  it.each(['GBP', 'Learning'])('refuses the option %s, which the fast path would not honour', (option) => {
    const conf = (value: boolean) =>
      parse({ Network: '10.42.0.0/16', Backend: { Type: 'vxlan', [option]: value } });
    expect(conf(false).backend.type).toBe('vxlan');
    expect(() => conf(true)).toThrow(`Backend.${option} true is not supported: `);
  });

  it.each([
    ['{', 'is no JSON'],
    ['[]', 'the file is not a JSON object'],
    ['{"Network":"10.42.0.0/16"}', 'Backend.Type is missing; ripstop supports "vxlan"'],
    ['{"Network":"10.42.0.0/16","Backend":"vxlan"}', 'Backend is not a JSON object'],
    ['{"Backend":{"Type":"vxlan"}}', 'Network is missing'],
    ['{"Network":"fd00::/48","Backend":{"Type":"vxlan"}}', 'Network "fd00::/48" is not an IPv4 block'],
    ['{"Network":7,"Backend":{"Type":"vxlan"}}', 'Network "7" is not a CIDR block'],
    ['{"EnableIPv4":false,"Backend":{"Type":"vxlan"}}', 'both false'],
    ['{"Network":"10.42.0.0/16","EnableIPv6":true,"Backend":{"Type":"vxlan"}}', 'IPv6Network is missing'],
  ])('refuses %s', (text, message) => {
    expect(() => parseNetConf(text)).toThrow(message);
  });

  it('says which file could not be read', async () => {
    await expect(readNetConf('/nonexistent/net-conf.json')).rejects.toThrow(
      /cannot read the network configuration \/nonexistent\/net-conf.json: ENOENT.*--net-conf/,
    );
  });
});
