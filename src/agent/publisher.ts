// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { OwnLease, OwnNode, SubnetManager } from '../cluster/index.ts';
import { errorText } from '../errors.ts';

/**
 * Publishes our lease beside the passes: an API server that takes its time must not hold up a pod that waits for one. One
 * request is under way at a time, and of what is said meanwhile only the last is published.
 */
export class Publisher {
  readonly #subnets: Pick<SubnetManager, 'publish'>;
  readonly #log: Logger;
  #next: { readonly own: OwnNode; readonly lease: OwnLease } | undefined;
  #running = false;
  /** Why it could not be published when last tried; empty when it could. */
  #trouble = '';

  constructor(subnets: Pick<SubnetManager, 'publish'>, log: Logger) {
    this.#subnets = subnets;
    this.#log = log;
  }

  /** Have our lease say this, soon. What fails is tried again when it is said again, as every pass does. */
  say(own: OwnNode, lease: OwnLease): void {
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
        this.#trouble = '';
      } catch (error) {
        const why = errorText(error);
        // Once for each trouble, not for each attempt.
        if (why !== this.#trouble)
          this.#log.warn({ why }, 'cannot publish our lease; trying again at every pass');
        this.#trouble = why;
      }
    }
    this.#running = false;
  }
}
