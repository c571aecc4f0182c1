// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type Bar, type Chart, formatNumber, renderSvg, ticks, writePng } from './charts.ts';

const chart: Chart = {
  name: 'latency',
  title: 'How long <does> it take?',
  subtitle: 'µs, shorter is better',
  series: ['host', 'ripstop'],
  panels: [
    {
      title: 'one core',
      groups: [
        {
          label: 'TCP & UDP',
          bars: [
            { series: 'host', value: 50, low: 40, high: 70 },
            { series: 'ripstop', value: 25, low: 20, high: 30 },
          ],
        },
      ],
    },
  ],
};

function chartOf(...bars: Bar[]): string {
  return renderSvg({ ...chart, panels: [{ title: '', groups: [{ label: 'work', bars }] }] });
}

const widthsOf = (svg: string): number[] =>
  Array.from(svg.matchAll(/<rect x="\d+" y="\d+" width="([\d.]+)" height="13"/g), ([, width]) =>
    Number(width),
  );

describe('a chart', () => {
  it('draws bars from zero, as long as their values', () => {
    const [host, ripstop] = widthsOf(renderSvg(chart));
    expect(host! / ripstop!).toBeCloseTo(2, 5);
  });

  it('has title, unit and direction, panel, work, series, and each value', () => {
    const svg = renderSvg(chart);
    for (const words of ['shorter is better', '>one core<', '>host<', '>ripstop<', '>50.0<', '>25.0<']) {
      expect(svg).toContain(words);
    }
  });

  it('has its own scale in each panel, so that small values are visible', () => {
    const small = {
      title: 'small',
      groups: [{ label: 'w', bars: [{ series: 'host', value: 0.5, low: 0.4, high: 0.7 }] }],
    };
    const [large, , tiny] = widthsOf(renderSvg({ ...chart, panels: [...chart.panels, small] }));
    expect(tiny).toBe(large);
  });

  it('keeps its medians readable beside a very wide spread', () => {
    const [narrow] = widthsOf(chartOf({ series: 'host', value: 50, low: 40, high: 5000 }));
    const [wide] = widthsOf(chartOf({ series: 'host', value: 50, low: 40, high: 75 }));
    expect(narrow).toBe(wide);
  });

  it('marks a target, also one that the bar does not reach', () => {
    const svg = chartOf({
      series: 'host',
      value: 1,
      low: 0.9,
      high: 1.1,
      target: 2,
      text: '1.00, target ≥ 2',
    });
    expect(svg).toMatch(/stroke-width="2.5"/);
    expect(svg).toContain('target ≥ 2');
    const [bar] = widthsOf(svg);
    const at = Number(/M([\d.]+) [\d.]+v19" stroke="#000"/.exec(svg)![1]);
    expect(at - 290).toBeCloseTo(2 * bar!, 0);
  });

  it('escapes text', () => {
    const svg = renderSvg(chart);
    expect(svg).not.toContain('<does>');
    expect(svg).toContain('TCP &#38; UDP');
  });

  it('gives each series one colour, in the legend and in all groups', () => {
    const colours = Array.from(
      renderSvg(chart).matchAll(/fill="(#[0-9a-f]{6})"\/>/g),
      ([, colour]) => colour,
    );
    const [legendHost, legendRipstop, ...bars] = colours;
    expect(bars).toEqual([legendHost, legendRipstop]);
    expect(legendHost).not.toBe(legendRipstop);
  });

  it('can consist of zeros', () => {
    const svg = chartOf({ series: 'host', value: 0, low: 0, high: 0 });
    expect(widthsOf(svg)).toEqual([0]);
    expect(svg).not.toContain('NaN');
  });

  it('leaves out works and panels without a bar', () => {
    const empty = { title: 'nothing', groups: [{ label: 'unanswered', bars: [] }] };
    const svg = renderSvg({ ...chart, panels: [...chart.panels, empty] });
    expect(svg).toBe(renderSvg(chart));
  });

  it('is written as a PNG of twice its size', () => {
    const directory = mkdtempSync(join(tmpdir(), 'ripstop-chart-'));
    try {
      const file = join(directory, 'chart.png');
      writePng(renderSvg(chart), file);
      const png = readFileSync(file);
      expect(png.subarray(1, 4).toString()).toBe('PNG');
      expect(png.readUInt32BE(16)).toBe(1920);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe('a scale', () => {
  it.each([
    [100, [0, 20, 40, 60, 80, 100]],
    [7.3, [0, 2, 4, 6, 8]],
    [0.031, [0, 0.01, 0.02, 0.03, 0.04]],
    [0, [0, 1]],
  ])('up to %d has round steps', (max, steps) => {
    expect(ticks(max)).toEqual(steps);
  });
});

describe('a number', () => {
  it.each([
    [0, '0'],
    [0.01234, '0.0123'],
    [1.234, '1.23'],
    [12.34, '12.3'],
    [123.4, '123'],
    [123456, '123456'],
  ])('%d is shown as %s', (value, shown) => {
    expect(formatNumber(value)).toBe(shown);
  });
});
