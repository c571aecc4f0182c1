// SPDX-License-Identifier: Apache-2.0

/**
 * The protocol between the CNI shim (shim/ripstop-cni.c) and the agent, over the agent's unix socket. Each connection
 * has one request and one response; lengths are unsigned 32-bit numbers, big-endian; no field is longer than 1 MiB.
 *
 *     request   "RSC1"  u32 environment length  environment  u32 stdin length  stdin
 *     response  "RSC1"  u32 exit code           u32 stdout length              stdout
 *
 * The environment is a block of `KEY=VALUE\0`, with only the variables whose names begin with `CNI_`. `stdin` and
 * `stdout` are those of the plugin, byte for byte. This format is final, since a shim stays on a host while the agent
 * is upgraded: a different format must have another magic.
 */

/** The input of the plugin. */
export interface CniRequest {
  /** The CNI_* variables of its environment. */
  env: Readonly<Record<string, string>>;
  stdin: Uint8Array;
}

/** The output of the plugin. */
export interface CniResponse {
  exitCode: number;
  stdout: Uint8Array;
}

/** The maximum size of an environment, a stdin or a stdout, in bytes. */
export const fieldLimitBytes = 1024 * 1024;

/** The other side violates the protocol; nothing more can be read from the connection. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError';
}

/** The result of parsing the first bytes of a frame: its message, or how many bytes are needed to continue. */
type Parsed<T> = { message: T } | { needed: number };

const magic = Buffer.from('RSC1');

/** Decodes a frame that arrives in pieces. It buffers no more than the announced lengths. */
class FrameDecoder<T> {
  readonly #parse: (bytes: Buffer) => Parsed<T>;
  #pieces: Uint8Array[] = [];
  #length = 0;
  #needed = magic.length;

  constructor(parse: (bytes: Buffer) => Parsed<T>) {
    this.#parse = parse;
  }

  /**
   * The next piece of the frame.
   * @returns the message once it is complete, undefined before that. @throws ProtocolError
   */
  push(piece: Uint8Array): T | undefined {
    this.#pieces.push(piece);
    this.#length += piece.length;
    // Pieces are joined only when the next length, or the end, has arrived: if the other side sends single bytes, that
    // costs four copies and not a million.
    while (this.#length >= this.#needed) {
      const bytes = Buffer.concat(this.#pieces, this.#length);
      this.#pieces = [bytes];
      const parsed = this.#parse(bytes);
      if ('message' in parsed) return parsed.message;
      this.#needed = parsed.needed;
    }
    return undefined;
  }
}

/** Reads one request. */
export const requestDecoder = (): FrameDecoder<CniRequest> => new FrameDecoder(parseRequest);

/** Reads one response. */
export const responseDecoder = (): FrameDecoder<CniResponse> => new FrameDecoder(parseResponse);

/** @throws ProtocolError when a field is over the limit. */
export function encodeRequest(request: CniRequest): Buffer {
  const block = Object.entries(request.env).map(([key, value]) => `${key}=${value}\0`);
  return Buffer.concat([magic, ...field(Buffer.from(block.join(''))), ...field(request.stdin)]);
}

/** @throws ProtocolError when the output is over the limit. */
export function encodeResponse(response: CniResponse): Buffer {
  return Buffer.concat([magic, u32(response.exitCode), ...field(response.stdout)]);
}

function parseRequest(bytes: Buffer): Parsed<CniRequest> {
  checkMagic(bytes);
  const environment = readField(bytes, magic.length);
  if ('needed' in environment) return environment;
  const stdin = readField(bytes, environment.end);
  if ('needed' in stdin) return stdin;
  checkEnd(bytes, stdin.end);
  return { message: { env: parseEnvironment(environment.bytes), stdin: stdin.bytes } };
}

function parseResponse(bytes: Buffer): Parsed<CniResponse> {
  checkMagic(bytes);
  const exitCodeEnd = magic.length + 4;
  if (bytes.length < exitCodeEnd) return { needed: exitCodeEnd };
  const stdout = readField(bytes, exitCodeEnd);
  if ('needed' in stdout) return stdout;
  checkEnd(bytes, stdout.end);
  return { message: { exitCode: bytes.readUInt32BE(magic.length), stdout: stdout.bytes } };
}

function checkMagic(bytes: Buffer): void {
  if (!bytes.subarray(0, magic.length).equals(magic)) {
    throw new ProtocolError('the message does not begin with "RSC1"; is the CNI plugin of another release?');
  }
}

function checkEnd(bytes: Buffer, end: number): void {
  if (bytes.length > end)
    throw new ProtocolError(`${bytes.length - end} bytes follow the end of the message`);
}

/** The length-prefixed field that begins at `start`. */
function readField(bytes: Buffer, start: number): { bytes: Buffer; end: number } | { needed: number } {
  const begin = start + 4;
  if (bytes.length < begin) return { needed: begin };
  const length = bytes.readUInt32BE(start);
  checkLength(length);
  const end = begin + length;
  return bytes.length < end ? { needed: end } : { bytes: bytes.subarray(begin, end), end };
}

function field(bytes: Uint8Array): [Uint8Array, Uint8Array] {
  checkLength(bytes.length);
  return [u32(bytes.length), bytes];
}

function checkLength(length: number): void {
  if (length > fieldLimitBytes) {
    throw new ProtocolError(`a field of ${length} bytes is over the limit of ${fieldLimitBytes}`);
  }
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function parseEnvironment(block: Buffer): Record<string, string> {
  const entries = new Map<string, string>();
  if (block.length > 0 && block.at(-1) !== 0)
    throw new ProtocolError('the environment does not end with a NUL');
  // An environment may have any bytes; those that are not UTF-8 become U+FFFD, which is in no name that we accept.
  for (const entry of block.toString().split('\0').slice(0, -1)) {
    const match = /^(CNI_[^=]*)=(.*)$/s.exec(entry);
    if (!match || entries.has(match[1]!)) {
      throw new ProtocolError(
        `${JSON.stringify(entry.slice(0, 80))} is not a CNI_* variable, or is there twice`,
      );
    }
    entries.set(match[1]!, match[2]!);
  }
  return Object.fromEntries(entries);
}
