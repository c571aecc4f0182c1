// SPDX-License-Identifier: Apache-2.0
import { mkdtemp, rm } from 'node:fs/promises';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../src/host/run.ts';
import {
  buildNetbench,
  netbench,
  startNetbenchServer,
  type ClientOptions,
  type Latency,
  type NetbenchServer,
  type Results,
} from './netbench.ts';

let directory: string;
let program: string;
let server: NetbenchServer;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'netbench-'));
  program = await buildNetbench(directory);
  server = await startNetbenchServer(program);
});

afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});

function test<Command extends keyof Results>(
  command: Command,
  options: Partial<ClientOptions> = {},
): Promise<Results[Command]> {
  const short = { host: '127.0.0.1', port: server.port, seconds: 0.2, warmup: 0.05 };
  return netbench(program, command, { ...short, ...options });
}

/** Stop the server for `ms`, in `after` ms from now. The kernel still queues for it. */
async function stallServer(after: number, ms: number): Promise<void> {
  await sleep(after);
  process.kill(server.pid, 'SIGSTOP');
  await sleep(ms);
  process.kill(server.pid, 'SIGCONT');
}

/** Connections to the server that hold a local port until TIME_WAIT is over. */
async function timeWaits(): Promise<number> {
  const text = await run('ss', ['-Htn', 'state', 'time-wait', `( dport = :${server.port} )`]);
  return text.split('\n').length;
}

function expectOrdered({ min, p50, p90, p99, p999, max, mean }: Latency): void {
  const quantiles = [min, p50, p90, p99, p999, max];
  expect(quantiles).toEqual(quantiles.toSorted((a, b) => a - b));
  expect(min).toBeGreaterThan(0);
  expect(mean).toBeGreaterThanOrEqual(min);
  expect(mean).toBeLessThanOrEqual(max);
}

describe('netbench', () => {
  it('computes quantiles to within 1 %', async () => {
    const { ok, worstError } = JSON.parse(await run(program, ['selftest'])) as {
      ok: boolean;
      worstError: number;
    };
    expect(ok).toBe(true);
    expect(worstError).toBeLessThan(0.01);
  });

  it('compiles without warnings with another compiler too', async () => {
    const elsewhere = await mkdtemp(join(directory, 'cc-'));
    await expect(buildNetbench(elsewhere, 'cc')).resolves.toBe(join(elsewhere, 'netbench'));
  });

  describe.each([
    ['IPv4', '127.0.0.1'],
    ['IPv6', '::1'],
  ])('over %s', (_family, host) => {
    it.each([
      ['tcp-rr', 1, 1],
      ['tcp-rr', 1, 16384],
      ['tcp-rr', 8, 64],
      ['tcp-rr', 32, 16384],
      ['udp-rr', 1, 64],
      ['udp-rr', 32, 9216],
    ] as const)(
      '%s on %d connections with %d bytes: both ends count the same',
      async (command, connections, size) => {
        const result = await test(command, { host, connections, size });
        expect(result).toMatchObject({ test: command, host, connections, size, lost: 0, late: 0 });
        expect(result.transactions).toBeGreaterThan(connections);
        expect(result.server.requests).toBe(result.transactions);
        expect(result.rate / (result.transactions / result.seconds)).toBeCloseTo(1, 4);
        expectOrdered(result.latencyUs);
        // Little's law: pending requests = rate × latency, with always one pending on each connection.
        const pending = (result.rate * result.latencyUs.mean) / 1e6;
        expect(pending / connections).toBeGreaterThan(0.8);
        expect(pending / connections).toBeLessThan(1.05);
      },
    );

    it.each([
      [1, 'fin'],
      [1, 'rst'],
      [8, 'rst'],
    ] as const)(
      'tcp-crr on %d connections, ended by %s: one connection per transaction, in TIME_WAIT if it was closed',
      async (n, end) => {
        const before = await timeWaits();
        const result = await test('tcp-crr', { host, connections: n, end });
        expect(result.lost).toBe(0);
        expect(result.transactions).toBeGreaterThan(100);
        expect(result.server.accepted).toBe(result.transactions);
        expectOrdered(result.latencyUs);
        const left = (await timeWaits()) - before;
        if (end === 'fin') expect(left).toBeGreaterThan(50);
        // Perhaps one of the control connection.
        else expect(left).toBeLessThan(5);
      },
    );

    it.each([1, 4])('tcp-stream on %d connections: every byte sent is received', async (connections) => {
      const result = await test('tcp-stream', { host, connections });
      expect(result.totalReceivedBytes).toBe(result.totalSentBytes);
      expect(result.receivedBytes).toBe(result.server.bytes);
      expect(result.gbitPerSecond).toBeCloseTo((result.receivedBytes * 8) / result.seconds / 1e9, 1);
      expect(result.totalReceivedBytes).toBeGreaterThan(result.receivedBytes);
    });

    it.each([
      [64, 32],
      [512, 1],
      [1400, 32],
    ])(
      'udp-rate with %d bytes in batches of %d: what is not received was dropped at the socket',
      async (size, batch) => {
        const result = await test('udp-rate', { host, size, batch });
        expect(result.sent).toBeGreaterThan(1000);
        expect(result.received + result.socketDrops).toBe(result.sent);
        expect(result.loss).toBeCloseTo(1 - result.received / result.sent, 5);
        expect(result.sentPps / (result.sent / result.seconds)).toBeCloseTo(1, 4);
      },
    );

    it.each([
      ['udp', 1],
      ['tcp', 4],
    ] as const)(
      'fixed-load over %s on %d connections sends what was asked for',
      async (proto, connections) => {
        const result = await test('fixed-load', { host, proto, connections, rate: 2000 });
        expect(result).toMatchObject({ proto, targetRate: 2000, sent: 400, transactions: 400, lost: 0 });
        expect(result.server.requests).toBe(400);
        expectOrdered(result.latencyUs);
        expect(result.sendLagUs.p50).toBeLessThan(result.latencyUs.p50);
      },
    );
  });

  it('udp-flows sends each request from another source port', async () => {
    const result = await test('udp-flows', {
      rate: 1000,
      first: 64_500,
      warmup: 0,
      seconds: 0.3,
      timeout: 20,
    });
    expect(result.flows).toBeGreaterThan(250);
    expect(result.answered).toBe(result.flows);
    expect(result.server.requests).toBe(result.flows);
    expect(result.rate).toBeLessThan(1010);
  });

  it('shows a stalled server: closed loop as one slow answer, open loop in every request that waited', async () => {
    const options = { seconds: 0.3, warmup: 0 };
    const [closed] = await Promise.all([test('tcp-rr', options), stallServer(100, 100)]);
    const [open] = await Promise.all([
      test('fixed-load', { ...options, proto: 'tcp', rate: 1000 }),
      stallServer(100, 100),
    ]);
    expect(closed.latencyUs.max).toBeGreaterThan(80_000);
    expect(closed.latencyUs.p99).toBeLessThan(20_000);
    expect(open.transactions).toBe(300);
    expect(open.latencyUs.max).toBeGreaterThan(80_000);
    // A third of the requests came during the stall and waited 50 ms on average.
    expect(open.latencyUs.p90).toBeGreaterThan(40_000);
  });

  it.each([1, 8])(
    'counts UDP requests on %d sockets that got no answer in time as lost',
    async (connections) => {
      const [result] = await Promise.all([
        test('udp-rr', { seconds: 0.3, warmup: 0, timeout: 20, connections }),
        stallServer(100, 100),
      ]);
      expect(result.lost).toBeGreaterThanOrEqual(3 * connections);
      // The server has answered all of them: too late, or after the test.
      expect(result.late).toBeLessThanOrEqual(result.lost);
      expect(result.server.requests).toBe(result.transactions + result.lost);
      // Only answers in time count, except for the time to sweep many sockets.
      expect(result.latencyUs.max).toBeLessThan(60_000);
    },
  );

  it('counts datagrams that do not fit into the buffer of a stalled receiver', async () => {
    const [result] = await Promise.all([
      test('udp-rate', { seconds: 0.3, warmup: 0, size: 1400 }),
      stallServer(100, 150),
    ]);
    expect(result.socketDrops).toBeGreaterThan(0);
    expect(result.received + result.socketDrops).toBe(result.sent);
    expect(result.loss).toBeGreaterThan(0);
  });

  it('pins both sides and measures their CPU time', async () => {
    await using pinned = await startNetbenchServer(program, { cpu: 0, bind: '127.0.0.1' });
    const result = await test('tcp-rr', { port: pinned.port, cpu: 0 });
    expect(result).toMatchObject({ client: { cpu: 0 }, server: { cpu: 0 } });
    const spent = [result.client, result.server].map((s) => s.userSeconds + s.systemSeconds);
    expect(Math.min(...spent)).toBeGreaterThan(0);
    // Both are on one CPU, so they cannot use more than the elapsed time together.
    expect(spent.reduce((a, b) => a + b)).toBeLessThan(result.client.seconds * 1.1);
    const { softirqSeconds, busySeconds, totalSeconds } = result.client.machine;
    expect(softirqSeconds).toBeLessThanOrEqual(busySeconds);
    expect(busySeconds).toBeLessThanOrEqual(totalSeconds);
    expect(totalSeconds).toBeLessThan(result.client.seconds + 0.05);
  });

  it('ends with its parent', async () => {
    // The shell starts a server, prints its pid, and is killed without a chance to clean up.
    const script = `"$0" server --port 0 >&2 & echo $!; wait`;
    const shell = spawn('sh', ['-c', script, program], { stdio: ['ignore', 'pipe', 'pipe'] });
    const ready = once(shell.stderr, 'data');
    const [line] = (await once(shell.stdout, 'data')) as [Buffer];
    await ready;
    const orphan = Number(line.toString());
    expect(() => process.kill(orphan, 0)).not.toThrow();
    shell.kill('SIGKILL');
    await once(shell, 'close'); // its output pipes close only when the server has ended too
    await expect
      .poll(() => tryRun('ps', ['-o', 'stat=', '-p', String(orphan)]))
      .not.toMatchObject({
        stdout: expect.stringMatching(/^[RSD]/),
      });
  });

  it('reports errors in one line', async () => {
    const failures = [
      [['tcp-rr', '--host', '127.0.0.1', '--port', '1'], 1, /cannot connect to 127\.0\.0\.1 port 1/],
      [['tcp-rr', '--host', 'somewhere', '--port', '1'], 2, /no IPv4 or IPv6 address/],
      [['tcp-rr', '--port', '1'], 2, /--host is missing/],
      [['udp-rr', '--host', '::1', '--port', '1', '--size', '8'], 2, /--size must be 16 to 9216/],
      [['udp-rr', '--host', '::1', '--port', '1', '--size', '1e'], 2, /--size takes a number/],
      [['fixed-load', '--host', '::1', '--port', '1'], 2, /--rate is missing/],
      [['udp-flows', '--host', '::1', '--port', '1'], 2, /--rate is missing/],
      [['server', '--port', '0', '--cpu', '1023'], 1, /cannot run on CPU 1023/],
      [['server', '--port', String(server.port)], 1, /cannot bind port/],
      [['nothing', '--host', '::1', '--port', '1'], 2, /unknown command 'nothing'/],
    ] as const;
    for (const [args, code, text] of failures) {
      const result = await tryRun(program, args);
      expect({ args, ...result }).toMatchObject({ args, code, stdout: '' });
      expect(result.stderr).toMatch(text);
      expect(result.stderr.trim().split('\n')).toHaveLength(1);
    }
  });
});
