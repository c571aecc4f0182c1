// SPDX-License-Identifier: Apache-2.0
import type { Command } from 'commander';
import { examples, flag, FOUND } from './options.ts';
import { print } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';

interface DoctorOptions extends ReaderOptions {
  readonly subnetFile: string;
  readonly ipamDir: string;
  readonly bundle?: string;
}

export function addDoctorCommand(program: Command): void {
  addReaderFlags(program.command('doctor'))
    .description('what is wrong on this node or on its way to others, why, and what helps')
    .argument('[check...]', 'only these checks')
    .addOption(
      flag('--subnet-file <file>', "flannel's subnet.env", 'FLANNELD_SUBNET_FILE').default(
        '/run/flannel/subnet.env',
      ),
    )
    .addOption(
      flag('--ipam-dir <path>', "the directory of host-local's leases").default('/var/lib/cni/networks'),
    )
    .addOption(
      flag(
        '--bundle <file>',
        'also write all that a bug report needs into this archive (.tar.gz), secrets left out; -: only that, to standard output',
      ),
    )
    .addHelpText('after', NOTES)
    .action(async (names: string[], options: DoctorOptions) => {
      const { chooseChecks, diagnose, isIll, renderFindings } = await import('./doctor/index.ts');
      const chosen = chooseChecks(names);
      const findings = await diagnose(options, chosen);
      if (options.bundle !== '-')
        await print(options.output, findings, (wide) => renderFindings(findings, wide));
      if (options.bundle !== undefined) {
        const { writeBundle } = await import('./doctor/bundle.ts');
        const files = await writeBundle(options.bundle, options, findings);
        process.stderr.write(`wrote ${files.length} files to ${options.bundle}\n`);
      }
      if (isIll(findings)) process.exitCode = FOUND;
    });
}

const NOTES = `
It takes at most 3 s and changes nothing. Peers are asked with ICMP echo, through the tunnel and beside it; of more than
50 peers a sample. \`fail\` is what a person must look at: the exit code is 3 then. \`warn\` is what works, but not as fast
or as sure as it could. -o wide lists what is in order, too. deploy/TROUBLESHOOTING.md describes each check.
${examples([
  ['doctor', 'all checks: problems first, each with its cause and its cure'],
  ['doctor tunnel path-mtu', 'only these two'],
  ['doctor -o jsonpath=\'{[?(@.state=="fail")].check}\'', 'the names of what is broken'],
  ['doctor --bundle - > ripstop.tar.gz', 'only an archive for a bug report, secrets left out'],
])}`;
