// SPDX-License-Identifier: Apache-2.0
/** Pods and addresses, as commands take them. */
import { type Attachment, AttachmentStore } from '../cni/attachments.ts';
import { RipstopError } from '../errors.ts';
import { addressFamily, canonicalAddress } from '../net/ip.ts';
import { podOf } from './rows.ts';

/** A pod's name or an address, and perhaps a port. */
export interface End {
  readonly host: string;
  readonly port?: number;
}

/** `default/web:80`, `10.42.1.2`, `10.42.1.2:80`, `fd00::2`, `[fd00::2]:80`. @throws RipstopError */
export function parseEnd(text: string): End {
  if (addressFamily(text) !== undefined) return { host: canonicalAddress(text) };
  const [, host, port] = /^\[?([^\]]*?)\]?(?::(\d{1,5}))?$/.exec(text) ?? [];
  if (!host || Number(port ?? 0) > 65535)
    throw new RipstopError(`"${text}" is no pod or address; give POD, IP, IP:PORT or [IPv6]:PORT`, {
      exitCode: 2,
    });
  const isAddress = addressFamily(host) !== undefined;
  return {
    host: isAddress ? canonicalAddress(host) : host,
    ...(port !== undefined && { port: Number(port) }),
  };
}

/** An end that must be an address. @throws RipstopError */
export function parseAddress(text: string): End {
  const end = parseEnd(text);
  if (addressFamily(end.host) !== undefined) return end;
  throw new RipstopError(`"${text}" is no address; give IP, IP:PORT or [IPv6]:PORT`, { exitCode: 2 });
}

/** A pod of this node: by `namespace/name`, by its name alone, or by an address. @throws RipstopError */
export async function findPod(runDir: string, host: string): Promise<Attachment> {
  const all = await new AttachmentStore(runDir).list();
  const found = all.filter((one) => [podOf(one), one.podName, ...one.ips].includes(host));
  if (found.length === 1) return found[0]!;
  const names = (found.length > 1 ? found : all).map((one) => podOf(one) ?? one.ips[0]).join(', ');
  const why = found.length > 1 ? `"${host}" may be any of` : `this node has no pod "${host}"; its pods are`;
  throw new RipstopError(`${why}: ${names || 'none'}`, { exitCode: 2 });
}

/** The pod's address of the family of another address. @throws RipstopError when it has none. */
export function addressLike(pod: Attachment, other: string): string {
  const ip = pod.ips.find((one) => addressFamily(one) === addressFamily(other));
  if (ip !== undefined) return ip;
  throw new RipstopError(`${podOf(pod) ?? pod.ips[0]} has no address of the family of ${other}`, {
    exitCode: 2,
  });
}
