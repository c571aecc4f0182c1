// SPDX-License-Identifier: Apache-2.0
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { once, perObject } from './memo.ts';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

describe('once', () => {
  it('computes when first asked, keeps the value while somebody has it, and makes it again when it is gone', async () => {
    let computed = 0;
    const value = once(() => ({ number: ++computed }));
    expect(computed).toBe(0);
    let held: object | undefined = value();
    await setImmediate();
    collectGarbage();
    expect(value()).toBe(held);
    held = undefined;
    await setImmediate();
    collectGarbage();
    expect(value()).toEqual({ number: 2 });
  });
});

describe('perObject', () => {
  it('gives one result for each object', () => {
    const twin = perObject((of: object) => ({ of }));
    const [a, b] = [{}, {}];
    expect(twin(a)).toBe(twin(a));
    expect(twin(a)).not.toBe(twin(b));
  });
});
