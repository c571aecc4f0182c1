// SPDX-License-Identifier: Apache-2.0
/** `ripstop top` in a real terminal, which tmux is: what an operator sees and types, on a node with traffic. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Traffic } from '../src/cli/traffic.ts';
import { run, tryRun } from '../src/host/run.ts';
import { type Background, startIn } from '../src/lab/lab.support.ts';
import { netnsPath } from '../src/lab/index.ts';
import {
  bpffsOf,
  inNetns,
  markForKernelPath,
  missingHere,
  ping,
  podOf,
  PORT,
  ripstop,
  runDirOf,
  serveIn,
  talkTcp,
  useLab,
} from './cluster/support.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');
const SERVICE = '10.43.0.10';

/** A terminal of 90 columns and 20 rows with a shell in it, which a tmux server of its own keeps. */
class Screen implements AsyncDisposable {
  readonly #socket: string;

  private constructor(socket: string) {
    this.#socket = socket;
  }

  static async open(name: string): Promise<Screen> {
    const screen = new Screen(name);
    const shell = 'env -i TERM=screen PATH=/usr/bin:/bin PS1=ready\\>  sh -i';
    await run('tmux', ['-L', name, '-f', '/dev/null', 'new-session', '-d', '-x', '90', '-y', '20', shell]);
    return screen;
  }

  #tmux(...args: string[]): Promise<string> {
    return run('tmux', ['-L', this.#socket, ...args]);
  }

  /** Keys as tmux names them (`Tab`, `C-c`), or text. */
  async press(...keys: string[]): Promise<void> {
    for (const key of keys) await this.#tmux('send-keys', key);
  }

  resize(columns: number, rows: number): Promise<string> {
    return this.#tmux('resize-window', '-x', String(columns), '-y', String(rows));
  }

  read(): Promise<string> {
    return this.#tmux('capture-pane', '-p');
  }

  /** Wait until it shows this. */
  async shows(pattern: RegExp): Promise<void> {
    await expect.poll(() => this.read(), { timeout: 15_000, interval: 100 }).toMatch(pattern);
  }

  /** Whether the alternate screen is shown, and whether the cursor is. */
  async state(): Promise<string> {
    return (await this.#tmux('display-message', '-p', '#{alternate_on} #{cursor_flag}')).trim();
  }

  /** The process that the shell has started. */
  async foreground(): Promise<number> {
    const shell = (await this.#tmux('display-message', '-p', '#{pane_pid}')).trim();
    return Number(await run('ps', ['--ppid', shell, '-o', 'pid=']));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await tryRun('tmux', ['-L', this.#socket, 'kill-server']);
  }
}

describe.skipIf(missingHere('tmux', 'iptables'))('ripstop top', () => {
  const here = useLab('top', { nodes: 2, pods: 2 });
  const background: Background[] = [];
  let screen: Screen;
  let command: string[];

  /** Ping without an end. */
  const pingFrom = (pod: { netns: string }, address: string, seconds: string) =>
    startIn(pod.netns, 'ping', '-n', '-q', '-i', seconds, address);

  beforeAll(async () => {
    const [node, other] = here.nodes;
    const place = ['--bpffs', bpffsOf(here.lab, node!), '--run-dir', runDirOf(here.lab, node!)];
    command = [process.execPath, CLI, 'top', ...place];
    screen = await Screen.open(here.lab.name);
    background.push(pingFrom(podOf(node, 0), podOf(other).ip, '0.01'));
    background.push(pingFrom(podOf(node, 1), podOf(other).ip, '0.1'));
  });
  afterAll(async () => {
    for (const one of background) await one.stop();
    await screen?.[Symbol.asyncDispose]();
  });

  const start = async (...flags: string[]) => {
    await screen.shows(/ready>\s*$/);
    await screen.press('clear; echo be""fore', 'Enter');
    await screen.shows(/^before$/m);
    const words = ['nsenter', `--net=${netnsPath(here.nodes[0]!.netns)}`, ...command, ...flags];
    await screen.press(words.join(' '), 'Enter');
    await screen.shows(/^ripstop top on node1 /m);
  };
  const isRestored = async (): Promise<void> => {
    await screen.shows(/before\n[^]*\nready>\s*$/);
    expect(await screen.state()).toBe('0 1');
    expect(await screen.read()).not.toContain('ripstop top on');
    // The shell reads and echoes lines again.
    await screen.press('echo a""live', 'Enter');
    await screen.shows(/^alive$/m);
  };

  it('shows peers and pods by rate and by what carried them', async () => {
    await start('--interval', '0.5');
    expect(await screen.state()).toBe('1 0');
    await screen.shows(/^\[peers\] pods +services +by packets\/s$/m);
    await screen.shows(/^> +node2 +(1|2)\d\d +\d+\.\dk +\d+ +\d+\.\d +fast$/m);
    await screen.press('e');
    await screen.shows(/^> +default\/pod1 +\d+ .* fast\n +default\/pod2 +\d+ .* fast$/m);
    // The kernel path alone carries a marked pod's packets. The other pods' stay on the fast path.
    await markForKernelPath(here.lab, here.nodes[0]!, podOf(here.nodes[0], 1), true);
    await screen.shows(/^> +default\/pod1 .* fast\n +default\/pod2 +\d+(\.\d)? .* 0\.0 +kernel$/m);
  });

  it('sorts, moves, filters, pauses and follows the size of the terminal', async () => {
    await screen.press('s', 's', 's', 's');
    await screen.shows(/by name$/m);
    await screen.press('j');
    await screen.shows(/^ +default\/pod1 .*\n> +default\/pod2 /m);
    await screen.press('/', 'd1', 'Enter');
    await screen.shows(/only "d1"\n.*\n> +default\/pod1 .*\n\n/m);
    await screen.press('Space');
    await screen.shows(/ paused$/m);
    const before = (await screen.read()).split('\n');
    await screen.resize(60, 10);
    await expect
      .poll(async () => (await screen.read()).split('\n')[9], { timeout: 10_000 })
      .toMatch(/^q quit/);
    // Nothing is read while it pauses.
    expect((await screen.read()).split('\n').slice(1, 3)).toEqual(
      before.slice(1, 3).map((line) => line.slice(0, 60)),
    );
    await screen.resize(90, 20);
    await screen.press('?');
    await screen.shows(/any key goes back/);
    await screen.press('x');
    await screen.shows(/only "d1"/);
  });

  it('leaves the terminal as it was, by q, by Ctrl-C, and when it is ended', async () => {
    await screen.press('q');
    await isRestored();
    await start();
    await screen.press('C-c');
    await isRestored();
    await start();
    process.kill(await screen.foreground(), 'SIGTERM');
    await isRestored();
  });

  it('tells a Service by its flows, and gives a line of JSON for each reading', async () => {
    const [node, other] = here.nodes;
    const rule = `-t nat -A PREROUTING -d ${SERVICE} -p tcp --dport ${PORT} -j DNAT --to-destination ${podOf(other).ip}`;
    await run('iptables', ['-w', ...rule.split(' ')], inNetns(node!));
    await serveIn(podOf(other));
    await talkTcp(podOf(node), SERVICE);
    const { code, stdout } = await ripstop(here.lab, node!, ...'top -o json -n 2 --interval 0.3'.split(' '));
    expect(code).toBe(0);
    const lines = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Traffic & { time: string });
    expect(lines).toHaveLength(2);
    for (const { time, seconds, peers, pods, services } of lines) {
      expect(Date.parse(time)).toBeGreaterThan(0);
      expect(seconds).toBeGreaterThan(0.25);
      // One packet in eleven is the marked pod's.
      expect(peers).toMatchObject([
        { name: 'node2', packetsPerSecond: expect.any(Number) as number, class: 'mixed' },
      ]);
      expect(pods.map(({ name }) => name)).toEqual(['default/pod1', 'default/pod2']);
      expect(services).toMatchObject([{ name: `tcp ${SERVICE}:${PORT}`, flows: 2 }]);
    }
  });

  it('says what to do without a terminal', async () => {
    await ping(podOf(here.nodes[0]), podOf(here.nodes[1]).ip);
    expect(await ripstop(here.lab, here.nodes[0]!, 'top')).toMatchObject({
      code: 2,
      stderr:
        'ripstop: top needs a terminal; use `ripstop stats --watch`, or `ripstop top -o json` for a line a second\n',
    });
  });
});
