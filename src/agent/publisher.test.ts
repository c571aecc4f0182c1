// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import { describe, expect, it } from 'vitest';
import type { OwnLease, OwnNode } from '../cluster/index.ts';
import { Publisher } from './publisher.ts';

const own = { name: 'node1' } as OwnNode;
const lease = (publicIp: string): OwnLease => ({ v4: { publicIp }, flannelIsUp: true });
const told = new Promise<void>((resolve) => setTimeout(resolve, 10));

/** A SubnetManager whose requests wait until the test answers them. */
function source() {
  const asked: { publicIp: string | undefined; answer: PromiseWithResolvers<boolean> }[] = [];
  const warnings: unknown[] = [];
  const log = {
    debug() {},
    info() {},
    warn: (fields: unknown) => warnings.push(fields),
  } as unknown as Logger;
  const publish = (_: OwnNode, { v4 }: OwnLease): Promise<boolean> => {
    const answer = Promise.withResolvers<boolean>();
    asked.push({ publicIp: v4?.publicIp, answer });
    return answer.promise;
  };
  return { asked, warnings, publisher: new Publisher({ publish }, log) };
}

describe('the publisher', () => {
  it('never blocks, and publishes only the last lease that was passed in the meantime', async () => {
    const { asked, publisher } = source();
    for (const ip of ['192.0.2.1', '192.0.2.2', '192.0.2.3']) publisher.publish(own, lease(ip));
    expect(asked.map(({ publicIp }) => publicIp)).toEqual(['192.0.2.1']);
    asked[0]!.answer.resolve(true);
    await told;
    expect(asked.map(({ publicIp }) => publicIp)).toEqual(['192.0.2.1', '192.0.2.3']);
  });

  it('logs a failure once, and retries at the next call', async () => {
    const { asked, warnings, publisher } = source();
    const fail = async (i: number, why: string): Promise<void> => {
      publisher.publish(own, lease('192.0.2.1'));
      asked[i]!.answer.reject(new Error(why));
      await new Promise((resolve) => setTimeout(resolve, 1));
    };
    await fail(0, 'no answer');
    await fail(1, 'no answer');
    await fail(2, 'forbidden');
    expect(warnings).toEqual([{ why: 'no answer' }, { why: 'forbidden' }]);
  });
});
