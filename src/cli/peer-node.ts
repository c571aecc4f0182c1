// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { tryRun } from '../host/run.ts';

/**
 * The JSON that a `ripstop` command prints on the node with this underlay address. Only nodes of a lab can be reached:
 * an agent answers nobody outside its node.
 * @throws RipstopError when the node cannot be reached, or the command fails.
 */
export async function askNode<T>(underlayIp: string, args: readonly string[]): Promise<T> {
  const name = process.env['RIPSTOP_LAB'];
  if (!name) throw new RipstopError('its agent cannot be reached from here');
  const { netnsPath, nodeDir, openLab } = await import('../lab/index.ts');
  const lab = openLab(name);
  const node = lab.state.nodes.find(({ ip, ip6 }) => ip === underlayIp || ip6 === underlayIp);
  if (node?.datapath !== 'ripstop') throw new RipstopError(`${node?.name ?? underlayIp} runs no ripstop`);
  const dir = nodeDir(lab, node);
  const where = ['--bpffs', `${dir}/bpf`, '--run-dir', `${dir}/run`, '-o', 'json'];
  const argv = [process.argv[1] ?? '', ...args, ...where];
  const { code, stdout, stderr } = await tryRun(process.execPath, argv, { netns: netnsPath(node.netns) });
  if (code !== 0) throw new RipstopError(stderr.trim().replace(/^ripstop: /, ''));
  return JSON.parse(stdout) as T;
}
