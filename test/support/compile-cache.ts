// SPDX-License-Identifier: Apache-2.0
/**
 * Tests start the command, agents and API servers many hundred times, each from the sources. With their code compiled
 * once, a start takes a third of the time. Imported by vitest's configurations for its effect on what they start.
 */
import { join } from 'node:path';

process.env['NODE_COMPILE_CACHE'] ??= join(import.meta.dirname, '../../build/compiled');
