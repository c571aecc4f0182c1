// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { fillTemplate } from './jsonpath.ts';

const rows = [
  { node: 'node1', podCidr: '10.42.1.0/24', flags: ['present'], mtu: 1450 },
  { node: 'node2', podCidr: '10.42.2.0/24', flags: [], mtu: 1500 },
];
const status = { agent: { node: 'node1', 'last error': 'none' }, peers: 2 };

describe('a jsonpath template, as kubectl has them', () => {
  it.each([
    ['.agent.node', status, 'node1'],
    ['{.agent.node} has {.peers} peers', status, 'node1 has 2 peers'],
    ["{.agent['last error']}", status, 'none'],
    ['{$.peers}', status, '2'],
    ['{[*].node}', rows, 'node1 node2'],
    ['{[0].flags}', rows, '["present"]'],
    ['{[?(@.mtu>1450)].node}', rows, 'node2'],
    ['{..podCidr}', rows, '10.42.1.0/24 10.42.2.0/24'],
    ['{.nothing}', status, ''],
    ['{range [*]}{.node}{"\\t"}{.mtu}{"\\n"}{end}', rows, 'node1\t1450\nnode2\t1500\n'],
    ['{range .nothing}{.node}{end}.', status, '.'],
    ['{range [*]}{.node}:{range .flags[*]} {@}{end};{end}', rows, 'node1: present;node2:;'],
    ["{'{'}{.peers}{'}'}", status, '{2}'],
  ])('%s', (template, value, text) => {
    expect(fillTemplate(template, value)).toBe(text);
  });

  it.each([
    ['{.agent', /a lone "\{"/],
    ['{range [*]}{.node}', /\{range\} without \{end\}/],
    ['{end}', /\{end\} without \{range\}/],
    ['{agent}', /"agent" must begin with "\." or "\["/],
    ['{[?(@.mtu >]}', /the jsonpath .* is wrong/],
  ])('%s is refused', (template, why) => {
    expect(() => fillTemplate(template, rows)).toThrow(why);
  });

  it('runs no code', () => {
    expect(() => fillTemplate('{[?(process.exit(1))].node}', rows)).toThrow(/is wrong/);
  });
});
