// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from 'node:crypto';
import { errorText } from '../errors.ts';
import { ipBatch } from '../lab/ip.ts';
import { gatherHostFacts, missingRequirements } from './requirements.ts';
import { run, type RunOptions } from './run.ts';

/** A network namespace of a test's own; `await using` removes it, also when the test fails. */
export interface TestNetns extends AsyncDisposable {
  path: string;
  /** Options that make any function of this folder act inside. */
  options: RunOptions & { netns: string };
  /** Set it up: lines for `ip -batch`. */
  ip(...lines: string[]): Promise<void>;
  /** Run a program inside and return its output. */
  run(program: string, ...args: string[]): Promise<string>;
}

export async function testNetns(): Promise<TestNetns> {
  const name = `host-${process.pid}-${randomBytes(3).toString('hex')}`;
  await run('ip', ['netns', 'add', name]);
  const path = `/run/netns/${name}`;
  const options = { netns: path };
  await ipBatch(['link set lo up'], options);
  return {
    path,
    options,
    ip: (...lines) => ipBatch(lines, options),
    run: (program, ...args) => run(program, args, options),
    [Symbol.asyncDispose]: async () => {
      await run('ip', ['netns', 'del', name]);
    },
  };
}

/**
 * A namespace that looks like a node: eth0 192.168.9.1/24 with a default route, its far end `wire` in the same place.
 */
export async function testNode(): Promise<TestNetns> {
  const node = await testNetns();
  await node.ip(
    'link add eth0 type veth peer name wire',
    'addr add 192.168.9.1/24 dev eth0',
    'addr add fd09::1/64 dev eth0 nodad',
    'link set wire up',
    'link set eth0 up',
    'route add default via 192.168.9.254',
    'route add default via fd09::fe',
  );
  return node;
}

/** Why system tests of this folder cannot run here, in one line, or undefined. */
export async function whyNoNetns(): Promise<string | undefined> {
  const missing = missingRequirements(await gatherHostFacts());
  if (missing.length > 0) return missing.join('; ');
  try {
    const probe = await testNetns();
    await probe[Symbol.asyncDispose]();
    return undefined;
  } catch (error) {
    return errorText(error);
  }
}
