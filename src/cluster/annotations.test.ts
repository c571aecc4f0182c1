// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { annotationKeys } from './annotations.ts';

describe('annotation keys', () => {
  it.each([
    ['flannel.alpha.coreos.com', 'flannel.alpha.coreos.com/public-ip'],
    ['flannel.alpha.coreos.com/', 'flannel.alpha.coreos.com/public-ip'],
    ['example.com/blue', 'example.com/blue-public-ip'],
    ['example.com/blue-', 'example.com/blue-public-ip'],
  ])('under the prefix %s', (prefix, publicIp) => {
    const keys = annotationKeys(prefix);
    expect(keys.v4.publicIp).toBe(publicIp);
    expect(keys.zeroChecksum).toBe('ripstop.io/udp6-zero-checksum');
  });

  it.each(['', 'localhost', 'a.b/c/d', 'a.b/c d', '../x', 'Example.com'])(
    'refuse the prefix %j',
    (prefix) => {
      expect(() => annotationKeys(prefix)).toThrow('is not of the form');
    },
  );
});
