// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { expect, it } from 'vitest';
import { readPage } from './page.ts';

it('the page is one document, which may run and apply only what is in it, and asks only for /overview.json', async () => {
  const { body, contentType, headers } = await readPage();
  expect(contentType).toBe('text/html; charset=utf-8');
  const hashOf = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
  const inline = (tag: string): string[] =>
    [...body.matchAll(new RegExp(`<${tag}(?: [^>]*)?>([^]*?)</${tag}>`, 'g'))].map(([, text]) => text!);
  const [scripts, styles] = [inline('script'), inline('style')];
  expect(scripts).toEqual([expect.stringContaining('fetch(')]);
  expect(styles).toEqual([expect.stringContaining('body {')]);
  const directives = headers!['content-security-policy']!.split('; ');
  expect(directives).toEqual(
    expect.arrayContaining([
      "default-src 'none'",
      `script-src ${hashOf(scripts[0]!)}`,
      `style-src ${hashOf(styles[0]!)}`,
      "connect-src 'self'",
      "frame-ancestors 'none'",
    ]),
  );
  expect(headers!['content-security-policy']).not.toMatch(/unsafe|\*|https?:/);

  expect([...body.matchAll(/fetch\('([^']*)'/g)].map(([, url]) => url)).toEqual(['overview.json']);
  // The namespace of SVG is a name; nothing is fetched there.
  const outside = body
    .replaceAll('http://www.w3.org/2000/svg', '')
    .match(/https?:|url\(|@import .*url|src=|style=/g);
  expect(outside).toBeNull();
});
