// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Logger, pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiServer } from '../lab/apiserver/index.ts';
import type { RequestInfo } from '../lab/apiserver/routes.ts';
import { ApiClient } from './api-client.ts';
import { AlarmEvents, eventName, eventReason, type EventTiming, reporterOf } from './events.ts';
import type { PeerAlarm } from './peer.ts';

const nodes = Array.from({ length: 50 }, (_, i) => `node-${i + 1}`);
const alarmOf = (n: number, reason = 'podCIDR refused'): PeerAlarm => ({
  node: `node-${n}`,
  uid: `uid-${n}`,
  kind: 'podcidr_conflict',
  reason,
});

describe('who reports an alarm', () => {
  it('is one and the same for everybody, in whatever order the nodes are seen', () => {
    for (const n of [1, 2, 3]) {
      const chosen = reporterOf(alarmOf(n), nodes);
      expect(nodes).toContain(chosen);
      expect(reporterOf(alarmOf(n), nodes.toReversed())).toBe(chosen);
    }
  });

  it('is never the node concerned, nor anybody where nobody else is', () => {
    for (const node of nodes) expect(reporterOf({ ...alarmOf(1), node }, nodes)).not.toBe(node);
    expect(reporterOf(alarmOf(1), ['node-1'])).toBeUndefined();
    expect(reporterOf(alarmOf(1), [])).toBeUndefined();
  });

  it('is spread over the nodes, and stays when another node goes', () => {
    const alarms = Array.from({ length: 300 }, (_, n) => alarmOf(n + 100));
    const chosen = alarms.map((alarm) => reporterOf(alarm, nodes)!);
    expect(new Set(chosen).size).toBeGreaterThan(40);
    const [gone, ...rest] = nodes;
    for (const [i, alarm] of alarms.entries())
      if (chosen[i] !== gone) expect(reporterOf(alarm, rest)).toBe(chosen[i]);
  });
});

it('an Event has a name that is valid and always the same for a node and a kind, and a reason in camel case', () => {
  const name = eventName({ ...alarmOf(1), node: 'n'.repeat(253) });
  expect(name).toMatch(/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])$/);
  expect(eventName(alarmOf(1, 'one thing'))).toBe(eventName(alarmOf(1, 'another')));
  expect(eventName(alarmOf(1))).not.toBe(eventName({ ...alarmOf(1), uid: 'made again' }));
  expect(eventName(alarmOf(1))).not.toBe(eventName({ ...alarmOf(1), kind: 'vtep_shared' }));
  expect(eventReason('podcidr_conflict')).toBe('PodcidrConflict');
});

interface Event {
  metadata: { name: string; uid: string };
  involvedObject: object;
  message: string;
  count: number;
  reason: string;
  type: string;
  source: object;
  firstTimestamp: string;
  lastTimestamp: string;
}

describe('alarms as Events', () => {
  let server: ApiServer;
  let client: ApiClient;
  let directory: string;
  const started: AlarmEvents[] = [];
  const said: string[] = [];
  const log: Logger = pino({ level: 'warn' }, { write: (line: string) => void said.push(line) });

  beforeEach(async () => {
    server = await ApiServer.start();
    directory = await mkdtemp(path.join(tmpdir(), 'ripstop-events-'));
    const kubeconfig = path.join(directory, 'kubeconfig');
    await writeFile(kubeconfig, server.kubeconfig());
    client = await ApiClient.open({ kubeconfig });
    said.length = 0;
  });

  afterEach(async () => {
    for (const one of started.splice(0)) await one.stop();
    client.close();
    await server.close();
    await rm(directory, { recursive: true });
  });

  function eventsOf(self: string, timing: Partial<EventTiming> = {}): AlarmEvents {
    const usual = { repeatMs: 60_000, burst: 100, refillMs: 1000, retryMs: 20 };
    const events = new AlarmEvents(client, self, log, { ...usual, ...timing });
    started.push(events);
    return events;
  }

  const all = (): Event[] => server.store.list('events') as unknown as Event[];

  it('there is one for each alarm, whoever of all nodes looks, and however often', async () => {
    const everybody = nodes.map((name) => eventsOf(name));
    const alarms = [alarmOf(1), alarmOf(2), alarmOf(3)];
    for (let round = 0; round < 3; round++) for (const one of everybody) one.update(alarms, () => nodes);
    await expect.poll(() => all().length).toBe(3);
    await sleep(100);
    for (const one of everybody) one.update(alarms, () => nodes);
    await sleep(100);
    expect(all().map(({ involvedObject, count }) => ({ involvedObject, count }))).toEqual(
      expect.arrayContaining(
        alarms.map(({ node, uid }) => ({
          involvedObject: { apiVersion: 'v1', kind: 'Node', name: node, uid },
          count: 1,
        })),
      ),
    );
    expect(all()[0]).toMatchObject({
      type: 'Warning',
      reason: 'PodcidrConflict',
      message: 'podCIDR refused',
      source: { component: 'ripstop', host: expect.stringMatching(/^node-/) },
    });
  });

  it('that lasts, or whose message changes, counts up; one that was over is a new Event when it returns', async () => {
    const events = eventsOf('node-9', { repeatMs: 50 });
    const only = () => ['node-9'];
    const counted = () => all().map(({ count, message }) => `${count} ${message}`);
    events.update([alarmOf(1, 'this')], only);
    await expect.poll(counted).toEqual(['1 this']);
    await sleep(60);
    events.update([alarmOf(1, 'this')], only);
    await expect.poll(counted).toEqual(['2 this']);
    events.update([alarmOf(1, 'that')], only);
    await expect.poll(counted).toEqual(['3 that']);
    events.update([], only);
    events.update([alarmOf(1, 'again')], only);
    await expect.poll(counted).toEqual(['3 again']);
  });

  it('one that the server has forgotten is made again', async () => {
    const events = eventsOf('node-9', { repeatMs: 20 });
    events.update([alarmOf(1)], () => ['node-9']);
    await expect.poll(() => all().length).toBe(1);
    server.store.delete('events', all()[0]!.metadata.name, { namespace: 'default' });
    await sleep(30);
    events.update([alarmOf(1)], () => ['node-9']);
    await expect.poll(() => all().map(({ count }) => count)).toEqual([2]);
  });

  it('a storm goes out at a steady pace after the first ones, and only what is still up', async () => {
    const events = eventsOf('node-9', { burst: 3, refillMs: 100 });
    const alarms = Array.from({ length: 30 }, (_, n) => alarmOf(n + 100));
    events.update(alarms, () => ['node-9']);
    await sleep(450);
    expect(all().length).toBeGreaterThanOrEqual(4);
    expect(all().length).toBeLessThan(10);
    const before = all().length;
    events.update([], () => ['node-9']);
    await sleep(300);
    expect(all().length).toBeLessThanOrEqual(before + 1);
  });

  it('are retried when a server fails, or forbids them once; after that there is one warning', async () => {
    const match = ({ resource }: RequestInfo): boolean => resource === 'events';
    for (const code of [503, 403] as const) {
      const before = all().length;
      server.faults.inject({ kind: 'refuse', code }, { match, times: 1 });
      const events = eventsOf('node-9');
      events.update([alarmOf(code)], () => ['node-9']);
      await expect.poll(() => all().length).toBe(before + 1);
      expect(said).toEqual([]);
    }

    const fault = server.faults.inject({ kind: 'refuse', code: 403 }, { match });
    const events = eventsOf('node-9');
    for (let n = 2; n < 5; n++) {
      events.update([alarmOf(1), alarmOf(n)], () => ['node-9']);
      await sleep(50);
    }
    await expect.poll(() => fault.hits).toBe(2);
    await sleep(100);
    expect(fault.hits).toBe(2);
    expect(said.join()).toMatch(/grant create and patch on events/);
    expect(said).toHaveLength(1);
  });
});
