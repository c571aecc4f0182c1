// SPDX-License-Identifier: Apache-2.0
/** The part of tar-stream that doctor uses; the package has no types of its own. */
declare module 'tar-stream' {
  interface Pack extends NodeJS.ReadableStream {
    entry(header: { name: string; mode?: number; mtime?: Date }, content: string): unknown;
    finalize(): void;
  }
  export function pack(): Pack;
}
