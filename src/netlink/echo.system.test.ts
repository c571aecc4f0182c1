// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../host/run.ts';

const SCRIPT = `
  import { echo } from ${JSON.stringify(`${import.meta.dirname}/index.ts`)};
  const [requests, options] = process.argv.slice(1).map((text) => JSON.parse(text));
  const begunAt = performance.now();
  console.log(JSON.stringify({ results: await echo(requests, options), ms: performance.now() - begunAt }));`;

describe.skipIf(process.getuid?.() !== 0)('ICMP echo', () => {
  const netns = `echo-${process.pid}`;
  const path = `/run/netns/${netns}`;

  beforeAll(async () => {
    await run('ip', ['netns', 'add', netns]);
    const commands = [
      'link set lo up',
      'link add up0 type veth peer name up1',
      'link set up0 mtu 1400 up',
      'link set up1 up',
      'address add 192.0.2.1/24 dev up0',
      'address add 2001:db8::1/64 dev up0 nodad',
    ];
    await run('ip', ['-batch', '-'], { netns: path, stdin: `${commands.join('\n')}\n` });
  });
  afterAll(() => run('ip', ['netns', 'delete', netns]));

  const requests = [
    { to: '127.0.0.1', bytes: 100 },
    { to: '127.0.0.1', bytes: 60_000 },
    { to: '::1', bytes: 1400 },
    { to: '192.0.2.9', bytes: 100 },
    { to: '192.0.2.9', bytes: 1401 },
    { to: '198.51.100.1', bytes: 100 },
  ];
  const results = ['answered', 'answered', 'answered', 'silent', 'too-big', 'unreachable'];
  const argv = [process.execPath, '--input-type=module', '-e', SCRIPT, JSON.stringify(requests)] as const;
  const options = JSON.stringify({ tries: 2, timeoutMs: 300 });

  it('tells what is answered, what is not, and what cannot be sent', async () => {
    const [program, ...args] = argv;
    const answer = JSON.parse(await run(program, [...args, options], { netns: path })) as {
      results: string[];
      ms: number;
    };
    expect(answer.results).toEqual(results);
    expect(answer.ms).toBeGreaterThan(290);
  });

  it('needs no capability where net.ipv4.ping_group_range allows it, and else says which', async () => {
    const without = ['--bounding-set=-net_raw', '--inh-caps=-net_raw', '--', ...argv, options];
    const { stderr } = await tryRun('setpriv', without, { netns: path });
    expect(stderr).toMatch(/open an ICMP socket failed: Permission denied \(EACCES\)/);
    await run('sh', ['-c', 'echo "0 1000" > /proc/sys/net/ipv4/ping_group_range'], { netns: path });
    expect(JSON.parse(await run('setpriv', without, { netns: path }))).toMatchObject({ results });
  });
});
