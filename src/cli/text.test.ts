// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { bytesText, durationText } from './text.ts';

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
