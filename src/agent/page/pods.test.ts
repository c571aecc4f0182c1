// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { Attachment } from '../../cni/attachments.ts';
import type { Link } from '../../host/links.ts';
import { podFacts } from './pods.ts';

const attachment = (hostIfindex: number, more: Partial<Attachment> = {}): Attachment => ({
  containerId: `c${hostIfindex}`,
  ifname: 'eth0',
  netns: '/run/netns/x',
  network: 'cbr0',
  hostIfname: `veth${hostIfindex}`,
  hostIfindex,
  hostMac: '02:00:00:00:00:01',
  podMac: '02:00:00:00:00:02',
  ips: [`10.42.0.${hostIfindex}`],
  podNamespace: 'shop',
  podName: `web-${hostIfindex}`,
  ...more,
});
const observed = <T>(value: T) => ({ revision: 0, value });

it('pods have their names where the runtime told them, else that of their host veth, and say why they are slow', () => {
  const { podName: _, ...nameless } = attachment(3);
  const all = [attachment(2), nameless, attachment(4, { kernelPath: true }), attachment(5)];
  const bridged = { ip: '10.42.0.9', podMac: '02:00:00:00:00:09', bridge: 1, port: 9 };
  const links = [{ name: 'veth9', ifindex: 9 } as Link].map((link): [string, Link] => [link.name, link]);
  const node = {
    links: observed(new Map(links)),
    bridged: observed({ ports: [9], pods: [bridged, { ...bridged, ip: 'fd00::9' }], contradictions: [] }),
    shaped: observed([5]),
  };
  expect(podFacts(all, node)).toEqual([
    { ifindex: 2, name: 'shop/web-2', ips: ['10.42.0.2'] },
    { ifindex: 3, name: 'veth3', ips: ['10.42.0.3'] },
    { ifindex: 4, name: 'shop/web-4', ips: ['10.42.0.4'], kernelPath: 'marked for the kernel path' },
    {
      ifindex: 5,
      name: 'shop/web-5',
      ips: ['10.42.0.5'],
      kernelPath: 'somebody shapes or filters its packets in tc',
    },
    { ifindex: 9, name: 'veth9', ips: ['10.42.0.9', 'fd00::9'] },
  ]);
  expect(podFacts([attachment(2)], undefined)).toMatchObject([{ name: 'shop/web-2' }]);
});
