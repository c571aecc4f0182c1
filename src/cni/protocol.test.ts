// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import {
  encodeRequest,
  encodeResponse,
  fieldLimitBytes,
  ProtocolError,
  requestDecoder,
  responseDecoder,
} from './protocol.ts';

const request = {
  env: { CNI_COMMAND: 'ADD', CNI_ARGS: 'IgnoreUnknown=1;K8S_POD_NAME=ä\nb' },
  stdin: Buffer.from('{"cniVersion":"1.0.0"}'),
};

/** mulberry32: a small seeded generator, so that a failing run can be run again. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The bytes in pieces of random sizes, some of them empty. */
function split(bytes: Buffer, next: () => number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = at + Math.floor(next() * 12);
    pieces.push(bytes.subarray(at, end));
    at = end;
  }
  return pieces;
}

function frame(environment: string | Buffer, stdin = ''): Buffer {
  const field = (bytes: Buffer): Buffer => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, bytes]);
  };
  return Buffer.concat([Buffer.from('RSC1'), field(Buffer.from(environment)), field(Buffer.from(stdin))]);
}

describe('the framing', () => {
  it('is what the shim writes, byte for byte', () => {
    expect(encodeRequest({ env: { CNI_COMMAND: 'ADD' }, stdin: Buffer.from('{}') }).toString('latin1')).toBe(
      'RSC1\0\0\0\x10CNI_COMMAND=ADD\0\0\0\0\x02{}',
    );
    expect(encodeResponse({ exitCode: 258, stdout: Buffer.from('ok') }).toString('latin1')).toBe(
      'RSC1\0\0\x01\x02\0\0\0\x02ok',
    );
  });

  it('carries an empty environment, stdin and stdout', () => {
    const empty = { env: {}, stdin: Buffer.alloc(0) };
    expect(requestDecoder().push(encodeRequest(empty))).toEqual(empty);
    const silent = { exitCode: 0, stdout: Buffer.alloc(0) };
    expect(responseDecoder().push(encodeResponse(silent))).toEqual(silent);
  });

  it('survives any split into pieces (200 seeded runs)', () => {
    for (let seed = 1; seed <= 200; seed++) {
      const next = random(seed);
      const decoder = requestDecoder();
      const answers = split(encodeRequest(request), next).map((piece) => decoder.push(piece));
      const complete = answers.filter((answer) => answer !== undefined);
      expect(complete, `seed ${seed}`).toEqual([request]);
    }
  });

  it('takes the largest message in single bytes without copying it a million times', () => {
    const stdin = Buffer.alloc(fieldLimitBytes / 4, 0x61);
    const decoder = requestDecoder();
    let message;
    for (const byte of encodeRequest({ env: {}, stdin })) message = decoder.push(Uint8Array.of(byte));
    expect(message?.stdin.length).toBe(stdin.length);
  });
});

describe('hostile input', () => {
  it.each([
    ['another magic', Buffer.from('GET / HTTP/1.1'), 'does not begin with'],
    ['a length over the limit', Buffer.from('RSC1\x00\x10\x00\x01'), '1048577 bytes is over the limit'],
    ['the largest length there is', Buffer.from('RSC1\xff\xff\xff\xff', 'latin1'), '4294967295 bytes'],
    ['bytes after the end', Buffer.concat([frame('CNI_A=1\0', '{}'), Buffer.from('!')]), '1 bytes follow'],
    ['an unterminated environment', frame('CNI_A=1'), 'does not end with a NUL'],
    ['a variable that is not CNI_*', frame('PATH=/bin\0'), '"PATH=/bin" is not a CNI_* variable'],
    ['a variable named __proto__', frame('__proto__=1\0'), 'is not a CNI_* variable'],
    ['an entry without a value', frame('CNI_COMMAND\0'), '"CNI_COMMAND" is not a CNI_* variable'],
    ['an empty entry', frame('\0'), '"" is not a CNI_* variable'],
    ['a variable given twice', frame('CNI_A=1\0CNI_A=2\0'), '"CNI_A=2" is not a CNI_* variable'],
  ])('%s is refused', (_, bytes, message) => {
    expect(() => requestDecoder().push(bytes)).toThrow(ProtocolError);
    expect(() => requestDecoder().push(bytes)).toThrow(message);
  });

  it('passes on an environment that is not UTF-8: a sandbox may have any name', () => {
    const latin1 = frame(Buffer.from('CNI_ARGS=K8S_POD_NAME=caf\xe9\0', 'latin1'));
    expect(requestDecoder().push(latin1)?.env).toEqual({ CNI_ARGS: 'K8S_POD_NAME=caf\ufffd' });
  });

  it('refuses a foreign peer after four bytes, and an absurd length before its content', () => {
    expect(() => requestDecoder().push(Buffer.from('SSH-'))).toThrow('does not begin');
    const decoder = responseDecoder();
    expect(decoder.push(Buffer.from('RSC1\0\0\0\0'))).toBeUndefined();
    expect(() => decoder.push(Buffer.from([0, 0x20, 0, 0]))).toThrow('over the limit');
  });

  it('is an error or an incomplete message, never anything else, whatever byte is changed or cut', () => {
    const whole = encodeRequest(request);
    const next = random(7);
    for (let at = 0; at < whole.length; at++) {
      expect(requestDecoder().push(whole.subarray(0, at)), `cut at ${at}`).toBeUndefined();
      const changed = Buffer.from(whole);
      changed[at] = Math.floor(next() * 256);
      try {
        requestDecoder().push(changed);
      } catch (thrown) {
        expect(thrown, `changed at ${at}`).toBeInstanceOf(ProtocolError);
      }
    }
  });

  it('is not encoded either when it is too long', () => {
    const stdin = Buffer.alloc(fieldLimitBytes + 1);
    expect(() => encodeRequest({ env: {}, stdin })).toThrow('over the limit');
  });
});
