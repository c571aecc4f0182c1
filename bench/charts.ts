// SPDX-License-Identifier: Apache-2.0
/** Bar charts as SVG text, without a browser. */
import { writeFileSync } from 'node:fs';
import { Resvg } from '@resvg/resvg-js';

/** A bar: its length, its spread, and its target. */
export interface Bar {
  readonly series: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Drawn as a line across the bar. */
  readonly target?: number;
  /** The text after the bar. Default: the value. */
  readonly text?: string;
}

/** Bars on one scale. */
export interface Panel {
  /** Its title; may be empty. */
  readonly title: string;
  readonly groups: readonly { readonly label: string; readonly bars: readonly Bar[] }[];
}

export interface Chart {
  /** The base name of its files. */
  readonly name: string;
  readonly title: string;
  /** The text under the title: unit, direction, and the meaning of the whiskers. */
  readonly subtitle: string;
  /** In the order of the legend. */
  readonly series: readonly string[];
  /** The colours of the series. Default: those that are easiest to distinguish. */
  readonly colours?: readonly string[];
  readonly panels: readonly Panel[];
}

const WIDTH = 960;
const LEFT = 290;
const RIGHT = 160;
const BAR = 15;
const GAP = 12;
const HEADING = 30;
const AXIS = 34;
/** Colours that people with any colour vision can distinguish, also in print (Okabe and Ito). */
const COLOURS = ['#999999', '#e69f00', '#0072b2', '#56b4e9', '#009e73', '#d55e00', '#cc79a7'];

/** Escape text for XML. */
function escapeXml(text: string): string {
  return text.replaceAll(/[<>&"']/g, (character) => `&#${character.codePointAt(0)};`);
}

/** Format with three significant digits, or all before the point, without an exponent: 0.0123, 12.3, 12340. */
export function formatNumber(value: number): string {
  if (value === 0) return '0';
  const digits = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toFixed(digits);
}

/** About five round steps (1, 2 or 5 times a power of ten) from 0 to at least `max`. */
export function ticks(max: number): number[] {
  if (!(max > 0)) return [0, 1];
  const rough = max / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999) ?? rough;
  const count = Math.ceil(max / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/**
 * Draw a chart: a panel for each scale, with a group of horizontal bars for each work, a bar for each series, from
 * zero.
 */
export function renderSvg(chart: Chart): string {
  const legend: string[] = [];
  let at = 16;
  for (const series of chart.series) {
    legend.push(
      `<rect x="${at}" y="62" width="12" height="12" fill="${colour(chart, series)}"/>`,
      text(at + 18, 72, series),
    );
    at += 44 + series.length * 7.5;
  }
  const marks: string[] = [];
  let y = 96;
  for (const panel of chart.panels) {
    if (panel.groups.every(({ bars }) => bars.length === 0)) continue;
    if (panel.title !== '') {
      marks.push(text(16, y + 8, panel.title, 'font-weight="bold" font-size="13"'));
      y += HEADING;
    }
    const drawn = renderPanel(chart, panel, y);
    marks.push(...drawn.marks);
    y = drawn.bottom + AXIS;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y}" viewBox="0 0 ${WIDTH} ${y}" font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" font-size="12" fill="#222" role="img">`,
    `<title>${escapeXml(chart.title)}</title>`,
    `<rect width="${WIDTH}" height="${y}" fill="#fff"/>`,
    text(16, 28, chart.title, 'font-size="18" font-weight="bold"'),
    text(16, 48, chart.subtitle, 'font-size="12" fill="#555"'),
    ...legend,
    ...marks,
    '</svg>\n',
  ].join('\n');
}

function renderPanel(chart: Chart, panel: Panel, top: number): { marks: string[]; bottom: number } {
  const groups = panel.groups.filter((group) => group.bars.length > 0);
  const bars = groups.flatMap((group) => group.bars);
  // A spread far beyond all medians may leave the picture, so that the medians stay distinguishable.
  const longest = Math.max(...bars.map(({ value, target = 0 }) => Math.max(value, target)));
  const widest = Math.max(...bars.map(({ high }) => high));
  const scale = ticks(Math.max(longest, Math.min(widest, longest * 1.5)) || widest);
  const end = scale.at(-1)!;
  const x = (value: number): number =>
    LEFT + (Math.max(0, Math.min(value, end)) / end) * (WIDTH - LEFT - RIGHT);
  const marks: string[] = [];
  let y = top;
  for (const group of groups) {
    marks.push(text(LEFT - 10, y + (group.bars.length * BAR) / 2 + 4, group.label, 'text-anchor="end"'));
    for (const { series, value, low, high, target, text: behind = formatNumber(value) } of group.bars) {
      const centre = y + BAR / 2;
      const [from, to] = [x(low).toFixed(1), x(high).toFixed(1)];
      const cap = high > end ? `M${Number(to) - 4} ${centre - 4}l4 4l-4 4` : `M${to} ${centre - 4}v8`;
      marks.push(
        `<rect x="${LEFT}" y="${y + 1}" width="${(x(value) - LEFT).toFixed(1)}" height="${BAR - 2}" fill="${colour(chart, series)}"/>`,
      );
      if (low !== high)
        marks.push(
          `<path d="M${from} ${centre}H${to}M${from} ${centre - 4}v8${cap}" stroke="#222" fill="none"/>`,
        );
      if (target !== undefined)
        marks.push(
          `<path d="M${x(target).toFixed(1)} ${y - 2}v${BAR + 4}" stroke="#000" stroke-width="2.5"/>`,
        );
      marks.push(text(x(Math.max(high, value, target ?? 0)) + 7, centre + 4, behind, 'font-size="11"'));
      y += BAR;
    }
    y += GAP;
  }
  const bottom = y - GAP + 6;
  const grid = scale.map((value) => {
    const label = text(
      x(value),
      bottom + 14,
      String(value),
      'text-anchor="middle" font-size="11" fill="#555"',
    );
    return `<path d="M${x(value).toFixed(1)} ${top - 5}V${bottom}" stroke="#ddd"/>${label}`;
  });
  return { marks: [...grid, ...marks], bottom };
}

function colour(chart: Chart, series: string): string {
  const colours = chart.colours ?? COLOURS;
  return colours[chart.series.indexOf(series) % colours.length] ?? '#000';
}

function text(x: number, y: number, content: string, attributes = ''): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escapeXml(content)}</text>`;
}

/** Write a chart as PNG, two pixels for each of the SVG's. */
export function writePng(svg: string, file: string): void {
  const options = { fitTo: { mode: 'zoom', value: 2 }, font: { loadSystemFonts: true } } as const;
  writeFileSync(file, new Resvg(svg, options).render().asPng());
}
