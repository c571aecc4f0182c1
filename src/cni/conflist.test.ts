// SPDX-License-Identifier: Apache-2.0
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pino from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  ConflistInstaller,
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
  const installed = (): string => join(dir, 'state/installed');
  const files = () => ({
    source: join(dir, 'cni-conf.json'),
    dir,
    installed: installed(),
    pluginDir: join(dir, 'bin'),
  });
  const typesIn = (name: string): string[] =>
    (JSON.parse(read(name)) as typeof ours).plugins.map(({ type }) => type);
  beforeEach(() => (dir = mkdtempSync(join(tmpdir(), 'ripstop-conflist-'))));
  afterEach(() => rmSync(dir, { recursive: true }));

  it.each(['', '{', '[]', '{"name":"cbr0"}', flannels])('is not ours: %s', (text) => {
    expect(parseOurs(text)).toBeUndefined();
  });

  it("is put in flannel's place, which is kept, byte for byte; the second time nothing is written", async () => {
    write('cni-conf.json', ours);
    write('10-flannel.conflist', flannels);
    expect(await installConflist(files())).toBe(true);
    expect(read('10-flannel.conflist')).toBe(JSON.stringify(ours));
    expect(read('10-flannel.conflist.ripstop-saved')).toBe(flannels);
    expect(await installConflist(files())).toBe(false);
    write('cni-conf.json', { ...ours, cniVersion: '1.1.0' });
    expect(await installConflist(files())).toBe(true);
    expect(read('10-flannel.conflist.ripstop-saved')).toBe(flannels);
    expect(readdirSync(dir)).toHaveLength(4);
  });

  it.each([undefined, '{', flannels])('is refused when it does not run our plugin: %s', async (text) => {
    if (text !== undefined) write('cni-conf.json', text);
    await expect(installConflist(files())).rejects.toThrow(/is not a CNI configuration with/);
    expect(readdirSync(dir)).not.toContain('10-flannel.conflist');
  });

  describe('keeps plugins that others add', () => {
    const mesh = { type: 'istio-cni', log_level: 'info' };
    /** As a mesh does it: parse, append, write in one's own way. */
    const append = (...plugins: object[]): void => {
      const conflist = JSON.parse(read('10-flannel.conflist')) as typeof ours;
      write('10-flannel.conflist', { ...conflist, plugins: [...conflist.plugins, ...plugins] });
    };

    it('and does not write at all when only they were added', async () => {
      write('cni-conf.json', ours);
      await installConflist(files());
      append(mesh);
      const before = read('10-flannel.conflist');
      expect(await installConflist(files())).toBe(false);
      expect(read('10-flannel.conflist')).toBe(before);
    });

    it('when the ConfigMap changes; what was only in the old one goes', async () => {
      write('cni-conf.json', ours);
      await installConflist(files());
      append(mesh);
      write('cni-conf.json', { ...ours, plugins: [{ type: 'ripstop-cni' }, { type: 'bandwidth' }] });
      expect(await installConflist(files())).toBe(true);
      expect(typesIn('10-flannel.conflist')).toEqual(['ripstop-cni', 'bandwidth', 'istio-cni']);
      expect(JSON.parse(read('10-flannel.conflist'))).toMatchObject({ plugins: [{}, {}, mesh] });
    });

    it('to a configuration of a release that did not note what it had installed', async () => {
      write('cni-conf.json', ours);
      write('10-flannel.conflist', ours);
      append(mesh);
      await installConflist(files());
      expect(typesIn('10-flannel.conflist')).toEqual(['ripstop-cni', 'portmap', 'istio-cni']);
    });

    it("to flannel's, when it takes over; and to ours, when it gives back", async () => {
      write('10-flannel.conflist', { name: 'cbr0', plugins: [{ type: 'flannel' }, { type: 'portmap' }] });
      append({ type: 'bandwidth' });
      write('cni-conf.json', ours);
      await installConflist(files());
      expect(typesIn('10-flannel.conflist')).toEqual(['ripstop-cni', 'portmap', 'bandwidth']);
      append(mesh);
      await restoreConflists(dir, installed());
      expect(typesIn('10-flannel.conflist')).toEqual(['flannel', 'portmap', 'bandwidth', 'istio-cni']);
    });

    it('but none of a network that is not flannel’s', async () => {
      write('10-flannel.conflist', { name: 'other', plugins: [{ type: 'ptp' }, { type: 'tuning' }] });
      write('cni-conf.json', ours);
      await installConflist(files());
      expect(typesIn('10-flannel.conflist')).toEqual(['ripstop-cni', 'portmap']);
    });

    it('while the agent runs, it puts back nothing that others change, rename or remove', async () => {
      const lines: string[] = [];
      const log = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) });
      write('cni-conf.json', ours);
      const installer = new ConflistInstaller(files(), log);
      const pass = async (): Promise<string | undefined> => {
        const told = lines.length;
        for (let i = 0; i < 3; i++) await installer.install();
        return lines.slice(told).join('');
      };
      expect(await pass()).toContain('is in place');
      expect(await pass()).toBe('');
      append(mesh);
      const extended = read('10-flannel.conflist');
      expect(await pass()).toMatch(/^.*"plugins":\["ripstop-cni","portmap","istio-cni"\].*it stays so"}\n$/);
      expect(read('10-flannel.conflist')).toBe(extended);
      write('10-flannel.conflist', flannels);
      expect(await pass()).toMatch(/^.*not ripstop's any more.*\n$/);
      expect(read('10-flannel.conflist')).toBe(flannels);
      // As multus does with --rename-conf-file.
      renameSync(join(dir, '10-flannel.conflist'), join(dir, '10-flannel.conflist.old'));
      expect(await pass()).toMatch(/^.*not ripstop's any more.*\n$/);
      expect(readdirSync(dir)).not.toContain('10-flannel.conflist');
    });
  });

  describe('offers the runtime the versions that every plugin supports', () => {
    const offering = { ...ours, cniVersions: ['1.0.0', '1.1.0'] };
    const plugin = (type: string, ...versions: string[]): void => {
      mkdirSync(join(dir, 'bin'), { recursive: true });
      const answer = JSON.stringify({ cniVersion: '1.0.0', supportedVersions: versions });
      const script = `#!/bin/sh\ntest "$CNI_COMMAND" = VERSION && echo '${answer}'\n`;
      writeFileSync(join(dir, 'bin', type), script, { mode: 0o755 });
    };
    const offered = (): unknown => (JSON.parse(read('10-flannel.conflist')) as typeof offering).cniVersions;

    it.each([
      ['all that the ConfigMap has', ['0.4.0', '1.0.0', '1.1.0'], ['1.0.0', '1.1.0']],
      ['without that which an old plugin lacks', ['0.4.0', '1.0.0'], ['1.0.0']],
      ['none beside cniVersion when it has no other', ['0.4.0'], undefined],
    ])('%s', async (_, versions, expected) => {
      write('cni-conf.json', offering);
      plugin('portmap', ...versions);
      await installConflist(files());
      expect(offered()).toEqual(expected);
      expect(await installConflist(files())).toBe(false);
    });

    it.each([
      ['a plugin that is missing', 'bin'],
      ['plugins that cannot be seen', undefined],
    ])('none beside cniVersion with %s', async (_, bin) => {
      write('cni-conf.json', offering);
      await installConflist({ ...files(), pluginDir: bin && join(dir, bin) });
      expect(offered()).toBe(undefined);
    });

    it('and fewer when somebody adds a plugin that supports less, while the agent runs', async () => {
      write('cni-conf.json', offering);
      plugin('portmap', '1.0.0', '1.1.0');
      plugin('istio-cni', '1.0.0');
      const installer = new ConflistInstaller(files(), pino({ level: 'silent' }));
      await installer.install();
      expect(offered()).toEqual(['1.0.0', '1.1.0']);
      write('10-flannel.conflist', { ...offering, plugins: [...ours.plugins, { type: 'istio-cni' }] });
      await installer.install();
      expect(offered()).toEqual(['1.0.0']);
      expect(typesIn('10-flannel.conflist')).toEqual(['ripstop-cni', 'portmap', 'istio-cni']);
    });
  });

  it('becomes what it was before, byte for byte', async () => {
    write('10-flannel.conflist', ours);
    write('10-flannel.conflist.ripstop-saved', flannels);
    write('20-other.conflist', flannels);
    expect(await restoreConflists(dir, installed())).toEqual([
      `put back ${dir}/10-flannel.conflist, from 10-flannel.conflist.ripstop-saved`,
    ]);
    expect(read('10-flannel.conflist')).toBe(flannels);
    expect(readdirSync(dir)).toEqual(['10-flannel.conflist', '20-other.conflist']);
    expect(await restoreConflists(dir, installed())).toEqual([]);
  });

  it("becomes that of flannel's manifest where nothing is kept, with the plugins after ours", async () => {
    // flannel's plugin supports fewer versions.
    write('10-flannel.conflist', { ...ours, cniVersions: ['1.0.0', '1.1.0'] });
    expect(await restoreConflists(dir, installed())).toHaveLength(1);
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
