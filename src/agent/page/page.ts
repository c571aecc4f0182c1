// SPDX-License-Identifier: Apache-2.0
/** The page for people, which the agent serves at `/`: one HTML document that loads nothing but /overview.json. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { HttpAnswer } from '../../metrics/server.ts';

/** What the page is made of. scripts/build-agent.ts copies them to where the bundle is. */
export const PAGE_PARTS = ['page.html', 'page.css', 'page.js'] as const;

/** Make the page, from the files, which are not kept in memory: people look at it seldom. */
export async function readPage(): Promise<HttpAnswer> {
  const [html, css, script] = await Promise.all(PAGE_PARTS.map(readPart));
  const parts: [element: string, content: string][] = [
    ['<style>', css!],
    ['<script type="module">', script!],
  ];
  const body = parts.reduce(
    (page, [element, content]) => page.replace(element, () => `${element}${content}`),
    html!,
  );
  return { body, contentType: 'text/html; charset=utf-8', headers: headersFor(css!, script!) };
}

/** In the bundle, beside it; in a checkout, in a folder of their own. */
async function readPart(name: string): Promise<string> {
  const here = import.meta.dirname;
  const isSource = import.meta.filename.endsWith('.ts');
  return readFile(join(here, isSource ? 'browser' : '.', name), 'utf8');
}

/**
 * The browser runs and applies what the agent has put into the page, and nothing else: names of pods and nodes, and texts
 * from other nodes, are not markup even if the page had a mistake. Nothing is loaded from or sent to elsewhere, and no
 * other site can show the page in a frame.
 */
function headersFor(css: string, script: string): Record<string, string> {
  const policy = {
    'default-src': "'none'",
    'script-src': hashOf(script),
    'style-src': hashOf(css),
    'img-src': 'data:',
    'connect-src': "'self'",
    'base-uri': "'none'",
    'form-action': "'none'",
    'frame-ancestors': "'none'",
    'require-trusted-types-for': "'script'",
    'trusted-types': "'none'",
  };
  return {
    'content-security-policy': Object.entries(policy)
      .map(([directive, value]) => `${directive} ${value}`)
      .join('; '),
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
  };
}

function hashOf(content: string): string {
  return `'sha256-${createHash('sha256').update(content).digest('base64')}'`;
}
