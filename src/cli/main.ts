#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
import { runCommandLine } from './program.ts';

// A command that is piped into `head` ends quietly.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
// `lab exec` has set the exit code of the command that it ran.
const code = await runCommandLine(process.argv.slice(2));
if (code !== 0) process.exitCode = code;
