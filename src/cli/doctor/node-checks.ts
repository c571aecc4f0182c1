// SPDX-License-Identifier: Apache-2.0
/** Checks of what ripstop stands on: the machine, and its agent. */
import { missingRequirements } from '../../host/requirements.ts';
import { formatCidr } from '../../net/ip.ts';
import { type Check, check, code, fail, type Problem, some, warn } from './check.ts';

const LOGS = '`kubectl -n kube-ripstop logs -l app=ripstop -c ripstop` (boost: `-n kube-ripstop-boost`)';

/** A clock that is further back than the program that runs is wrong. */
const CLOCK_MARGIN_MS = 24 * 3600 * 1000;

export const nodeChecks: readonly Check[] = [
  check(
    'requirements',
    {
      ok: 'kernel, BTF, programs and user are what ripstop needs',
      needs: ['requirements'],
      symptom: 'The agent ends right after its start, and its log has one line with the reason.',
      cause: 'The kernel is older than 6.1 or has no BTF, `nft` is missing, or the agent is not root.',
      cure: 'The line says what to install. Debian 12, Ubuntu 24.04 and later have such a kernel.',
    },
    ({ requirements }) =>
      missingRequirements(requirements).map((line) => {
        const [what, ...cure] = line.split(': ');
        return fail(what!, 'ripstop cannot run without it', cure.join(': ') || what!);
      }),
  ),
  check(
    'privileges',
    {
      ok: 'this process has the capabilities that the agent needs',
      needs: ['privileges'],
      symptom: "`Operation not permitted` in the agent's log; programs are not loaded, settings not made.",
      cause: 'The container lacks a capability, or its runtime mounts `/proc/sys` read-only.',
      cure:
        "Use the manifest's `securityContext`: NET_ADMIN and SYS_ADMIN, AppArmor unconfined, " +
        'and its command, which makes `/proc/sys` writable.',
    },
    ({ privileges: { missing, isSysWritable } }) => [
      ...(missing.length === 0
        ? []
        : [
            fail(
              `this process lacks ${missing.join(' and ')}`,
              'without it the agent can load no programs and write no routes',
              'give the container the capabilities of deploy/ripstop.yml, or run as root',
            ),
          ]),
      ...(isSysWritable
        ? []
        : [
            fail(
              '/proc/sys is read-only here',
              "the agent must set ip_forward, rp_filter and conntrack's settings",
              'use the command of deploy/ripstop.yml, which mounts it writable: `mount -o remount,rw /proc/sys`',
            ),
          ]),
    ],
  ),
  check(
    'clock',
    {
      ok: 'the clock is synchronized',
      needs: ['clock'],
      symptom: 'The API server\'s certificate is "not yet valid" or "expired"; ages in logs are odd.',
      cause: "The node's clock is wrong, or nothing keeps it right.",
      cure: 'Run an NTP client: `timedatectl set-ntp true`, or chrony.',
    },
    ({ clock: { now, builtAt, isSynchronized } }) => {
      const date = new Date(now).toISOString();
      if (now < builtAt - CLOCK_MARGIN_MS)
        return [
          fail(
            `the clock says ${date}, which is before this ripstop was made`,
            'certificates are not valid yet by such a clock, so the API server cannot be reached',
            'set the clock, and keep it right with an NTP client: `timedatectl set-ntp true`',
          ),
        ];
      if (isSynchronized) return [];
      return [
        warn(
          `nothing keeps the clock right; it says ${date}`,
          'the kernel has not been told by an NTP client that its clock is synchronized',
          'run an NTP client: `timedatectl set-ntp true`. A virtual machine may get its time from its host: ' +
            'then ignore this',
        ),
      ];
    },
  ),
  check(
    'bpffs',
    {
      ok: 'there is a BPF file system for the pins',
      needs: ['pins'],
      symptom: 'Traffic falls back to the kernel path when the agent stops; the agent says it cannot pin.',
      cause: 'No BPF file system is mounted where `--bpffs` says, so nothing can be pinned.',
      cure: '`mount -t bpf bpf /sys/fs/bpf`, or `--bpffs` with the path of one.',
    },
    ({ pins: { bpffs, isMounted } }) =>
      isMounted
        ? []
        : [
            fail(
              `there is no BPF file system at ${bpffs}`,
              'nothing can be pinned there, and programs end with the process that has loaded them',
              code(`mount -t bpf bpf ${bpffs}`),
            ),
          ],
  ),
  check(
    'versions',
    {
      ok: 'the pinned maps are of this version',
      needs: ['pins'],
      symptom: 'Commands refuse: "the pinned maps have layout …"; after a downgrade no pod can be added.',
      cause: 'The programs and maps on this node were pinned by another version of ripstop.',
      cure:
        "Use the `ripstop` of the agent's own container. To go back to an older version, run " +
        '`ripstop uninstall --restore-flannel` first.',
    },
    ({ pins: { layout, ownLayout } }) =>
      layout === undefined || layout === ownLayout
        ? []
        : [
            fail(
              `the pinned maps have layout ${layout}, and this ripstop reads layout ${ownLayout}`,
              'another version of ripstop has pinned them',
              "run the ripstop of the agent's container, or remove them with `ripstop uninstall --restore-flannel`",
            ),
          ],
  ),
];

/** What the agent says when its Node has no podCIDR (cluster/own-lease.ts). */
const NO_POD_CIDR = /^node \S+ has no (IPv[46] )?podCIDR: /;

export const agentChecks: readonly Check[] = [
  check(
    'agent',
    {
      ok: 'the agent runs and is ready',
      needs: ['agent'],
      symptom: 'Pods stay in `ContainerCreating`; new nodes and pods are not reached on the fast path.',
      cause: 'The agent does not run, or is not ready; the reason is in its status and its log.',
      cure: `See ${LOGS}. Pods that run go on talking meanwhile: the pinned programs forward without it.`,
    },
    ({ agent: { runDir, status } }) => {
      if (!status)
        return [
          fail(
            `no agent answers in ${runDir}`,
            'it does not run on this node, has another --run-dir, or takes more than 2 s to answer; pods ' +
              'cannot be added without it',
            `start it; its log says why it ended: ${LOGS}`,
          ),
        ];
      if (status.ready || NO_POD_CIDR.test(status.notReady ?? '')) return [];
      return [
        fail('the agent is not ready', status.notReady ?? 'it does not say why', `see its log: ${LOGS}`),
      ];
    },
  ),
  check(
    'pod-cidr',
    {
      ok: 'this node has a podCIDR',
      needs: ['agent'],
      symptom: 'The agent, or flannel, never becomes ready on one node or on all; `subnet.env` is missing.',
      cause:
        'The Node has no `spec.podCIDR`: kube-controller-manager runs without `--allocate-node-cidrs`, or has no ' +
        'podCIDR left to give.',
      cure:
        'Run kube-controller-manager with `--allocate-node-cidrs=true --cluster-cidr=NETWORK`, as ' +
        '`kubeadm init --pod-network-cidr=NETWORK` sets it up; NETWORK is that of net-conf.json.',
    },
    ({ agent: { status } }) => {
      const [what = '', ...rest] = (status?.notReady ?? '').split(': ');
      if (!NO_POD_CIDR.test(status?.notReady ?? '')) return [];
      return [fail(what, 'nothing can give addresses to its pods', rest.join(': '))];
    },
  ),
  check(
    'api-server',
    {
      ok: 'the agent follows the API server',
      needs: ['agent'],
      symptom: 'New nodes are not reached; nodes that are gone stay in `ripstop peers`.',
      cause: 'The agent has no connection to the API server, or runs on what it knew before its start.',
      cure:
        'The error says what is wrong: the address, the certificate, the token or a firewall. ' +
        'The agent tries again by itself.',
    },
    ({ agent: { status } }) => {
      if (!status) return { skipped: 'no agent runs' };
      const { connected, lastError, lastKnownAgeMs } = status.api;
      if (!connected)
        return [
          fail(
            'the agent is not connected to the API server',
            lastError ?? 'it has not connected yet',
            "see whether this node reaches the API server, and whether the agent's kubeconfig or service " +
              'account is right',
          ),
        ];
      if (lastKnownAgeMs === undefined) return [];
      return [
        warn(
          `the agent runs on the last-known state, ${Math.round(lastKnownAgeMs / 1000)} s old`,
          'the API server has not told of all nodes since its start',
          'see whether the API server answers; nothing is lost meanwhile but news',
        ),
      ];
    },
  ),
  check(
    'alarms',
    {
      ok: 'no node and no file contradicts another',
      needs: ['agent'],
      symptom: "One node's pods are not reached, while all others are.",
      cause:
        'Two nodes claim one podCIDR, VTEP address or MAC; an annotation is malformed; a podCIDR lies outside the ' +
        "network of net-conf.json; a file of the agent's is damaged.",
      cure: 'The alarm says which node or file. `ripstop status`, the metrics and Events on the Node have it too.',
    },
    ({ agent: { status } }) => {
      if (!status) return { skipped: 'no agent runs' };
      return status.alarms.map(({ node, kind, reason }) =>
        fail(`alarm ${kind} about ${node}`, reason, cureOfAlarm(kind, node)),
      );
    },
  ),
  check(
    'targets',
    {
      ok: 'the node is as the agent wants it',
      needs: ['agent'],
      symptom: '`ripstop status` has lines with ERROR.',
      cause: 'The kernel or a program refused something that the agent tries to set; it tries again.',
      cure: "The reason is the kernel's own. Mend what it says; the agent goes on by itself.",
    },
    ({ agent: { status } }) => {
      if (!status) return { skipped: 'no agent runs' };
      return status.targets.flatMap(({ name, failures }): Problem[] => {
        const [first] = failures;
        if (!first) return [];
        const keys = some(failures.map(({ key }) => key));
        return [fail(`${name}: ${keys}`, first.why, `see the agent's log: ${LOGS}`)];
      });
    },
  ),
  check(
    'subnet-env',
    {
      ok: 'subnet.env is there and agrees with the node',
      needs: ['subnetEnv', 'agent'],
      symptom: 'Pods fail with `open /run/flannel/subnet.env: no such file or directory`.',
      cause:
        'The file is written last, once the network stands. It is missing because something before it ' +
        'failed: mostly a ' +
        'missing podCIDR or an API server that does not answer.',
      cure:
        'Do not write the file yourself. `ripstop doctor agent pod-cidr api-server` names what failed ' +
        'first; of flannel, ' +
        '`kubectl -n kube-flannel logs -l app=flannel` does.',
    },
    ({ subnetEnv: { path, content, malformed }, agent: { status } }) => {
      const writer = status?.mode === 'boost' ? 'flanneld' : 'the agent';
      if (malformed !== undefined)
        return [
          fail(
            `${path} is malformed`,
            `${malformed}; somebody else has written it`,
            `restart ${writer}, which writes it again`,
          ),
        ];
      if (!content) {
        const why =
          status?.notReady ?? (status ? `${writer} has not written it` : `no agent runs to write it`);
        return [
          fail(
            `${path} does not exist`,
            `${writer} writes it once the network stands: ${why}`,
            'mend that; the file comes by itself. Other places for it: --subnet-file',
          ),
        ];
      }
      const differing = (status?.families ?? []).filter(
        ({ podCidr }) => !content.networks.some((one) => formatCidr(one.podCidr) === podCidr),
      );
      return differing.map(({ podCidr }) =>
        fail(
          `${path} is for another podCIDR than this node's ${podCidr}`,
          `it has ${content.networks.map((one) => formatCidr(one.podCidr)).join(' and ')}: ` +
            'the node has got another podCIDR, or the file is from before',
          `restart ${writer}; then restart pods that have addresses of the old one`,
        ),
      );
    },
  ),
  check(
    'leases',
    {
      ok: 'there are addresses for new pods, and none has leaked',
      needs: ['leases'],
      symptom: 'Pods fail with `no IP addresses available in range set`, although few pods run.',
      cause:
        'Pods ended while nobody could be told (a runtime that was killed, a reboot): their addresses stay ' +
        'leased in ' +
        "host-local's store.",
      cure:
        'In mode cni a running agent sweeps them. Elsewhere remove the files that doctor names, each of ' +
        'which is an ' +
        'address that no pod has. If all are in use, the node needs a larger podCIDR, or fewer pods (`--max-pods`).',
    },
    ({ leases: { dir, used, size, leaked } }) => [
      ...(leaked.length === 0
        ? []
        : [
            warn(
              `${leaked.length} addresses are leased and no pod has them: ${some(leaked.map((file) => file.slice(dir.length + 1)))}`,
              'their pods are gone, and no DEL came for them',
              code(`rm ${leaked.join(' ')}`),
            ),
          ]),
      ...(used - leaked.length < size * 0.95
        ? []
        : [
            fail(
              `${used} of ${size} addresses are leased`,
              'the podCIDR is nearly used up by pods that run',
              'let the kubelet start fewer pods (--max-pods), or give nodes larger podCIDRs (--node-cidr-mask-size)',
            ),
          ]),
    ],
  ),
];

const ALARM_CURES: Readonly<Record<string, string>> = {
  net_conf: 'make net-conf.json of the agent agree with what flannel runs with, and restart the agent',
  malformed_file: 'do what the reason says; the file is left alone until then',
  doubtful_pod: "find the pod that sends from another's address; it stays on the kernel path meanwhile",
  podcidr_outside: "make net-conf.json's Network agree with kube-controller-manager's --cluster-cidr",
};

function cureOfAlarm(kind: string, node: string): string {
  return (
    ALARM_CURES[kind] ?? `${code(`kubectl describe node ${node}`)}, and mend its annotations or its podCIDR`
  );
}
