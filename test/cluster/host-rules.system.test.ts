// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readFlows } from '../../src/cli/flows.ts';
import { hostVethName } from '../../src/cni/pod-network.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { type NodeState, startAgent, stopAgent } from '../../src/lab/index.ts';
import { withPort } from '../../src/net/ip.ts';
import type { Background } from '../../src/lab/lab.support.ts';
import type { Family } from '../../src/net/ip.ts';
import { captureDuring } from '../support/capture.ts';
import { KINDS, NUMBERS_PORT, PAIR, Receiver, sendTo } from './arrivals.ts';
import { monotonicMs } from './numbers.ts';
import type { UdpReport } from './talker.ts';
import {
  addressesOf,
  addressOf,
  bpffsOf,
  FAMILIES,
  inNetns,
  missingHere,
  podOf,
  PORT,
  runDirOf,
  serveIn,
  talk,
  talkBoth,
  useLab,
} from './support.ts';

/** A port, and an address, that only rewriting rules lead to a pod. */
const OTHER_PORT = PORT + 3;
const OTHER_IP = '192.0.2.9';
/** How long a rule may go unnoticed of which the kernel tells a running agent. It takes a few ms. */
const TOLD_MS = 700;
/** And any other: a flow's lifetime, and a margin for a busy machine. */
const UNTOLD_MS = 5000 + 1000;

type Target = (typeof PAIR)[number];

/** Rules against what the client sends to some targets, as shell commands for one family ({@link variablesOf}). */
interface Drop {
  readonly says: string;
  readonly on: 1 | 2;
  readonly targets: readonly Target[];
  /** A command that fails where the kernel knows no such rules. */
  readonly needs?: string;
  readonly prepare?: string;
  /** Undoes what `prepare` does. */
  readonly undo?: string;
  readonly add: string;
  readonly remove: string;
}

const DROPS: Drop[] = [
  {
    says: 'iptables’ FORWARD',
    on: 1,
    targets: PAIR,
    add: '$IPTABLES -I FORWARD -s $CLIENT -d $NEAR,$FAR -j DROP',
    remove:
      '$IPTABLES -D FORWARD -s $CLIENT -d $NEAR -j DROP; $IPTABLES -D FORWARD -s $CLIENT -d $FAR -j DROP',
  },
  {
    says: 'iptables’ raw PREROUTING, on the other node,',
    on: 2,
    targets: ['far'],
    add: '$IPTABLES -t raw -I PREROUTING -s $CLIENT -d $FAR -j DROP',
    remove: '$IPTABLES -t raw -D PREROUTING -s $CLIENT -d $FAR -j DROP',
  },
  {
    says: 'an nft chain at forward',
    on: 1,
    targets: PAIR,
    add: `nft "table $IP own { chain forward { type filter hook forward priority 0;
      $IP saddr $CLIENT $IP daddr { $NEAR, $FAR } drop; }; }"`,
    remove: 'nft delete table $IP own',
  },
  {
    says: 'a new element of an nft set',
    on: 1,
    targets: PAIR,
    prepare: `nft "table $IP own { set denied { type $TYPE; }
      chain forward { type filter hook forward priority 0; $IP saddr $CLIENT $IP daddr @denied drop; }; }"`,
    add: 'nft add element $IP own denied "{ $NEAR, $FAR }"',
    remove: 'nft flush set $IP own denied',
    undo: 'nft delete table $IP own',
  },
  {
    says: 'an nft chain at the ingress of the pod’s host veth',
    on: 1,
    targets: PAIR,
    add: `nft "table netdev own$IP { chain ingress { type filter hook ingress device $VETH priority 0;
      $IP daddr { $NEAR, $FAR } drop; }; }"`,
    remove: 'nft delete table netdev own$IP',
  },
  {
    says: 'a routing rule that prohibits',
    on: 1,
    targets: PAIR,
    add: 'for to in $NEAR $FAR; do ip $FLAG rule add from $CLIENT to $to prohibit; done',
    remove: 'for to in $NEAR $FAR; do ip $FLAG rule del from $CLIENT to $to; done',
  },
  {
    says: 'OUTPUT, on VXLAN to a peer,',
    on: 1,
    targets: ['far'],
    add: '$IPTABLES -I OUTPUT -p udp --dport 8472 -d $NODE2 -j DROP',
    remove: '$IPTABLES -D OUTPUT -p udp --dport 8472 -d $NODE2 -j DROP',
  },
  {
    says: 'INPUT, on VXLAN from a peer,',
    on: 2,
    targets: ['far'],
    add: '$IPTABLES -I INPUT -p udp --dport 8472 -s $NODE1 -j DROP',
    remove: '$IPTABLES -D INPUT -p udp --dport 8472 -s $NODE1 -j DROP',
  },
  ...(['out', 'in'] as const).map((direction): Drop => {
    const policy = `src $NODE1 dst $NODE2 proto udp dport 8472 dir ${direction}`;
    return {
      says: `an IPsec policy ${direction}, for which there is no key, on VXLAN`,
      on: direction === 'out' ? 1 : 2,
      targets: ['far'],
      needs: 'ip xfrm policy list',
      add: `ip xfrm policy add ${policy} tmpl src $NODE1 dst $NODE2 proto esp mode transport level required`,
      remove: `ip xfrm policy delete ${policy}`,
    };
  }),
  {
    says: 'a filter of tc at the uplink’s ingress, on VXLAN from a peer,',
    on: 2,
    targets: ['far'],
    prepare: 'tc qdisc add dev eth0 clsact 2>/dev/null || true',
    undo: 'tc qdisc del dev eth0 clsact 2>/dev/null || true',
    // Nothing on lo takes a packet with these MAC addresses.
    add: `tc filter add dev eth0 ingress pref $FAMILY protocol $PROTOCOL u32 match $IP dport 8472 0xffff \
      action mirred egress redirect dev lo`,
    remove: 'tc filter del dev eth0 ingress pref $FAMILY',
  },
];

describe.skipIf(missingHere('nft', 'iptables', 'tcpdump', 'tc'))('on nodes with rules of their own', () => {
  const cluster = useLab('rules', { nodes: 2, pods: 2, ipv6: true, kubeProxy: 'iptables' });
  const node = (n: number): NodeState => cluster.nodes[n - 1]!;
  const client = () => podOf(node(1));
  const pods = { near: () => podOf(node(1), 1), far: () => podOf(node(2)) };

  beforeAll(async () => {
    await Promise.all(PAIR.map((target) => serveIn(pods[target]())));
  });

  function variablesOf(family: Family): Record<string, string> {
    return {
      CLIENT: addressOf(client(), family),
      NEAR: addressOf(pods.near(), family),
      FAR: addressOf(pods.far(), family),
      NODE1: addressOf(node(1), family),
      NODE2: addressOf(node(2), family),
      VETH: hostVethName({ containerId: client().containerId, ifname: 'eth0' }),
      IPTABLES: family === 4 ? 'iptables' : 'ip6tables',
      IP: family === 4 ? 'ip' : 'ip6',
      FAMILY: `${family}`,
      FLAG: `-${family}`,
      PROTOCOL: family === 4 ? 'ip' : 'ipv6',
      TYPE: `ipv${family}_addr`,
      TTL: family === 4 ? 'ttl' : 'hoplimit',
    };
  }

  /** Run commands on a node, for each family. */
  async function command(on: number, commands: string): Promise<void> {
    for (const family of FAMILIES) {
      const env = { ...process.env, ...variablesOf(family) };
      await run('sh', ['-euc', commands], { ...inNetns(node(on)), env });
    }
  }

  /** Have commands in force during `work`. */
  async function withRules(
    on: number,
    add: string,
    remove: string,
    work: () => Promise<void>,
  ): Promise<void> {
    await command(on, add);
    try {
      await work();
    } finally {
      await command(on, remove);
    }
  }

  describe('what is dropped by', () => {
    const receivers: Partial<Record<Target, Receiver>> = {};
    let sender: Background | undefined;

    beforeAll(async () => {
      for (const target of PAIR) receivers[target] = await Receiver.start(pods[target]());
      sender = sendTo(
        client(),
        PAIR.flatMap((target) => addressesOf(pods[target]())),
      );
    });
    afterAll(async () => {
      await Promise.all([sender, ...Object.values(receivers)].map(async (one) => one?.stop()));
    });

    async function arriveAgain(targets: readonly Target[], sinceMs: number, kinds = KINDS): Promise<void> {
      for (const target of targets) await receivers[target]!.takes(kinds, sinceMs);
    }

    /** The targets to which the node's flow table has valid flows. */
    async function learned(on: number): Promise<Target[]> {
      const flows = await readFlows(bpffsOf(cluster.lab, node(on)), runDirOf(cluster.lab, node(on)));
      const valid = new Set(
        flows.flatMap(({ state, destination }) => (state === 'valid' ? destination : [])),
      );
      return PAIR.filter((target) =>
        addressesOf(pods[target]()).some((address) => valid.has(withPort(address, NUMBERS_PORT))),
      );
    }

    it.for(DROPS)(
      '$says stops at once, on the way or not begun yet, and goes on afterwards',
      async ({ says, on, targets, needs, prepare, add, remove, undo }, { skip }) => {
        if (needs && (await tryRun('sh', ['-c', needs], inNetns(node(on)))).code !== 0)
          skip(`this kernel cannot: ${needs}`);
        if (prepare) await command(on, prepare);
        await arriveAgain(targets, monotonicMs());
        for (const target of targets) expect(await learned(on)).toContain(target);
        let removedMs = 0;
        await command(on, add);
        try {
          const addedMs = monotonicMs();
          await sleep(TOLD_MS + 100);
          const last = targets.map((target) => receivers[target]!.lastAfter(addedMs));
          console.log(`${says}: the last message came ${last.join(', ')} ms after the rule`);
          for (const ms of last) expect(ms).toBeLessThan(TOLD_MS);
          const still = await learned(on);
          for (const target of targets) expect(still).not.toContain(target);
          const others = PAIR.filter((target) => !targets.includes(target));
          await arriveAgain(others, monotonicMs());
        } finally {
          removedMs = monotonicMs();
          await command(on, remove);
          if (undo) await command(on, undo);
        }
        await arriveAgain(targets, removedMs);
        await expect.poll(() => learned(on)).toEqual(expect.arrayContaining([...targets]));
      },
    );

    it('nobody tells of, iptables-legacy or any rule without an agent, stops within a flow’s lifetime', async () => {
      const legacy = '$IPTABLES-legacy -I FORWARD -s $CLIENT -d $FAR -j DROP';
      await arriveAgain(PAIR, monotonicMs());
      await stopAgent(cluster.lab, node(1), 'SIGKILL');
      await command(1, '$IPTABLES -I FORWARD -s $CLIENT -d $NEAR -j DROP');
      if (await hasLegacy()) await command(2, legacy);
      const addedMs = monotonicMs();
      await sleep(UNTOLD_MS + 100);
      const targets = (await hasLegacy()) ? PAIR : (['near'] as const);
      const last = targets.map((target) => receivers[target]!.lastAfter(addedMs));
      console.log(`the last message came ${last.join(', ')} ms after the rule`);
      for (const ms of last) expect(ms).toBeLessThan(UNTOLD_MS);
      const removedMs = monotonicMs();
      await command(1, '$IPTABLES -D FORWARD -s $CLIENT -d $NEAR -j DROP');
      if (await hasLegacy()) await command(2, legacy.replace('-I', '-D'));
      // The held connections wait for their next retransmission, which is as far away as the last one.
      await arriveAgain(
        targets,
        removedMs,
        KINDS.filter((kind) => kind !== 'held tcp4' && kind !== 'held tcp6'),
      );
      await startAgent(cluster.lab, node(1));
    });
  });

  const hasLegacy = async (): Promise<boolean> => {
    const { code } = await tryRun('iptables-legacy', ['-n', '-L'], inNetns(node(1)));
    return code === 0;
  };

  describe('rules that rewrite without conntrack, or drop by it:', () => {
    const chains = (before: string, after: string): string =>
      `nft "table $IP own {
        chain before { type filter hook prerouting priority -300; ${before}; };
        chain after { type filter hook postrouting priority 200; ${after}; }; }"`;
    const gone = 'nft delete table $IP own';

    it.each([
      ['there before conntrack and back after it', 'there', 'back'],
      ['there after conntrack and back before it', 'back', 'there'],
    ])('another port, %s, is the one that answers', async (_, before, after) => {
      const rewrite: Record<string, string> = {
        there: `$IP daddr { $NEAR, $FAR } tcp dport ${OTHER_PORT} tcp dport set ${PORT};
          $IP daddr { $NEAR, $FAR } udp dport ${OTHER_PORT} udp dport set ${PORT}`,
        back: `$IP saddr { $NEAR, $FAR } tcp sport ${PORT} tcp sport set ${OTHER_PORT};
          $IP saddr { $NEAR, $FAR } udp sport ${PORT} udp sport set ${OTHER_PORT}`,
      };
      await withRules(1, chains(rewrite[before]!, rewrite[after]!), gone, async () => {
        const addresses = PAIR.flatMap((target) => addressesOf(pods[target]()));
        await Promise.all(addresses.map((address) => talkBoth(client(), address, OTHER_PORT, 100_000)));
      });
    });

    /** TTL and TOS of what the far pod gets of the client's pings, one after the other, of one identifier. */
    async function pingsArriveAs(...pings: string[][]): Promise<string[]> {
      const place = { netns: pods.far().netns, device: 'eth0', filter: ['-Q', 'in', 'icmp or icmp6'] };
      const [packets] = await captureDuring([place], async () => {
        for (const address of addressesOf(pods.far()))
          for (const options of pings)
            await tryRun(
              'ping',
              ['-n', '-q', '-e', '4711', '-i', '0.02', ...options, address],
              inNetns(client()),
            );
      });
      const echoes = packets!.filter(
        ({ src, protocol }) => addressesOf(client()).includes(src) && protocol !== 0,
      );
      return [...new Set(echoes.map(({ family, ttl, tos }) => `IPv${family} ttl ${ttl} tos ${tos}`))];
    }

    it.each([
      ['before routing', '$IP $TTL set 33; $IP dscp set ef', '', 32],
      ['after routing', '', '$IP $TTL set 33; $IP dscp set ef', 33],
    ])('TTL and DSCP, %s, are set in each packet', async (_, before, after, there) => {
      await withRules(1, chains(before, after), gone, async () => {
        const seen = await pingsArriveAs(['-c', '10']);
        expect(seen.toSorted()).toEqual([4, 6].map((family) => `IPv${family} ttl ${there - 1} tos 184`));
      });
    });

    it.each([
      ['DSCP', '$IP dscp set cs0', ['-Q', '184'], 62],
      ['TTL', '$IP $TTL set 64', ['-t', '10'], 62],
    ])('%s is set also in the one packet of a flow that needs it', async (_, rule, odd, ttl) => {
      await withRules(1, chains(rule, ''), gone, async () => {
        const seen = await pingsArriveAs(['-c', '5'], ['-c', '1', ...odd], ['-c', '5']);
        expect(seen.toSorted()).toEqual([4, 6].map((family) => `IPv${family} ttl ${ttl} tos 0`));
      });
    });

    const TEN = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

    /** The first numbers of the client's pings, within a second, that are answered by whom they asked. */
    async function answersFrom(address: string, ...options: string[]): Promise<number[]> {
      const argv = ['-n', '-i', '0.05', '-w', '1', ...options, address];
      const { stdout } = await tryRun('ping', argv, inNetns(client()));
      // A socket is also given the answers to other pings with its identifier.
      const own = stdout.split('\n').filter((line) => line.includes(` from ${address}: `));
      const numbers = own.map((line) => Number(/icmp_seq=(\d+)/.exec(line)?.[1]));
      return [...new Set(numbers)].toSorted((a, b) => a - b).slice(0, TEN.length);
    }

    /** With rules for IPv4 on the clients' node. */
    async function withTable(chains: string, work: () => Promise<void>): Promise<void> {
      await run('nft', [`table ip own { ${chains} }`], inNetns(node(1)));
      try {
        await work();
      } finally {
        await run('nft', ['delete', 'table', 'ip', 'own'], inNetns(node(1)));
      }
    }

    it.each(PAIR)(
      'one address for another, ping to the %s pod is answered by whom it asked',
      async (target) => {
        const { ip } = pods[target]();
        const rules = `
        chain there { type filter hook prerouting priority -300; ip daddr ${OTHER_IP} ip daddr set ${ip}; };
        chain back { type filter hook postrouting priority 200;
          ip saddr ${ip} ip daddr ${client().ip} ip saddr set ${OTHER_IP}; };`;
        await withTable(rules, async () => expect(await answersFrom(OTHER_IP)).toEqual(TEN));
      },
    );

    it.each(PAIR)(
      'or with it, also beside pings with the same identifier to the %s pod itself',
      async (target) => {
        const { ip } = pods[target]();
        const rules = `chain there { type nat hook prerouting priority -100; ip daddr ${OTHER_IP} dnat to ${ip}; };`;
        await withTable(rules, async () => {
          const answers = [OTHER_IP, ip].map((address) => answersFrom(address, '-e', '4712'));
          // Where both begin at once, conntrack may drop the first of one: it clashes with the other's.
          for (const numbers of await Promise.all(answers))
            expect(numbers.filter((n) => n > 1).slice(0, TEN.length - 1)).toEqual(TEN.slice(1));
        });
      },
    );

    it('what is dropped once it is answered: of pings and datagrams only the first come through', async () => {
      const rule = '$IP saddr $CLIENT $IP daddr { $NEAR, $FAR } ct state established';
      const add = `nft "table $IP own { chain established { type filter hook forward priority 1;
        ${rule} udp dport ${PORT} drop; ${rule} meta l4proto { icmp, ipv6-icmp } drop; }; }"`;
      await withRules(1, add, gone, async () => {
        const came = PAIR.flatMap((target) => addressesOf(pods[target]())).map(async (address) => {
          const pings = answersFrom(address);
          const { answers } = await talk<UdpReport>(client(), 'udp', address, PORT, 2, 100);
          return { answers, pings: await pings };
        });
        expect(await Promise.all(came)).toEqual(came.map(() => ({ answers: 1, pings: [1] })));
      });
    });
  });
});
