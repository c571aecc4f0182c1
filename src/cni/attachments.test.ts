// SPDX-License-Identifier: Apache-2.0
import { mkdir, mkdtemp, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Attachment, AttachmentStore } from './attachments.ts';

const attachment = (containerId: string, ifname: string): Attachment => ({
  containerId,
  ifname,
  netns: '/run/netns/pod',
  network: 'cbr0',
  hostIfname: 'veth01234567',
  hostIfindex: 7,
  hostMac: '02:00:00:00:00:01',
  podMac: '02:00:00:00:00:02',
  ips: ['10.42.1.5', 'fd00:42:0:1::5'],
});

describe('the attachment store', () => {
  let runDir: string;
  let dir: string;
  beforeEach(async () => {
    runDir = await mkdtemp(join(tmpdir(), 'ripstop-store-'));
    dir = join(runDir, 'endpoints');
  });
  afterEach(() => rm(runDir, { recursive: true }));

  it('keeps attachments across restarts of the agent, in files that only root can read', async () => {
    const store = new AttachmentStore(runDir);
    store.put(attachment('c0ffee', 'eth0'));
    store.put({ ...attachment('c0ffee', 'eth0'), kernelPath: true, podName: 'web' });
    expect(await readdir(dir)).toEqual(['c0ffee-eth0.json']);
    expect((await stat(join(dir, 'c0ffee-eth0.json'))).mode & 0o777).toBe(0o600);
    expect((await stat(dir)).mode & 0o777).toBe(0o700);

    const restarted = new AttachmentStore(runDir);
    expect(await restarted.list()).toEqual(await store.list());
    const known = await restarted.get({ containerId: 'c0ffee', ifname: 'eth0' });
    expect(known).toMatchObject({ kernelPath: true, podName: 'web' });
    await restarted.remove({ containerId: 'c0ffee', ifname: 'eth0' });
    await restarted.remove({ containerId: 'c0ffee', ifname: 'eth0' });
    expect(await new AttachmentStore(runDir).list()).toEqual([]);
  });

  it('reads the mark for the kernel path also under the name of version 0.1.0', async () => {
    const old = { ...attachment('c0ffee', 'eth0'), slow: true };
    new AttachmentStore(runDir).put(attachment('c0ffee', 'eth0'));
    await writeFile(join(dir, 'c0ffee-eth0.json'), JSON.stringify(old));
    expect(await new AttachmentStore(runDir).list()).toEqual([
      { ...attachment('c0ffee', 'eth0'), kernelPath: true },
    ]);
  });

  it('distinguishes attachments whose names have hyphens', async () => {
    const store = new AttachmentStore(runDir);
    store.put(attachment('a-b', 'c'));
    store.put(attachment('a', 'b-c'));
    expect(await new AttachmentStore(runDir).list()).toHaveLength(2);
  });

  it('ignores an unfinished write', async () => {
    new AttachmentStore(runDir).put(attachment('c0ffee', 'eth0'));
    await writeFile(join(dir, 'dead-eth0.json.tmp'), '{"contai');
    expect(await new AttachmentStore(runDir).list()).toHaveLength(1);
  });

  const good = JSON.stringify(attachment('bad', 'eth-0'));
  it.each([
    ['cut off', '{"contai'],
    ['empty', ''],
    ['no object', 'null'],
    ['of another attachment', JSON.stringify(attachment('c0ffee', 'eth0'))],
    ['with an address that is none', good.replace('10.42.1.5', '10.42.1')],
    ['with a MAC address that is none', good.replace('02:00:00:00:00:01', 'x')],
    ['with an index that is none', good.replace(':7,', ':-1,')],
    ['a directory', mkdir],
    ['a link to itself', (file: string) => symlink(file, file)],
    ['a link to nowhere', (file: string) => symlink('/nowhere/at-all', file)],
    ['a device', (file: string) => symlink('/dev/zero', file)],
  ])('leaves a malformed file out, and names it: one that is %s', async (_, made) => {
    const store = new AttachmentStore(runDir);
    store.put(attachment('c0ffee', 'eth0'));
    const bad = join(dir, 'bad-eth%2d0.json');
    await (typeof made === 'string' ? writeFile(bad, made) : made(bad));
    await store.refresh();
    expect(await store.list()).toHaveLength(1);
    const id = { containerId: 'bad', ifname: 'eth-0' };
    expect(store.malformed).toMatchObject([{ id, why: expect.stringContaining(bad) }]);
    expect(store.lost).toEqual([id]);
    expect(await store.get(id)).toBeUndefined();
    await store.remove(id);
    expect([await readdir(dir), store.malformed]).toEqual([['c0ffee-eth0.json'], []]);
  });

  it('begins anew where the directory has become a file', async () => {
    const store = new AttachmentStore(runDir);
    await writeFile(dir, '');
    expect(await store.list()).toEqual([]);
    store.put(attachment('c0ffee', 'eth0'));
    expect(await new AttachmentStore(runDir).list()).toHaveLength(1);
  });

  it('writes a malformed file anew when it knows what was in it, and says so once', async () => {
    const store = new AttachmentStore(runDir);
    store.put(attachment('c0ffee', 'eth0'));
    await writeFile(join(dir, 'c0ffee-eth0.json'), '{');
    await store.refresh();
    expect(store.malformed).toMatchObject([{ why: expect.stringContaining('was written anew') }]);
    expect(store.lost).toEqual([]);
    await store.refresh();
    expect(store.malformed).toEqual([]);
    expect(await new AttachmentStore(runDir).list()).toEqual([attachment('c0ffee', 'eth0')]);
  });

  it('changes an attachment that there is, and none that a DEL has removed', async () => {
    const store = new AttachmentStore(runDir);
    store.put(attachment('c0ffee', 'eth0'));
    store.update({ ...attachment('c0ffee', 'eth0'), hostIfname: 'lan0' });
    expect(await new AttachmentStore(runDir).list()).toMatchObject([{ hostIfname: 'lan0' }]);
    const removed = store.remove(attachment('c0ffee', 'eth0'));
    store.update(attachment('c0ffee', 'eth0'));
    await removed;
    expect(await readdir(dir)).toEqual([]);
  });

  it('does not come back when a refresh is under way while it is removed', async () => {
    const [earlier, store] = [new AttachmentStore(runDir), new AttachmentStore(runDir)];
    earlier.put(attachment('c0ffee', 'eth0'));
    await Promise.all([store.refresh(), store.remove({ containerId: 'c0ffee', ifname: 'eth0' })]);
    expect(await store.list()).toEqual([]);
  });
});
