// SPDX-License-Identifier: Apache-2.0
/** Quantities as text, for tables. */

/** `250ms`, `3.2s`, `45s`, `12m`, `5h`, `3d`. */
export function durationText(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)}ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  if (seconds < 120) return `${Math.round(seconds)}s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)}h`;
  return `${Math.round(seconds / 86_400)}d`;
}

const steps = ['', 'k', 'M', 'G', 'T'];

/** A rate with three digits, in powers of ten, as networks have it: `0`, `0.4`, `870`, `12.3k`, `1.2G`. */
export function rateText(rate: number): string {
  if (rate < 9.95) return rate < 0.05 ? '0' : rate.toFixed(1);
  const power = Math.min(steps.length - 1, Math.floor(Math.log10(Math.round(rate)) / 3));
  return power === 0 ? String(Math.round(rate)) : `${(rate / 1000 ** power).toFixed(1)}${steps[power]}`;
}

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `512 B`, `18.0 MiB`. */
export function bytesText(bytes: number): string {
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}
