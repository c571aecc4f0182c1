// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from 'vitest';
import { BpfError, checkStatus, verifierSummary } from './error.ts';

describe('an error of a C call', () => {
  test('names the call, its subject, and errno', () => {
    const error = new BpfError('bpf_obj_get', 2, { subject: '/sys/fs/bpf/x' });
    expect(error).toMatchObject({ errno: 2, code: 'ENOENT', call: 'bpf_obj_get', details: '' });
    expect(error.message).toBe('bpf_obj_get (/sys/fs/bpf/x) failed: ENOENT, no such file or directory');
  });

  test('knows numbers that only the kernel or libbpf use', () => {
    expect(new BpfError('f', 524).code).toBe('ENOTSUPP');
    expect(new BpfError('f', 95).message).toMatch(/EOPNOTSUPP, operation not supported$/);
    expect(new BpfError('f', 4001).code).toBe('FORMAT');
    expect(new BpfError('f', 9999).code).toBe('E9999');
  });

  test('is thrown only for a negative status', () => {
    expect(checkStatus('f', 7)).toBe(7);
    expect(() => checkStatus('f', -1)).toThrow(
      /^f failed: EPERM, operation not permitted; this needs CAP_BPF/,
    );
  });
});

describe('the end of the verifier’s log', () => {
  test('is what follows the last instruction', () => {
    const log = [
      '9: (61) r1 = *(u32 *)(r7 +76)         ; R1=pkt(r=0) R7=ctx()',
      '10: (61) r6 = *(u32 *)(r1 +0)',
      'invalid access to packet, off=0 size=4, R1(id=0,off=0,r=0)',
      'R1 offset is outside of the packet',
      'processed 10 insns (limit 1000000) max_states_per_insn 0',
      '',
    ].join('\n');
    expect(verifierSummary(log)).toBe(
      'invalid access to packet, off=0 size=4, R1(id=0,off=0,r=0) · R1 offset is outside of the packet',
    );
  });

  test('is the last line of a truncated log', () => {
    expect(verifierSummary('0: R1=ctx() R10=fp0\n1: (b7) r0 = 0')).toBe('1: (b7) r0 = 0');
    expect(verifierSummary('')).toBe('it left no log');
  });
});
