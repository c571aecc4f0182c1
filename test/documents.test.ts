// SPDX-License-Identifier: Apache-2.0
/** What the documents and the workflow name is there. What their commands do is tested where they are about. */
import { existsSync, globSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { load } from 'js-yaml';
import { describe, expect, it } from 'vitest';
import { createProgram } from '../src/cli/program.ts';

const root = join(import.meta.dirname, '..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const sources = globSync(['*', '.*', '{.ci,.github,bench,bpf,deploy,scripts,src,test}/**/*'], {
  cwd: root,
  exclude: ['bench/results/**', '*.log'],
}).filter((path) => statSync(join(root, path)).isFile());
const documents = sources.filter((path) => path.endsWith('.md'));
const { version, scripts } = JSON.parse(read('package.json')) as {
  version: string;
  scripts: Record<string, string>;
};

/** Scripts of package.json that a text calls, with or without `run`. */
function npmScripts(text: string): string[] {
  const calls = text.matchAll(/\bnpm (?:run (?:-s |--silent )?([\w:-]+)|(test)\b)/g);
  return [...calls].map(([, script, test]) => (script ?? test)!);
}

/** Where the links of a document lead, but for other sites. */
function linksOf(path: string): string[] {
  return [...read(path).matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, link]) => link!)
    .filter((link) => !/^https?:/.test(link));
}

/** A heading's name in links, as forges make it. */
const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\w\s-]/g, '')
    .replaceAll(' ', '-');

describe.each(documents)('%s', (path) => {
  it('links to what is there', () => {
    const broken = linksOf(path).filter((link) => {
      const [file = '', anchor] = link.split('#');
      const target = file === '' ? path : join(dirname(path), file);
      if (!existsSync(join(root, target))) return true;
      const headings = [...(anchor ? read(target).matchAll(/^#+ (.*)$/gm) : [])];
      return anchor !== undefined && !headings.some(([, heading]) => anchorOf(heading!) === anchor);
    });
    expect(broken).toEqual([]);
  });

  it('names sources that are there', () => {
    const named = read(path).matchAll(/(?<![\w./-])(?:src|test|scripts|deploy|bench)\/[\w./-]*[\w-]\.\w+\b/g);
    expect([...named].map(([name]) => name).filter((name) => !existsSync(join(root, name)))).toEqual([]);
  });

  it('calls scripts that package.json has', () => {
    expect(npmScripts(read(path)).filter((script) => !(script in scripts))).toEqual([]);
  });

  it('calls commands that ripstop has', () => {
    // In a line that says what is not there yet, they are not.
    const text = read(path).replaceAll(/^- \*\*Not there yet\*\*.*$/gm, '');
    const code = [...text.matchAll(/^```.*?^```|`[^`\n]+`/gms)].join('\n');
    const called = [...code.matchAll(/(?:^# |`| -- |exec )ripstop ([a-z]+)/gm)].map(
      ([, command]) => command!,
    );
    const commands = createProgram().commands.map((command) => command.name());
    expect(called.filter((command) => !commands.includes(command))).toEqual([]);
  });
});

describe('CHANGELOG.md', () => {
  const text = read('CHANGELOG.md');

  it('has the unreleased changes first, then this version', () => {
    const versions = [...text.matchAll(/^## (\S+)(?: - (\S+))?$/gm)];
    expect(versions.slice(0, 2).map(([, name]) => name)).toEqual(['Unreleased', version]);
    for (const [, name, date] of versions.slice(1)) expect(date, name).toMatch(/^\d{4}-\d\d-\d\d$/);
  });

  it('groups changes as Keep a Changelog does', () => {
    const groups = ['Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'];
    for (const section of text.split(/^## /m).slice(1)) {
      const titles = [...section.matchAll(/^### (.*)$/gm)].map(([, title]) => title!);
      expect(titles).toEqual(groups.filter((group) => titles.includes(group)));
    }
  });
});

describe('the workflow', () => {
  const path = '.github/workflows/ci.yml';
  const { jobs } = load(read(path)) as {
    jobs: Record<string, { steps: { run?: string }[]; 'timeout-minutes'?: number }>;
  };
  const commands = Object.values(jobs).flatMap(({ steps }) => steps.flatMap(({ run }) => run ?? []));

  it('runs the tests as CI does everywhere, and builds the image', () => {
    expect(commands.some((command) => /^sudo .* \.ci\/run$/.test(command))).toBe(true);
    expect(statSync(join(root, '.ci/run')).mode & 0o111).toBe(0o111);
    expect(commands.some((command) => command.startsWith('docker build -f deploy/Dockerfile '))).toBe(true);
  });

  it('calls what is there', () => {
    const text = [...commands, read('.ci/run')].join('\n');
    expect(npmScripts(text)).toContain('test');
    expect(npmScripts(text).filter((script) => !(script in scripts))).toEqual([]);
    const files = text.match(/(?<=\s)(?:\.ci|deploy|scripts)\/\S+/g) ?? [];
    expect(files.filter((file) => !existsSync(join(root, file)))).toEqual([]);
    for (const name of text.match(/\b[A-Z_]+(?==\d)/g) ?? [])
      expect(read('vitest.config.ts'), name).toContain(`'${name}'`);
  });

  it('ends jobs that hang', () => {
    for (const [name, job] of Object.entries(jobs)) expect(job['timeout-minutes'], name).toBeGreaterThan(0);
  });
});

describe('.editorconfig', () => {
  it('is what the sources are like', () => {
    const texts = sources.filter((path) => !path.endsWith('.png'));
    const odd = texts.flatMap((path) => {
      const text = read(path);
      const indented = /^(?:\t| {2})/m.exec(text)?.[0] ?? '';
      const tabs = /\.(?:c|h|go)$/.test(path);
      return [
        ...(text === '' || text.endsWith('\n') ? [] : [`${path}: no newline at its end`]),
        ...(text.includes('\r') ? [`${path}: carriage returns`] : []),
        ...(/[ \t]$/m.test(text) ? [`${path}: spaces at the end of a line`] : []),
        ...(tabs && indented === '  ' ? [`${path}: indented with spaces`] : []),
      ];
    });
    expect(odd).toEqual([]);
  });
});
