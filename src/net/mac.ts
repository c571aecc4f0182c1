// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';

/** `aa:bb:cc:dd:ee:ff` in any case → lower case, or undefined when it is no such text. */
export function normalizeMac(text: string): string | undefined {
  return /^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$/.test(text) ? text.toLowerCase() : undefined;
}

/**
 * A MAC address in any spelling that Go's net.ParseMAC takes: `aa:bb:cc:dd:ee:ff`, `aa-bb-cc-dd-ee-ff`,
 * `aabb.ccdd.eeff` → lower case with colons; undefined when it is none.
 */
export function parseMac(text: string): string | undefined {
  const spelling =
    /^[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}$|^[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}$/i;
  if (!spelling.test(text)) return undefined;
  return text
    .toLowerCase()
    .replaceAll(/[^0-9a-f]/g, '')
    .match(/../g)!
    .join(':');
}

/** MAC text → 6 bytes as on the wire. @throws RipstopError when the text is no MAC address. */
export function macToBytes(text: string): Uint8Array {
  if (!normalizeMac(text)) throw new RipstopError(`"${text}" is not a MAC address`);
  const bytes = new Uint8Array(6);
  for (let i = 0; i < 6; i++) bytes[i] = Number.parseInt(text.slice(i * 3, i * 3 + 2), 16);
  return bytes;
}

/** 6 bytes as on the wire → lower-case text. */
export function bytesToMac(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += (text === '' ? '' : ':') + HEX[byte]!;
  return text;
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

/** A random unicast, locally administered MAC address (IEEE 802: second-least bit of the first octet set). */
export function randomMac(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = (bytes[0]! & 0xfc) | 0x02;
  return bytesToMac(bytes);
}

/** Stands where there is no MAC address. */
export const NO_MAC = '00:00:00:00:00:00';
