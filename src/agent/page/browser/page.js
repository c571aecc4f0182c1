// SPDX-License-Identifier: Apache-2.0
/**
 * The page's script. It is plain JavaScript, so that a checkout needs no build; `npm run typecheck` checks its types.
 * All text gets in as text, never as markup: names and alarms may come from other nodes.
 */

/** @import { Overview, OverviewCounter, OverviewEnd, OverviewEnds } from '../overview.ts' */
/** @import { Rate } from '../rates.ts' */
/** @typedef {'fast' | 'kernel' | 'drop'} Verdict */
/** @typedef {{ beganMs: number, atMs: number, rates: Record<Verdict, number> }} Sample packets a second in between */
/** @typedef {{ atMs: number, packets: Map<string, number> }} Reading of all counters */

const POLL_MS = 1000;
/** An agent that is busy answers later; one that is gone does not. */
const PATIENCE_MS = 4000;
const KEPT_MS = 120_000;
const PROBLEMS_AT_ONCE = 5;
const SVG = 'http://www.w3.org/2000/svg';
/** @type {readonly Verdict[]} */
const VERDICTS = ['fast', 'kernel', 'drop'];

/** @type {Sample[]} */
let samples = [];
/** @type {Reading[]} */
let readings = [];
/** @type {Overview | undefined} */
let last;
/** Which verdict's rows are shown; empty: all. */
let filter = '';
let isSilent = false;
/** @type {Date | undefined} */
let answeredAt;

/**
 * @template {Element} [E=HTMLElement]
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {E} it is in page.html
 */
function find(selector, within = document) {
  return /** @type {E} */ (within.querySelector(selector));
}

/**
 * @param {string} tag
 * @param {string} className
 * @param {...(string | Node)} content text is inserted as text
 */
function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className !== '') made.className = className;
  made.append(...content);
  return made;
}

/** @param {Element} within @param {string} text */
function setText(within, text) {
  if (within.textContent !== text) within.textContent = text;
}

/** @param {string} selector @param {boolean} isShown */
function show(selector, isShown) {
  find(selector).hidden = !isShown;
}

/**
 * Show values as the children of a list. Children are kept as long as their values are there, and stay untouched where they are:
 * who selects text, or has it read out, is not disturbed.
 * @template T
 * @param {Element} list @param {readonly T[]} values @param {(value: T) => string} keyOf
 * @param {(value: T, before: Element | undefined) => Element} show
 */
function setItems(list, values, keyOf, show) {
  const known = Map.groupBy(list.children, (item) => item.getAttribute('data-key') ?? '');
  const items = values.map((value) => {
    const key = keyOf(value);
    // Two may have the same name, as a pod and its successor.
    const item = show(value, known.get(key)?.shift());
    item.setAttribute('data-key', key);
    return item;
  });
  const isSame = items.length === list.children.length && items.every((item, i) => item === list.children[i]);
  if (!isSame) list.replaceChildren(...items);
}

/** `0`, `3.4`, `870`, `12.3k`, `4.1M`. @param {number} count */
function short(count) {
  if (count === 0) return '0';
  if (count < 9.95) return count.toFixed(1);
  for (const [size, unit] of /** @type {const} */ ([
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ]))
    if (count >= size * 0.9995) return `${(count / size).toFixed(count < 99.95 * size ? 1 : 0)}${unit}`;
  return String(Math.round(count));
}

const whole = new Intl.NumberFormat('en');

// ---- What changes from one answer to the next ----

/**
 * Counters of new maps begin at zero: then so does what is known.
 * @param {number} before @param {number} after
 */
function moved(before, after) {
  return after >= before ? after - before : after;
}

/** @param {Overview} before @param {Overview} now */
function noteSample(before, now) {
  if (!before.betweenPods || !now.betweenPods) return;
  const seconds = (now.atMs - before.atMs) / 1000;
  const [from, to] = [before.betweenPods, now.betweenPods];
  /** @param {Verdict} verdict */
  const rate = (verdict) => moved(from[verdict], to[verdict]) / seconds;
  const rates = { fast: rate('fast'), kernel: rate('kernel'), drop: rate('drop') };
  samples.push({ beganMs: before.atMs, atMs: now.atMs, rates });
  samples = samples.filter(({ atMs }) => atMs > now.atMs - KEPT_MS);
}

/** @param {OverviewCounter} counter */
function keyOf({ hook, verdict, reason }) {
  return `${hook} ${verdict} ${reason}`;
}

/** @param {Overview} now */
function noteReading({ atMs, counters }) {
  readings.push({ atMs, packets: new Map(counters.map((counter) => [keyOf(counter), counter.packets])) });
  // The oldest one that is kept is two minutes old, or a little more.
  while (readings.length > 2 && /** @type {Reading} */ (readings[1]).atMs < atMs - KEPT_MS) readings.shift();
}

/** @param {Reading | undefined} since @param {OverviewCounter} counter */
function movedSince(since, counter) {
  return since ? moved(since.packets.get(keyOf(counter)) ?? 0, counter.packets) : 0;
}

// ---- What is shown ----

/** @param {Overview} overview */
function renderHead({ node, mode, ready, podCidrs, uplink, ingress }) {
  setText(find('#node'), node);
  document.title = `${ready ? '' : '! '}${node} - ripstop`;
  const state = find('#state');
  state.dataset['state'] = ready ? 'ready' : 'not-ready';
  setText(state, ready ? 'ready' : 'not ready');
  const facts = [
    `mode ${mode}`,
    ...(uplink ? [`uplink ${uplink.name}, MTU ${uplink.mtu}`] : []),
    ...podCidrs.map((podCidr) => `podCIDR ${podCidr}`),
    ...(ingress ? [`ingress hook ${ingress}`] : []),
  ];
  setText(find('#facts'), facts.join(' · '));
}

/** @param {Overview} overview */
function renderProblems({ problems, moreProblems }) {
  const section = find('#problems');
  section.hidden = false;
  section.toggleAttribute('data-any', problems.length > 0);
  setText(find('h2', section), problems.length > 0 ? 'Needs attention' : 'Nothing needs attention');
  renderProblemList(find('ul', section), problems.slice(0, PROBLEMS_AT_ONCE));
  const details = find('details', section);
  const hidden = problems.length - PROBLEMS_AT_ONCE + moreProblems;
  details.hidden = hidden <= 0;
  setText(find('summary', details), `${whole.format(hidden)} more`);
  renderProblemList(find('ul', details), problems.slice(PROBLEMS_AT_ONCE));
  const rest = `and ${whole.format(moreProblems)} more: \`ripstop status\` on the node lists them`;
  setText(find('.more', details), moreProblems > 0 ? rest : '');
}

/** @param {HTMLElement} list @param {Overview['problems']} problems */
function renderProblemList(list, problems) {
  const key = (/** @type {Overview['problems'][number]} */ { kind, text }) => `${kind} ${text}`;
  setItems(
    list,
    problems,
    key,
    ({ kind, text }, before) => before ?? element('li', '', element('b', '', kind), text),
  );
}

/** @param {Overview} overview */
function renderRates({ atMs, betweenPods }) {
  show('#rates', betweenPods !== undefined);
  if (!betweenPods) return;
  for (const verdict of VERDICTS) {
    const card = find(`#rates [data-verdict=${verdict}]`);
    const now = samples.at(-1)?.rates[verdict];
    setText(find('b', card), now === undefined ? '…' : short(now));
    setText(find('.total', card), `${whole.format(betweenPods[verdict])} in total`);
    const top = Math.max(...samples.map(({ rates }) => rates[verdict]), 0);
    setText(find('.top', card), top === 0 ? '' : `at most ${short(top)}`);
    find('path', card).setAttribute('d', barsOf(atMs, verdict, Math.max(top, 1)));
  }
}

/**
 * A bar for each sample, none for the time in which nobody asked or nobody answered.
 * @param {number} nowMs @param {Verdict} verdict @param {number} top what fills the height
 */
function barsOf(nowMs, verdict, top) {
  const xOf = (/** @type {number} */ ms) => Math.max(0, 120 - (nowMs - ms) / 1000);
  return samples
    .filter(({ rates }) => rates[verdict] > 0)
    .map(({ beganMs, atMs, rates }) => {
      const height = Math.max(1.2, (rates[verdict] / top) * 31);
      const [left, right] = [xOf(beganMs), xOf(atMs)];
      return `M${left.toFixed(2)} 32V${(32 - height).toFixed(2)}H${right.toFixed(2)}V32Z`;
    })
    .join('');
}

/** Packets a second, on both paths. @param {Rate | undefined} rate */
function packetsOf(rate) {
  return rate ? rate.fastPerSecond + rate.kernelPerSecond : 0;
}

/** The path that carries most of its packets. @param {OverviewEnd} end */
function pathOf({ kernelPath, rate }) {
  if (!rate || packetsOf(rate) === 0) return kernelPath === undefined ? 'idle' : 'kernel';
  return rate.kernelPerSecond > rate.fastPerSecond ? 'kernel' : 'fast';
}

/**
 * @param {string} id @param {OverviewEnds} ends @param {string} noun
 */
function renderEnds(id, { total, kernelPath, shown, restRate }, noun) {
  const place = find(`#${id}`);
  const slow = kernelPath > 0 ? `, ${whole.format(kernelPath)} on the kernel path alone` : '';
  setText(find('.count', place), `${whole.format(total)}${slow}`);
  setItems(find('ul', place), shown, ({ name }) => name, endItem);
  const rest = total - shown.length;
  const rate = restRate ? `: ${short(packetsOf(restRate))}/s` : '';
  setText(find('.rest', place), rest > 0 ? `${whole.format(rest)} other ${noun}${rate}` : '');
  if (total === 0) setText(find('.rest', place), `no ${noun}`);
}

/** @param {OverviewEnd} end @param {Element | undefined} before the item that showed it until now */
function endItem(end, before) {
  const { name, addresses, kernelPath, rate } = end;
  const item = before ?? element('li', '', element('span', 'name'), element('span', 'speed'));
  item.setAttribute('data-path', pathOf(end));
  item.setAttribute('title', [name, ...addresses, ...detailsOf(rate)].join('\n'));
  const text = find('.name', item);
  const slash = name.indexOf('/') + 1;
  if (text.textContent !== name)
    text.replaceChildren(...(slash > 0 ? [element('i', '', name.slice(0, slash))] : []), name.slice(slash));
  setText(find('.speed', item), rate ? `${short(packetsOf(rate))}/s` : '');
  const why = item.querySelector('.why');
  if (kernelPath === undefined) why?.remove();
  else if (why) setText(why, kernelPath);
  else item.append(element('span', 'why', kernelPath));
  return item;
}

/** @param {Rate | undefined} rate */
function detailsOf(rate) {
  if (!rate) return [];
  const { fastPerSecond, kernelPerSecond, bytesPerSecond } = rate;
  return [
    `fast path ${short(fastPerSecond)} packets/s`,
    `kernel path ${short(kernelPerSecond)} packets/s`,
    `${short(bytesPerSecond)} bytes/s`,
  ];
}

/** @param {Overview} overview */
function renderPicture({ node, uplink, pods, peers }) {
  show('#picture', true);
  renderEnds('pods', pods, 'pods');
  renderEnds('peers', peers, 'peers');
  setText(find('#hub .name'), node);
  const carried = samples.slice(-10).reduce((sum, { rates }) => sum + rates.fast + rates.kernel, 0);
  const fast = samples.slice(-10).reduce((sum, { rates }) => sum + rates.fast, 0);
  setText(find('#hub .share'), carried === 0 ? '' : `${Math.floor((fast / carried) * 1000) / 10} % fast`);
  setText(find('#hub .uplink'), uplink ? uplink.name : '');
  drawLines();
}

/** Lines between the node and what is listed on both sides, where the browser has put it. */
function drawLines() {
  if (!last) return;
  const svg = /** @type {SVGSVGElement} */ (find('.map svg'));
  const { left, top, width, height } = svg.getBoundingClientRect();
  const at = find('#hub').getBoundingClientRect();
  const hub = { left: at.left - left, right: at.right - left, top: at.top - top, bottom: at.bottom - top };
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  const sides = /** @type {const} */ ([
    ['pods', last.pods.shown],
    ['peers', last.peers.shown],
  ]);
  // Elements are kept, so that what moves on them goes on moving.
  const lines = /** @type {SVGPathElement[]} */ ([...svg.children]);
  let used = 0;
  for (const [id, ends] of sides) {
    const items = [...find(`#${id} ul`).children].map((item) => item.getBoundingClientRect());
    for (const [i, item] of items.entries()) {
      const end = ends[i];
      if (!end) continue;
      const from = {
        x: (id === 'pods' ? item.right : item.left) - left,
        y: item.top + item.height / 2 - top,
      };
      // They arrive side by side.
      const share = items.length === 1 ? 0.5 : i / (items.length - 1);
      for (const part of /** @type {const} */ (['line', 'dashes'])) {
        const path = lines[used++] ?? svg.appendChild(document.createElementNS(SVG, 'path'));
        path.setAttribute('class', part);
        path.setAttribute('d', wayTo(hub, from, share));
        setLine(path, part, end);
      }
    }
  }
  for (const line of lines.slice(used)) line.remove();
}

/**
 * A line is as wide as the rate's magnitude. Over it lie dashes, which move when packets do.
 * @param {SVGPathElement} path @param {'line' | 'dashes'} part @param {OverviewEnd} end
 */
function setLine(path, part, end) {
  const packets = packetsOf(end.rate);
  const width = packets > 0 ? Math.min(12, 2 + 2 * Math.log10(1 + packets)) : 1.5;
  path.setAttribute('data-path', pathOf(end));
  path.style.strokeWidth = String(part === 'line' ? width : Math.max(1.5, width - 2));
  path.classList.toggle('moving', packets > 0);
}

/**
 * @param {{ left: number, right: number, top: number, bottom: number }} hub
 * @param {{ x: number, y: number }} from
 * @param {number} share where on the hub's side it arrives, from 0 to 1
 */
function wayTo({ left, right, top, bottom }, { x, y }, share) {
  const isLeft = x < (left + right) / 2;
  // On a narrow screen the hub is above: the first of the list arrives nearest to it.
  if (x > left && x < right) {
    const target = (left + right) / 2 + (isLeft ? -1 : 1) * (16 - 14 * share);
    return `M${x} ${y}C${target} ${y} ${target} ${y} ${target} ${Math.max(bottom, y - 28)}L${target} ${bottom}`;
  }
  const target = top + (bottom - top) * (1 / 6 + share * (2 / 3));
  const edge = isLeft ? left : right;
  const middle = (x + edge) / 2;
  return `M${x} ${y}C${middle} ${y} ${middle} ${target} ${edge} ${target}`;
}

/** @param {Overview} overview */
function renderWhere({ counters, atMs }) {
  show('#where', counters.length > 0);
  const [before, first] = [readings.at(-2), readings[0]];
  const seconds = before ? (atMs - before.atMs) / 1000 : 1;
  const rows = counters
    .filter(({ verdict }) => filter === '' || verdict === filter)
    .map((counter) => ({
      counter,
      rate: movedSince(before, counter) / seconds,
      lately: movedSince(first, counter),
    }))
    .sort((a, b) => b.lately - a.lately || b.counter.packets - a.counter.packets);
  setItems(find('#where tbody'), rows, ({ counter }) => keyOf(counter), whereRow);
  const more = find('#where .more');
  more.hidden = rows.length > 0;
  setText(more, `no packets with the verdict ${filter}`);
}

/**
 * @param {{ counter: OverviewCounter, rate: number, lately: number }} facts
 * @param {Element | undefined} before the row that showed it until now
 */
function whereRow({ counter: { hook, verdict, reason, why, packets }, rate, lately }, before) {
  const row =
    before ??
    element(
      'tr',
      '',
      element('td', '', hook),
      element('td', '', verdict),
      element('td', '', reason.replaceAll('_', ' '), ...(why ? [element('small', '', why)] : [])),
      ...[1, 2, 3].map(() => element('td', 'number')),
    );
  row.setAttribute('data-verdict', verdict);
  const texts = [short(rate), whole.format(lately), whole.format(packets)];
  for (const [i, cell] of row.querySelectorAll('.number').entries()) setText(cell, texts[i] ?? '');
  return row;
}

/** @param {Overview} overview */
function render(overview) {
  renderHead(overview);
  renderProblems(overview);
  renderRates(overview);
  renderPicture(overview);
  renderWhere(overview);
}

// ---- Polling ----

/** @param {Overview} overview */
function take(overview) {
  if (overview.atMs === last?.atMs) return;
  // After a pause, as when nobody answered, there is nothing to compare with.
  if (last && !isSilent && overview.atMs - last.atMs < KEPT_MS) noteSample(last, overview);
  last = overview;
  noteReading(overview);
  render(overview);
}

/** @param {unknown} error */
function noteSilence(error) {
  isSilent = true;
  document.body.classList.add('silent');
  document.title = '! no answer - ripstop';
  const state = find('#state');
  state.dataset['state'] = 'silent';
  setText(state, 'no answer');
  const why = error instanceof AgentError ? `: ${error.message}` : '';
  const since = answeredAt ? ` Its last answer came at ${answeredAt.toLocaleTimeString()}.` : '';
  show('#silence', true);
  setText(
    find('#silence'),
    `The agent does not answer${why}.${since} Programs that it has attached go on forwarding. This page asks again each second.`,
  );
}

function noteAnswer() {
  answeredAt = new Date();
  if (!isSilent) return;
  isSilent = false;
  document.body.classList.remove('silent');
  show('#silence', false);
  if (last) renderHead(last);
}

/** It answers, but not with the overview. */
class AgentError extends Error {}

async function poll() {
  const begun = performance.now();
  try {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    // Relative, so that the page also works behind a proxy that puts something before the path.
    const response = await fetch('overview.json', { cache: 'no-store', signal });
    if (!response.ok) throw Object.assign(new Error(`it says ${response.status}`), { name: 'AgentError' });
    take(/** @type {Overview} */ (await response.json()));
    noteAnswer();
  } catch (error) {
    noteSilence(error);
  }
  setTimeout(pollIfSeen, Math.max(100, POLL_MS - (performance.now() - begun)));
}

/** A page that nobody sees asks for nothing. */
function pollIfSeen() {
  if (!document.hidden) void poll();
  else document.addEventListener('visibilitychange', pollIfSeen, { once: true });
}

for (const button of document.querySelectorAll('.filter button'))
  button.addEventListener('click', () => {
    filter = button.getAttribute('data-filter') ?? '';
    for (const other of document.querySelectorAll('.filter button'))
      other.setAttribute('aria-pressed', String(other === button));
    if (last) renderWhere(last);
  });
new ResizeObserver(drawLines).observe(find('.map'));
void poll();
