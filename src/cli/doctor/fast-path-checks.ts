// SPDX-License-Identifier: Apache-2.0
/** Checks of what keeps traffic off the fast path. */
import { ipsecOf } from '../../host/ipsec.ts';
import { parseCidr, hostCidr } from '../../net/ip.ts';
import { type Check, check, code, endpointName, fail, type Problem, some, warn } from './check.ts';
import type { Facts } from './facts.ts';

/** A table that is this full evicts flows that are in use. */
const FULL = 0.9;
/** So many moves of the epoch in a second are no single change. */
const MOVES_MAX = 4;

/** What helps a peer that the kernel path alone serves, by reason; and whether somebody must look at it. */
const REASONS: Readonly<Record<string, { readonly state: Problem['state']; readonly cure: string }>> = {
  backend: { state: 'warn', cure: 'use the backend vxlan or host-gw for a fast path' },
  no_programs: { state: 'fail', cure: "see the agent's log, which says why no programs are loaded" },
  no_route: { state: 'fail', cure: 'give this node a route to the peer, or see the check uplink' },
  other_interface: {
    state: 'fail',
    cure: 'choose the uplink that leads to the peers (--iface), or change the route',
  },
  no_ethernet: {
    state: 'warn',
    cure: 'none: tunnels such as WireGuard have no Ethernet header. Use a NIC as the uplink (--iface)',
  },
  gateway_family: { state: 'warn', cure: 'give the route to the peer a gateway of its own address family' },
  not_direct: {
    state: 'fail',
    cure: 'use the backend vxlan with DirectRouting: host-gw reaches only nodes on the same L2',
  },
  pod_cidr: { state: 'warn', cure: 'give all nodes podCIDRs of one length (--node-cidr-mask-size)' },
  checksum: {
    state: 'warn',
    cure: "run ripstop on that node too: flannel's IPv6 device requires checksums that BPF cannot make",
  },
};
/** These have checks of their own. */
const ELSEWHERE = new Set(['ipsec', 'shaped']);

export const fastPathChecks: readonly Check[] = [
  check(
    'programs',
    {
      ok: 'the programs are attached to the uplink and to all pods',
      needs: ['node', 'endpoints', 'attached'],
      symptom: '`ripstop stats` does not move for a pod, or for all; everything takes the kernel path.',
      cause:
        'The programs were never attached, somebody detached them, or their device was made anew while no agent ran.',
      cure: 'Start the agent: it attaches what is missing, within 25 s at the latest, which is its audit.',
    },
    ({ node, endpoints, attached }) => {
      const live = new Set(attached.filter((one) => one.live).map(({ hook, device }) => `${hook} ${device}`));
      const wanted = [
        ...(node.uplink === undefined ? [] : [`from_wire ${node.uplink}`, `to_wire ${node.uplink}`]),
        ...endpoints.flatMap(({ device }) =>
          device === undefined ? [] : [`from_pod ${device}`, `to_pod ${device}`],
        ),
      ];
      const missing = [...new Set(wanted)].filter((one) => !live.has(one));
      if (missing.length === 0) return [];
      return [
        fail(
          `programs are not attached: ${some(missing)}`,
          'somebody detached them, or made the device anew; the kernel path carries these packets',
          'start the agent, which attaches them',
        ),
      ];
    },
  ),
  check(
    'peers',
    {
      ok: 'the fast path serves all peers',
      needs: ['peers'],
      symptom: 'Traffic with some nodes is as slow as before.',
      cause:
        '`ripstop peers` has the reason for each: no route, another interface, a gateway, a flannel node over IPv6.',
      cure: 'The reasons, and what helps: [the table of reasons](README.md#look).',
    },
    ({ peers }) => {
      const slow = peers.filter(({ fastPath, reason }) => !fastPath && !ELSEWHERE.has(reason ?? ''));
      return Object.entries(Object.groupBy(slow, ({ reason = 'marked' }) => reason)).map(([reason, rows]) => {
        const { state, cure } = REASONS[reason] ?? {
          state: 'warn',
          cure: 'ask the agent: ripstop peers, while it runs',
        };
        const whys = [...new Set(rows!.map(({ why = reason }) => why))];
        return {
          state,
          what: `the kernel path alone serves ${some(rows!.map(({ node, vtepIp }) => node ?? vtepIp))}`,
          why: some(whys),
          cure,
        };
      });
    },
  ),
  check(
    'endpoints',
    {
      ok: 'the fast path serves all pods of this node',
      needs: ['endpoints'],
      symptom: 'One pod is slower than the others.',
      cause: 'It is marked for the kernel path.',
      cure: "See the check `shaping`; a mark in the attachment's file ends with the pod: restart it.",
    },
    ({ endpoints }) => {
      const slow = endpoints.filter(({ fastPath, flags }) => !fastPath && !flags.includes('shaped'));
      if (slow.length === 0) return [];
      const pods = some(slow.map(endpointName));
      return [
        warn(
          `the kernel path alone serves ${pods}`,
          slow[0]!.why ?? 'they are marked for it',
          'restart the pod',
        ),
      ];
    },
  ),
  check(
    'shaping',
    {
      ok: "nobody shapes the pods' packets",
      needs: ['strangers'],
      symptom:
        "A pod's traffic, or all of it, takes the kernel path; `ripstop endpoints` has the flag `shaped`.",
      cause:
        'A qdisc or a filter is on its interface or on flannel.1: the bandwidth plugin (annotations ' +
        "`kubernetes.io/ingress-bandwidth` and `egress-bandwidth`), or a person's `tc`.",
      cure:
        'If the limit is not wanted, remove the annotation and restart the pod, or ' +
        '`tc qdisc delete dev DEVICE root`.',
    },
    ({ strangers }) =>
      byDevice(strangers, 'shaping').map(({ device, role, what }) => {
        const remove = code(`tc qdisc delete dev ${device} ${what.includes('filter') ? 'clsact' : 'root'}`);
        const isPod = role === 'pod';
        return warn(
          `somebody shapes or filters packets on ${device}: ${what}`,
          `these must see every packet, so ${isPod ? 'the pod stays' : 'all peers stay'} on the kernel path`,
          isPod
            ? `if it is not wanted: remove the annotation for bandwidth and restart the pod, or ${remove}`
            : `if it is not wanted: ${remove}`,
        );
      }),
  ),
  check(
    'other-programs',
    {
      ok: "no other BPF programs are on ripstop's hooks",
      needs: ['strangers'],
      symptom: 'Packets vanish or take another way before ripstop sees them; pods stay on the kernel path.',
      cause:
        "Another BPF data plane or an observability tool has programs on the uplink or on pods' interfaces.",
      cure:
        'Remove the other data plane (`bpftool net` shows its programs). Tools that only watch may stay ' +
        'on the uplink.',
    },
    ({ strangers }) =>
      byDevice(strangers, 'program').map(({ device, role, what }) =>
        warn(
          `programs of others are on ${role === 'uplink' ? 'the uplink ' : ''}${device}: ${what}`,
          role === 'uplink'
            ? "they may take packets before ripstop's do, or after"
            : `they must see every packet, so ${role === 'pod' ? 'the pod stays' : 'all peers stay'} on the kernel path`,
          'find whose they are with `bpftool net`, and remove them there',
        ),
      ),
  ),
  check(
    'ipsec',
    {
      ok: 'no IPsec policy concerns packets to peers',
      needs: ['node', 'links', 'peers', 'policies'],
      symptom: 'Traffic with some nodes is as slow as before; `ripstop peers` has the reason `ipsec`.',
      cause:
        'An IPsec policy (strongSwan, Libreswan) transforms or drops packets to them, which only the kernel ' +
        'path does.',
      cure:
        'None is needed: encrypted traffic takes the kernel path. If it need not be encrypted, exclude ' +
        'UDP 8472 in the policy.',
    },
    ({ node, links, peers, policies }) => {
      const ifindex = links.get(node.uplink ?? '')?.ifindex ?? 0;
      const concerns = ipsecOf(policies);
      const found = peers.filter(({ podCidr, vtepIp, isDirect }) => {
        const own = node.families.find(({ family }) => family === podCidr.family);
        if (!own) return false;
        if (isDirect) return concerns({ src: own.podCidr, dst: podCidr, ifindex });
        const [src, dst] = [own.vtepIp, vtepIp].map((ip) => parseCidr(hostCidr(ip)));
        return concerns({ src: src!, dst: dst!, ifindex, udpPort: node.tunnel?.port });
      });
      if (found.length === 0) return [];
      return [
        warn(
          `IPsec policies concern all packets to ${some(found.map(({ node: name, vtepIp }) => name ?? vtepIp))}`,
          'only the kernel path encrypts, so these peers stay there',
          'none is needed. If it need not be encrypted, exclude UDP port 8472 in the policy; see them with ' +
            '`ip xfrm policy`',
        ),
      ];
    },
  ),
  check(
    'flow-table',
    {
      ok: 'the flow table has room',
      needs: ['flowTables'],
      symptom: 'The share of the fast path falls as the load grows.',
      cause:
        'There are more flows at once than the table has room for: the least used are evicted, and learned again.',
      cure:
        '`--flow-table-size` of the agent (`RIPSTOP_FLOW_TABLE_SIZE`), twice as large; `ripstop maps` ' +
        'shows what it takes.',
    },
    ({ flowTables }) =>
      flowTables
        .filter(({ used, max, spare }) => used >= Math.max(max / 2, Math.min(max * FULL, max - spare)))
        .map(({ name, used, max }) =>
          warn(
            `${name} is full: ${used} of ${max} flows`,
            'flows that are in use are evicted, and take the kernel path until they are learned again',
            `run the agent with --flow-table-size ${max * 2}`,
          ),
        ),
  ),
  check(
    'epoch',
    {
      ok: 'rules and routes rest',
      needs: ['epoch'],
      symptom:
        '`ripstop stats` counts many `old_epoch`; the share of the fast path is low, although flows last.',
      cause:
        'A program rewrites rules or routes all the time. Each change invalidates all flows, which the ' +
        'kernel path must judge anew.',
      cure:
        'Doctor names the program. Let it write less often: kube-proxy `--iptables-min-sync-period`, a ' +
        'fight of two owners, a script in a loop.',
    },
    ({ epoch: { seconds, moves, commits, others } }) => {
      if (moves / seconds <= MOVES_MAX) return [];
      const by = Object.entries(commits).map(
        ([name, n]) => `${name || 'a program'} changed nftables ${n} times`,
      );
      const rest = Object.entries(others).map(([kind, n]) => `${n} changes of ${PLURALS[kind] ?? kind}`);
      return [
        warn(
          `the epoch moved ${moves} times in ${seconds.toFixed(1)} s`,
          [...by, ...rest].join(', ') || 'rules or routes change all the time',
          'let that program write less often, or stop it: each change makes all flows ask the kernel path again',
        ),
      ];
    },
  ),
  check(
    'changes',
    {
      ok: 'the kernel tells of changes at once',
      needs: ['changes'],
      symptom:
        'A new DROP rule takes some milliseconds, or without an agent 5 s, to stop an established flow.',
      cause:
        'The kernel lets no program trace its functions: it is built without BPF trampolines, or a ' +
        'capability is missing.',
      cure:
        "A kernel with CONFIG_FUNCTION_TRACER and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS (Debian's, " +
        "Ubuntu's); CAP_PERFMON or SYS_ADMIN.",
    },
    ({ changes: { watched, isTracingAllowed } }) =>
      watched.length > 0
        ? []
        : [
            warn(
              'changes of rules that the agent does not hear of take up to 5 s',
              isTracingAllowed
                ? 'no function of the kernel is traced: the agent has not attached the programs'
                : 'the kernel lets no program trace its functions',
              isTracingAllowed
                ? 'restart the agent; its log says why the programs were refused'
                : 'use a kernel with CONFIG_FUNCTION_TRACER and BPF trampolines, and give the agent ' +
                    'SYS_ADMIN or PERFMON',
            ),
          ],
  ),
  check(
    'conntrack',
    {
      ok: 'conntrack has room',
      needs: ['settings'],
      symptom:
        "New connections fail at times; the kernel's log has `nf_conntrack: table full, dropping packet`.",
      cause: 'There are more connections than `nf_conntrack_max` allows, on the whole machine.',
      cure:
        '`sysctl -w net.netfilter.nf_conntrack_max=…`, twice as much; kube-proxy sets it by ' +
        '`--conntrack-max-per-core`.',
    },
    ({ settings }) => {
      const [count, max] = ['count', 'max'].map((name) =>
        Number(settings.get(`net/netfilter/nf_conntrack_${name}`)),
      );
      if (!max || count === undefined || Number.isNaN(count)) return { skipped: 'conntrack is not loaded' };
      if (count < max * 0.8) return [];
      const state = count < max * 0.95 ? warn : fail;
      return [
        state(
          `conntrack has ${count} of ${max} connections`,
          'once it is full, the kernel drops packets of new connections',
          code(`sysctl -w net.netfilter.nf_conntrack_max=${max * 2}`),
        ),
      ];
    },
  ),
  check(
    'conntrack-liberal',
    {
      ok: 'conntrack takes flows back from the fast path',
      needs: ['settings'],
      symptom: 'Long connections through a Service break now and then, with a RST.',
      cause:
        '`nf_conntrack_tcp_be_liberal` is 0: conntrack has not seen what the fast path carried, and calls ' +
        'what follows INVALID.',
      cure:
        '`sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1`; the agent sets it, unless somebody ' +
        'sets it back.',
    },
    ({ settings }) =>
      settings.get('net/netfilter/nf_conntrack_tcp_be_liberal') !== '0'
        ? []
        : [
            fail(
              'net.netfilter.nf_conntrack_tcp_be_liberal is 0',
              'conntrack calls packets INVALID that come back from the fast path, and rules drop those',
              '`sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1`, and remove what sets it to 0 from ' +
                '/etc/sysctl.d',
            ),
          ],
  ),
  check(
    'receive-counters',
    {
      ok: "pods' receive counters count what the fast path delivers",
      needs: ['requirements'],
      symptom:
        "cAdvisor's `container_network_receive_…` and `ip -s link` in a pod show much less than arrives.",
      cause: '`bpf_redirect_peer` counts only since Linux 6.7, and 6.1.120 of the 6.1 series.',
      cure: 'A newer kernel. `ripstop stats` and its metrics count in any case.',
    },
    ({ requirements: { kernelRelease } }) =>
      countsRedirects(kernelRelease)
        ? []
        : [
            warn(
              `Linux ${kernelRelease} does not count what the fast path delivers to pods`,
              'bpf_redirect_peer counts only since Linux 6.7, and 6.1.120',
              "use Linux 6.7 or later, or 6.1.120; ripstop's own metrics count in any case",
            ),
          ],
  ),
];

function countsRedirects(release: string): boolean {
  const [major = 0, minor = 0, patch = 0] = release.split(/[.-]/).map((part) => Number.parseInt(part, 10));
  return major > 6 || (major === 6 && minor >= 7) || (major === 6 && minor === 1 && patch >= 120);
}

const PLURALS: Readonly<Record<string, string>> = {
  route: 'routes',
  rule: 'routing rules',
  address: 'addresses',
  policy: 'IPsec policies',
};

/** What is on each device, joined. */
function byDevice(strangers: Facts['strangers'], kind: 'program' | 'shaping') {
  const groups = Map.groupBy(
    strangers.filter((one) => one.kind === kind),
    ({ device }) => device,
  );
  return [...groups].map(([device, all]) => ({
    device,
    role: all[0]!.role,
    what: some(all.map(({ what }) => what)),
  }));
}
