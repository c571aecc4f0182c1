// SPDX-License-Identifier: Apache-2.0
/**
 * Where ripstop may differ from flannel, and why. Each rule is as narrow as its reason; a difference that no rule explains is
 * a bug of one of the two.
 */
import type { Case } from './cases.ts';
import type { Difference } from './compare.ts';
import type { Fields } from './dissect.ts';
import {
  familyOf,
  GATEWAYS,
  inCluster,
  inPodCidr,
  isCable,
  isNode,
  isPod,
  isWide,
  type NodeName,
  nodeNames,
  nodeOf,
  NODES,
  other,
  POD_MTU,
  type PodName,
  PODS,
  podWith,
  TUNNEL_MTU,
  VTEPS,
  WIDE_MTU,
} from './plan.ts';

export interface Context {
  readonly case: Case;
  /** The case's first frame as it was sent in ripstop's lab. */
  readonly sent: Fields;
  /** The same in flannel's lab, where a neighbour has another MAC address. */
  readonly sentWithFlannel: Fields;
  /** Size of the largest IP packet in bytes, including padding. */
  readonly largest: number;
  /** Whether the frames make up datagrams without gaps or overlaps. */
  readonly isWhole: boolean;
  /** Whether pods are on a bridge in both labs. */
  readonly isBoosted: boolean;
}

export interface Rule {
  readonly name: string;
  readonly why: string;
  /** Ten thousand cases need not contain it. */
  readonly rare?: true;
  readonly explains: (difference: Difference, context: Context) => boolean;
}

type Differs = Extract<Difference, { what: 'differs' }>;
type Only = Extract<Difference, { what: 'only flannel' | 'only ripstop' }>;

const VXLAN_PORT = '8472';

const isTunnel = (fields: Fields): boolean => 'vxlan vni' in fields;

const differs =
  (test: (difference: Differs, context: Context) => boolean) =>
  (difference: Difference, context: Context): boolean =>
    difference.what === 'differs' && test(difference, context);
const only =
  (lab: 'flannel' | 'ripstop', test: (difference: Only, context: Context) => boolean) =>
  (difference: Difference, context: Context): boolean =>
    (difference.what === 'only flannel' || difference.what === 'only ripstop') &&
    difference.what === `only ${lab}` &&
    test(difference, context);

/** Type and code of an ICMP message, in a tunnel or not. */
function icmpOf(fields: Fields): string {
  const layer = isTunnel(fields) ? 'inner ' : '';
  return `${fields[`${layer}icmp type`]} ${fields[`${layer}icmp code`]}`;
}

const UNREACHABLE_6 = /^1 /;
const TOO_BIG_6 = '2 0';
const REASSEMBLY_TIMEOUT_6 = '3 1';
const PARAMETER_PROBLEM_6 = /^4 /;

/** An IPv4 address in hexadecimal. */
const hexOf = (ip: string): string =>
  ip
    .split('.')
    .map((byte) => Number(byte).toString(16).padStart(2, '0'))
    .join('');

/** The destination of a case's packets, if both it and the sender are pods of one node. */
function neighbour({ case: { from }, sent }: Context): PodName | undefined {
  const to = podWith(sent['ip dst']);
  return isPod(from) && to && nodeOf(to) === nodeOf(from) ? to : undefined;
}

/** The destination address of a case's inner packet. */
const destination = ({ case: { from }, sent }: Context): string | undefined =>
  sent[isPod(from) ? 'ip dst' : 'inner ip dst'];
/** The source address of a case's inner packet. */
const origin = ({ case: { from }, sent }: Context): string | undefined =>
  sent[isPod(from) ? 'ip src' : 'inner ip src'];
const isNobody = (ip: string | undefined): boolean =>
  nodeNames.some((node) => inPodCidr(node, ip)) && !isNode(ip) && podWith(ip) === undefined;
const isLinkLocal = (ip: string | undefined): boolean => ip?.startsWith('fe80:') ?? false;
const isGateway = (sent: Fields): boolean => sent['eth dst']?.startsWith('the gateway') ?? false;
const gatewayOf = ({ case: { from, family } }: Context): string => GATEWAYS[family][nodeOf(from)];

const spoofs = ({ case: { from, family }, sent }: Context): boolean =>
  isPod(from) && sent['ip src'] !== PODS[family][from];

/** Whether a node would have to forward a case's packets, or what a tunnel carries, between two ends outside the cluster network. */
const isDroppedByPolicy = ({ case: { from }, sent }: Context): boolean =>
  ['', 'inner '].some((layer) => {
    const [src, dst] = [sent[`${layer}ip src`], sent[`${layer}ip dst`]];
    const isForwarded = dst !== undefined && dst !== NODES[familyOf(dst)][nodeOf(from)] && !isLinkLocal(dst);
    return isForwarded && ![src, dst].some(inCluster);
  });

/** Whether a node has forwarded such a packet: an answer to a source address that a pod made up. */
const isForwardedOutside = (fields: Fields): boolean =>
  fields['eth src']?.startsWith('the uplink') === true &&
  ![fields['ip src'], fields['ip dst']].some((ip) => inCluster(ip) || isNode(ip));

/** Whether an IPv6 packet has a fragment header, even one that says there is no other fragment. */
const hasFragmentHeader = (sent: Fields, layer = ''): boolean =>
  `${layer}ip label` in sent && `${layer}ip id` in sent;

/** Size in bytes of the largest IP packet, or of a super-packet's segments. */
function sizeOf({ largest, case: { frames } }: Context): number {
  const gso = frames[0]!.offload?.gso;
  return gso ? gso.size + gso.headers - 14 : largest;
}

/** Whether a packet to the sender's podCIDR exceeds the MTU of flannel's bridge, or of the pod that it is for. */
function isTooBig(context: Context): boolean {
  const { from } = context.case;
  if (!isPod(from) || !inPodCidr(nodeOf(from), context.sent['ip dst'])) return false;
  const to = neighbour(context);
  return sizeOf(context) > (to && to !== from && isWide(to) ? WIDE_MTU : POD_MTU);
}

/** Whether flannel's rules hide the sender of a case's packets behind the node's address. */
const isMasqueraded = (context: Context): boolean =>
  isPod(context.case.from)
    ? !inCluster(context.sent['ip dst']) || spoofs(context)
    : !inPodCidr(nodeOf(context.case.from), destination(context));

/** Whether it is between pods of one node, which ripstop's kernel path routes, and its fast path too; flannel's bridge does not. */
const isRouted = (context: Context): boolean => !context.isBoosted && neighbour(context) !== undefined;

/** Whether this is an ICMP error from this sender, in a tunnel or not: unreachable, time exceeded, parameter problem. */
function isRefusal(fields: Fields, by: string): boolean {
  const types = familyOf(by) === 4 ? /^(3|11|12) / : /^(1|3|4) /;
  return fields[isTunnel(fields) ? 'inner ip src' : 'ip src'] === by && types.test(icmpOf(fields));
}

export const rules: readonly Rule[] = [
  {
    name: 'outer IP id',
    why: 'the sender may choose it: ripstop counts, the kernel hashes',
    explains: differs(({ field, seen }) => field === 'ip id' && isTunnel(seen.fields)),
  },
  {
    name: 'outer source port',
    rare: true,
    why: 'it is a hash of the flow over the local port range, and each lab has its own seed',
    explains: differs(
      ({ field, seen, ...values }) =>
        field === 'udp src' &&
        isTunnel(seen.fields) &&
        [values.flannel, values.ripstop].every((port) => Number(port) >= 32768 && Number(port) <= 60999),
    ),
  },
  {
    name: 'no outer checksum',
    rare: true,
    why: 'RFC 7348 recommends none; over IPv6 it may be left out where the peer accepts that (RFC 6935). The kernel computes one where the device has udpcsum',
    explains: differs(
      ({ field, seen, flannel, ripstop }) =>
        field === 'udp checksum' && isTunnel(seen.fields) && flannel === 'right' && ripstop === 'none',
    ),
  },
  {
    name: 'outer ECN',
    rare: true,
    why: 'RFC 6040 copies CE to the outer header; the kernel follows RFC 3168 and writes ECT(0). The inner CE stays either way',
    explains: differs(
      ({ field, seen, flannel, ripstop }) =>
        field === 'ip ecn' &&
        isTunnel(seen.fields) &&
        flannel === '2' &&
        ripstop === '3' &&
        seen.fields['inner ip ecn'] === '3',
    ),
  },
  {
    name: 'id of an answer',
    why: 'the kernel that answers makes it up, and an error about an answer quotes it',
    explains: differs(
      ({ field, seen, flannel, ripstop }, { case: { tag } }) =>
        seen.isAnswer &&
        (/^(inner )?ip id$/.test(field) ||
          (field.endsWith('quoted ip id') && flannel !== String(tag) && ripstop !== String(tag))),
    ),
  },
  {
    name: 'no bridge',
    why: 'a frame from a pod of the same node comes from the node, not through a bridge',
    explains: differs(({ field, seen: { place, fields }, ripstop }) => {
      const from = podWith(fields['ip src']);
      const isNear = isPod(place) && (from === undefined || nodeOf(from) === nodeOf(place));
      return field === 'eth src' && isNear && ripstop === `the gateway of ${nodeOf(place)}`;
    }),
  },
  {
    name: 'masqueraded port',
    why: '--random-fully: the kernel of each lab draws its own',
    explains: differs(
      ({ field, seen: { place } }, context) =>
        isMasqueraded(context) &&
        // A bridge with netfilter also masquerades what it floods to the pods beside the sender.
        (((isCable(place) || spoofs(context) || nodeOf(place) === nodeOf(context.case.from)) &&
          /^(inner )?(quoted )?(udp src|tcp src|tcp dst|icmp rest)$/.test(field)) ||
          /^(inner )?quoted (udp|tcp|icmp) checksum$/.test(field) ||
          // Only the first fragment's.
          (['', 'inner '].some((layer) => hasFragmentHeader(context.sent, layer)) &&
            /^(udp|tcp|icmp) checksum$/.test(field))),
    ),
  },
  {
    name: 'one hop more',
    why: 'packets between pods of one node are routed; flannel’s bridge forwards them without a hop',
    explains: differs(
      ({ field, flannel, ripstop }, context) =>
        isRouted(context) && /^(quoted )?ip ttl$/.test(field) && Number(flannel) - 1 === Number(ripstop),
    ),
  },
  {
    name: 'refused by a router',
    why: 'between pods of one node, a router answers packets that have no TTL left or bad options; a bridge carries them',
    explains: (difference, context) =>
      isRouted(context) &&
      (Number(context.sent['ip ttl']) <= 1 || 'ip options' in context.sent) &&
      (difference.what === 'only flannel' ||
        (difference.what === 'only ripstop' &&
          difference.seen.isAnswer &&
          isRefusal(difference.seen.fields, gatewayOf(context)))),
  },
  {
    name: 'options of a router',
    why: 'a router records itself in the options that ask for it',
    explains: differs(({ field }, context) => isRouted(context) && /^(quoted )?ip options$/.test(field)),
  },
  {
    name: 'too big for the bridge',
    why: 'a packet over the MTU of the receiver, or of cni0, is fragmented or refused by a router; a bridge drops it or a part of it',
    explains: (difference, context) => {
      if (difference.what === 'refused') return false;
      const { fields, isAnswer } = difference.seen;
      const to = neighbour(context);
      const isTooBigAnswer =
        isAnswer && to !== undefined && isWide(to) && Number(fields['ip length']) > POD_MTU;
      return isTooBig(context) || (difference.what === 'only ripstop' && isTooBigAnswer);
    },
  },
  {
    name: 'cut elsewhere',
    why: 'where conntrack is on the way it reassembles a datagram and fragments it anew: other pieces, another id, and other errors about them',
    explains: differs(
      ({ field, seen: { fields, isAnswer } }, { case: { frames } }) =>
        (field === 'fragments' && fields['ip flags'] !== '2') ||
        (frames.length > 1 && field === 'ip id' && 'ip label' in fields) ||
        (frames.length > 1 && isAnswer && (field.includes('quoted') || /^(inner )?ip length$/.test(field))),
    ),
  },
  {
    name: 'whole on the wire',
    why: 'flannel’s conntrack puts a datagram together before the tunnel, which may cut it anew; the fast path encapsulates each piece, and a router leaves a fragment header on a whole',
    explains: (difference, { case: { frames } }) => {
      if (difference.what !== 'only flannel' && difference.what !== 'only ripstop') return false;
      const { place, isAnswer, fields } = difference.seen;
      const isExpected = difference.what === 'only flannel' || hasFragmentHeader(fields);
      return frames.length > 1 && isCable(place) && !isAnswer && isExpected;
    },
  },
  {
    name: 'fragment too big for the tunnel',
    why: 'an IPv6 router reports it (RFC 8200); on flannel’s bridge conntrack first removes the fragment header, and the rest is fragmented anew',
    explains: (difference, context) => {
      const { sent, largest } = context;
      if (!hasFragmentHeader(sent) || largest <= TUNNEL_MTU[6] || neighbour(context)) return false;
      if (difference.what === 'only flannel') return true;
      if (difference.what !== 'only ripstop') return false;
      const { isAnswer, fields } = difference.seen;
      return isAnswer && icmpOf(fields) === TOO_BIG_6;
    },
  },
  {
    name: 'IPv6 answer too big for the bridge',
    rare: true,
    why: 'an answer from outside to a wide pod meets the MTU of flannel’s bridge; with ripstop it meets that of the pod’s own veth',
    explains: (difference, { case: { from, family } }) => {
      if (difference.what !== 'only flannel' && difference.what !== 'only ripstop') return false;
      const { isAnswer, fields, place } = difference.seen;
      if (family !== 6 || !isPod(from) || !isWide(from) || !isAnswer || inCluster(fields['ip src']))
        return false;
      return difference.what === 'only ripstop'
        ? place === from && Number(fields['ip length']) + 40 > POD_MTU
        : fields['icmp type'] === '2' && parseInt(fields['icmp rest']!, 16) === POD_MTU;
    },
  },
  {
    name: 'outer checksum of zero',
    why: 'RFC 6935 lets a tunnel’s endpoint accept it over IPv6: ripstop’s peers announce that they do, flannel’s device refuses it',
    explains: only(
      'ripstop',
      (_, { case: { from, family }, sent }) =>
        isCable(from) && family === 6 && 'vxlan vni' in sent && sent['udp checksum'] === 'none',
    ),
  },
  {
    name: 'forward policy',
    why: 'the flannel lab has the FORWARD policy DROP, as Docker sets it: packets neither from nor to the cluster network are not routed, so nobody answers them',
    explains: only(
      'ripstop',
      ({ seen }, context) => isDroppedByPolicy(context) || isForwardedOutside(seen.fields),
    ),
  },
  {
    name: 'spoofed source',
    why: 'a pod may send from its own address only',
    explains: only('flannel', (_, context) => spoofs(context)),
  },
  {
    name: 'spoofed IPv6 source',
    rare: true,
    why: 'the kernel path has no reverse path filter for IPv6: the node routes what a pod sends from another’s address, where flannel has a bridge',
    explains: (difference, context) => {
      const {
        isWhole,
        case: { family, from },
      } = context;
      if (family !== 6 || !spoofs(context)) return false;
      if (difference.what === 'differs') {
        const { field, flannel, ripstop, seen } = difference;
        if (neighbour(context) === undefined) return false;
        if (field.endsWith('quoted ip ttl')) return Number(flannel) - 1 === Number(ripstop);
        return field === 'eth src' && flannel === from && ripstop === `the gateway of ${nodeOf(seen.place)}`;
      }
      if (difference.what !== 'only ripstop') return false;
      // An error about fragments goes to the pod whose address was used.
      const { isAnswer, fields } = difference.seen;
      return isAnswer && icmpOf(fields) === REASSEMBLY_TIMEOUT_6 && !isWhole;
    },
  },
  {
    name: 'refused before conntrack',
    rare: true,
    why: 'a router checks hop-by-hop options, and whether the address can be routed, before its conntrack waits for the other fragments; on a bridge conntrack comes first',
    explains: (difference, { isWhole, sent }) => {
      if (difference.what !== 'only flannel' && difference.what !== 'only ripstop') return false;
      const { isAnswer, fields } = difference.seen;
      if (!hasFragmentHeader(sent) || !isAnswer) return false;
      const isOnlyWaitedFor =
        difference.what === 'only flannel' && icmpOf(fields) === REASSEMBLY_TIMEOUT_6 && !isWhole;
      // The error comes with the fragment header or without it, or the packet is dropped without an error.
      if ((sent['ip options'] ?? '').startsWith('next 0 '))
        return PARAMETER_PROBLEM_6.test(icmpOf(fields)) || isOnlyWaitedFor;
      return sent['ip dst'] === '::1' && isOnlyWaitedFor;
    },
  },
  {
    name: 'header before a fragment header',
    rare: true,
    why: 'conntrack takes the fragment header off and leaves the kernel to read what follows as the header before it, a routing header or options (Linux 6.18); where a bridge’s conntrack has done it, the packet is read anew from its beginning',
    explains: (difference, { sent, case: { from } }) => {
      if (difference.what !== 'only flannel' && difference.what !== 'only ripstop') return false;
      const { isAnswer, fields } = difference.seen;
      const isParameterProblem = isAnswer && PARAMETER_PROBLEM_6.test(icmpOf(fields));
      const hasHeader = /^next (43|60) /.test(sent['ip options'] ?? '');
      return isPod(from) && hasFragmentHeader(sent) && hasHeader && isParameterProblem;
    },
  },
  {
    name: 'no length, and no jumbogram',
    rare: true,
    why: 'IPv6 of length zero with hop-by-hop options is a jumbogram, or wrong: a bridge looks which and drops what is none, and a router passes it on',
    explains: only(
      'ripstop',
      (_, { sent, case: { from } }) =>
        isPod(from) && 'ip label' in sent && sent['ip length'] === '0' && sent['ip protocol'] === '0',
    ),
  },
  {
    name: 'an error for each fragment',
    why: 'flannel’s node sends one error about an IPv6 datagram that conntrack has reassembled; a router sends one for each fragment',
    explains: (difference, { case: { family, frames } }) =>
      (difference.what === 'only flannel' || difference.what === 'only ripstop') &&
      family === 6 &&
      frames.length > 1 &&
      difference.seen.isAnswer &&
      UNREACHABLE_6.test(icmpOf(difference.seen.fields)),
  },
  {
    name: 'tunnel’s MTU on one node',
    why: 'ripstop’s kernel path limits IPv6 between pods to what fits the tunnel, as the pods’ own routes do; flannel’s bridge carries 20 bytes more',
    explains: (difference, context) =>
      context.case.family === 6 &&
      isRouted(context) &&
      sizeOf(context) > TUNNEL_MTU[6] &&
      (difference.what === 'only flannel' ||
        (difference.what === 'only ripstop' &&
          difference.seen.isAnswer &&
          difference.seen.fields['icmp type'] === '2' &&
          difference.seen.fields['icmp rest'] === TUNNEL_MTU[6].toString(16).padStart(8, '0'))),
  },
  {
    name: 'subnet-router anycast',
    rare: true,
    why: 'a podCIDR’s first address is also an anycast address of every router on flannel’s bridge (RFC 4291 section 2.6.1): the answer to a ping comes from another address, and TCP gets none',
    explains: (difference, context) =>
      (difference.what === 'only flannel' || difference.what === 'only ripstop') &&
      difference.seen.isAnswer &&
      nodeNames.some((node) => VTEPS[6][node] === destination(context)),
  },
  {
    name: 'multicast ping over the MTU',
    rare: true,
    why: 'flannel’s answer to a wide pod is fragmented to the MTU of the bridge; ripstop’s leaves through the pod’s own veth',
    explains: (difference, { sent, largest, case: { from } }) =>
      difference.what !== 'refused' &&
      isPod(from) &&
      isWide(from) &&
      (sent['ip dst'] ?? '').startsWith('ff0') &&
      largest > TUNNEL_MTU[6] &&
      difference.seen.isAnswer,
  },
  {
    name: 'VXLAN from a pod',
    why: 'ripstop lets only nodes send VXLAN to nodes',
    explains: only('flannel', (_, { case: { from }, sent }) => {
      const layer = isPod(from) ? '' : 'inner ';
      // IPv6's extension headers may hide the port; half a header has it, and so has padding in the place of one.
      const isVxlan =
        sent[`${layer}udp dst`] === VXLAN_PORT ||
        (familyOf(sent['ip dst']) === 6 && 'ip options' in sent) ||
        [sent['padding'], sent[`${layer}payload`]].some(
          (bytes) => parseInt(bytes?.slice(4, 8) ?? '', 16) === Number(VXLAN_PORT),
        );
      return isVxlan && isNode(sent[`${layer}ip dst`]);
    }),
  },
  {
    name: 'VXLAN from a stranger',
    why: 'ripstop accepts VXLAN only from nodes it knows, and from each only what its own pods may have sent',
    explains: only('flannel', (_, { case: { from }, sent }) => {
      if (isPod(from)) return false;
      const peer = other(nodeOf(from));
      return (
        sent['ip src'] !== NODES[familyOf(sent['ip src'])][peer] || !inPodCidr(peer, sent['inner ip src'])
      );
    }),
  },
  {
    name: 'MAC addresses under a checksum',
    why: 'an error about a tunnelled packet quotes its outer checksum, which covers MAC addresses that the labs do not share',
    explains: differs(({ field }, { case: { from } }) => isCable(from) && field === 'quoted udp checksum'),
  },
  {
    name: 'neighbour by way of the gateway',
    rare: true,
    why: 'flannel’s node routes a frame that a pod sends it for another of its pods, with a redirect; for ripstop all packets between pods of one node travel this way, and it counts no hop',
    explains: (difference, context) => {
      const {
        sent,
        sentWithFlannel,
        case: { kind },
      } = context;
      if (kind !== 'frame' || !neighbour(context) || !isGateway(sentWithFlannel)) return false;
      if (difference.what === 'differs')
        return (
          difference.field.endsWith('ip ttl') && Number(difference.ripstop) - 1 === Number(difference.flannel)
        );
      if (difference.what === 'refused') return false;
      const { fields, isAnswer } = difference.seen;
      if (difference.what === 'only flannel') return isAnswer && /^(5|11)$/.test(fields['icmp type'] ?? '');
      return Number(sent['ip ttl']) <= 1;
    },
  },
  {
    name: 'no bridge to carry it',
    why: 'frames to other MAC addresses than the node’s, with VLAN tags, or of other types than IP go nowhere in ripstop; a bridge floods them',
    explains: only(
      'flannel',
      ({ seen: { place } }, { case: { from, kind }, sent }) =>
        kind === 'frame' &&
        isPod(place) &&
        nodeOf(place) === nodeOf(from) &&
        (!isGateway(sent) || sent['eth type'] !== '0x0800' || Number(sent['vlan'] ?? 0) !== 0),
    ),
  },
  {
    name: 'no bridge to keep it',
    rare: true,
    why: 'a bridge does not forward frames to the MAC addresses reserved for bridges (01-80-C2-00-00-0X); a pod’s own veth hands their IPv6 multicast to the node',
    explains: only(
      'ripstop',
      ({ seen: { isAnswer } }, { sent }) =>
        isAnswer && familyOf(sent['ip dst']) === 6 && /^01:80:c2:00:00:0.$/.test(sent['eth dst'] ?? ''),
    ),
  },
  {
    name: 'priority tag',
    rare: true,
    why: 'a bridge carries a tag of VLAN 0 along, past conntrack, so that kube-proxy drops the answer as INVALID; a router removes the tag and reads the packet, and its conntrack reads the fragments',
    explains: (difference, { sent, case: { from } }) =>
      isPod(from) &&
      sent['vlan'] === '0' &&
      (difference.what === 'differs'
        ? /^(vlan|padding|padding length)$/.test(difference.field) && difference.ripstop === undefined
        : difference.what !== 'refused' &&
          (difference.what === 'only flannel' || difference.seen.isAnswer || hasFragmentHeader(sent)) &&
          nodeOf(difference.seen.place) === nodeOf(from)),
  },
  {
    name: 'relayed',
    why: 'a packet that leaves a tunnel for pods of yet another node is refused by that node, since the relaying node’s podCIDR does not have its source',
    explains: only('flannel', (_, context) => {
      const { from } = context.case;
      const dst = destination(context);
      return !isPod(from) && inCluster(dst) && !inPodCidr(nodeOf(from), dst);
    }),
  },
  {
    name: 'nobody there',
    why: 'for an address of a podCIDR that no pod has, or an answer to one: flannel asks by ARP or neighbour discovery; ripstop has an unreachable route, whose errors the kernel limits to one a second and sends before it looks at the TTL or fragments the packet',
    explains: (difference, context) => {
      if (difference.what === 'refused' || ![destination, origin].some((end) => isNobody(end(context))))
        return false;
      if (difference.what === 'differs')
        return difference.seen.isAnswer && difference.field.includes('quoted');
      const { fields, isAnswer } = difference.seen;
      const answers = context.case.family === 4 ? /^(3 1|5 1|11 0|12 0)$/ : /^(1 0|1 3|3 0|4 [012])$/;
      return isAnswer && answers.test(icmpOf(fields));
    },
  },
  {
    name: 'link-local neighbour',
    why: 'a link-local address is looked for on the device that the packet came in by: a bridge with the cluster’s MTU, or a pod’s own veth. ripstop’s VXLAN device has no link-local network',
    explains: (difference, context) =>
      (difference.what === 'only flannel' || difference.what === 'only ripstop') &&
      isLinkLocal(destination(context)) &&
      difference.seen.isAnswer &&
      /^[123] /.test(icmpOf(difference.seen.fields)),
  },
  {
    name: 'reply in fragments',
    rare: true,
    why: 'ripstop’s pods fragment IPv6 to what fits the tunnel, also on one node, and fragments take the kernel path, which is a hop',
    explains: differs(
      ({ field, flannel, ripstop, seen: { isAnswer, fields } }, context) =>
        context.case.family === 6 &&
        neighbour(context) !== undefined &&
        isAnswer &&
        field === 'ip ttl' &&
        Number(flannel) - 1 === Number(ripstop) &&
        'fragments' in fields &&
        Number(fields['ip length']) + 40 > TUNNEL_MTU[6],
    ),
  },
  {
    name: 'redirect',
    rare: true,
    why: 'a node sends a redirect to a pod that sends itself something through the node',
    explains: only(
      'ripstop',
      ({ seen }, context) =>
        neighbour(context) === context.case.from && seen.isAnswer && seen.fields['icmp type'] === '5',
    ),
  },
  {
    name: 'time of day',
    rare: true,
    why: 'each lab fills in a timestamp, asked for by an option or by ICMP, from its own clock',
    explains: differs(
      ({ field, seen: { fields } }, { sent }) =>
        ((sent['ip options'] ?? sent['inner ip options'] ?? '').startsWith('44') &&
          /ip (options|checksum)$/.test(field)) ||
        ((fields['icmp type'] ?? fields['inner icmp type']) === '14' && field.endsWith('icmp payload')),
    ),
  },
  {
    name: 'VTEP address only',
    why: 'a ripstop node takes VXLAN at its VTEP address only, not at a multicast or broadcast address, nor at another one of its own',
    explains: only(
      'flannel',
      (_, { sent, case: { from } }) =>
        !isPod(from) && isTunnel(sent) && sent['ip dst'] !== NODES[familyOf(sent['ip dst'])][nodeOf(from)],
    ),
  },
  {
    name: 'no relay',
    why: 'a ripstop node does not forward what came through the tunnel to others than its pods',
    explains: only(
      'flannel',
      (_, context) =>
        isTunnel(context.sent) &&
        !isPod(context.case.from) &&
        !inPodCidr(nodeOf(context.case.from), destination(context)),
    ),
  },
  {
    name: 'recorded address',
    rare: true,
    why: 'a node that records its route enters the address towards its pods: the bridge’s, or without one the VTEP device’s',
    explains: differs(({ field, flannel, ripstop }) => {
      if (!/^(inner |quoted )?ip options$/.test(field)) return false;
      const isOneOf = (of: Readonly<Record<NodeName, string>>, address: string): boolean =>
        nodeNames.some((node) => hexOf(of[node]) === address);
      const bytes = [String(flannel), String(ripstop)].map((text) => text.match(/../g) ?? []);
      const at = bytes[0]!.findIndex((byte, i) => byte !== bytes[1]![i]);
      // The addresses differ in their last byte.
      const [bridge, vtep] = bytes.map((all) => all.slice(at - 3, at + 1).join(''));
      return isOneOf(GATEWAYS[4], bridge!) && isOneOf(VTEPS[4], vtep!);
    }),
  },
  {
    name: 'sum over the super-packet',
    why: 'the capture of an encapsulated super-packet has an unfinished outer checksum',
    explains: differs(
      ({ field, seen }) => field === 'udp checksum' && isTunnel(seen.fields) && 'gso size' in seen.fields,
    ),
  },
];
