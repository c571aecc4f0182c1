// SPDX-License-Identifier: Apache-2.0
/** What Prometheus makes of the metrics, the alert rules and the dashboard: promtool, and a real server beside an agent. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dump, load } from 'js-yaml';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../../src/host/run.ts';
import { type Background, startIn } from '../../src/lab/lab.support.ts';
import { stopAgent } from '../../src/lab/ripstop.ts';
import { askOverHttp, inNetns, missingHere, podOf, serveIn, talkTcp, useLab } from '../cluster/support.ts';
import { debianProgram } from '../support/debian-programs.ts';

const ROOT = join(import.meta.dirname, '../..');
const RULES = join(ROOT, 'deploy/prometheus-rules.yml');
const promtool = debianProgram('promtool');
const PORT = 9090;

interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly annotations: Readonly<Record<string, string>>;
}
const { groups } = load(readFileSync(RULES, 'utf8')) as { groups: { rules: Rule[] }[] };
const rules = groups.flatMap((group) => group.rules);

interface GrafanaPanel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
}
const { panels } = JSON.parse(readFileSync(join(ROOT, 'deploy/grafana-dashboard.json'), 'utf8')) as {
  panels: GrafanaPanel[];
};
/** What the dashboard asks, as Grafana asks it for all nodes. */
const queries = panels.flatMap(({ title, targets = [] }) =>
  targets.map(({ expr, legendFormat }) => ({
    name: `${title}: ${legendFormat}`,
    expr: expr.replaceAll('$instance', '.*').replaceAll('$__rate_interval', '10s'),
  })),
);

const missing =
  missingHere() ?? (existsSync(promtool) ? undefined : 'skipped: Debian has no package prometheus here');

describe.skipIf(missing)('promtool', () => {
  let dir = '';
  beforeAll(() => void (dir = mkdtempSync(join(tmpdir(), 'ripstop-metrics-'))));
  afterAll(() => rmSync(dir, { recursive: true }));

  it('finds nothing wrong with the alert rules', async () => {
    expect(await tryRun(promtool, ['check', 'rules', RULES])).toMatchObject({ code: 0, stderr: '' });
  });

  it('sees each alert fire for what it is for, and none for a healthy node', async () => {
    const tests = join(import.meta.dirname, 'alerts.test.yml');
    expect(await tryRun(promtool, ['test', 'rules', tests])).toMatchObject({ code: 0, stderr: '' });
    const tested = readFileSync(tests, 'utf8');
    expect(rules.map(({ alert }) => alert).filter((alert) => !tested.includes(alert))).toEqual([]);
  });

  it('takes the scrape configuration of the document', async () => {
    const document = readFileSync(join(ROOT, 'deploy/README.md'), 'utf8');
    const [, config] = /^```yaml\n(scrape_configs:.*?)^```/ms.exec(document)!;
    // Debian builds Prometheus without Kubernetes.
    const known = config!.replace(/kubernetes_sd_configs: .*/, "static_configs: [{ targets: ['node'] }]");
    const file = join(dir, 'prometheus.yml');
    writeFileSync(file, known.replace('prometheus-rules.yml', RULES));
    expect(await tryRun(promtool, ['check', 'config', file])).toMatchObject({ code: 0, stderr: '' });
  });

  it('understands all that the dashboard asks', async () => {
    const file = join(dir, 'dashboard.yml');
    const recorded = queries.map(({ expr }, i) => ({ record: `dashboard:query:${i}`, expr }));
    writeFileSync(file, dump({ groups: [{ name: 'dashboard', rules: recorded }] }));
    expect(queries.length).toBeGreaterThan(20);
    expect(await tryRun(promtool, ['check', 'rules', file])).toMatchObject({ code: 0, stderr: '' });
  });
});

it('the dashboard has panels with numbers of their own that do not overlap', () => {
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
    Array.from({ length: w * h }, (_, i) => `${x + (i % w)},${y + Math.floor(i / w)}`),
  );
  expect(new Set(cells).size).toBe(cells.length);
  expect(Math.max(...panels.map(({ gridPos: { x, w } }) => x + w))).toBe(24);
});

describe.skipIf(missing)('Prometheus beside an agent', () => {
  const cluster = useLab('prometheus', { nodes: 2, pods: 1 });
  const node = () => cluster.nodes[0]!;
  let dir = '';
  let prometheus: Background | undefined;

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), 'ripstop-prometheus-'));
    const config = {
      global: { scrape_interval: '1s', evaluation_interval: '1s' },
      rule_files: [RULES],
      scrape_configs: [{ job_name: 'ripstop', static_configs: [{ targets: ['127.0.0.1:9480'] }] }],
    };
    writeFileSync(join(dir, 'prometheus.yml'), dump(config));
    prometheus = startIn(
      node().netns,
      debianProgram('prometheus'),
      `--config.file=${join(dir, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(dir, 'data')}`,
      `--web.listen-address=127.0.0.1:${PORT}`,
    );
    await prometheus.prints(/Server is ready/);
  });
  afterAll(async () => {
    await prometheus?.stop();
    if (dir !== '') rmSync(dir, { recursive: true });
  });

  /** Ask the server's HTTP API, in its namespace. */
  async function api<T>(...paths: readonly string[]): Promise<T[]> {
    const urls = paths.map((path) => `http://127.0.0.1:${PORT}/api/v1/${path}`);
    const script = `const answers = ${JSON.stringify(urls)}.map(async (url) => (await fetch(url)).json());
      console.log(JSON.stringify(await Promise.all(answers)))`;
    const text = await run(process.execPath, ['--input-type=module', '-e', script], inNetns(node()));
    return (JSON.parse(text) as { status: string; data: T; error?: string }[]).map(
      ({ status, data, error }, i) => {
        expect({ status, error }, paths[i]).toEqual({ status: 'success', error: undefined });
        return data;
      },
    );
  }

  interface Sample {
    readonly metric: Readonly<Record<string, string>>;
    readonly value: readonly [seconds: number, value: string];
  }

  /** The samples that each expression has now. */
  async function ask(...expressions: readonly string[]): Promise<(readonly Sample[])[]> {
    const paths = expressions.map((query) => `query?${new URLSearchParams({ query }).toString()}`);
    return (await api<{ result: Sample[] }>(...paths)).map(({ result }) => result);
  }

  const stateOf = async () => {
    const [answer] = await api<{
      groups: { rules: { name: string; health: string; state: string }[] }[];
    }>('rules');
    return answer!.groups.flatMap((group) => group.rules);
  };

  it('finds names, types and units that keep its conventions', async () => {
    const { body } = await askOverHttp(node(), '/metrics');
    expect(await tryRun(promtool, ['check', 'metrics'], { stdin: body })).toMatchObject({
      code: 0,
      stderr: '',
    });
  });

  it('scrapes the agent, and has an answer to all that the dashboard asks', async () => {
    await serveIn(podOf(cluster.nodes[1]));
    await talkTcp(podOf(node()), podOf(cluster.nodes[1]).ip, 10_000_000);
    // rate() needs two scrapes.
    await expect
      .poll(async () => Number((await ask('count_over_time(ripstop_ready[10s])'))[0]?.[0]?.value[1] ?? 0))
      .toBeGreaterThan(3);
    const answers = await ask(...queries.map(({ expr }) => expr));
    const unanswered = queries.filter((_, i) => answers[i]!.length === 0).map(({ name }) => name);
    // Nothing is wrong, and the kernel does not measure programs. What was dropped while the cluster started may be shown.
    expect(unanswered.filter((name) => !name.startsWith('Packets dropped'))).toEqual([
      'Peers that the kernel path alone serves, by reason: {{reason}}',
      'Alarms, by kind: {{kind}}',
      'Since the last event of the watch: {{instance}} runs on the last-known state',
      'Lists, watches and faults: fault: {{kind}}',
      'Entries that are not as they should be, by target: {{target}} {{state}}',
      'Failures a second, by target: {{target}}',
      'A run of a program (where kernel.bpf_stats_enabled is on): {{program}}',
    ]);
    const [peers] = await ask('ripstop_peer_live_flow_bytes');
    expect(peers?.map(({ metric }) => metric['peer'])).toEqual(['node2']);
    expect(Number(peers![0]!.value[1])).toBeGreaterThan(10_000_000);
  });

  it('evaluates all alert rules, and none of them fires', async () => {
    await expect
      .poll(async () => (await stateOf()).map(({ health }) => health))
      .toEqual(rules.map(() => 'ok'));
    const states = await stateOf();
    expect(states.map(({ name }) => name)).toEqual(rules.map(({ alert }) => alert));
    expect(states.filter(({ state }) => state === 'firing')).toEqual([]);
    // In so short a time there may have been no pass.
    const held = states.filter(({ state }) => state !== 'inactive').map(({ name }) => name);
    expect(held.filter((name) => name !== 'RipstopNoPasses')).toEqual([]);
  });

  it('sees that the agent is gone', async () => {
    await stopAgent(cluster.lab, node());
    await expect
      .poll(async () => (await stateOf()).find(({ name }) => name === 'RipstopAgentDown')?.state)
      .toBe('pending');
  });
});
