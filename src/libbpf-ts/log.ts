// SPDX-License-Identifier: Apache-2.0

/** libbpf's own levels, in the order of `enum libbpf_print_level`. */
export const LOG_LEVELS = ['warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
/** Gets each line that libbpf prints, without its newline. It runs inside a C call: it must not call libbpf itself. */
export type LogSink = (level: LogLevel, line: string) => void;

/** Enough to explain any failure; libbpf says the cause first and then how it unwinds. */
const KEPT_LINES = 100;

let sink: LogSink | undefined;
let kept: string[] = [];

/** Send what libbpf prints to `next`; without an argument it is silent again, as it is from the start. */
export function setLogSink(next?: LogSink): void {
  sink = next;
}

/** Whether a line of this level would be used at all: formatting the debug lines of a load costs more than the load. */
export function wants(level: LogLevel): boolean {
  return sink !== undefined || level !== 'debug';
}

export function record(level: LogLevel, line: string): void {
  if (level !== 'debug' && kept.length < KEPT_LINES) kept.push(line);
  sink?.(level, line);
}

/** What libbpf said since the last call of this function: the details of the error about to be thrown. */
export function takeLines(): string[] {
  const lines = kept;
  kept = [];
  return lines;
}
