// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkSbom, parseCopyright, parseStatus, type Sbom } from '../../scripts/image/sbom.ts';

describe("dpkg's status", () => {
  it('has the packages that are installed, and those that were removed', () => {
    const paragraphs = [
      'Package: libbpf1\nStatus: install ok installed\nArchitecture: amd64\nSource: libbpf (1.1.0-1)\nVersion: 1:1.1.0-1',
      'Package: perl-base\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 5.36.0-7',
    ];
    expect(parseStatus(`${paragraphs.join('\n\n')}\n`)).toEqual([
      { name: 'libbpf1', version: '1:1.1.0-1', architecture: 'amd64' },
    ]);
  });
});

describe('a copyright file of Debian', () => {
  it('names its licences for machines', () => {
    const text =
      'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+\n\n' +
      'Files: x\nLicense: BSD-3-clause\n Redistribution …\n\nLicense: GPL-2+\n On Debian … /usr/share/common-licenses/GPL-2\n';
    expect(parseCopyright(text)).toEqual(['BSD-3-clause', 'GPL-2+']);
  });

  it('points to them, or tells them in free words', () => {
    const text = 'It may be copied under /usr/share/common-licenses/LGPL-2.1, see there.\n';
    expect(parseCopyright(text)).toEqual(['LGPL-2.1']);
    expect(parseCopyright('Do what you like.\n')).toEqual(['in free words, in its copyright file']);
  });
});

describe('the bill of materials', () => {
  const component = (ref: string, ...places: string[]): Sbom['components'][number] => ({
    type: 'library',
    'bom-ref': ref,
    name: ref,
    version: '1',
    evidence: { occurrences: places.map((location) => ({ location })) },
  });
  const complete = [
    component('deb/libbpf1'),
    component('npm/@koromix/koffi@1', '/opt/ripstop/node_modules/@koromix/koffi'),
    component('node', '/usr/local/bin/node'),
    component('ripstop-bpf', '/opt/ripstop/build/*.bpf.o'),
  ];
  const files = {
    // As packages list it; /lib is a link to /usr/lib.
    'var/lib/dpkg/info/libbpf1:amd64.list': '/.\n/lib/libbpf.so.1\n',
    'usr/lib/libbpf.so.1': '\x7fELF…',
    'opt/ripstop/node_modules/@koromix/koffi/package.json': '{"name": "@koromix/koffi"}',
    'opt/ripstop/node_modules/@koromix/koffi/koffi.node': '\x7fELF…',
    'opt/ripstop/build/pod.bpf.o': '\x7fELF…',
    'usr/local/bin/node': '\x7fELF…',
    'usr/local/bin/ripstop': '#!/bin/sh\n',
  };

  function check(components: Sbom['components']): string {
    const rootfs = mkdtempSync(join(tmpdir(), 'ripstop-sbom-'));
    try {
      for (const [path, text] of Object.entries(files)) {
        mkdirSync(dirname(join(rootfs, path)), { recursive: true });
        writeFileSync(join(rootfs, path), text);
      }
      const metadata = { component: component('image') };
      const sbom: Sbom = { bomFormat: 'CycloneDX', specVersion: '1.6', version: 1, metadata, components };
      return checkSbom({ arch: 'amd64', rootfs, env: {} }, sbom);
    } finally {
      rmSync(rootfs, { recursive: true });
    }
  }

  it('names everything that is in the image', () => {
    expect(check(complete)).toContain('4 packages and parts');
  });

  it.each([
    ['deb/libbpf1', 'libbpf1'],
    ['npm/@koromix/koffi@1', '@koromix/koffi'],
    ['node', '/usr/local/bin/node'],
    ['ripstop-bpf', '/opt/ripstop/build/pod.bpf.o'],
  ])('is refused without %s', (ref, missing) => {
    expect(() => check(complete.filter((one) => one['bom-ref'] !== ref))).toThrow(
      new RegExp(`the image has ${missing}`),
    );
  });
});
