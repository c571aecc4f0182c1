// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { gatherHostFacts, missingRequirements, REQUIRED_PROGRAMS, type HostFacts } from './requirements.ts';

const GOOD: HostFacts = {
  uid: 0,
  kernelRelease: '6.1.0-18-cloud-amd64',
  btf: true,
  programs: new Set(Object.keys(REQUIRED_PROGRAMS)),
};

describe('requirements', () => {
  it('are met by Debian 12', () => expect(missingRequirements(GOOD)).toEqual([]));

  it.each(['6.18.0', '7.0.1-rc1', '6.10.2+'])('are met by Linux %s', (kernelRelease) => {
    expect(missingRequirements({ ...GOOD, kernelRelease })).toEqual([]);
  });

  it.each(['6.0.19', '5.15.0-100-generic', 'strange'])('are not met by Linux %s', (kernelRelease) => {
    expect(missingRequirements({ ...GOOD, kernelRelease })).toEqual([
      `Linux ${kernelRelease} is too old: ripstop needs 6.1 or later (conntrack lookups from tc programs)`,
    ]);
  });

  it('are all named at once, each with what to do', () => {
    const nothing = { uid: 1000, kernelRelease: '4.19.0', btf: false, programs: new Set<string>() };
    const missing = missingRequirements(nothing);
    expect(missing).toHaveLength(4);
    expect(missing.join('\n')).toContain('nft not found on PATH: install the package nftables');
  });

  it('are looked up on the machine itself', async () => {
    const facts = await gatherHostFacts();
    expect(facts.kernelRelease).toMatch(/^\d+\.\d+/);
    expect(facts.uid).toBe(process.geteuid?.());
  });
});
