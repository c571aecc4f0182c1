// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { bytesText, durationText, rateText } from './text.ts';

it.each([
  [0, '0ms'],
  [999, '999ms'],
  [3210, '3.2s'],
  [9960, '10s'],
  [119_000, '119s'],
  [120_000, '2m'],
  [7_200_000, '2h'],
  [172_800_000, '2d'],
])('%i ms are %s', (ms, text) => expect(durationText(ms)).toBe(text));

it.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.0 KiB'],
  [18_875_264, '18.0 MiB'],
])('%i bytes are %s', (bytes, text) => expect(bytesText(bytes)).toBe(text));

it.each([
  [0, '0'],
  [0.04, '0'],
  [0.44, '0.4'],
  [9.96, '10'],
  [999.4, '999'],
  [999.6, '1.0k'],
  [12_345, '12.3k'],
  [9_876_543_210, '9.9G'],
])('a rate of %d is %s', (rate, text) => expect(rateText(rate)).toBe(text));
