// SPDX-License-Identifier: Apache-2.0
/** `ripstop top`: reads, draws and listens to keys. What is on the screen, `top-view.ts` says. */
import { writeSync } from 'node:fs';
import { emitKeypressEvents } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { requirePins } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import { type ClusterIp, listClusterIps } from '../host/services.ts';
import { type Facts, firstView, type Key, press, screen, shownRows, type View } from './top-view.ts';
import {
  readNames,
  readTraffic,
  type Traffic,
  trafficBetween,
  type TrafficNames,
  type TrafficReading,
} from './traffic.ts';

export interface TopOptions {
  readonly bpffs: string;
  readonly runDir: string;
  readonly output: string;
  /** Seconds. */
  readonly interval: number;
  /** End after so many readings. */
  readonly count?: number;
}

/** A large flow table takes long to read: readings take at most this share of a CPU. */
const MOST_OF_A_CPU = 0.1;
/** The first rates come after this. */
const FIRST_MS = 300;
/** How long names are kept. */
const NAMES_MS = 5000;
/** Services change seldom, and kube-proxy's rules for them may be many. */
const SERVICES_MS = 60_000;

/** @throws RipstopError when nothing is pinned, or there is no terminal. */
export async function top(options: TopOptions): Promise<void> {
  requirePins(options.bpffs);
  if (options.output === 'json') return printLines(options);
  if (options.output !== 'table')
    throw new RipstopError('top shows a screen, or a line of JSON for each reading: give -o json', {
      exitCode: 2,
    });
  if (!process.stdin.isTTY || !process.stdout.isTTY)
    throw new RipstopError(
      'top needs a terminal; use `ripstop stats --watch`, or `ripstop top -o json` for a line a second',
      { exitCode: 2 },
    );
  await showScreen(options);
}

/** Reads again and again, and tells how long to wait before the next time. */
class Meter {
  readonly #options: TopOptions;
  #names: TrafficNames | undefined;
  #namesMs = 0;
  #services: readonly ClusterIp[] = [];
  #servicesMs = -Infinity;
  #last: TrafficReading | undefined;
  #cpuSeconds = 0;

  constructor(options: TopOptions) {
    this.#options = options;
  }

  get names(): TrafficNames | undefined {
    return this.#names;
  }

  /** Seconds between two readings. */
  get every(): number {
    const { interval } = this.#options;
    return Math.max(interval, this.#cpuSeconds / MOST_OF_A_CPU);
  }

  /** The rates since the last time; undefined the first time. */
  async read(): Promise<Traffic | undefined> {
    const { bpffs, runDir } = this.#options;
    const nowMs = performance.now();
    if (nowMs - this.#servicesMs > SERVICES_MS) {
      this.#services = await listClusterIps();
      this.#servicesMs = nowMs;
    }
    if (!this.#names || nowMs - this.#namesMs > NAMES_MS) {
      this.#names = await readNames(bpffs, runDir, this.#services);
      this.#namesMs = nowMs;
    }
    const start = process.cpuUsage();
    const before = this.#last;
    this.#last = readTraffic(bpffs);
    const traffic = before && trafficBetween(before, this.#last, this.#names);
    const { user, system } = process.cpuUsage(start);
    this.#cpuSeconds = (user + system) / 1e6;
    return traffic;
  }
}

async function printLines(options: TopOptions): Promise<void> {
  const meter = new Meter(options);
  await meter.read();
  for (let left = options.count ?? Infinity; left > 0; left--) {
    await sleep(meter.every * 1000);
    const traffic = await meter.read();
    process.stdout.write(`${JSON.stringify({ time: new Date().toISOString(), ...traffic })}\n`);
  }
}

/** The alternate screen, and no cursor: what xterm's control sequences (DECSET) call 1049 and 25. */
const ENTER = '\u001B[?1049h\u001B[?25l';
const LEAVE = '\u001B[?25h\u001B[?1049l';
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;

async function showScreen(options: TopOptions): Promise<void> {
  const meter = new Meter(options);
  await meter.read(); // so that an error comes before the screen
  using terminal = new Terminal();
  let view: View = firstView;
  let traffic: Traffic | undefined;
  const draw = (): void =>
    terminal.draw(traffic, view, { node: meter.names?.node, time: timeText(), every: meter.every });
  terminal.onResize = draw;
  terminal.onKey = (key) => {
    const next = press(view, key, shownRows(traffic, view));
    if (!next) return terminal.quit();
    view = next;
    draw();
  };
  draw();
  await terminal.sleep(Math.min(FIRST_MS, options.interval * 1000));
  for (let left = options.count ?? Infinity; left > 0 && !terminal.isOver;) {
    // While paused nothing is read. The rates after that are those of the whole pause.
    if (!view.isPaused) {
      traffic = await meter.read();
      left--;
    }
    draw();
    await terminal.sleep(meter.every * 1000);
  }
}

function timeText(): string {
  return new Date().toTimeString().slice(0, 8);
}

/** The terminal while the screen is shown. It is restored by {@link Symbol.dispose}, and however else the process ends. */
class Terminal implements Disposable {
  onKey: (key: Key) => void = () => {};
  onResize: () => void = () => {};
  readonly #over = new AbortController();
  #error: unknown;
  readonly #stack = new DisposableStack();
  #drawn = '';

  constructor() {
    const { stdin, stdout } = process;
    const listen = (
      emitter: NodeJS.EventEmitter,
      name: string,
      listener: (...args: unknown[]) => void,
    ): void => {
      emitter.on(name, listener);
      this.#stack.defer(() => emitter.off(name, listener));
    };
    // In case of a crash: by then, streams write nothing.
    listen(process, 'exit', () => restore());
    for (const signal of SIGNALS) listen(process, signal, () => this.quit());
    listen(stdin, 'keypress', (_text, key) => this.#try(() => this.onKey(key as Key)));
    listen(stdin, 'end', () => this.quit());
    listen(stdout, 'resize', () => {
      this.#drawn = '';
      this.#try(() => this.onResize());
    });
    emitKeypressEvents(stdin);
    stdin.setRawMode(true);
    stdin.resume();
    stdout.write(ENTER);
  }

  get isOver(): boolean {
    return this.#over.signal.aborted;
  }

  quit(): void {
    this.#over.abort();
  }

  /** An error would be printed on the screen that goes: {@link sleep} throws it, so that the screen goes first. */
  #try(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#error ??= error;
      this.quit();
    }
  }

  /** Until the time is over, or somebody quits. @throws what a listener has thrown. */
  async sleep(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#over.signal }).catch(() => {});
    if (this.#error !== undefined) throw this.#error;
  }

  draw(traffic: Traffic | undefined, view: View, facts: Facts): void {
    const { columns, rows } = process.stdout;
    const lines = screen(traffic, view, facts, { columns, rows });
    // Each line replaces the one that is there, so that nothing flickers.
    const text = `\u001B[H${lines.map((line) => `${line}\u001B[K`).join('\r\n')}\u001B[J`;
    if (text !== this.#drawn) process.stdout.write(text);
    this.#drawn = text;
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
    restore();
    process.stdin.pause();
  }
}

function restore(): void {
  if (process.stdin.isTTY) process.stdin.setRawMode(false);
  try {
    writeSync(process.stdout.fd, LEAVE);
  } catch {
    // The terminal is gone.
  }
}
