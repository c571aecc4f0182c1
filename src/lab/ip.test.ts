// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { line } from './ip.ts';

describe('a batch line', () => {
  it('is put together from plain words', () => {
    expect(line`route replace ${'10.42.1.0/24'} dev ${'flannel.1'} proto ${82}`).toBe(
      'route replace 10.42.1.0/24 dev flannel.1 proto 82',
    );
  });

  it.each(['', 'a b', 'eth0\nlink del eth0', 'x#', '"x"', "it's", 'a\\'])(
    'refuses %j as a value',
    (value) => {
      expect(() => line`link set ${value} up`).toThrow('not one plain word');
    },
  );
});
