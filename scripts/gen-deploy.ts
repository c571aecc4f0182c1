#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * Makes the templates of the Helm chart from the manifests: deploy/*.yml are the source, and the chart has values in the
 * place of what can be chosen. test/tools/chart.tools.test.ts compares what helm makes of them with the manifests.
 *
 *   npm run gen-deploy [-- --check]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { RipstopError } from '../src/errors.ts';
import { reportFailure } from './failure.ts';

const root = join(import.meta.dirname, '..');
const chart = join(root, 'deploy/chart/ripstop');
const read = (name: string): string => readFileSync(join(root, name), 'utf8');
const { version, description } = JSON.parse(read('package.json')) as { version: string; description: string };

/** Lines of a manifest, and those of the template that replace them wherever they are. */
type Choice = readonly [lines: string | RegExp, template: string];

/** A key, and all that is indented deeper than it: what stands there is the default in values.yaml. */
const block = (indent: number, key: string): RegExp =>
  new RegExp(`^ {${indent}}${key.replace('.', '\\.')}:.*\\n(?: {${indent + 1}}.*\\n)+`, 'gm');

/** What can be chosen for every container of ripstop. */
const everywhere: readonly Choice[] = [
  [`image: ripstop:${version}`, 'image: {{ include "ripstop.image" . }}'],
  ['imagePullPolicy: IfNotPresent', 'imagePullPolicy: {{ .Values.image.pullPolicy }}'],
  [
    block(6, 'nodeSelector'),
    `      nodeSelector:
        {{- toYaml .Values.flannel.nodeSelector | nindent 8 }}
`,
  ],
  [
    block(6, 'tolerations'),
    `      tolerations:
        {{- toYaml .Values.flannel.tolerations | nindent 8 }}
`,
  ],
  [
    '      hostNetwork: true\n',
    `      {{- with (.Values.global).imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      hostNetwork: true
`,
  ],
];

/** How often a probe asks. */
const probe = (path: string, value: string): Choice => [
  new RegExp(`(?<=^ {14}path: ${path}\\n)(?: {12}\\w+: \\d+\\n)+`, 'gm'),
  `            {{- toYaml .Values.flannel.healthz.${value} | nindent 12 }}
`,
];

/** What can be chosen for the agent in any mode. */
const ofAgent: readonly Choice[] = [
  [
    '            - mount -o remount,bind,rw /proc/sys; exec ripstop agent\n',
    `            - {{ printf "mount -o remount,bind,rw /proc/sys; exec ripstop agent%s" (include "ripstop.args" .) | quote }}
`,
  ],
  [
    '          env:\n',
    `          env:
            {{- with .Values.flannel.healthz.port }}
            - name: RIPSTOP_HEALTHZ_ADDR
              value: {{ printf ":%d" (int .) | quote }}
            {{- end }}
`,
  ],
  [
    block(10, 'resources'),
    `          resources:
            {{- toYaml .Values.flannel.resources | nindent 12 }}
`,
  ],
  probe('/healthz', 'livenessProbe'),
  probe('/readyz', 'readinessProbe'),
];

/** What can be chosen for the network, which with boost is flannel's. */
const ofNetwork: readonly Choice[] = [
  [
    block(2, 'net-conf.json'),
    `  net-conf.json: |
    {{- include "ripstop.netConf" . | nindent 4 }}
`,
  ],
  [block(2, 'cni-conf.json'), '  cni-conf.json: {{ .Values.flannel.cniConf | toJson }}\n'],
  [
    /^ {12}- name: RIPSTOP_CNI_CONF\n(?: {12}.*\n)+/gm,
    '            {{- if not .Values.flannel.skipCNIConfigInstallation }}\n$&            {{- end }}\n',
  ],
  ['            path: /opt/cni/bin\n', '            path: {{ .Values.flannel.cniBinDir }}\n'],
  ['            path: /etc/cni/net.d\n', '            path: {{ .Values.flannel.cniConfDir }}\n'],
];

/** A manifest as a template. @throws RipstopError when lines to choose are not there, or something reads as a template. */
function templateOf(name: string, choices: readonly Choice[]): string {
  let text = read(name);
  if (text.includes('{{')) throw new RipstopError(`${name} has "{{", which helm takes for a template`);
  for (const [lines, template] of choices) {
    const changed = text.replaceAll(lines, template);
    if (changed === text)
      throw new RipstopError(
        `${name} lacks these lines, which scripts/gen-deploy.ts replaces by a value: ${String(lines).trim()}`,
      );
    text = changed;
  }
  return text;
}

/** Documents of a template, for these modes only. */
function inModes(modes: readonly string[], documents: readonly string[]): string {
  const condition = `has .Values.mode (list ${modes.map((mode) => JSON.stringify(mode)).join(' ')})`;
  return [
    `{{- if ${condition} }}`,
    ...documents.flatMap((one) => ['---', one.trim()]),
    '{{- end }}',
    '',
  ].join('\n');
}

/** A release that is kept in a namespace of ripstop's has made it, or has found it there. */
function unlessThere(namespace: string): string {
  const [, name = ''] = /^ {2}name: (.*)$/m.exec(namespace) ?? [];
  return `{{- if ne .Release.Namespace ${JSON.stringify(name)} }}\n${namespace.trim()}\n{{- end }}`;
}

function documentsOf(template: string): string[] {
  const [, namespace = '', ...others] = template.split(/^---\n/m);
  return [namespace.includes('kind: Namespace') ? unlessThere(namespace) : namespace, ...others];
}

/** The files of the chart that are made, by their paths in it. */
export function generated(): Record<string, string> {
  const head = (source: string): string =>
    `# SPDX-License-Identifier: Apache-2.0\n# Made of ${source} by scripts/gen-deploy.ts. Do not edit: change that, and run npm run gen-deploy.\n`;
  const cni = documentsOf(templateOf('deploy/ripstop.yml', [...everywhere, ...ofAgent, ...ofNetwork]));
  const boost = documentsOf(templateOf('deploy/boost.yml', [...everywhere, ...ofAgent]));
  const unboost = documentsOf(templateOf('deploy/unboost.yml', everywhere));
  return {
    'Chart.yaml': `${head('package.json')}apiVersion: v2
name: ripstop
description: ${description}
type: application
version: ${version}
appVersion: ${version}
kubeVersion: '>=1.30.0-0'
`,
    'templates/cni.yaml': head('deploy/ripstop.yml') + inModes(['cni'], cni),
    'templates/boost.yaml':
      head('deploy/boost.yml and deploy/unboost.yml') +
      inModes(['boost', 'unboost'], boost.slice(0, -1)) +
      inModes(['boost'], boost.slice(-1)) +
      inModes(['unboost'], unboost),
  };
}

/** Write the files; with `--check` only tell those that are not as they would be made. */
function main(check: boolean): void {
  const files = Object.entries(generated()).map(([path, text]) => ({ path: join(chart, path), text }));
  if (!check) {
    for (const { path, text } of files) writeFileSync(path, text);
    return;
  }
  const stale = files.filter(({ path, text }) => readFileSync(path, 'utf8') !== text);
  if (stale.length === 0) return;
  const names = stale.map(({ path }) => relative(root, path)).join(', ');
  throw new RipstopError(`${names} differ from what the manifests say; run "npm run gen-deploy"`);
}

try {
  main(process.argv.includes('--check'));
} catch (error) {
  reportFailure('gen-deploy', error);
}
