// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { labDown } from '../../src/lab/index.ts';
import { ApiServer } from '../../src/lab/apiserver/index.ts';
import { TestClient } from '../../src/lab/apiserver/client.support.ts';
import { Conversation, type Outcome } from './conversation.ts';
import { converse, type Servers } from './exchanges.ts';
import { compactEtcd, restartApiServer } from './server.ts';
import { createAgentToken } from '../../src/lab/kube.ts';
import { clientOf, labNameFor, realLab } from './support.ts';

const NAME = 'exchanges';

/** Both conversations run before the tests are defined, since each exchange is a test. */
const [embedded, real] = await Promise.all([hearEmbedded(), hearReal()]);

async function hearReal(): Promise<ReadonlyMap<string, Outcome>> {
  try {
    const lab = await realLab(NAME, []);
    const compact = async (): Promise<void> => {
      await compactEtcd(lab);
      // Its watch cache has more history than etcd then has.
      await restartApiServer(lab);
    };
    return await hear(clientOf(lab), { nodeToken: await createAgentToken(lab, 'n2'), compact });
  } finally {
    await labDown(labNameFor(NAME));
  }
}

async function hearEmbedded(): Promise<ReadonlyMap<string, Outcome>> {
  const user = 'system:serviceaccount:kube-ripstop:ripstop';
  const server = await ApiServer.start({
    tokens: { ripstop: user },
    authorize: (request) =>
      request.user !== user ||
      (request.resource === 'nodes' &&
        (request.subresource === undefined ? ['get', 'list', 'watch'] : ['patch']).includes(request.verb)),
  });
  try {
    const compact = async (): Promise<void> => server.faults.expireHistory();
    return await hear(new TestClient(server), { nodeToken: 'ripstop', compact });
  } finally {
    await server.close();
  }
}

async function hear(client: TestClient, servers: Servers): Promise<ReadonlyMap<string, Outcome>> {
  const conversation = new Conversation(client);
  try {
    await converse(conversation, servers);
  } finally {
    client.close();
  }
  return conversation.outcomes;
}

/** Differences that stay, and why. */
const known: Readonly<Record<string, string>> = {
  'a page of what is forgotten': 'the real server offers a token to go on from now; the reflector lists anew',
  'an annotation that is no text': 'the real server calls such a patch invalid, the embedded one malformed',
  'a watch from nonsense':
    'the real server calls it a fault of its own (500), the embedded one a bad request',
};

describe('the embedded API server answers as the real one does:', () => {
  for (const title of real.keys()) {
    const why = known[title];
    if (why === undefined) it(title, () => expect(embedded.get(title)).toEqual(real.get(title)));
    else it(`but not: ${title} (${why})`, () => expect(embedded.get(title)).not.toEqual(real.get(title)));
  }
});
