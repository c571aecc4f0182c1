// SPDX-License-Identifier: Apache-2.0
/**
 * The agent's page in a real browser, in the network namespace of a lab's node. Screenshots are left in build/page, to be
 * looked at; what is compared is where things are, which is the same on every machine, and not pixels.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import axe from 'axe-core';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { endsOf, type Overview, overviewOf } from '../../src/agent/page/overview.ts';
import type { Rate } from '../../src/agent/page/rates.ts';
import type { Counter } from '../../src/dataplane/counters.ts';
import { netnsPath, type NodeState, startAgent, stopAgent } from '../../src/lab/index.ts';
import { createKubeNode, deleteKubeNode, patchNodeStatus } from '../../src/lab/kube.ts';
import { missingHere, pingOn, podOf, useLab } from '../cluster/support.ts';
import { CHROMIUM } from './tools.ts';

const ORIGIN = 'http://127.0.0.1:9480';
const SCREENSHOTS = join(import.meta.dirname, '../../build/page');
/** What would run if a text became markup. */
const HOSTILE = '<img src=x onerror="document.title=`hacked`">';

const missing = missingHere() ?? (existsSync(CHROMIUM) ? undefined : `${CHROMIUM} is missing`);

describe.skipIf(missing)(`the agent's page${missing === undefined ? '' : ` (${missing})`}`, () => {
  const here = useLab('page', { nodes: 2, pods: 2 });
  let node: NodeState;
  let browser: Browser;
  let dir: string;
  /** What pages have asked for, and what went wrong in them, since the last look. */
  const requests = new Set<string>();
  const complaints: string[] = [];

  beforeAll(async () => {
    node = here.nodes[0]!;
    dir = mkdtempSync(join(tmpdir(), 'ripstop-page-'));
    mkdirSync(SCREENSHOTS, { recursive: true });
    const wrapper = join(dir, 'chromium');
    const inside = `exec nsenter --net=${netnsPath(node.netns)} -- ${CHROMIUM} "$@"`;
    writeFileSync(wrapper, `#!/bin/sh\n${inside}\n`, { mode: 0o755 });
    const args = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'];
    args.push('--disable-component-update', '--disable-sync');
    // Playwright makes a new directory for the browser's data, and removes it.
    browser = await chromium.launch({ executablePath: wrapper, chromiumSandbox: false, args });
  });
  afterAll(async () => {
    await browser?.close();
    rmSync(dir, { recursive: true, force: true });
  });
  afterEach(async () => {
    await Promise.all(browser.contexts().map((context) => context.close()));
    const asked = [...requests];
    const said = complaints.splice(0);
    requests.clear();
    expect(said).toEqual([]);
    expect(asked.toSorted()).toEqual([`${ORIGIN}/`, `${ORIGIN}/overview.json`]);
  });

  /** @param data in place of what the agent answers */
  async function open(options: BrowserContextOptions = {}, data?: () => Overview): Promise<Page> {
    const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, ...options });
    context.on('request', (request) => requests.add(request.url()));
    context.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
    });
    context.on('weberror', (error) => complaints.push(String(error.error())));
    if (data) await context.route('**/overview.json', (route) => route.fulfill({ json: data() }));
    const page = await context.newPage();
    await page.goto(ORIGIN);
    await page.locator('#picture').waitFor();
    return page;
  }

  it('shows the node with its pods and peers, and numbers that move when packets do', async () => {
    const page = await open();
    const text = (selector: string) => page.locator(selector).innerText();
    expect(await text('#node')).toBe('node1');
    expect(await text('#state')).toBe('ready');
    expect(await text('#facts')).toContain(`podCIDR ${node.podCIDR}`);
    expect(await text('#problems')).toBe('Nothing needs attention');
    expect(await page.locator('#pods .name').allInnerTexts()).toEqual(['default/pod1', 'default/pod2']);
    expect(await page.locator('#peers .name').allInnerTexts()).toEqual(['node2']);
    expect(await page.locator('.map svg .line').count()).toBe(3);

    const fastRate = async () => Number.parseFloat(await text('#rates [data-verdict=fast] b'));
    const pinging = await pingOn(podOf(node), podOf(here.nodes[1]).ip);
    try {
      await expect.poll(fastRate).toBeGreaterThan(20);
      const row = page.locator('#where tr', { hasText: 'encap' });
      await expect
        .poll(async () => Number.parseFloat(await row.locator('td').nth(3).innerText()))
        .toBeGreaterThan(10);
      for (const end of ['#pods li[data-key="default/pod1"]', '#peers li']) {
        await expect.poll(() => page.locator(end).getAttribute('data-path')).toBe('fast');
        expect(Number.parseFloat(await text(`${end} .speed`))).toBeGreaterThan(20);
      }
      expect(await page.locator('.map svg .dashes.moving').count()).toBe(2);
      await expect.poll(() => text('#hub .share')).toMatch(/^\d+(\.\d)? % fast$/);
      await page.screenshot({ path: join(SCREENSHOTS, 'lab.png'), fullPage: true });
    } finally {
      await pinging.lost();
    }
    await expect.poll(fastRate).toBe(0);
  });

  it('says when the agent does not answer, and goes on when it is back', async () => {
    const page = await open();
    const silence = page.locator('#silence');
    expect(await silence.isVisible()).toBe(false);
    await stopAgent(here.lab, node, 'SIGKILL');
    await expect
      .poll(() => silence.innerText())
      .toMatch(/^The agent does not answer\. Its last answer came at /);
    expect(await page.locator('#state').innerText()).toBe('no answer');
    expect(await page.title()).toContain('no answer');
    await page.screenshot({ path: join(SCREENSHOTS, 'silent.png') });
    await startAgent(here.lab, node);
    await expect.poll(() => silence.isVisible()).toBe(false);
    await expect.poll(() => page.locator('#state').innerText()).toBe('ready');
    // Nothing else went wrong than that nobody answered.
    expect(
      complaints.filter(
        (said) => !/ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/.test(said),
      ),
    ).toEqual([]);
    complaints.length = 0;
  });

  it('shows an alarm first, and what another node writes into its annotations as text', async () => {
    const place = { ip: '172.31.0.77', podCIDR: '10.42.77.0/24' };
    const liar: NodeState = { name: 'liar', index: 99, netns: '', ...place, datapath: 'host', pods: [] };
    await createKubeNode(here.lab, liar);
    try {
      const annotations = {
        'flannel.alpha.coreos.com/kube-subnet-manager': 'true',
        'flannel.alpha.coreos.com/backend-type': HOSTILE,
        'flannel.alpha.coreos.com/backend-data': JSON.stringify({ VNI: 1, VtepMAC: HOSTILE }),
        'flannel.alpha.coreos.com/public-ip': HOSTILE,
      };
      await patchNodeStatus(here.lab, 'liar', { metadata: { annotations } });
      const page = await open();
      const first = page.locator('main > section').first();
      await expect.poll(() => first.innerText()).toContain('liar: ');
      expect(await first.innerText()).toContain('<img src=x onerror=');
      expect(await page.locator('main img').count()).toBe(0);
      expect(await page.title()).toBe('node1 - ripstop');
    } finally {
      await deleteKubeNode(here.lab, 'liar');
    }
  });

  it('shows hostile names and reasons as text, wherever they stand', async () => {
    const data = large({ hostile: true });
    const page = await open({}, data);
    expect(await page.locator('main').innerText()).toContain(HOSTILE);
    expect(await page.locator('#pods li').first().getAttribute('title')).toContain(HOSTILE);
    expect(await page.locator('main img').count()).toBe(0);
    expect(await page.title()).toBe(`${HOSTILE} - ripstop`);
  });

  it('would not run what got into it by mistake', async () => {
    const page = await open();
    const devtools = await page.context().newCDPSession(page);
    const evaluate = async (expression: string) => {
      const { result, exceptionDetails } = await devtools.send('Runtime.evaluate', { expression });
      return exceptionDetails?.exception?.description ?? result.value;
    };
    expect(await evaluate(`document.body.innerHTML = '<img src=x onerror=alert(1)>'`)).toMatch(/TrustedHTML/);
    await evaluate(
      `document.body.append(Object.assign(document.createElement('img'), { src: 'http://192.0.2.1/' }))`,
    );
    await evaluate(`fetch('http://192.0.2.1/').catch(() => {})`);
    const refused = () =>
      complaints.filter((said) => /Content Security Policy|TrustedHTML/.test(said)).length;
    await expect.poll(refused).toBeGreaterThanOrEqual(3);
    complaints.length = 0;
    for (const url of requests) if (url.startsWith('http://192.0.2.1')) requests.delete(url);
  });

  it('can be used with the keyboard', async () => {
    const page = await open({}, large());
    const verdicts = async () => new Set(await page.locator('#where td:nth-child(2)').allInnerTexts());
    expect(await verdicts()).toEqual(new Set(['fast', 'kernel', 'drop']));
    await page.locator('#problems summary').focus();
    await page.keyboard.press('Enter');
    expect(await page.locator('#problems details li').first().isVisible()).toBe(true);
    // The first of the buttons is the next stop.
    await page.keyboard.press('Tab');
    for (const verdict of ['all', 'fast', 'kernel']) {
      expect(await page.locator(':focus').innerText()).toBe(verdict);
      if (verdict !== 'kernel') await page.keyboard.press('Tab');
    }
    await page.keyboard.press('Enter');
    expect(await verdicts()).toEqual(new Set(['kernel']));
    expect(await page.locator('button[aria-pressed=true]').allInnerTexts()).toEqual(['kernel']);
  });

  const light = { colorScheme: 'light', viewport: { width: 1180, height: 900 } } as const;
  const screens: Record<string, BrowserContextOptions> = {
    light,
    dark: { ...light, colorScheme: 'dark' },
    tablet: { ...light, viewport: { width: 768, height: 1024 } },
    phone: { ...light, viewport: { width: 360, height: 780 } },
    'phone-dark': { colorScheme: 'dark', viewport: { width: 360, height: 780 } },
  };
  it.each(Object.entries(screens))(
    'has its place for everything with 15,000 peers and 250 pods: %s',
    async (name, screen) => {
      const page = await open(screen, large());
      await expect.poll(() => page.locator('#hub .share').innerText()).toMatch(/% fast/);
      expect(await page.locator('#pods li').count()).toBe(12);
      expect(await page.locator('#peers li').count()).toBe(12);
      expect(await page.locator('#pods .rest').innerText()).toMatch(/^238 other pods: /);
      expect(await page.locator('#peers .rest').innerText()).toMatch(/^14,988 other peers: /);
      await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`), fullPage: true });
      expect(await misplacedOn(page)).toEqual([]);
      expect(await linesOn(page)).toEqual({ pods: 12, peers: 12, astray: [] });
      expect(await coloursOf(page)).toBeGreaterThan(100);
      expect(await barriersOn(page)).toEqual([]);
    },
  );
});

/** The overview of a node of the largest cluster, a second later each time. */
function large({ hostile = false } = {}): () => Overview {
  const named = (name: string) => (hostile ? HOSTILE : name);
  const pods = Array.from({ length: 250 }, (_, i) => ({
    ifindex: i,
    // Two have the same name, as a pod of a StatefulSet and its successor for a moment.
    name: `${named('shop')}/checkout-${i === 245 ? 240 : i}-7d9c5b6f4-x2v9k`,
    ips: [`10.42.0.${i}`],
    ...(i === 3 && { kernelPath: 'somebody shapes or filters its packets in tc' }),
  }));
  const peers = Array.from({ length: 15_000 }, (_, i) => ({
    name: named(`worker-${i}.eu-central-1.compute.internal`) + (hostile ? i : ''),
    podCidr: `10.${42 + (i >> 8)}.${i & 255}.0/24`,
    vtepIp: `172.31.${i >> 8}.${i & 255}`,
    ...(i % 1000 === 2 && {
      kernelPathOnly: {
        reason: 'checksum',
        why: named('its VXLAN device requires UDP checksums over IPv6'),
      } as const,
    }),
  }));
  const alarms = Array.from({ length: 30 }, (_, i) => ({
    node: named(`worker-${i}`),
    kind: 'malformed_lease',
    reason:
      'quarantined with its last good lease: the annotation flannel.alpha.coreos.com/backend-data is no JSON',
  }));
  const rateOf = (packets: number, kernelPath?: string): Rate => ({
    fastPerSecond: kernelPath === undefined ? packets : 0,
    kernelPerSecond: kernelPath === undefined ? 0 : packets + 7,
    bytesPerSecond: packets * 900,
  });
  const rates = {
    pods: new Map(
      pods.map(({ ifindex, kernelPath }) => [
        ifindex,
        rateOf(ifindex % 5 === 0 ? 10 ** (ifindex / 50) : 0, kernelPath),
      ]),
    ),
    peers: new Map(peers.map(({ podCidr }, i) => [podCidr.split('/')[0]!, rateOf(i % 100 === 0 ? i : 0)])),
  };
  let seconds = 1000;
  return () => {
    seconds++;
    const counter = (
      hook: string,
      verdict: Counter['verdict'],
      reason: string,
      perSecond: number,
    ): Counter => ({
      hook,
      verdict,
      reason: named(reason),
      packets: Math.ceil(perSecond * seconds),
      bytes: 1,
    });
    return overviewOf({
      atMs: seconds * 1000,
      summary: {
        node: named('worker-1.eu-central-1.compute.internal'),
        mode: 'cni',
        ready: true,
        ingress: { hook: 'tc', why: '' },
        families: [{ network: '10.42.0.0/16', podCidr: '10.42.0.0/24', vtep: { ip: '172.31.0.1' } }],
        uplink: { name: 'enp0s31f6', mtu: 1500, explanation: '' },
        api: { connected: true, synced: true },
        alarms,
        targets: [],
      },
      ends: endsOf(pods, peers, rates),
      counters: [
        counter('from_pod', 'fast', 'encap', 412_345.6),
        counter('from_wire', 'fast', 'decap', 398_000),
        counter('from_pod', 'kernel', 'new_flow', 212),
        counter('from_pod', 'kernel', 'handshake', 96),
        counter('to_wire', 'kernel', 'not_established', 204),
        counter('xdp_from_wire', 'kernel', 'not_vxlan', 31),
        counter('from_wire', 'drop', 'spoofed_source', 0.4),
      ],
    });
  };
}

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

async function boxesOf(page: Page, selector: string): Promise<[string, Box][]> {
  const found = await page.locator(selector).all();
  const boxes = await Promise.all(found.map((one) => one.boundingBox()));
  return boxes.flatMap((box, i): [string, Box][] => (box ? [[`${selector} ${i}`, box]] : []));
}

function overlap(a: Box, b: Box): boolean {
  // Neighbours may share an edge, and a fraction of a pixel.
  const isApart = (start: 'x' | 'y', size: 'width' | 'height') =>
    a[start] + a[size] <= b[start] + 1 || b[start] + b[size] <= a[start] + 1;
  return !isApart('x', 'width') && !isApart('y', 'height');
}

/** Things that must not lie over each other, in groups. */
const GROUPS = [
  ['#node', '#state', '#product', '#facts', 'main > section'],
  ['#problems > ul li', '#problems summary', '#rates article', '#picture', '#where'],
  ['#rates h2', '#rates .rate', '#rates article > svg', '#rates .axis', '#rates .total'],
  ['#picture h2', '.legend span', '#hub', '.ends h3', '.ends li', '.ends .rest'],
  ['.ends .name', '.ends .speed', '.ends .why'],
  ['#where h2', '#where .note', '#where button', '#where td', '#where th'],
];

/** What lies over something else, or beyond the page's edges; a page that is wider than its window, too. */
async function misplacedOn(page: Page): Promise<string[]> {
  const { width } = page.viewportSize()!;
  const misplaced: string[] = [];
  for (const group of GROUPS) {
    const boxes = (await Promise.all(group.map((selector) => boxesOf(page, selector)))).flat();
    for (const [i, [name, box]] of boxes.entries()) {
      if (box.x < 0 || box.x + box.width > width + 1) misplaced.push(`${name} is beyond the edge`);
      for (const [other, otherBox] of boxes.slice(i + 1))
        if (overlap(box, otherBox)) misplaced.push(`${name} and ${other} overlap`);
    }
  }
  const devtools = await page.context().newCDPSession(page);
  const { cssContentSize } = await devtools.send('Page.getLayoutMetrics');
  if (cssContentSize.width > width) misplaced.push(`the page is ${cssContentSize.width} px wide`);
  return misplaced;
}

/** Each line must lead from its pod or peer to the edge of the node's box. */
async function linesOn(page: Page): Promise<{ pods: number; peers: number; astray: string[] }> {
  const svg = (await page.locator('.map svg').boundingBox())!;
  const hub = (await page.locator('#hub').boundingBox())!;
  const isOnEdge = (x: number, y: number): boolean => {
    const isWithin =
      x >= hub.x - 1 && x <= hub.x + hub.width + 1 && y >= hub.y - 1 && y <= hub.y + hub.height + 1;
    const distances = [x - hub.x, hub.x + hub.width - x, y - hub.y, hub.y + hub.height - y];
    return isWithin && Math.min(...distances) <= 1;
  };
  const lines = await page.locator('.map svg .line').all();
  const [pods, peers] = [await boxesOf(page, '#pods li'), await boxesOf(page, '#peers li')];
  const astray: string[] = [];
  for (const [i, [name, item]] of [...pods, ...peers].entries()) {
    const numbers = (await lines[i]?.getAttribute('d'))?.match(/[\d.]+/g)?.map(Number) ?? [];
    const [x, y, endX, endY] = [...numbers.slice(0, 2), ...numbers.slice(-2)].map(
      (number, j) => number + (j % 2 === 0 ? svg.x : svg.y),
    ) as [number, number, number, number];
    const leaves = Math.abs(x - (i < pods.length ? item.x + item.width : item.x)) <= 1;
    const isAtItem = Math.abs(y - (item.y + item.height / 2)) <= 1;
    if (!leaves || !isAtItem || !isOnEdge(endX, endY)) astray.push(`${name}: ${x},${y} to ${endX},${endY}`);
  }
  return { pods: pods.length, peers: lines.length - pods.length, astray };
}

/** How many colours its screenshot has: a picture that is blank has few. */
async function coloursOf(page: Page): Promise<number> {
  const png = (await page.screenshot()).toString('base64');
  const blank = await page.context().newPage();
  const count = `(async () => {
    const image = await createImageBitmap(await (await fetch('data:image/png;base64,${png}')).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
    canvas.drawImage(image, 0, 0);
    return new Set(new Uint32Array(canvas.getImageData(0, 0, image.width, image.height).data.buffer)).size;
  })()`;
  const colours = await blank.evaluate<number>(count);
  await blank.close();
  return colours;
}

/** What keeps people from using it, by the rules of WCAG 2.2 AA that axe can check: contrast, names, roles. */
async function barriersOn(page: Page): Promise<string[]> {
  const devtools = await page.context().newCDPSession(page);
  await devtools.send('Runtime.evaluate', { expression: axe.source });
  const { result } = await devtools.send('Runtime.evaluate', {
    expression: `axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then(({ violations }) =>
      violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => id + ' ' + target + ': ' + failureSummary)))`,
    awaitPromise: true,
    returnByValue: true,
  });
  return result.value as string[];
}
