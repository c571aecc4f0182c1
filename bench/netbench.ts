// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { which } from 'zx';
import { RipstopError, errorText } from '../src/errors.ts';
import { run } from '../src/host/run.ts';

/** Microseconds, counted in buckets less than 1 % wide; `min` and `max` are exact. All 0 without answers. */
export interface Latency {
  min: number;
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

/** The CPU time of one side during the measurement. */
export interface Side {
  /** The CPU that the process was pinned to. */
  cpu: number | null;
  seconds: number;
  /** Of this process (getrusage), without the kernel's work in interrupts. */
  userSeconds: number;
  systemSeconds: number;
  /** From /proc/stat: of `cpu`, or of all CPUs when it is not pinned; resolution 10 ms. */
  machine: { softirqSeconds: number; busySeconds: number; totalSeconds: number };
}

interface Head {
  test: string;
  host: string;
  port: number;
  connections: number;
  /** Payload bytes of a request, and of its answer. */
  size: number;
  seconds: number;
  client: Side;
  /** TCP segments that both sides had to send again, for each move of the epoch: added by the arms that move it. */
  retransmittedPerMove?: number;
}

export interface RoundTrips extends Head {
  transactions: number;
  /** Transactions a second. */
  rate: number;
  /** Requests not answered in time. They are not in the histogram. */
  lost: number;
  /** Answers that came after the timeout of their request. */
  late: number;
  latencyUs: Latency;
}

/** The JSON documents of netbench, by command. */
export interface Results {
  'tcp-rr': RoundTrips & { server: Side & { requests: number } };
  'udp-rr': RoundTrips & { server: Side & { requests: number } };
  'tcp-crr': RoundTrips & { server: Side & { accepted: number } };
  'tcp-stream': Head & {
    /** The receiver's bytes over the receiver's time. */
    gbitPerSecond: number;
    receivedBytes: number;
    sentBytes: number;
    /** With the warm-up, and with bytes in flight at both ends. The two must be equal. */
    totalReceivedBytes: number;
    totalSentBytes: number;
    server: Side & { bytes: number };
  };
  'udp-rate': Head & {
    batch: number;
    sentPps: number;
    receivedPps: number;
    sent: number;
    /** Counted after all queues have drained. */
    received: number;
    /** 0 … 1. */
    loss: number;
    /** The part of the loss that is due to a full socket of the receiver, not to the path. */
    socketDrops: number;
    sendErrors: number;
    server: Side & { packets: number };
  };
  /** Latency since a request was due, so that a stall counts for every request that it delayed. */
  'fixed-load': RoundTrips & {
    proto: 'tcp' | 'udp';
    targetRate: number;
    sent: number;
    /** How late the client itself was. */
    sendLagUs: Latency;
    server: Side & { requests: number };
  };
  /** Each request is a flow of its own, from another source port. The warm-up is part of it. */
  'udp-flows': Head & {
    flows: number;
    answered: number;
    /** Flows a second. */
    rate: number;
    server: Side & { requests: number };
  };
}

/** Options of a client, with the defaults of netbench.c. Times are in seconds, `timeout` in ms. */
export interface ClientOptions {
  host: string;
  port: number;
  seconds?: number;
  warmup?: number;
  connections?: number;
  size?: number;
  cpu?: number;
  batch?: number;
  sndbuf?: number;
  timeout?: number;
  rate?: number;
  proto?: 'tcp' | 'udp';
  /** How the client ends a connection. Default: `fin`, which leaves it in TIME_WAIT. */
  end?: 'fin' | 'rst';
  /** The number of the first flow. Numbers 64,512 apart have the same source port. */
  first?: number;
}

const SOURCE = fileURLToPath(new URL('netbench.c', import.meta.url));
const FLAGS = ['-std=c11', '-O2', '-Wall', '-Wextra', '-Werror', '-pthread'];

/** The clang that builds the project, or the machine's own. */
export async function findClang(): Promise<string> {
  return (await which('clang-19', { nothrow: true })) ?? 'clang';
}

/**
 * Compile netbench into `directory` with `compiler` and return the program's path.
 * @throws RipstopError with the compiler's message.
 */
export async function buildNetbench(directory: string, compiler = 'clang-19'): Promise<string> {
  const program = join(directory, 'netbench');
  await run(compiler, [...FLAGS, '-o', program, SOURCE]);
  return program;
}

function toArguments(options: object): string[] {
  return Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
}

/**
 * Run one test against a server and return its document. `netns` is the path of the client's network namespace.
 * @throws RipstopError when the test fails, the server cannot be reached, or an option is wrong.
 */
export async function netbench<Command extends keyof Results>(
  program: string,
  command: Command,
  options: ClientOptions,
  where: { netns?: string } = {},
): Promise<Results[Command]> {
  const timeoutMs = ((options.seconds ?? 1) + (options.warmup ?? 1) + 30) * 1000;
  const text = await run(program, [command, ...toArguments(options)], { ...where, timeoutMs });
  return JSON.parse(text) as Results[Command];
}

export interface NetbenchServer extends AsyncDisposable {
  port: number;
  pid: number;
}

/**
 * Start a server and wait until it listens on TCP and UDP, IPv4 and IPv6 (or on `bind` only). Port 0, the default, is
 * any free one. It ends when disposed of, and at the latest with this process.
 */
export async function startNetbenchServer(
  program: string,
  options: { port?: number; bind?: string; cpu?: number; netns?: string } = {},
): Promise<NetbenchServer> {
  const { netns, port = 0, ...rest } = options;
  const argv = [program, 'server', ...toArguments({ port, ...rest })];
  const [file = '', ...args] = netns ? ['nsenter', `--net=${netns}`, '--', ...argv] : argv;
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'close');
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const ready = once(child.stdout.setEncoding('utf8'), 'data').then(
    ([line]) => JSON.parse(String(line)) as { port: number },
  );
  const failed = ended.then(
    () => new RipstopError(`netbench's server did not start: ${stderr.trim()}`),
    (error: unknown) => new RipstopError(`cannot run ${file}: ${errorText(error)}`),
  );
  const first = await Promise.race([ready, failed]);
  if (first instanceof RipstopError) throw first;
  return {
    port: first.port,
    pid: child.pid ?? 0,
    async [Symbol.asyncDispose]() {
      child.kill('SIGTERM');
      await ended;
    },
  };
}
