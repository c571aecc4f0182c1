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

/** Lines of a manifest, and the lines of the template that replace them wherever they are. */
type Choice = readonly [lines: string, template: string];

/** What can be chosen for every container of ripstop, with its indentation in a manifest. */
const everywhere: readonly Choice[] = [
  [`image: ripstop:${version}`, 'image: {{ include "ripstop.image" . }}'],
  ['imagePullPolicy: IfNotPresent', 'imagePullPolicy: {{ .Values.image.pullPolicy }}'],
  [
    '      nodeSelector:\n        kubernetes.io/os: linux',
    '      nodeSelector:\n        {{- toYaml .Values.flannel.nodeSelector | nindent 8 }}',
  ],
  [
    '      tolerations:\n        - operator: Exists',
    '      tolerations:\n        {{- toYaml .Values.flannel.tolerations | nindent 8 }}',
  ],
  [
    '      hostNetwork: true',
    `      {{- with (.Values.global).imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      hostNetwork: true`,
  ],
];

/** What can be chosen for the agent in any mode. */
const ofAgent: readonly Choice[] = [
  [
    '            - mount -o remount,bind,rw /proc/sys; exec ripstop agent',
    '            - {{ printf "mount -o remount,bind,rw /proc/sys; exec ripstop agent%s" (include "ripstop.args" .) | quote }}',
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
  ...(['liveness', 'readiness'] as const).map((kind): Choice => {
    const path = kind === 'liveness' ? '/healthz' : '/readyz';
    const times = {
      liveness: { initialDelaySeconds: 10, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6 },
      readiness: { periodSeconds: 5, timeoutSeconds: 5 },
    }[kind];
    const lines = Object.entries(times).map(([name, value]) => `            ${name}: ${value}`);
    return [
      [`              path: ${path}`, ...lines].join('\n'),
      `              path: ${path}\n            {{- toYaml .Values.flannel.healthz.${kind}Probe | nindent 12 }}`,
    ];
  }),
];

const resources = (comment: string): Choice => [
  `          resources:
            requests:
              cpu: 100m
              memory: 128Mi
${comment}            limits:
              memory: 512Mi`,
  '          resources:\n            {{- toYaml .Values.flannel.resources | nindent 12 }}',
];

const ofNetwork: readonly Choice[] = [
  resources('            # The BPF maps count too. No CPU limit: it would throttle the start of pods.\n'),
  [
    `  net-conf.json: |
    {
      "Network": "10.244.0.0/16",
      "Backend": {
        "Type": "vxlan"
      }
    }`,
    '  net-conf.json: |\n    {{- include "ripstop.netConf" . | nindent 4 }}',
  ],
  [
    blockFrom(read('deploy/ripstop.yml'), '  cni-conf.json: |'),
    '  cni-conf.json: {{ .Values.flannel.cniConf | toJson }}',
  ],
  [
    `            - name: RIPSTOP_CNI_CONF
              value: /etc/kube-flannel/cni-conf.json
            # Which versions of the protocol the chained plugins support, they are asked.
            - name: RIPSTOP_CNI_PLUGINS
              value: /host/opt/cni/bin`,
    `            {{- if not .Values.flannel.skipCNIConfigInstallation }}
            - name: RIPSTOP_CNI_CONF
              value: /etc/kube-flannel/cni-conf.json
            # Which versions of the protocol the chained plugins support, they are asked.
            - name: RIPSTOP_CNI_PLUGINS
              value: /host/opt/cni/bin
            {{- end }}`,
  ],
  ['            path: /opt/cni/bin', '            path: {{ .Values.flannel.cniBinDir }}'],
  ['            path: /etc/cni/net.d', '            path: {{ .Values.flannel.cniConfDir }}'],
];

/** A block scalar with its key, to its last line. */
function blockFrom(text: string, key: string): string {
  const lines = text.split('\n');
  const begin = lines.indexOf(key);
  const end = lines.findIndex((line, i) => i > begin && !line.startsWith('    '));
  return lines.slice(begin, end).join('\n');
}

/** A manifest as a template. @throws RipstopError when a line to choose is not there, or something reads as a template. */
function templateOf(name: string, choices: readonly Choice[]): string {
  let text = read(name);
  if (text.includes('{{')) throw new RipstopError(`${name} has "{{", which helm takes for a template`);
  for (const [lines, template] of choices) {
    if (!text.includes(lines))
      throw new RipstopError(`${name} lacks these lines, which scripts/gen-deploy.ts replaces by a value`, {
        details: lines,
      });
    text = text.replaceAll(lines, template);
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
  const boost = documentsOf(templateOf('deploy/boost.yml', [...everywhere, ...ofAgent, resources('')]));
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
