// SPDX-License-Identifier: Apache-2.0
/** `-o`: one value as a table for people, or for programs. */
import { InvalidArgumentError, type Option } from 'commander';
import { flag } from './options.ts';
import { type Column, renderTable } from './table.ts';

export const FORMATS = ['table', 'wide', 'json', 'yaml'];
export const JSONPATH = 'jsonpath=';

export function outputFlag(): Option {
  return flag('-o, --output <format>', 'table, wide, json, yaml or jsonpath=TEMPLATE')
    .argParser((text) => {
      if (FORMATS.includes(text) || text.startsWith(JSONPATH)) return text;
      throw new InvalidArgumentError(`Give ${FORMATS.join(', ')} or jsonpath=TEMPLATE.`);
    })
    .default('table');
}

/** The text of a value in the chosen format. @param table makes the text for people. */
export async function format(
  output: string,
  value: unknown,
  table: (wide: boolean) => string,
): Promise<string> {
  if (output === 'table' || output === 'wide') return table(output === 'wide');
  const text = JSON.stringify(value, undefined, 2);
  if (output === 'json') return `${text}\n`;
  const data: unknown = JSON.parse(text);
  if (output === 'yaml') return (await import('js-yaml')).dump(data);
  const { fillTemplate } = await import('./jsonpath.ts');
  return `${fillTemplate(output.slice(JSONPATH.length), data)}\n`;
}

export async function print(output: string, value: unknown, table: (wide: boolean) => string): Promise<void> {
  process.stdout.write(await format(output, value, table));
}

export async function printRows<Row>(
  output: string,
  rows: readonly Row[],
  columns: readonly Column<Row>[],
): Promise<void> {
  await print(output, rows, (wide) => renderTable(columns, rows, wide));
}
