// SPDX-License-Identifier: Apache-2.0
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import type { Answer, Call, Calls } from './remote.ts';

/** A virtual machine that runs remote.ts. */
export class Machine {
  readonly #port: Writable;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  #calls = 0;

  private constructor(child: ChildProcessByStdio<Writable, Readable, null>) {
    this.#port = child.stdin;
    createInterface({ input: child.stdout }).on('line', (line) => this.#take(line));
    child.once('close', (code) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`the machine has ended (${code})`));
    });
  }

  /** Start it with this command, and wait until it accepts calls. */
  static async boot([program, ...args]: readonly [string, ...string[]]): Promise<Machine> {
    const machine = new Machine(spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] }));
    await machine.#answer(0);
    return machine;
  }

  /** Call a function of remote.ts there. */
  async call<N extends keyof Calls>(
    name: N,
    ...args: Parameters<Calls[N]>
  ): Promise<Awaited<ReturnType<Calls[N]>>> {
    const id = ++this.#calls;
    const answer = this.#answer(id);
    this.#port.write(`${JSON.stringify({ id, name, args } satisfies Call)}\n`);
    return (await answer) as Awaited<ReturnType<Calls[N]>>;
  }

  #answer(id: number): Promise<unknown> {
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.set(id, waiting);
    return waiting.promise;
  }

  #take(line: string): void {
    if (!line.startsWith('{')) return console.error(line);
    const { id, result, error } = JSON.parse(line) as Answer;
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) waiting?.resolve(result);
    else waiting?.reject(new Error(error));
  }
}
