// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { OwnLease, OwnNode, SubnetManager } from '../cluster/index.ts';
import { LogOnce } from '../log-once.ts';

/**
 * Publishes our lease, independently of the passes, so that a slow API server does not delay them. One request is under
 * way at a time. Of the leases that are passed in the meantime, only the last is published.
 */
export class Publisher {
  readonly #subnets: Pick<SubnetManager, 'publish'>;
  readonly #log: Logger;
  #next: { readonly own: OwnNode; readonly lease: OwnLease } | undefined;
  #running = false;
  readonly #failure: LogOnce;

  constructor(subnets: Pick<SubnetManager, 'publish'>, log: Logger) {
    this.#subnets = subnets;
    this.#log = log;
    this.#failure = new LogOnce(log, 'cannot publish our lease; retrying at every pass');
  }

  /** Publish this lease as soon as possible. A failure is retried at the next call, which every pass makes. */
  publish(own: OwnNode, lease: OwnLease): void {
    this.#next = { own, lease };
    if (!this.#running) void this.#publish();
  }

  async #publish(): Promise<void> {
    this.#running = true;
    for (let next = this.#next; next; next = this.#next) {
      this.#next = undefined;
      try {
        const written = await this.#subnets.publish(next.own, next.lease);
        if (written) this.#log.info(next.lease, 'published our lease');
        this.#failure.over();
      } catch (error) {
        this.#failure.met(error);
      }
    }
    this.#running = false;
  }
}
