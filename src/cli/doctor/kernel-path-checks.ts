// SPDX-License-Identifier: Apache-2.0
/** Checks of the kernel path: what flannel's users suffer from, on this node. */
import { encapBytes } from '../../dataplane/desired.ts';
import {
  addressAt,
  canonicalAddress,
  cidrCovers,
  type Family,
  formatCidr,
  hostCidr,
  parseMaskedCidr,
} from '../../net/ip.ts';
import { type Check, check, code, endpointName, fail, type Problem, some, warn } from './check.ts';
import type { Facts, PeerFacts } from './facts.ts';

const restart = ({ mode }: Facts['node']): string =>
  mode === 'boost'
    ? 'restart flannel: `kubectl -n kube-flannel rollout restart daemonset kube-flannel-ds` (k3s: ' +
      '`systemctl restart k3s`)'
    : 'start the agent: it puts this right by itself, within a second';

export const deviceChecks: readonly Check[] = [
  check(
    'uplink',
    {
      ok: 'the uplink is there, and peers are reached over it',
      needs: ['node', 'links', 'peers'],
      symptom:
        'Pods of other nodes are not reached, although the nodes are; often on hosts with several NICs.',
      cause:
        "The tunnel leaves by an interface that does not lead to the other nodes (Vagrant's NAT interface, " +
        'a second NIC), ' +
        'or that interface is down or gone.',
      cure:
        'Choose it: `--iface`, `--iface-regex` or `--iface-can-reach` of the agent (of flanneld in boost mode). ' +
        '`ripstop status` says in the line `uplink` which one it is, and why.',
    },
    ({ node, links, peers }) => {
      const { uplink, families } = node;
      const whose = node.mode === 'boost' ? ' of flanneld' : '';
      const choose =
        `set --iface${whose} to the interface that leads to the other nodes, ` +
        'or --iface-can-reach to the address of one';
      if (uplink === undefined)
        return [
          fail(
            'the uplink is gone',
            'the interface that the programs know does not exist any more',
            `create it again, or ${choose}`,
          ),
        ];
      const problems: Problem[] = [];
      if (links.get(uplink)?.running === false)
        problems.push(
          fail(
            `the uplink ${uplink} is down`,
            'it is off, or has no carrier',
            `${code(`ip link set ${uplink} up`)}; see its cable or its switch`,
          ),
        );
      for (const { vtep } of families) {
        const lower = vtep && links.get(vtep.device)?.vxlan?.uplink;
        if (lower !== undefined && lower !== uplink)
          problems.push(
            fail(
              `${vtep!.device} sends over ${lower}, and the programs over ${uplink}`,
              'somebody made the device anew for another interface',
              restart(node),
            ),
          );
      }
      const astray = peers.filter(({ reason }) => reason === 'other_interface');
      if (astray.length > peers.length / 2)
        problems.push(
          fail(
            `most peers are not reached over ${uplink}: ${some(astray.map(nameOf))}`,
            astray[0]!.why ?? 'their routes lead over another interface',
            choose,
          ),
        );
      return problems;
    },
  ),
  check(
    'node-address',
    {
      ok: 'this node has the address that its peers send to',
      needs: ['node', 'links'],
      symptom: "After a DHCP lease or a move to another network no other node reaches this one's pods.",
      cause:
        "The node's address has changed, and the tunnel, or what the Node publishes, still has the old one.",
      cure:
        'Give the node its address back, or restart the agent (flanneld in boost mode), which publishes ' +
        'the new one.',
    },
    ({ node, links }) =>
      node.families.flatMap(({ vtepIp, vtep }) => {
        const local = vtep && links.get(vtep.device)?.vxlan?.local;
        const isHere = [...links.values()].some(({ addresses }) =>
          addresses.some(({ ip }) => ip === canonicalAddress(vtepIp)),
        );
        if (!isHere)
          return [
            fail(
              `no interface has ${vtepIp}, to which peers send`,
              "the node's address has changed since",
              `${code(`ip address add ${vtepIp}/LENGTH dev ${node.uplink ?? 'UPLINK'}`)}, or let the node have another: ${restart(node)}`,
            ),
          ];
        if (local !== undefined && local !== canonicalAddress(vtepIp))
          return [
            fail(
              `${vtep!.device} sends from ${local}, and peers expect ${vtepIp}`,
              'peers drop VXLAN from addresses that no node publishes',
              restart(node),
            ),
          ];
        return [];
      }),
  ),
  check(
    'vtep-device',
    {
      ok: 'the VXLAN device is as the cluster knows it',
      needs: ['node', 'links'],
      symptom: 'All tunnels of a node stop at once.',
      cause:
        'Something deleted the device, created it again without its peers, or changed it: a network ' +
        'manager, a second ' +
        'flannel, a script.',
      cure:
        'The agent makes it again within a second, peers included. In boost mode restart flannel, which ' +
        'does not notice. ' +
        'Tell NetworkManager and systemd-networkd to leave `flannel*` alone.',
    },
    ({ node, links }) => {
      const { tunnel } = node;
      if (!tunnel) return { skipped: 'the backend has no tunnels' };
      return node.families.flatMap(({ vtep, podCidr }) => {
        if (!vtep) return [];
        const link = links.get(vtep.device);
        if (!link?.vxlan) return [fail(`there is no ${vtep.device}`, 'something deleted it', restart(node))];
        const address = hostCidr(podCidr.base);
        const odd = [
          ...(link.up ? [] : ['it is down']),
          ...(link.vxlan.vni === tunnel.vni ? [] : [`it has VNI ${link.vxlan.vni}, not ${tunnel.vni}`]),
          ...(link.vxlan.port === tunnel.port ? [] : [`it has port ${link.vxlan.port}, not ${tunnel.port}`]),
          ...(link.vxlan.learning ? ['it learns addresses from packets'] : []),
          ...(link.addresses.some(({ ip, length }) => `${ip}/${length}` === address)
            ? []
            : [`it lacks its address ${address}`]),
        ];
        return odd.length === 0
          ? []
          : [
              fail(
                `${vtep.device}: ${odd.join(', ')}`,
                'something changed it, or made it anew',
                restart(node),
              ),
            ];
      });
    },
  ),
  check(
    'vtep-mac',
    {
      ok: 'the VXLAN device has the MAC that peers send to',
      needs: ['node', 'links'],
      symptom:
        'Packets leave other nodes, arrive here (tcpdump shows VXLAN), and reach no pod. Often after a reboot.',
      cause:
        'systemd-networkd or udev gave the device another MAC after the Node had published the first ' +
        '(MACAddressPolicy=persistent).',
      cure:
        'The agent sets the MAC back by itself. To keep others from changing it: ' +
        "`printf '[Match]\\nOriginalName=flannel*\\n\\n[Link]\\nMACAddressPolicy=none\\n' > /etc/systemd/network/10-flannel.link`.",
    },
    ({ node, links }) =>
      node.families.flatMap(({ vtep }) => {
        const mac = vtep && links.get(vtep.device)?.mac;
        if (!vtep || mac === undefined || mac === vtep.mac) return [];
        return [
          fail(
            `${vtep.device} has the MAC ${mac}, and peers send to ${vtep.mac}`,
            'somebody changed it after it was published, as systemd-networkd does with MACAddressPolicy=persistent',
            `${code(`ip link set ${vtep.device} address ${vtep.mac}`)}; and a .link file for flannel* with MACAddressPolicy=none keeps it`,
          ),
        ];
      }),
  ),
  check(
    'vxlan-port',
    {
      ok: 'nobody else has the VXLAN port',
      needs: ['portHolder'],
      symptom: 'The VXLAN device cannot be set up: `Address already in use`.',
      cause:
        'Another VXLAN device or a program has the UDP port, often one that an earlier network left behind.',
      cure:
        'Remove the device or stop the program that doctor names, or give `Port` in net-conf.json ' +
        'another value on all nodes.',
    },
    ({ portHolder: { port, holder } }) => {
      if (holder === undefined) return [];
      const [what = '', ...cure] = holder.split('; ');
      // Nobody: the device is only missing or down, which is another check's.
      if (what.startsWith('another tunnel')) return [];
      return [
        fail(
          `UDP port ${port} is taken: ${what}`,
          'no VXLAN device of ours can have it meanwhile',
          cure.join('; '),
        ),
      ];
    },
  ),
  check(
    'peer-entries',
    {
      ok: 'routes, neighbours and FDB are what the API says of the peers',
      needs: ['node', 'peers', 'entries', 'agent'],
      symptom:
        "Some nodes' pods are reached and others' are not; after a node went, its podCIDR leads nowhere.",
      cause:
        'Entries are missing, because the device was made anew or somebody flushed them; or they are left ' +
        'over from nodes ' +
        'that went while nobody watched.',
      cure:
        'A running agent puts them right within a second. In boost mode restart flannel; delete what is ' +
        'left over by hand.',
    },
    ({ node, peers, entries, agent }) => {
      const lacks = lacking(node, entries);
      const missing = peers.filter((peer) => peer.key !== undefined && lacks(peer).length > 0);
      const problems: Problem[] = [];
      if (missing.length > 0) {
        const [first] = missing;
        problems.push(
          fail(
            `the kernel lacks entries for ${some(missing.map(nameOf))}`,
            `of ${nameOf(first!)}: ${lacks(first!).join(', ')}; somebody removed them, or made the device anew`,
            restart(node),
          ),
        );
      }
      const isComplete = agent.status === undefined || agent.status.api.synced;
      return isComplete ? [...problems, ...staleEntries(node, peers, entries)] : problems;
    },
  ),
  check(
    'bridge-address',
    {
      ok: "the pods' bridge has the gateway's address",
      needs: ['node', 'links'],
      symptom: 'Pods fail with `"cni0" already has an IP address different from …`.',
      cause: 'The node got another podCIDR, and the bridge still has the gateway of the old one.',
      cure: 'Drain the node, `ip link delete cni0`, and let its pods come back: the bridge plugin makes it again.',
    },
    ({ node, links }) => {
      const bridge = links.get('cni0');
      if (bridge?.kind !== 'bridge') return [];
      return node.families.flatMap(({ family, podCidr }) => {
        const gateway = canonicalAddress(addressAt(podCidr, 1));
        const own = bridge.addresses.filter((one) => one.family === family && one.scope !== 'link');
        if (own.length === 0 || own.some(({ ip }) => ip === gateway)) return [];
        const state = node.mode === 'boost' ? fail : warn;
        return [
          state(
            `cni0 has ${own.map(({ ip, length }) => `${ip}/${length}`).join(', ')}, and this node's gateway is ${gateway}/${podCidr.length}`,
            "the bridge is from an earlier podCIDR; flannel's plugin refuses to add pods to it",
            'drain the node, then: `ip link delete cni0`',
          ),
        ];
      });
    },
  ),
  check(
    'mtu',
    {
      ok: 'MTUs of devices, pods and subnet.env fit each other',
      needs: ['node', 'links', 'endpoints', 'subnetEnv'],
      symptom: 'Small answers arrive, large ones hang: TLS handshakes, image pulls, `kubectl logs`.',
      cause:
        'A device or a pod has a larger MTU than fits the uplink once it is encapsulated (50 bytes, over IPv6 70).',
      cure:
        "The uplink's MTU must be the same on all nodes. Pods take a new MTU when they are created: " +
        'restart those that doctor names.',
    },
    ({ node, links, endpoints, subnetEnv: { path, content } }) => {
      const uplink = links.get(node.uplink ?? '');
      if (!uplink) return { skipped: 'there is no uplink' };
      const problems: Problem[] = [];
      // In a dual-stack cluster a pod's route over IPv6 may have a smaller MTU than its interface.
      const fits = Math.max(
        ...node.families.map(({ family, vtep }) => {
          const device = vtep && links.get(vtep.device);
          const most = uplink.mtu - (node.tunnel ? encapBytes[family] : 0);
          if (device && device.mtu > most)
            problems.push(
              fail(
                `${device.name} has MTU ${device.mtu}, and ${uplink.name} takes only ${most} bytes in a tunnel`,
                `${uplink.name} has MTU ${uplink.mtu}`,
                code(`ip link set ${device.name} mtu ${most}`),
              ),
            );
          return Math.min(most, device?.mtu ?? most);
        }),
      );
      const large = endpoints.filter(({ mtu }) => mtu > fits);
      if (large.length > 0)
        problems.push(
          warn(
            `pods have a larger MTU than the ${fits} bytes that fit: ${some(large.map(endpointName))}`,
            'their interfaces were made when the MTU was larger; they rely on ICMP to send less',
            'restart these pods',
          ),
        );
      if (content && content.mtu > fits)
        problems.push(
          fail(
            `${path} tells plugins an MTU of ${content.mtu}, and ${fits} fits`,
            'new pods would get too large an MTU',
            restart(node),
          ),
        );
      return problems;
    },
  ),
];

export const rulesChecks: readonly Check[] = [
  check(
    'forwarding',
    {
      ok: 'the kernel forwards packets',
      needs: ['node', 'settings'],
      symptom: 'Pods reach their own node and nothing else.',
      cause: '`ip_forward` is off: a hardening script or `sysctl --system` set it back.',
      cure: '`sysctl -w net.ipv4.ip_forward=1`, and remove the line that sets 0 from /etc/sysctl.d.',
    },
    ({ node, settings }) =>
      node.families.flatMap(({ family }) => {
        const [path, name] = FORWARDING[family];
        if (settings.get(path) !== '0') return [];
        return [
          fail(
            `${name} is 0`,
            'the kernel does not forward packets of pods',
            `${code(`sysctl -w ${name}=1`)}, and remove what sets it to 0 from /etc/sysctl.d`,
          ),
        ];
      }),
  ),
  check(
    'rp-filter',
    {
      ok: "rp_filter lets peers' packets in",
      needs: ['node', 'settings', 'links'],
      symptom: 'Packets of some peers arrive on flannel.1 and vanish; `nstat` counts `IPReversePathFilter`.',
      cause:
        'Strict reverse-path filtering on flannel.1, where answers take another way: DirectRouting, or a second leg.',
      cure:
        "`sysctl -w net.ipv4.conf.flannel/1.rp_filter=2` (in sysctl's names `/` stands for the dot in " +
        'flannel.1).',
    },
    ({ node, settings, links }) =>
      node.families.flatMap(({ family, vtep }) => {
        if (family !== 4 || !vtep || !links.has(vtep.device)) return [];
        const values = ['all', vtep.device].map((name) =>
          Number(settings.get(`net/ipv4/conf/${name}/rp_filter`) ?? 0),
        );
        if (Math.max(...values) !== 1) return [];
        const state = node.isDirect ? fail : warn;
        return [
          state(
            `${vtep.device} filters strictly (rp_filter 1)`,
            'packets of peers whose answers leave by another device are dropped',
            code(`sysctl -w net.ipv4.conf.${vtep.device.replace('.', '/')}.rp_filter=2`),
          ),
        ];
      }),
  ),
  check(
    'forward-policy',
    {
      ok: "no forward chain drops the pods' packets",
      needs: ['node', 'forward'],
      symptom:
        'Pods of other nodes are not reached, or only while a flow is on the fast path; Docker or firewalld ' +
        'was installed.',
      cause:
        "A base chain at the forward hook drops what it does not accept (Docker's FORWARD policy, " +
        'firewalld). With nftables a ' +
        'packet must pass every base chain: the accept in another table does not help.',
      cure:
        'Accept the cluster network there, both ways: `iptables -I FORWARD -s NETWORK -j ACCEPT` and ' +
        '`iptables -I FORWARD -d NETWORK -j ACCEPT`.',
    },
    ({ node, forward }) =>
      forward.flatMap(({ name, accepts }) =>
        node.families
          .filter(({ family }) => concerns(name, family))
          .filter(({ network }) => !accepts.some((one) => cidrCovers(parseMaskedCidr(one), network)))
          .map(({ network }) =>
            fail(
              `${name} drops packets of pods: it does not accept ${formatCidr(network)}`,
              'with its policy or its last rule it drops what it does not accept, and every base chain ' +
                'decides on its own',
              acceptIn(name, formatCidr(network)),
            ),
          ),
      ),
  ),
  check(
    'bridge-netfilter',
    {
      ok: "packets across the pods' bridge meet the node's rules",
      needs: ['node', 'links', 'settings'],
      symptom:
        'A pod reaches a Service unless its backend is on the same node; DNS works for some pods only.',
      cause:
        'Packets between ports of cni0 pass by iptables: `br_netfilter` is not loaded, or ' +
        '`bridge-nf-call-iptables` is 0.',
      cure:
        '`modprobe br_netfilter`, `sysctl -w net.bridge.bridge-nf-call-iptables=1`, and both in ' +
        '/etc/modules-load.d and /etc/sysctl.d.',
    },
    ({ node, links, settings }) => {
      const hasPorts = [...links.values()].some(({ master }) => master === 'cni0');
      if (!hasPorts) return [];
      return node.families.flatMap(({ family }) => {
        const name = `net.bridge.bridge-nf-call-${family === 4 ? 'ip' : 'ip6'}tables`;
        const value = settings.get(name.replaceAll('.', '/'));
        if (value === '1') return [];
        if (value === undefined)
          return [
            fail(
              'br_netfilter is not loaded',
              'packets across cni0 pass by the rules for Services and policies',
              code(`modprobe br_netfilter && sysctl -w ${name}=1`),
            ),
          ];
        return [
          fail(
            `${name} is ${value}`,
            'packets across cni0 pass by the rules for Services and policies',
            code(`sysctl -w ${name}=1`),
          ),
        ];
      });
    },
  ),
  check(
    'owners',
    {
      ok: "one program alone owns the node's network",
      needs: ['node', 'owners'],
      symptom: 'Rules, routes or flannel.1 change every few seconds; the xtables lock is always busy.',
      cause: 'flanneld runs beside ripstop in mode `cni`: both own flannel.1, its peers and its rules.',
      cure:
        'Stop flanneld (`kubectl -n kube-flannel delete daemonset kube-flannel-ds`), or run ripstop ' +
        'with `--mode boost`, beside it.',
    },
    ({ node, owners: { flannels, flannelRules } }) => {
      if (node.mode === 'boost') return [];
      // A k3s may run without its flannel.
      if (flannels.includes('flanneld'))
        return [
          fail(
            'flanneld runs beside ripstop in mode cni',
            'both write flannel.1, its peers and their rules, each against the other',
            'stop flanneld: `kubectl -n kube-flannel delete daemonset kube-flannel-ds`; or run ripstop with ' +
              '--mode boost',
          ),
        ];
      if (flannelRules.length === 0) return [];
      return [
        warn(
          `rules of a flannel are here: ${some(flannelRules)}`,
          'they are left over, or a flannel that cannot be seen from here (in a container, in k3s) writes them again',
          'see whether a flannel runs (k3s: `--flannel-backend=none`); the agent removes what is left over, ' +
            "unless a rule after it would drop pods' packets",
        ),
      ];
    },
  ),
  check(
    'iptables-backends',
    {
      ok: 'only one backend of iptables has rules',
      needs: ['owners'],
      symptom: 'A rule is there, and has no effect; what `iptables -S` shows is not all.',
      cause: 'One program writes iptables-legacy and another iptables-nft; the kernel applies both.',
      cure:
        'Let all programs use one: `update-alternatives --set iptables /usr/sbin/iptables-nft`, then ' +
        "reboot, or flush the other one's tables.",
    },
    ({ owners: { legacyTables, nftTables } }) =>
      legacyTables.length === 0 || nftTables.length === 0
        ? []
        : [
            warn(
              `both backends of iptables have rules: ${some(legacyTables)}; ${some(nftTables)}`,
              'each program sees its own backend only, and the kernel applies both',
              'let all use iptables-nft (`update-alternatives --set iptables /usr/sbin/iptables-nft`), and ' +
                'flush each table of the other: `iptables-legacy -F`',
            ),
          ],
  ),
  check(
    'other-networks',
    {
      ok: 'no other network plugin has left chains or devices',
      needs: ['owners', 'links'],
      symptom:
        'Pods lose packets for no reason that ripstop or flannel knows, after a change of the network plugin.',
      cause:
        'Chains, devices or programs of Calico, Cilium, Weave, Antrea or OVN are still there, and drop or redirect.',
      cure:
        "Remove them by that plugin's own instructions; the surest way is to reboot the node once the " +
        'plugin is gone.',
    },
    ({ owners: { otherChains }, links }) => {
      const devices = [...links.keys()].filter((name) => OTHER_DEVICES.test(name));
      const found = [...devices, ...otherChains];
      if (found.length === 0) return [];
      return [
        warn(
          `another network plugin was here: ${some(found)}`,
          'what it left may drop or redirect packets',
          'remove it by its own instructions, or reboot the node',
        ),
      ];
    },
  ),
];

const FORWARDING = {
  4: ['net/ipv4/ip_forward', 'net.ipv4.ip_forward'],
  6: ['net/ipv6/conf/all/forwarding', 'net.ipv6.conf.all.forwarding'],
} as const satisfies Record<Family, readonly [string, string]>;

/** Devices that other network plugins make. */
const OTHER_DEVICES =
  /^(cilium_(host|net|vxlan)|vxlan(-v6)?\.calico|weave|vethwe-|antrea-gw|ovn-k8s-mp|kube-bridge)/;

function nameOf({ node, vtepIp }: Pick<PeerFacts, 'node' | 'vtepIp'>): string {
  return node ?? vtepIp;
}

/** Tells what the kernel lacks to reach a peer, in words. There may be thousands, so entries are found by their keys. */
function lacking(
  { families, tunnel, uplink }: Facts['node'],
  { routes, neighbours, fdb }: Facts['entries'],
): (peer: PeerFacts) => string[] {
  const routeTo = new Map(routes.map((route) => [route.dst, route]));
  const macOf = new Map(neighbours.map(({ address, mac }) => [address, mac]));
  const behind = new Set(fdb.map(({ mac, dst }) => `${mac} ${dst}`));
  return ({ podCidr, vtepIp, vtepMac, isDirect }) => {
    const dst = formatCidr(podCidr);
    const { vtep } = families.find(({ family }) => family === podCidr.family) ?? {};
    const route = routeTo.get(dst);
    if (!tunnel || !vtep || isDirect) return route ? [] : [`no route to ${dst} over ${uplink}`];
    // DirectRouting of flannel itself, which the maps need not know.
    if (route && route.device !== vtep.device) return [];
    return [
      ...(route ? [] : [`no route to ${dst} over ${vtep.device}`]),
      ...(macOf.get(podCidr.base) === vtepMac ? [] : [`no neighbour ${podCidr.base} with ${vtepMac}`]),
      ...(behind.has(`${vtepMac} ${vtepIp}`) ? [] : [`no FDB entry of ${vtepMac} to ${vtepIp}`]),
    ];
  };
}

const COMMANDS_SHOWN = 6;

/** Entries of VTEP devices that lead to no peer, with the commands that delete them. */
function staleEntries(
  { mode }: Facts['node'],
  peers: readonly PeerFacts[],
  { routes, neighbours, fdb }: Facts['entries'],
): Problem[] {
  const podCidrs = new Set(peers.map(({ podCidr }) => formatCidr(podCidr)));
  const bases = new Set(peers.map(({ podCidr }) => podCidr.base));
  const macs = new Set(peers.map(({ vtepMac }) => vtepMac));
  const isVtep = (device: string): boolean => device.startsWith('flannel');
  const stale = [
    ...routes
      .filter(({ dst, device }) => isVtep(device) && !podCidrs.has(dst))
      .map(({ dst, device }) => [`route ${dst}`, `ip route delete ${dst} dev ${device}`]),
    ...neighbours
      .filter(({ address }) => !bases.has(address))
      .map(({ address, device }) => [`neighbour ${address}`, `ip neigh delete ${address} dev ${device}`]),
    ...fdb
      .filter(({ mac }) => !macs.has(mac))
      .map(({ mac, dst, device }) => [
        `FDB entry ${mac}`,
        `bridge fdb delete ${mac} dev ${device} dst ${dst}`,
      ]),
  ];
  if (stale.length === 0) return [];
  const commands = stale.map(([, command]) => command);
  return [
    fail(
      `the kernel has entries for nodes that are none: ${some(stale.map(([what]) => what!))}`,
      mode === 'boost'
        ? 'their nodes went while flannel was down; packets there are lost'
        : 'somebody made them, or their nodes went while no agent ran; packets there are lost',
      `${code(commands.slice(0, COMMANDS_SHOWN).join('; '))}${commands.length > COMMANDS_SHOWN ? ', and the others likewise' : ''}`,
    ),
  ];
}

/** Whether a chain sees packets of a family, by the name that {@link Facts.forward} gives it. */
function concerns(chain: string, family: Family): boolean {
  const isV6 = /^ip6(tables-legacy)? /.test(chain);
  return chain.startsWith('inet ') || isV6 === (family === 6);
}

/** How to accept a network in a chain. */
function acceptIn(chain: string, network: string): string {
  const [family = '', table = '', name = ''] = chain.split(' ');
  const program = { 'iptables-legacy': family, 'ip6tables-legacy': family, ip: 'iptables', ip6: 'ip6tables' }[
    family
  ];
  if (program !== undefined && table === 'filter' && name === 'FORWARD')
    return code(
      `${program} -I FORWARD -s ${network} -j ACCEPT; ${program} -I FORWARD -d ${network} -j ACCEPT`,
    );
  const ip = network.includes(':') ? 'ip6' : 'ip';
  return code(
    `nft insert rule ${chain} ${ip} saddr ${network} accept; nft insert rule ${chain} ${ip} daddr ${network} accept`,
  );
}
