// SPDX-License-Identifier: Apache-2.0
import { leaseAnnotations } from './annotations.ts';
import {
  addressesText,
  type LeaseSettings,
  nodeSchema,
  type ParsedNode,
  parseNode,
  podCidrsText,
  readLease,
  readPodCidrs,
} from './node-lease.ts';

/**
 * What is kept of a Node, whether it was read whole or by its metadata: the lease's annotations, and what they mean.
 * Small, for there are 15,000 of them. The same Node makes an equal record.
 */
export class NodeRecord {
  readonly name: string;
  readonly uid: string;
  readonly createdAt: number;
  /** The lease's. */
  readonly annotations: Readonly<Record<string, string>>;
  /** Whether this is a peer, provided that it has a podCIDR and its annotations can be read. */
  readonly isLease: boolean;
  /** The podCIDRs that the annotation names, if it is valid. */
  readonly published: string | undefined;
  /** Whether it was read whole, and had no podCIDR. */
  readonly hasNone: boolean;

  /** What it means, with the podCIDRs, the addresses and the failure that this was found with. */
  #parsed: ParsedNode | undefined;
  #podCidrs: string | undefined;
  #addresses: string | undefined;
  #failure: string | undefined;

  constructor(metadata: NodeMetadata, hasNone: boolean, settings: LeaseSettings) {
    const { keys, backend } = settings;
    this.name = metadata.name;
    this.uid = metadata.uid;
    this.createdAt = Date.parse(metadata.creationTimestamp);
    this.annotations = leaseAnnotations(metadata.annotations, keys);
    this.isLease =
      this.annotations[keys.managed] === 'true' && this.annotations[keys.backendType] === backend;
    this.published = validPodCidrs(this.annotations[keys.podCidrs]);
    this.hasNone = hasNone;
  }

  /**
   * What the Node means. It is parsed again only when other podCIDRs are believed, or for another failure.
   * @param known the podCIDRs that are believed, joined with commas, and the Node's addresses, likewise; undefined: they
   * are not known.
   * @param failure why they are not known.
   */
  parse(
    { podCidrs, addresses }: { podCidrs: string | undefined; addresses: string | undefined },
    failure: string | undefined,
    settings: LeaseSettings,
  ): ParsedNode {
    const isSame = podCidrs === this.#podCidrs && addresses === this.#addresses && failure === this.#failure;
    if (!this.#parsed || !isSame) {
      this.#podCidrs = podCidrs;
      this.#addresses = addresses;
      this.#parsed = this.#read(podCidrs, failure, settings);
      this.#failure = failure;
    }
    return this.#parsed;
  }

  #read(podCidrs: string | undefined, failure: string | undefined, settings: LeaseSettings): ParsedNode {
    const { name, uid, createdAt, annotations } = this;
    if (podCidrs === undefined && this.isLease) {
      if (failure === undefined) return { name, uid, kind: 'pending' };
      const reason = `its podCIDRs are not known: ${failure}`;
      return { name, uid, kind: 'malformed', reason, alarm: 'podcidr_unknown' };
    }
    const facts = { name, uid, createdAt, annotations, addresses: this.#addresses };
    const parsed = readLease(facts, podCidrs ?? '', settings);
    const key = settings.keys.podCidrs;
    const said = annotations[key];
    if (parsed.kind !== 'peer' || said === undefined || said === podCidrs) return parsed;
    const text = JSON.stringify(said.slice(0, 80));
    return { ...parsed, mistaken: `${key} is ${text}, but its spec says ${podCidrs}, which is believed` };
  }
}

interface NodeMetadata {
  readonly name: string;
  readonly uid: string;
  readonly creationTimestamp: string;
  readonly annotations?: Readonly<Record<string, string>> | null | undefined;
}

/**
 * Read a Node object, whole or its metadata.
 * @param learn told of the podCIDRs and the addresses of a whole Node; an empty text when it has none.
 */
export function recordOf(
  object: unknown,
  settings: LeaseSettings,
  learn: (uid: string, podCidrs: string, addresses: string) => void,
): NodeRecord | ParsedNode {
  const read = nodeSchema.safeParse(object);
  if (!read.success) return parseNode(object, settings);
  const { metadata, spec, status } = read.data;
  if ((object as { kind?: unknown }).kind === 'PartialObjectMetadata') {
    return new NodeRecord(metadata, false, settings);
  }
  const podCidrs = podCidrsText(spec);
  learn(metadata.uid, podCidrs, addressesText(status));
  return new NodeRecord(metadata, podCidrs === '', settings);
}

function validPodCidrs(text: string | undefined): string | undefined {
  if (!text || text.length > 128) return undefined;
  try {
    readPodCidrs(text);
    return text;
  } catch {
    return undefined;
  }
}
