// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { allDone } from '../reconcile/target.ts';
import { filesTarget } from './files.ts';
import { parseCidr } from '../net/ip.ts';
import { parseSubnetEnv, readSubnetEnv, renderSubnetEnv, type SubnetEnv } from './subnet-env.ts';

const DUAL: SubnetEnv = {
  networks: [
    { network: parseCidr('10.42.0.0/16'), podCidr: parseCidr('10.42.1.0/24') },
    { network: parseCidr('fd00::/48'), podCidr: parseCidr('fd00:0:0:1::/64') },
  ],
  mtu: 1450,
  ipMasq: true,
};
const TEXT = `FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.1.1/24
FLANNEL_IPV6_NETWORK=fd00::/48
FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
`;

describe('subnet.env', () => {
  it('is what flanneld would write', () => expect(renderSubnetEnv(DUAL)).toBe(TEXT));

  it('leaves IPv6 out where there is none', () => {
    expect(renderSubnetEnv({ ...DUAL, networks: DUAL.networks.slice(0, 1), ipMasq: false })).toBe(
      'FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n',
    );
  });

  it('leaves IPv4 out of a cluster with IPv6 only, and reads it back', () => {
    const v6Only = { ...DUAL, networks: DUAL.networks.slice(1), mtu: 1430 };
    const text =
      'FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n';
    expect(renderSubnetEnv(v6Only)).toBe(text);
    expect(parseSubnetEnv(text)).toEqual(v6Only);
  });

  it('reads back to the same', () => expect(parseSubnetEnv(TEXT)).toEqual(DUAL));

  it('is read with comments, blank lines, quotes and unknown keys', () => {
    expect(parseSubnetEnv(`# by hand\n\nX=1\n${TEXT.replace('1450', '"1450"')}`)).toEqual(DUAL);
  });

  it.each([
    ['', 'FLANNEL_NETWORK is missing'],
    [TEXT.replace('FLANNEL_SUBNET=10.42.1.1/24\n', ''), 'FLANNEL_SUBNET is missing'],
    [TEXT.replace('1450', 'big'), 'FLANNEL_MTU "big" is not an MTU'],
    [TEXT.replace('FLANNEL_MTU', 'flannel mtu'), 'line 5: "flannel mtu=1450" is not KEY=value'],
    [TEXT.replace('10.42.0.0/16', 'fd00::/48'), 'FLANNEL_NETWORK is fd00::/48, not IPv4'],
    [TEXT.replace('10.42.1.1/24', '10.42.1.1/99'), '"10.42.1.1/99" is not a CIDR block'],
  ])('says what is wrong with %j', (text, why) => expect(() => parseSubnetEnv(text)).toThrow(why));
});

describe('the file', () => {
  let directory: string;
  beforeAll(async () => void (directory = await mkdtemp(join(tmpdir(), 'subnet-env-'))));
  afterAll(() => rm(directory, { recursive: true }));

  const files = filesTarget();

  /** Write the file as the agent does. @returns whether that was needed. */
  async function write(path: string): Promise<boolean> {
    const content = { text: renderSubnetEnv(DUAL), hint: 'make room' };
    const { upserts } = await files.difference!(new Map([[path, content]]));
    allDone(await files.upsert(upserts));
    return upserts.size > 0;
  }

  it('is written once, readable by all, and leaves no draft behind', async () => {
    const path = join(directory, 'flannel', 'subnet.env');
    expect(await readSubnetEnv(path)).toBeUndefined();
    const umask = process.umask(0o077);
    try {
      expect(await write(path)).toBe(true);
    } finally {
      process.umask(umask);
    }
    const first = await stat(path);
    expect(first.mode & 0o777).toBe(0o644);
    expect(await write(path)).toBe(false);
    expect((await stat(path)).ino).toBe(first.ino);
    expect(await readdir(join(directory, 'flannel'))).toEqual(['subnet.env']);
    expect(await readSubnetEnv(path)).toEqual(DUAL);
  });

  it('is replaced whole when it differs or is damaged', async () => {
    const path = join(directory, 'damaged.env');
    await writeFile(path, 'FLANNEL_NETW');
    expect(await write(path)).toBe(true);
    expect(await readFile(path, 'utf8')).toBe(TEXT);
  });

  it('says why it cannot be written, and what to do', async () => {
    await writeFile(join(directory, 'file'), '');
    await expect(write(join(directory, 'file', 'subnet.env'))).rejects.toThrow(
      /cannot (read|write) .*(ENOTDIR|EEXIST).*; make room/,
    );
  });
});
