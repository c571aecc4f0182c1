// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { onlySpec, readReport } from './report.ts';
import { type Outcome, withOutcome } from './results.ts';
import { suites } from './suites.ts';

/** A node of Ginkgo's report, as written by `--report-complete-ginkgo`. */
function node(text: string, State: string, Message?: string, LeafNodeType = 'It') {
  return {
    ContainerHierarchyTexts: LeafNodeType === 'It' ? ['[sig-network] Services'] : null,
    LeafNodeType,
    LeafNodeText: text,
    State,
    NumAttempts: 1,
    ...(Message !== undefined && {
      Failure: { Message, Location: { FileName: 'service.go', LineNumber: 1 } },
    }),
  };
}

const report = (...SpecReports: object[]): string =>
  JSON.stringify([{ SuitePath: '/e2e', SuiteSucceeded: false, SpecReports }]);

const REPORT = report(
  node('', 'passed', undefined, 'SynchronizedBeforeSuite'),
  node('should serve endpoints [Conformance]', 'passed'),
  node(
    'should keep the client address',
    'failed',
    'expected client IP to be preserved\nExpected\n    <string>',
  ),
  node('should be slow', 'timedout', 'A spec timeout occurred'),
  node('should hairpin', 'panicked', 'Test Panicked'),
  node('should restart', 'skipped', 'Only supported for providers [gce aws] (not skeleton)'),
  node('should balance [Feature:LoadBalancer]', 'skipped'),
  { ...node('should mount', 'skipped'), ContainerHierarchyTexts: ['[sig-storage] Volumes'] },
);

const name = (text: string): string => `[sig-network] Services ${text}`;
const suite = suites[0]!;

const outcome = (changes: Partial<Outcome> = {}): Outcome => {
  const specs = readReport(REPORT);
  const failed = specs.filter(({ state }) => state === 'failed');
  return {
    suite,
    environment: {
      kubernetes: '1.36.3',
      containerd: '1.6.20',
      kernel: '6.18.1',
      ripstop: '0.1.0',
      nodes: 3,
      date: '2026-11-30',
    },
    specs,
    passedAgain: [name('should be slow')],
    failures: failed
      .filter((spec) => spec.name !== name('should be slow'))
      .map((spec, i) => ({ ...spec, withFlannel: i === 0 ? 'passed' : 'failed' })),
    ...changes,
  };
};

describe("Ginkgo's report", () => {
  it('distinguishes specs that a filter excluded, that skipped themselves, and that failed', () => {
    expect(Object.fromEntries(readReport(REPORT).map((spec) => [spec.name, spec.state]))).toEqual({
      [name('should serve endpoints [Conformance]')]: 'passed',
      [name('should keep the client address')]: 'failed',
      [name('should be slow')]: 'failed',
      [name('should hairpin')]: 'failed',
      [name('should restart')]: 'skipped',
      [name('should balance [Feature:LoadBalancer]')]: 'left out',
      '[sig-storage] Volumes should mount': 'left out',
    });
  });

  it('is refused when the suite could not start', () => {
    const text = report(node('', 'failed', 'no node is ready', 'SynchronizedBeforeSuite'));
    expect(() => readReport(text)).toThrow('SynchronizedBeforeSuite failed: no node is ready');
  });

  it('gives names that select exactly one spec', () => {
    const pattern = new RegExp(onlySpec(name('should work (twice) [Conformance]')));
    expect(pattern.test(`Kubernetes e2e suite ${name('should work (twice) [Conformance]')}`)).toBe(true);
    expect(pattern.test(name('should work (twice) [Conformance] again'))).toBe(false);
    expect(pattern.test(name('should work twice C'))).toBe(false);
  });
});

describe('RESULTS.md', () => {
  it('has counts, failures with flannel’s results, and the reason of each spec that was not run', () => {
    const text = withOutcome('', outcome());
    // Run: one passed at once, one at the second try, two failed, one skipped itself. Storage is not part of the run.
    expect(text).toContain('| [e2e-iptables](#e2e-iptables) | 2026-11-30 | 5 | 2 | 1 | 2 | 1 | 1 |');
    expect(text).toContain('| Conformance | 1 | 1 | 0 | 0 |');
    expect(text).toContain('| others | 4 | 1 | 2 | 1 |');
    expect(text).toContain(
      '| [sig-network] Services should hairpin | passed | not explained yet: Test Panicked |',
    );
    expect(text).toContain('- [sig-network] Services should be slow');
    expect(text).toContain('| Only supported for providers … (not skeleton) | Services should restart |');
    expect(text).toContain("| needs a cloud's load balancer | 1 |");
    expect(text).not.toContain('sig-storage');
  });

  it("keeps the other runs' parts, one for each run, in a fixed order", () => {
    const [first, second] = [outcome(), outcome({ suite: suites[1]! })];
    const both = withOutcome(withOutcome('', first), second);
    expect(withOutcome(withOutcome('', second), first)).toBe(both);
    expect(withOutcome(both, first)).toBe(both);
    const later = withOutcome(
      both,
      outcome({ failures: [], environment: { ...first.environment, date: '2027-01-02' } }),
    );
    expect(later.match(/^## e2e-iptables$/gm)).toHaveLength(1);
    expect(later).toContain('| [e2e-iptables](#e2e-iptables) | 2027-01-02 | 5 | 4 | 1 | 0 | 0 | 1 |');
    expect(later).toContain('| [e2e-nftables](#e2e-nftables) | 2026-11-30 | 5 | 2 | 1 | 2 | 1 | 1 |');
  });
});

describe('The suites', () => {
  it('have different names, and patterns that are valid in Go and JavaScript', () => {
    expect(new Set(suites.map((one) => one.name)).size).toBe(suites.length);
    for (const { focus, leftOut } of suites) {
      for (const pattern of [focus, ...leftOut.map((one) => one.pattern)]) {
        expect(() => new RegExp(pattern)).not.toThrow();
        // RE2 has neither lookaround nor back references.
        expect(pattern).not.toMatch(/\(\?|\\\d/);
      }
    }
  });
});
