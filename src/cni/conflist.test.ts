// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  flannelDelegate,
  installConflist,
  parseOurs,
  removeConflists,
  restoreConflists,
} from './conflist.ts';

const ours = {
  name: 'cbr0',
  cniVersion: '1.0.0',
  plugins: [{ type: 'ripstop-cni' }, { type: 'portmap', capabilities: { portMappings: true } }],
};
const flannels = '{"name":"cbr0","plugins":[{"type":"flannel","delegate":{"mine":true}}]}';

describe("the runtime's network configuration", () => {
  let dir: string;
  const read = (name: string): string => readFileSync(join(dir, name), 'utf8');
  const write = (name: string, content: unknown): void =>
    writeFileSync(join(dir, name), typeof content === 'string' ? content : JSON.stringify(content));
  beforeEach(() => (dir = mkdtempSync(join(tmpdir(), 'ripstop-conflist-'))));
  afterEach(() => rmSync(dir, { recursive: true }));

  it.each(['', '{', '[]', '{"name":"cbr0"}', flannels])('is not ours: %s', (text) => {
    expect(parseOurs(text)).toBeUndefined();
  });

  it("is put in flannel's place, which is kept, byte for byte; the second time nothing is written", async () => {
    const source = join(dir, 'cni-conf.json');
    write('cni-conf.json', ours);
    write('10-flannel.conflist', flannels);
    expect(await installConflist(source, dir)).toBe(true);
    expect(read('10-flannel.conflist')).toBe(JSON.stringify(ours));
    expect(read('10-flannel.conflist.ripstop-saved')).toBe(flannels);
    expect(await installConflist(source, dir)).toBe(false);
    write('cni-conf.json', { ...ours, cniVersion: '1.1.0' });
    expect(await installConflist(source, dir)).toBe(true);
    expect(read('10-flannel.conflist.ripstop-saved')).toBe(flannels);
    expect(readdirSync(dir)).toHaveLength(3);
  });

  it.each([undefined, '{', flannels])('is refused when it does not run our plugin: %s', async (text) => {
    if (text !== undefined) write('cni-conf.json', text);
    await expect(installConflist(join(dir, 'cni-conf.json'), dir)).rejects.toThrow(
      /is not a CNI configuration with/,
    );
    expect(readdirSync(dir)).not.toContain('10-flannel.conflist');
  });

  it('becomes what it was before, byte for byte', async () => {
    write('10-flannel.conflist', ours);
    write('10-flannel.conflist.ripstop-saved', flannels);
    write('20-other.conflist', flannels);
    expect(await restoreConflists(dir)).toEqual([
      `put back ${dir}/10-flannel.conflist, from 10-flannel.conflist.ripstop-saved`,
    ]);
    expect(read('10-flannel.conflist')).toBe(flannels);
    expect(readdirSync(dir)).toEqual(['10-flannel.conflist', '20-other.conflist']);
    expect(await restoreConflists(dir)).toEqual([]);
  });

  it("becomes that of flannel's manifest where nothing is kept, with the plugins after ours", async () => {
    write('10-flannel.conflist', ours);
    expect(await restoreConflists(dir)).toHaveLength(1);
    expect(JSON.parse(read('10-flannel.conflist'))).toEqual({
      ...ours,
      plugins: [
        { type: 'flannel', delegate: { hairpinMode: true, isDefaultGateway: true } },
        ours.plugins[1],
      ],
    });
  });

  it('is removed only where it is ours; what it replaced is not lost', async () => {
    write('10-flannel.conflist', ours);
    write('10-flannel.conflist.ripstop-saved', flannels);
    write('20-other.conflist', flannels);
    expect(await removeConflists(dir)).toEqual([`removed ${dir}/10-flannel.conflist`]);
    expect(readdirSync(dir)).toEqual(['10-flannel.conflist.ripstop-saved', '20-other.conflist']);
    expect(await removeConflists(join(dir, 'no-such-directory'))).toEqual([]);
  });
});

it("tells flannel's plugin of a pod what it would have written itself", () => {
  const delegate = flannelDelegate({
    network: 'cbr0',
    podCidrs: ['10.42.1.0/24'],
    clusterNetworks: ['10.42.0.0/16'],
    mtu: 1450,
    ipMasq: true,
    dataDir: '/var/lib/cni/networks',
  });
  expect(JSON.parse(delegate)).toMatchObject({
    type: 'bridge',
    name: 'cbr0',
    ipMasq: false,
    ipam: { type: 'host-local', ranges: [[{ subnet: '10.42.1.0/24' }]], routes: [{ dst: '10.42.0.0/16' }] },
  });
});
