// SPDX-License-Identifier: Apache-2.0
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { RipstopError } from '../errors.ts';
import type { Outcome, Probe } from './probe.ts';
import type { Answer, Answered, Question } from './prober.ts';

/** How long a prober may take from its start until it is ready, and longer than its own limits for an answer. */
const READY_MS = 60_000;
const ANSWER_MS = 60_000;

/** The two ends of a started prober. `ended` resolves with what it said at last, when it has ended. */
export interface ProberProcess {
  readonly stdin: Writable;
  readonly stdout: Readable;
  readonly ended: Promise<string>;
}

/** A prober that is ready. */
export class Session {
  readonly #name: string;
  readonly #process: ProberProcess;
  readonly #waiting = new Map<number, (answered: Answered | RipstopError) => void>();
  #nextId = 1;
  #gone: RipstopError | undefined;

  private constructor(name: string, process: ProberProcess) {
    this.#name = name;
    this.#process = process;
    // What is written to a prober that has ended is answered by its end.
    process.stdin.on('error', () => {});
    createInterface({ input: process.stdout }).on('line', (line) => this.#read(line));
    void process.ended.then((said) => {
      this.#gone = new RipstopError(
        `the prober in ${name} has ended${said.trim() ? `: ${said.trim().split('\n').at(-1)}` : ''}`,
        { details: said },
      );
      for (const answer of this.#waiting.values()) answer(this.#gone);
      this.#waiting.clear();
    });
  }

  /**
   * Take over a prober that has been started. Resolves when it serves.
   * @param name of the pod or node that it is in, for errors
   * @throws RipstopError when it does not get ready.
   */
  static async open(name: string, process: ProberProcess): Promise<Session> {
    const session = new Session(name, process);
    const { error } = await session.#answerTo(0, READY_MS);
    if (error !== undefined) throw new RipstopError(`the prober in ${name} ${error}`);
    return session;
  }

  /** @throws RipstopError when the prober ends, or does not answer. */
  async run(probe: Probe): Promise<Outcome> {
    return (await this.#ask({ probe })) as Outcome;
  }

  /** Those of these tokens that have arrived here by UDP. @throws RipstopError as {@link run} does. */
  async seen(tokens: readonly string[]): Promise<readonly string[]> {
    return (await this.#ask({ seen: tokens })) as readonly string[];
  }

  async #ask(question: Question): Promise<Answer> {
    const id = this.#nextId++;
    const answer = this.#answerTo(id, ANSWER_MS);
    this.#process.stdin.write(`${JSON.stringify({ id, question })}\n`);
    return (await answer).answer!;
  }

  async #answerTo(id: number, timeoutMs: number): Promise<Answered> {
    if (this.#gone) throw this.#gone;
    const { promise, resolve } = Promise.withResolvers<Answered | RipstopError>();
    this.#waiting.set(id, resolve);
    const timer = setTimeout(
      () =>
        resolve(new RipstopError(`the prober in ${this.#name} does not answer within ${timeoutMs / 1000} s`)),
      timeoutMs,
    );
    const answered = await promise.finally(() => {
      clearTimeout(timer);
      this.#waiting.delete(id);
    });
    if (answered instanceof RipstopError) throw answered;
    return answered;
  }

  #read(line: string): void {
    let answered: Answered;
    try {
      answered = JSON.parse(line) as Answered;
    } catch {
      return; // Something else that the program prints.
    }
    this.#waiting.get(answered.id ?? 0)?.(answered);
  }
}
