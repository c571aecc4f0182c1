// SPDX-License-Identifier: Apache-2.0
import { constants } from 'node:os';
import { describe, expect, it } from 'vitest';
import { NetlinkError, type NetlinkSocket } from '#netlink';
import { choosePodDevice, isPodDevice, whyNoNetkit } from './pod-device.ts';

const NONE = 'this kernel has no netkit';

describe('what new pods get', () => {
  it.each([
    ['veth', undefined, { kind: 'veth', why: '--pod-device veth says so' }],
    ['veth', NONE, { kind: 'veth', why: '--pod-device veth says so' }],
    ['netkit', undefined, { kind: 'netkit', why: '--pod-device netkit says so' }],
    [
      'auto',
      undefined,
      { kind: 'veth', why: 'netkit works here, but must be asked for: --pod-device netkit' },
    ],
    ['auto', NONE, { kind: 'veth', why: NONE }],
  ] as const)('%s, where a reason against netkit is: %s', (flag, whyNot, choice) => {
    expect(choosePodDevice(flag, whyNot)).toEqual(choice);
  });

  it('is nothing else than netkit where that is asked for', () => {
    expect(() => choosePodDevice('netkit', NONE)).toThrow(
      '--pod-device netkit is not possible here: this kernel has no netkit; give --pod-device auto or veth',
    );
  });
});

describe('whether there can be netkits', () => {
  /** No kernel that is too old is asked. */
  const silent = { write: () => expect.unreachable() } as unknown as NetlinkSocket;

  it.each(['6.8.0-31-generic', '6.11.4', '5.15.0'])('not on Linux %s', (kernel) => {
    expect(whyNoNetkit(kernel, silent)).toBe(`netkit needs Linux 6.12 or later, and this is ${kernel}`);
  });

  /** A kernel that answers so. */
  const answers = (errno: number) =>
    ({
      write: () => {
        throw new NetlinkError('look for netkit', errno);
      },
    }) as unknown as NetlinkSocket;
  const { EINVAL, EOPNOTSUPP, EPERM } = constants.errno;

  it('is what the kernel says to a netkit that there cannot be', () => {
    expect(whyNoNetkit('6.12.0', answers(EINVAL))).toBeUndefined();
    expect(whyNoNetkit('7.0.1', answers(EOPNOTSUPP))).toMatch(/^this kernel has no netkit/);
    expect(whyNoNetkit('6.12.0', answers(EPERM))).toMatch(/does not say .*EPERM/);
  });
});

it('a pod’s device is a veth or a netkit', () => {
  expect(['veth', 'netkit', 'bridge', undefined].filter(isPodDevice)).toEqual(['veth', 'netkit']);
});
