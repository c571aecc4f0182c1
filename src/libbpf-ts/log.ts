// SPDX-License-Identifier: Apache-2.0

/** libbpf's own levels, in the order of `enum libbpf_print_level`. */
export const LOG_LEVELS = ['warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
/** Gets each line that libbpf prints, without its newline. It runs inside a C call: it must not call libbpf itself. */
export type LogSink = (level: LogLevel, line: string) => void;

/** Enough to explain any failure: libbpf prints the cause first, and then its clean-up. */
const KEPT_LINES = 100;

let sink: LogSink | undefined;
let kept: string[] = [];

/** Send what libbpf prints to `next`. By default, and without an argument, it is dropped. */
export function setLogSink(next?: LogSink): void {
  sink = next;
}

/** Whether lines of this level are used. Formatting the debug lines of a load costs more than the load. */
export function wants(level: LogLevel): boolean {
  return sink !== undefined || level !== 'debug';
}

export function record(level: LogLevel, line: string): void {
  if (level !== 'debug' && kept.length < KEPT_LINES) kept.push(line);
  sink?.(level, line);
}

/**
 * The lines that libbpf has printed since the last call of this function: the details of an error that will be thrown.
 */
export function takeLines(): string[] {
  const lines = kept;
  kept = [];
  return lines;
}
