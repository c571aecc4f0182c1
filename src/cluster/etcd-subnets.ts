// SPDX-License-Identifier: Apache-2.0
import { posix } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { errorText, RipstopError } from '../errors.ts';
import { type Cidr, familyKey, formatCidr, perFamily, type PerFamily } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import { readIfThere, writeIfDifferent } from '../host/files.ts';
import { LogOnce } from '../log-once.ts';
import { type EtcdClient, EtcdError, isNoAnswer } from './etcd-client.ts';
import {
  chooseSubnet,
  leaseUid,
  type ClaimedLease,
  claimOf,
  fitsRanges,
  formatLease,
  formatSubnetKey,
  overlap,
  parseLease,
  type SubnetPair,
} from './etcd-leases.ts';
import { EtcdMirror, type EtcdTiming, listPrefix } from './etcd-mirror.ts';
import { type EtcdNetConf, parseEtcdNetConf } from './etcd-net-conf.ts';
import {
  type Condition,
  type KeyValue,
  leaseGrant,
  leaseKeepAlive,
  leaseRevoke,
  prefixEnd,
  range,
  txn,
} from './etcd-wire.ts';
import { type LeaseSettings, leaseSettings, type ParsedNode } from './node-lease.ts';
import type { LeasePart, OwnLease, OwnNode } from './own-lease.ts';
import type { PeerNode } from './peer.ts';
import { type ClusterSnapshot, Snapshots } from './snapshot.ts';
import type { SourceHealth, SubnetManager } from './subnet-manager.ts';

/** As flannel's. */
const LEASE_SECONDS = 24 * 3600;
/** How often to try to get a free subnet; a try fails only when another node got that subnet first. */
const RACE_TRIES = 100;

/** What a previous agent left on this machine. */
export interface EtcdPast {
  /** As subnet.env has them. */
  readonly podCidrs?: PerFamily<Cidr>;
  /** Of the VTEP devices. */
  readonly vtepMac?: PerFamily<string>;
}

export interface EtcdSubnetManagerOptions {
  readonly client: EtcdClient;
  /** Above `config` and `subnets/`. */
  readonly prefix: string;
  readonly nodeName: string;
  readonly netConf: EtcdNetConf;
  /** The underlay addresses that peers are to dial: the uplink is chosen before there is a subnet. */
  readonly publicIps: () => Promise<PerFamily<string>>;
  readonly past?: () => Promise<EtcdPast>;
  readonly log: Logger;
  /** For tests; flannel's are 24 hours. */
  readonly leaseSeconds?: number;
  readonly timing?: Partial<EtcdTiming>;
}

/** Our own subnet. */
interface Held {
  readonly name: string;
  readonly subnets: SubnetPair;
  readonly createRevision: number;
  /** 0n: a reservation, which needs no renewal. */
  lease: bigint;
  value: string;
  /** The store's revision when we last wrote the value, and which store that was; see the mirror. */
  revision: number;
  epoch: number;
  renewAt: number;
}

/**
 * Leases as flannel keeps them in etcd: a key for each subnet, with its node's public IP and VTEP MAC, under an etcd
 * lease of 24 hours. Nodes choose their subnets themselves; a transaction ensures that no two choose the same.
 *
 * Renewal begins after a third of the lease's time, so etcd may be down for the other two thirds. A lease that is lost
 * is taken again with the same subnet, because pods have addresses from it. If another node has that subnet by then, an
 * alarm asks a person to decide.
 */
export class EtcdSubnetManager implements SubnetManager {
  readonly #options: EtcdSubnetManagerOptions;
  readonly #settings: LeaseSettings;
  /** Of the keys of all leases. */
  readonly #prefix: string;
  readonly #mirror: EtcdMirror<ParsedNode>;
  readonly #snapshots: Snapshots;
  readonly #stopping = new AbortController();
  #onChange: () => void = () => {};
  #held: Held | undefined;
  #own: OwnNode | undefined;
  #publicIp = '';
  #renewing: Promise<void> | undefined;
  #recovering: Promise<void> | undefined;
  #alarm: string | undefined;

  constructor(options: EtcdSubnetManagerOptions) {
    this.#options = options;
    this.#settings = leaseSettings(options.netConf);
    this.#prefix = posix.join(options.prefix, 'subnets/');
    this.#snapshots = new Snapshots(options.nodeName, () => ({
      synced: this.#mirror.synced,
      own: this.#own,
      nodes: this.#views(),
    }));
    this.#mirror = new EtcdMirror({
      client: options.client,
      prefix: this.#prefix,
      project: (name, kv) => parseLease(name, kv, this.#settings),
      onChange: () => {
        this.#checkHeld();
        this.#changed();
      },
      log: options.log,
      timing: options.timing,
    });
  }

  snapshot(podCidrs: readonly Cidr[]): ClusterSnapshot {
    return this.#snapshots.get(podCidrs);
  }

  get health(): SourceHealth {
    const { health } = this.#mirror;
    return this.#alarm === undefined ? health : { ...health, lastError: this.#alarm };
  }

  /** Get a subnet; if possible the one that we have or had. */
  async fetchOwn(): Promise<OwnNode> {
    const { publicIps, past, nodeName, log } = this.#options;
    const ips = await publicIps();
    const before: EtcdPast = (await past?.()) ?? {};
    const held = await this.#acquire(ips, before, log);
    this.#hold(held.held);
    this.#publicIp = ips.v4!;
    this.#own = {
      name: nodeName,
      uid: leaseUid(held.held),
      podCidrs: Object.values(held.held.subnets),
      annotations: {},
      vtepMac: held.vtepMac,
      nodePublicIp: {},
      internalIp: {},
      flannelIsUp: true,
    };
    this.#changed();
    return this.#own;
  }

  start(onChange: () => void, lastKnown?: readonly PeerNode[]): void {
    this.#onChange = onChange;
    if (lastKnown) this.#snapshots.useLastKnown(lastKnown);
    this.#mirror.start();
    this.#renewing ??= this.#renew(this.#stopping.signal);
  }

  async publish(_own: OwnNode, lease: OwnLease): Promise<boolean> {
    const held = this.#held;
    if (!held || this.#recovering)
      throw new RipstopError(this.#alarm ?? 'our lease in etcd is being acquired');
    if (!lease.v4) throw new RipstopError('a lease in etcd needs an IPv4 address');
    const value = formatLease({ ...lease, v4: lease.v4 }, this.#settings);
    const seen = this.#mirror.items.get(held.name)?.kv;
    // The mirror may be behind what we wrote ourselves.
    const current = seen && seen.modRevision > held.revision ? seen.value : held.value;
    if (current === value) return false;
    const { succeeded, header } = await this.#options.client.call(txn, {
      conditions: [this.#unchanged(held)],
      put: { key: this.#prefix + held.name, value, lease: held.lease },
    });
    if (!succeeded) {
      this.#lost('it was deleted');
      throw new RipstopError('our lease in etcd is gone; taking it again');
    }
    held.value = value;
    held.revision = header.revision;
    this.#publicIp = lease.v4.publicIp;
    return true;
  }

  reconnect(): void {
    void this.#options.client.nextEndpoint();
  }

  async withdraw(): Promise<void> {
    const { client, log } = this.#options;
    const held = this.#held ?? (await this.#find());
    this.#held = undefined;
    if (!held) return;
    const key = this.#prefix + held.name;
    await client.call(txn, { conditions: [this.#unchanged(held)], remove: key });
    if (held.lease !== 0n) {
      // It had no other key, and expires by itself.
      await client
        .call(leaseRevoke, { id: held.lease })
        .catch((error: unknown) => log.debug({ why: errorText(error) }, 'could not revoke our etcd lease'));
      return;
    }
    // A reservation is the administrator's: the subnet stays reserved for this address.
    const value = JSON.stringify({ PublicIP: this.#publicIp, PublicIPv6: null });
    await client.call(txn, { conditions: [{ key, createRevision: 0, is: 'equal' }], put: { key, value } });
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await Promise.all([this.#mirror.stop(), this.#renewing, this.#recovering]);
    await this.#options.client.close();
  }

  async #list(): Promise<{ claims: ClaimedLease[]; revision: number }> {
    const { kvs, revision } = await listPrefix(this.#options.client, this.#prefix, this.#stopping.signal);
    const claims = kvs.map((kv) => claimOf(kv.key.slice(this.#prefix.length), kv, this.#settings));
    return { claims, revision };
  }

  async #acquire(
    ips: PerFamily<string>,
    { podCidrs: previous, vtepMac: deviceMac }: EtcdPast,
    log: Logger,
  ): Promise<{ held: Held; vtepMac: PerFamily<string> }> {
    const { subnets: ranges } = this.#options.netConf;
    if (ips.v4 === undefined || (ranges.v6 && ips.v6 === undefined)) {
      throw new RipstopError(
        `this node has no IPv${ips.v4 === undefined ? 4 : 6} address for its lease in etcd`,
      );
    }
    const publicIp = ips.v4;
    for (let attempt = 1; attempt <= RACE_TRIES; attempt++) {
      const { claims, revision } = await this.#list();
      const choice = chooseSubnet(claims, ranges, { publicIp, previous, vtepMac: deviceMac });
      for (const { key, kv, publicIp: whose, subnets } of claims) {
        if (whose !== publicIp || (subnets && fitsRanges(subnets, ranges))) continue;
        log.warn({ key }, 'deleted our lease, which no longer fits the network configuration');
        await this.#options.client.call(txn, {
          conditions: [this.#unchanged({ name: key, createRevision: kv.createRevision })],
          remove: kv.key,
        });
      }
      const known = choice.kind === 'reuse' ? choice.lease.vtepMac : {};
      const part = (family: 'v4' | 'v6'): LeasePart => ({
        publicIp: ips[family]!,
        // Always with a MAC: flannel peers use the lease as it is.
        ...(this.#settings.vni !== undefined && {
          vtepMac: known[family] ?? deviceMac?.[family] ?? randomMac(),
        }),
      });
      const lease: PerFamily<LeasePart> & { v4: LeasePart } = {
        v4: part('v4'),
        ...(ranges.v6 && { v6: part('v6') }),
      };
      const value = formatLease(lease, this.#settings);
      const held =
        choice.kind === 'reuse'
          ? await this.#reuse(choice.lease.kv, choice.lease.key, choice.lease.subnets, value)
          : await this.#create(choice.subnets, value, revision);
      if (held) {
        const why = choice.kind === 'reuse' ? 'it is ours' : choice.why;
        log.info({ subnet: held.name, why }, 'have a subnet from etcd');
        return { held, vtepMac: perFamily((family) => lease[familyKey(family)]?.vtepMac) };
      }
      await sleep(Math.random() * Math.min(10 * attempt, 500), undefined, { signal: this.#stopping.signal });
    }
    throw new RipstopError(`other nodes took every free subnet first, ${RACE_TRIES} times; trying again`);
  }

  /** Take a subnet that was free at this revision; undefined when it no longer is. */
  async #create(subnets: SubnetPair, value: string, revision: number): Promise<Held | undefined> {
    const { client } = this.#options;
    const name = formatSubnetKey(subnets);
    const key = this.#prefix + name;
    const { id, ttl } = await this.#grant();
    const base = `${this.#prefix}${subnets.v4.base}-`;
    // The keys of one IPv4 subnet have a common prefix, whatever IPv6 subnet they name. For IPv6 no key may be new.
    const conditions: Condition[] = [
      { key: base, rangeEnd: prefixEnd(base), createRevision: 0, is: 'equal' },
      ...(subnets.v6
        ? [
            {
              key: this.#prefix,
              rangeEnd: prefixEnd(this.#prefix),
              createRevision: revision + 1,
              is: 'less' as const,
            },
          ]
        : []),
    ];
    const { succeeded, header } = await client.call(txn, { conditions, put: { key, value, lease: id } });
    if (!succeeded) {
      await client.call(leaseRevoke, { id }).catch(() => undefined); // It expires by itself.
      return undefined;
    }
    return {
      name,
      subnets,
      createRevision: header.revision,
      lease: id,
      value,
      revision: header.revision,
      epoch: this.#mirror.epoch,
      renewAt: renewalTime(ttl),
    };
  }

  /** Renew our own lease and write `value`; undefined when it is gone by now. */
  async #reuse(kv: KeyValue, name: string, subnets: SubnetPair, value: string): Promise<Held | undefined> {
    const { client } = this.#options;
    let { lease } = kv;
    let ttl = Number.POSITIVE_INFINITY;
    if (lease !== 0n) {
      ({ ttl } = await client.call(leaseKeepAlive, { id: lease }));
      if (ttl <= 0) ({ id: lease, ttl } = await this.#grant());
    }
    let revision = kv.modRevision;
    if (value !== kv.value || lease !== kv.lease) {
      const { succeeded, header } = await client.call(txn, {
        conditions: [this.#unchanged({ name, createRevision: kv.createRevision })],
        put: { key: kv.key, value, lease },
      });
      if (!succeeded) return undefined;
      ({ revision } = header);
    }
    const { createRevision } = kv;
    const { epoch } = this.#mirror;
    return { name, subnets, createRevision, lease, value, revision, epoch, renewAt: renewalTime(ttl) };
  }

  #grant(): Promise<{ id: bigint; ttl: number }> {
    return this.#options.client.call(leaseGrant, { ttl: this.#options.leaseSeconds ?? LEASE_SECONDS });
  }

  /** The key is the one that we know, not one that was created again. */
  #unchanged({ name, createRevision }: Pick<Held, 'name' | 'createRevision'>): Condition {
    return { key: this.#prefix + name, createRevision, is: 'equal' };
  }

  #changed(): void {
    this.#snapshots.invalidate();
    this.#onChange();
  }

  #hold(held: Held): void {
    this.#held = held;
    this.#alarm = undefined;
  }

  /** Our lease as a previous agent left it. */
  async #find(): Promise<Held | undefined> {
    const { publicIps, past, netConf } = this.#options;
    const { v4: publicIp = '' } = await publicIps();
    const before: EtcdPast = (await past?.()) ?? {};
    const { claims } = await this.#list();
    const marks = { publicIp, previous: before.podCidrs, vtepMac: before.vtepMac };
    const choice = chooseSubnet(claims, netConf.subnets, marks);
    if (choice.kind !== 'reuse') return undefined;
    this.#publicIp = publicIp;
    const { kv, key, subnets } = choice.lease;
    const { createRevision, lease, value, modRevision: revision } = kv;
    return { name: key, subnets, createRevision, lease, value, revision, epoch: 0, renewAt: 0 };
  }

  *#views(): Generator<ParsedNode> {
    for (const { value } of this.#mirror.items.values()) yield this.#named(value);
    if (this.#alarm === undefined || !this.#own) return;
    const { name, uid } = this.#own;
    yield { name, uid, kind: 'ignored', reason: this.#alarm, alarm: 'subnet_lost' };
  }

  /** Gives our own lease our name; another lease of our address is no peer. */
  #named(node: ParsedNode): ParsedNode {
    const { nodeName: name } = this.#options;
    const held = this.#held;
    if (held && node.uid === leaseUid(held)) {
      return node.kind === 'peer' ? { ...node, name, peer: { ...node.peer, name } } : { ...node, name };
    }
    if (node.kind !== 'peer' || node.peer.v4?.vtepIp !== this.#publicIp) return node;
    const { name: key, uid } = node;
    const reason = `another lease of this node's address ${this.#publicIp}: delete it unless a node needs it`;
    return { name: key, uid, kind: 'ignored', reason, alarm: 'vtep_shared' };
  }

  /** Look at our own key in the mirror. */
  #checkHeld(): void {
    const held = this.#held;
    if (!held || !this.#mirror.synced) return;
    const { epoch, revision } = this.#mirror;
    // Our own write may not have come back yet.
    if (epoch === held.epoch && revision < held.revision) return;
    held.epoch = epoch;
    const kv = this.#mirror.items.get(held.name)?.kv;
    if (kv?.createRevision !== held.createRevision) {
      this.#lost(kv ? 'it was deleted and created again' : 'it expired or was deleted');
      return;
    }
    if (kv.lease === held.lease || kv.modRevision <= held.revision) return;
    // Somebody turned it into a reservation, or gave it another etcd lease: renew that one.
    held.lease = kv.lease;
    held.renewAt = 0;
  }

  async #renew(signal: AbortSignal): Promise<void> {
    const { client, log, leaseSeconds = LEASE_SECONDS } = this.#options;
    const tickMs = Math.min((leaseSeconds * 1000) / 30, 60_000);
    const failure = new LogOnce(log, 'cannot renew our lease in etcd; retrying');
    while (!signal.aborted) {
      await sleep(tickMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
      const held = this.#held;
      if (signal.aborted || !held || held.lease === 0n || performance.now() < held.renewAt) continue;
      try {
        const { ttl } = await client.call(leaseKeepAlive, { id: held.lease }, { signal });
        if (ttl > 0) held.renewAt = renewalTime(ttl);
        else await this.#verify(held);
        failure.over('renewed our lease in etcd');
      } catch (error) {
        if (!signal.aborted) failure.met(error);
      }
    }
  }

  /** The etcd lease is gone; the key may have another one by now. */
  async #verify(held: Held): Promise<void> {
    const { kvs } = await this.#options.client.call(range, { key: this.#prefix + held.name });
    const [kv] = kvs;
    if (kv?.createRevision === held.createRevision && kv.lease !== held.lease) held.lease = kv.lease;
    else this.#lost('it expired');
  }

  #lost(why: string): void {
    if (this.#recovering || this.#stopping.signal.aborted) return;
    this.#options.log.warn({ subnet: this.#held?.name, why }, 'lost our lease in etcd; taking it again');
    this.#recovering = this.#recover(this.#stopping.signal).finally(() => {
      this.#recovering = undefined;
      this.#changed();
    });
  }

  /** Take our subnet again, however long that takes: the pods here have addresses from it. */
  async #recover(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    for (let delayMs = 100; !signal.aborted && this.#held; delayMs = Math.min(delayMs * 2, 15_000)) {
      const before = this.#alarm;
      try {
        const held = await this.#retake(this.#held);
        if (held) {
          this.#hold(held);
          log.warn({ subnet: held.name }, 'have our subnet in etcd again');
          return;
        }
      } catch (error) {
        this.#alarm ??= `our lease in etcd is lost, and cannot be taken again: ${errorText(error)}`;
      }
      if (this.#alarm !== undefined && this.#alarm !== before) {
        log.error({ alarm: this.#alarm }, 'our lease in etcd needs attention');
        this.#changed();
      }
      await sleep(delayMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
    }
  }

  /** One attempt; undefined when it failed, with an alarm when another node has the subnet. */
  async #retake({ name, subnets, value }: Held): Promise<Held | undefined> {
    const { claims, revision } = await this.#list();
    const mine = claimOf(
      name,
      { key: name, value, createRevision: 0, modRevision: 0, lease: 0n },
      this.#settings,
    );
    const inTheWay = claims.filter((claim) => claim.subnets && overlap(claim.subnets, subnets));
    const again = inTheWay.find(
      ({ key, publicIp, vtepMac }) =>
        key === name &&
        (publicIp === this.#publicIp || (vtepMac.v4 !== undefined && vtepMac.v4 === mine.vtepMac.v4)),
    );
    if (again) return this.#reuse(again.kv, name, subnets, value);
    const [other] = inTheWay;
    if (!other) return this.#create(subnets, value, revision);
    const ours = Object.values(subnets).map(formatCidr).join(', ');
    this.#alarm =
      `the subnet ${ours} of this node went to ${other.publicIp ?? other.key} in etcd after our lease was lost; ` +
      `our pods keep their addresses, which others now reach there: ` +
      `drain this node, delete subnet.env and restart ripstop to get a new subnet, ` +
      `or delete the key ${this.#prefix}${other.key} to get it back`;
    return undefined;
  }
}

function renewalTime(ttlSeconds: number): number {
  // Each node has its own time, or all that started together would renew together.
  return performance.now() + ((ttlSeconds * 1000) / 3) * (0.8 + Math.random() * 0.2);
}

/** How long to wait for etcd before the copy of its last answer is used. */
const ANSWER_MS = 3000;

/**
 * The network configuration from etcd. Waits while it is missing or broken.
 * @param copy a file with etcd's last answer, for a start while etcd is down.
 * @returns undefined when the signal came first.
 */
export async function waitForEtcdNetConf(
  client: EtcdClient,
  prefix: string,
  log: Logger,
  signal: AbortSignal,
  copy?: string,
): Promise<EtcdNetConf | undefined> {
  const key = posix.join(prefix, 'config');
  const startedAt = performance.now();
  const failure = new LogOnce(
    log,
    'cannot read the network configuration from etcd yet; what is pinned keeps forwarding',
  );
  for (let delayMs = 250; !signal.aborted; delayMs = Math.min(delayMs * 2, 5_000)) {
    try {
      const { kvs } = await client.call(range, { key }, { signal });
      if (!kvs[0]) throw withoutNetConf(key);
      const netConf = parseEtcdNetConf(kvs[0].value, `${key} in etcd`);
      if (copy !== undefined) await keepCopy(copy, kvs[0].value, log);
      return netConf;
    } catch (error) {
      if (!signal.aborted) failure.met(error);
      const silent = error instanceof EtcdError && isNoAnswer(error);
      const text =
        silent && copy !== undefined && performance.now() - startedAt > ANSWER_MS
          ? await readIfThere(copy)
          : undefined;
      if (text !== undefined) {
        log.warn({ file: copy }, 'etcd does not answer: using the last known network configuration');
        return parseEtcdNetConf(text, copy!);
      }
      await sleep(delayMs * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}

function withoutNetConf(key: string): RipstopError {
  return new RipstopError(
    `etcd has no key ${key}: put flannel's network configuration there with the v3 API, e.g. etcdctl put ${key} ` +
      `'{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}', or name its place with --etcd-prefix`,
  );
}

async function keepCopy(file: string, text: string, log: Logger): Promise<void> {
  try {
    await writeIfDifferent(file, text, { mode: 0o600 });
  } catch (error) {
    log.warn(
      { why: errorText(error) },
      'cannot keep a copy of the network configuration; a start needs etcd',
    );
  }
}
