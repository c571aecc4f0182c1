// SPDX-License-Identifier: Apache-2.0
import { z } from 'zod';
import { errorText, quote, RipstopError } from '../errors.ts';
import { addressFamily, hostCidr } from '../net/ip.ts';
import { AskedConfig, type AskedAddresses, asAsked } from './asked.ts';
import type { CniRequest, CniResponse } from './protocol.ts';
import {
  CniCode,
  type CniDns,
  CniError,
  type CniResult,
  type CniVersion,
  ifnamePattern,
  namePattern,
  netnsPattern,
  supportedVersions,
  versionAtLeast,
} from './spec.ts';

/**
 * The CNI protocol of the plugin: it checks the container runtime's request, calls one of `ops`, and makes the answer.
 * It knows nothing of links, addresses or BPF. Whatever `ops` throws becomes an error as the CNI specification has it.
 */

/** Identifies an attachment: a container and the name of its interface. */
export interface AttachmentId {
  readonly containerId: string;
  readonly ifname: string;
}

/** The network of a call. */
export interface NetworkCall {
  /** The network's name, such as `cbr0`; its leases are kept under this name. */
  readonly network: string;
}

export interface DelCall extends NetworkCall, AttachmentId {
  /** Path of the pod's network namespace, if the runtime gave one; the namespace may be gone. */
  readonly netns?: string;
}

export interface AddCall extends DelCall, AskedAddresses {
  /** Path of the pod's network namespace. */
  readonly netns: string;
  readonly podNamespace?: string;
  readonly podName?: string;
}

export interface CheckCall extends DelCall {
  readonly netns: string;
  /** The result of the whole chain of plugins, as far as CHECK needs it. */
  readonly prevResult: PrevResult;
}

export interface GcCall extends NetworkCall {
  /** The attachments that stay; all others of this network are removed. */
  readonly validAttachments: readonly AttachmentId[];
}

/** A pod's address and routes of one family. */
export interface PodAddress {
  /** Without a prefix length. */
  readonly ip: string;
  readonly gateway: string;
  /** Destinations that are routed to the gateway: CIDR blocks, e.g. `0.0.0.0/0`. */
  readonly routes: readonly string[];
  /** The MTU of those routes in bytes, if it is less than that of the interface. */
  readonly routeMtu?: number;
}

/** The result of ADD. */
export interface Attached {
  readonly hostIfname: string;
  readonly hostMac: string;
  readonly podMac: string;
  /** One for each family, IPv4 first. */
  readonly addresses: readonly PodAddress[];
  /** How long each step took, in ms, in order. */
  readonly stepsMs: Readonly<Record<string, number>>;
}

/** The commands. Each throws when it fails; a {@link CniError} where the runtime can use the code. */
export interface CniOps {
  add(call: AddCall): Promise<Attached>;
  del(call: DelCall): Promise<void>;
  check(call: CheckCall): Promise<void>;
  status(call: NetworkCall): Promise<void>;
  gc(call: GcCall): Promise<void>;
}

const Dns = z.object({
  nameservers: z.array(z.string()).optional(),
  domain: z.string().optional(),
  search: z.array(z.string()).optional(),
  options: z.array(z.string()).optional(),
});

const PrevResult = z.object({
  interfaces: z
    .array(z.object({ name: z.string(), mac: z.string().optional(), sandbox: z.string().optional() }))
    .default([]),
  ips: z.array(z.object({ address: z.string(), interface: z.number().optional() })).default([]),
});
export type PrevResult = z.infer<typeof PrevResult>;

/** The field of the network configuration that every command needs; runtimes and other plugins add more. */
const NetworkConfig = z.object({ name: z.string().regex(namePattern) });

const AddConfig = NetworkConfig.extend({
  dns: Dns.optional(),
  ...AskedConfig,
  ipam: AskedConfig.ipam.unwrap().extend({ type: z.string().optional() }).optional(),
});

const CheckConfig = NetworkConfig.extend({ prevResult: PrevResult.optional() });

/** The list of valid attachments: its name in the specification's table of keys, and that in its section about GC. */
const VALID_ATTACHMENTS = ['cni.dev/valid-attachments', 'cni.dev/attachments'] as const;

/** What is no attachment of ours is valid for all we care, so the names in here may be any. */
const ValidAttachments = z
  .array(z.object({ containerID: z.string().default(''), ifname: z.string().default('') }))
  .optional();

const GcConfig = NetworkConfig.extend({
  [VALID_ATTACHMENTS[0]]: ValidAttachments,
  [VALID_ATTACHMENTS[1]]: ValidAttachments,
});

/** The commands, with the version of the specification that introduced each. */
const commandSince = {
  ADD: '0.3.1',
  DEL: '0.3.1',
  CHECK: '0.4.0',
  STATUS: '1.1.0',
  GC: '1.1.0',
  VERSION: '0.3.1',
} as const satisfies Record<string, CniVersion>;
export type Command = keyof typeof commandSince;

/** The answer to a call; for log and metrics its code, and of an ADD that succeeded also how long each step took. */
export type Answer = CniResponse & {
  /** 0 when the call succeeded. */
  readonly code: 0 | CniCode;
} & Partial<Pick<Attached, 'stepsMs'>>;

/** Answer one call of the plugin. Never throws: errors are answers too. */
export async function dispatch(request: CniRequest, ops: CniOps): Promise<Answer> {
  const config = decodeJson(request.stdin);
  try {
    const { output, ...rest } = await execute(request.env, config, ops);
    return { exitCode: 0, code: 0, stdout: Buffer.from(output), ...rest };
  } catch (thrown) {
    return errorResponse(thrown, config);
  }
}

/** The answer for an error. @param config the input from stdin, whose version the answer repeats. */
export function errorResponse(thrown: unknown, config?: unknown): Answer {
  const code = thrown instanceof CniError ? thrown.code : CniCode.failed;
  const details = thrown instanceof RipstopError ? thrown.details : undefined;
  const version = configVersion(config);
  const cniVersion = version !== undefined && /^[0-9.]{1,15}$/.test(version) ? version : '1.0.0';
  const stdout = Buffer.from(json({ cniVersion, code, msg: errorText(thrown), details }));
  return { exitCode: 1, code, stdout };
}

/** @returns what to print. */
async function execute(
  env: CniRequest['env'],
  input: unknown,
  ops: CniOps,
): Promise<{ output: string } & Pick<Answer, 'stepsMs'>> {
  const command = parseCommand(env);
  if (command === 'VERSION') {
    return { output: json({ cniVersion: configVersion(input) ?? '1.0.0', supportedVersions }) };
  }
  // Checks in the order of the reference implementation: environment, version, configuration.
  const id = command === 'STATUS' || command === 'GC' ? undefined : parseAttachmentId(env, command);
  const netns = command === 'ADD' || command === 'CHECK' ? parseNetns(env, command) : undefined;
  const version = parseVersion(input, command);

  switch (command) {
    case 'ADD': {
      const { name, dns = {}, ...asked } = parseConfig(AddConfig, input);
      refuseOtherIpam(asked.ipam?.type);
      const args = parseArgs(env['CNI_ARGS'] ?? '');
      const call = { network: name, ...id!, netns: netns!, ...podOf(args), ...asAsked(args, asked) };
      const attached = await ops.add(call);
      return { output: json(formatResult(attached, call, version, dns)), stepsMs: attached.stepsMs };
    }
    case 'DEL':
      await ops.del({ network: parseConfig(NetworkConfig, input).name, ...id!, ...optionalNetns(env) });
      break;
    case 'CHECK': {
      const config = parseConfig(CheckConfig, input);
      const prevResult = required(config, 'prevResult');
      await ops.check({ network: config.name, ...id!, netns: netns!, prevResult });
      break;
    }
    case 'STATUS':
      await ops.status({ network: parseConfig(NetworkConfig, input).name });
      break;
    case 'GC': {
      const config = parseConfig(GcConfig, input);
      const valid = config[VALID_ATTACHMENTS[0]] ?? config[VALID_ATTACHMENTS[1]];
      // A missing list does not count as an empty one: that would remove every pod of the node. libcni leaves it out for
      // `cnitool gc`, after it has called DEL for all that it knows itself.
      const validAttachments = valid?.map((a) => ({ containerId: a.containerID, ifname: a.ifname }));
      if (validAttachments) await ops.gc({ network: config.name, validAttachments });
    }
  }
  // Only ADD has a result.
  return { output: '' };
}

/** The command of a request; undefined when it is none of CNI's. */
export function commandOf({ env }: Pick<CniRequest, 'env'>): Command | undefined {
  const command = env['CNI_COMMAND'] ?? '';
  return Object.hasOwn(commandSince, command) ? (command as Command) : undefined;
}

function parseCommand(env: CniRequest['env']): Command {
  const known = commandOf({ env });
  if (known !== undefined) return known;
  const command = env['CNI_COMMAND'] ?? '';
  const commands = Object.keys(commandSince).join(', ');
  throw new CniError(CniCode.environment, `CNI_COMMAND is ${quote(command)}; it must be one of ${commands}`);
}

function parseAttachmentId(env: CniRequest['env'], command: Command): AttachmentId {
  return {
    containerId: variable(env, 'CNI_CONTAINERID', command, namePattern),
    ifname: variable(env, 'CNI_IFNAME', command, ifnamePattern),
  };
}

function parseNetns(env: CniRequest['env'], command: Command): string {
  return variable(env, 'CNI_NETNS', command, netnsPattern);
}

/** DEL works without a namespace, so an invalid path is no reason to refuse it. */
function optionalNetns({ CNI_NETNS = '' }: CniRequest['env']): { netns?: string } {
  return netnsPattern.test(CNI_NETNS) ? { netns: CNI_NETNS } : {};
}

function variable(env: CniRequest['env'], name: string, command: Command, pattern: RegExp): string {
  const value = env[name] ?? '';
  if (value === '') throw new CniError(CniCode.environment, `${command} needs ${name}, which is not set`);
  if (!pattern.test(value)) {
    throw new CniError(CniCode.environment, `${name} ${quote(value)} does not match ${pattern.source}`);
  }
  return value;
}

/** CNI_ARGS: `KEY=VALUE` pairs, separated by `;`. Of a key that comes twice the last one counts. */
function parseArgs(args: string): ReadonlyMap<string, string> {
  const pairs = new Map<string, string>();
  for (const pair of args.split(';').filter((pair) => pair !== '')) {
    const at = pair.indexOf('=');
    if (at < 1)
      throw new CniError(CniCode.environment, `CNI_ARGS holds ${quote(pair)}, which is not KEY=VALUE`);
    pairs.set(pair.slice(0, at), pair.slice(at + 1));
  }
  return pairs;
}

/** The pod's name from CNI_ARGS; runtimes without Kubernetes leave it out, or the value empty. */
function podOf(args: ReadonlyMap<string, string>): { podNamespace?: string; podName?: string } {
  const podNamespace = forPeople(args.get('K8S_POD_NAMESPACE') ?? '');
  const podName = forPeople(args.get('K8S_POD_NAME') ?? '');
  return { ...(podNamespace && { podNamespace }), ...(podName && { podName }) };
}

/**
 * A name as it is shown. Only Kubernetes restricts the names of sandboxes, and nothing depends on them: they are
 * neither keys nor parts of paths. What could garble a terminal or a log is escaped, and the length is bounded.
 */
function forPeople(name: string): string {
  const escaped = name.replaceAll(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (one) => `\\u${one.codePointAt(0)!.toString(16).padStart(4, '0')}`,
  );
  return escaped.length > 253 ? `${escaped.slice(0, 252)}…` : escaped;
}

function parseVersion(input: unknown, command: Command): CniVersion {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    throw new CniError(CniCode.decode, 'the network configuration on stdin is not a JSON object');
  }
  // The specification says that a configuration without a version has version 0.1.0.
  const given = configVersion(input) ?? '0.1.0';
  const version = supportedVersions.find((supported) => supported === given);
  if (version === undefined) {
    const versions = supportedVersions.join(', ');
    throw new CniError(
      CniCode.incompatibleVersion,
      `the network configuration's cniVersion ${quote(given)} is not supported; use one of ${versions}`,
    );
  }
  if (!versionAtLeast(version, commandSince[command])) {
    throw new CniError(
      CniCode.incompatibleVersion,
      `the network configuration's cniVersion ${version} has no ${command}; it needs ${commandSince[command]}`,
    );
  }
  return version;
}

function parseConfig<T extends z.infer<typeof NetworkConfig>>(schema: z.ZodType<T>, input: unknown): T {
  const parsed = schema.safeParse(input);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw new CniError(CniCode.config, `the network configuration is wrong at ${issues.join('; ')}`);
  }
  return parsed.data;
}

/** Only new pods matter: those that are there can be looked at, and deleted, whatever the configuration says by now. */
function refuseOtherIpam(type: string | undefined): void {
  if (type === undefined || type === '' || type === 'host-local') return;
  throw new CniError(
    CniCode.unsupportedField,
    `ipam.type ${quote(type)} is not supported: ` +
      "ripstop takes addresses from the node's podCIDR as host-local does; " +
      'remove ipam from the configuration',
  );
}

function required<T, K extends string & keyof T>(config: T, key: K): NonNullable<T[K]> {
  const value = config[key];
  if (value) return value;
  throw new CniError(CniCode.config, `the network configuration has no ${key}; the runtime must add it`);
}

function formatResult(attached: Attached, call: AddCall, cniVersion: CniVersion, dns: CniDns): CniResult {
  const { hostIfname, hostMac, podMac, addresses } = attached;
  const version = (ip: string): { version?: '4' | '6' } =>
    versionAtLeast(cniVersion, '1.0.0') ? {} : { version: addressFamily(ip) === 6 ? '6' : '4' };
  const mtu = (routeMtu: number | undefined): { mtu?: number } =>
    routeMtu !== undefined && versionAtLeast(cniVersion, '1.1.0') ? { mtu: routeMtu } : {};
  return {
    cniVersion,
    // An empty sandbox means "on the host": the bandwidth plugin finds the veth by it.
    interfaces: [
      { name: hostIfname, mac: hostMac, sandbox: '' },
      { name: call.ifname, mac: podMac, sandbox: call.netns },
    ],
    // `interface` is the index of the pod's interface: portmap forwards only to addresses that have one.
    ips: addresses.map(({ ip, gateway }) => ({
      ...version(ip),
      interface: 1,
      address: hostCidr(ip),
      gateway,
    })),
    routes: addresses.flatMap(({ gateway, routes, routeMtu }) =>
      routes.map((dst) => ({ dst, gw: gateway, ...mtu(routeMtu) })),
    ),
    dns,
  };
}

/** The JSON from stdin, without its nulls; undefined when it is not JSON. */
function decodeJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes), withoutNull);
  } catch {
    return undefined;
  }
}

/**
 * A reviver that leaves null out. Runtimes and plugins are written in Go, which writes a list, a map or an object that
 * was never set as null, and reads null as if nothing were there.
 */
function withoutNull(key: string, value: unknown): unknown {
  // libcni's list of valid attachments when there are none. Without the key nobody has said that there are none.
  if (value === null) return VALID_ATTACHMENTS.some((name) => name === key) ? [] : undefined;
  // An element that is left out leaves a hole.
  return Array.isArray(value) ? value.filter(() => true) : value;
}

function json(value: object): string {
  return `${JSON.stringify(value)}\n`;
}

function configVersion(config: unknown): string | undefined {
  if (typeof config !== 'object' || config === null || !('cniVersion' in config)) return undefined;
  return typeof config.cniVersion === 'string' ? config.cniVersion : undefined;
}
