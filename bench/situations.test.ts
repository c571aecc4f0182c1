// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Arm } from './arms.ts';
import { besideNewFlows, throughClusterIp, withEpochs } from './situations.ts';

/** An arm that notes what runs, and when it begins and ends. */
function fakeArm(results: Record<string, object> = {}): Arm & { log: string[] } {
  const log: string[] = [];
  let retransmitted = 0;
  const run = async (command: string, options: object = {}, place = 'across nodes'): Promise<unknown> => {
    const { seconds = 0, first } = options as { seconds?: number; first?: number };
    log.push(`${command} begins, ${place}${first === undefined ? '' : `, from flow ${first}`}`);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    retransmitted += 3;
    log.push(`${command} ends`);
    return results[command] ?? {};
  };
  return {
    name: 'ripstop',
    log,
    bpffs: [],
    run: run as Arm['run'],
    packets: () => undefined,
    retransmitted: async () => retransmitted,
    detach: async () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}

const enough = { 'udp-flows': { rate: 10_000, flows: 1000, answered: 1000 } };

describe('an arm in other circumstances', () => {
  it('has a name of its own, and its server behind the ClusterIP', async () => {
    const arm = fakeArm();
    const other = throughClusterIp(arm);
    await other.run('tcp-rr', {});
    expect(other.name).toBe('ripstop, ClusterIP');
    expect(arm.log[0]).toBe('tcp-rr begins, through a ClusterIP');
  });

  it('has new flows beside all of its measurement, the next time from other ports', async () => {
    const arm = fakeArm(enough);
    const beside = besideNewFlows(arm, 0);
    for (let i = 0; i < 2; i++) await beside.run('tcp-stream', { seconds: 0.05 });
    expect(arm.log).toEqual([
      'udp-flows begins, across nodes, from flow 0',
      'tcp-stream begins, across nodes',
      'tcp-stream ends',
      'udp-flows ends',
      'udp-flows begins, across nodes, from flow 2500',
      'tcp-stream begins, across nodes',
      'tcp-stream ends',
      'udp-flows ends',
    ]);
  });

  it('has no result where the new flows were fewer than they are said to be', async () => {
    const slow = besideNewFlows(fakeArm({ 'udp-flows': { rate: 4000, flows: 400, answered: 400 } }), 0);
    await expect(slow.run('tcp-stream', {})).rejects.toThrow('only 4000 new flows a second');
    const lossy = besideNewFlows(fakeArm({ 'udp-flows': { rate: 10_000, flows: 1000, answered: 100 } }), 0);
    await expect(lossy.run('tcp-stream', {})).rejects.toThrow('100 of 1000 answered');
  });

  it('counts what TCP sends again, for each move that there would have been', async () => {
    const still = withEpochs(fakeArm(), 'still');
    expect(await still.run('tcp-stream', { seconds: 0.05 })).toMatchObject({ retransmittedPerMove: 3 });
  });

  it('has no result where the epoch was to move, and did not', async () => {
    const moving = withEpochs(fakeArm(), 'moving');
    await expect(moving.run('tcp-stream', { seconds: 0.05 })).rejects.toThrow('the epoch did not move');
  });
});
