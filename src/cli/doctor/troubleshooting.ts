// SPDX-License-Identifier: Apache-2.0
/** deploy/TROUBLESHOOTING.md, from the table of checks: so that neither has what the other lacks. */
import { groups } from './checks.ts';

const INTRODUCTION = `# Troubleshooting

\`ripstop doctor\` on a node names what is wrong, why, and what helps:

\`\`\`sh
kubectl -n kube-ripstop exec daemonset/kube-ripstop-ds -c ripstop -- ripstop doctor
\`\`\`

or, with the [kubectl plugin](README.md#look), \`kubectl ripstop --node NODE doctor\`. Look at the node of the pod that suffers, and at the
node of the pod that it talks to. \`ripstop doctor NAME\` makes one check, \`-o wide\` shows those too that find nothing, and
\`ripstop doctor --bundle FILE.tar.gz\` packs all that a bug report needs, without secrets. It changes nothing on the node.
The commands of the cures are for a shell on the node itself: the image has no \`ip\`, \`tc\` or \`sysctl\`.

This page describes each check by the name that doctor prints. It is made from the same table as the command
(\`npx vitest run src/cli/doctor -u\` writes it again).
`;

/** The whole document. */
export function renderTroubleshooting(): string {
  const index = groups.flatMap(({ checks }) =>
    checks.map(({ name, guide }) => `| ${firstSentence(guide.symptom)} | [${name}](#${name}) |`),
  );
  const chapters = groups.map(({ title, checks }) => {
    const sections = checks.map(
      ({ name, guide: { symptom, cause, cure } }) =>
        `### ${name}\n\n- **Symptom.** ${symptom}\n- **Cause.** ${cause}\n- **Cure.** ${cure}\n`,
    );
    return `## ${title}\n\n${sections.join('\n')}`;
  });
  return [
    INTRODUCTION,
    `## By symptom\n\n| what is seen | check |\n|---|---|\n${index.join('\n')}\n`,
    ...chapters,
  ].join('\n');
}

function firstSentence(text: string): string {
  return text.replace(/(?<=[a-z`”])[.;] .*$/s, '').replace(/\.$/, '');
}
