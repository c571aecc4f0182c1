// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type {
  Answer,
  RequestOptions,
  TestClient,
  TestWatch,
  WatchEvent,
} from '../../src/lab/apiserver/client.support.ts';

/** How long to wait for events of a watch. */
const PATIENCE_MS = 6000;

/** The parts of an answer that must be the same for both servers. */
export interface Outcome {
  code?: number;
  contentType?: string | undefined;
  body?: unknown;
  /**
   * Of a watch: its events, and what came after them: `more` if not waited for, or that the stream ended or was silent.
   */
  events?: unknown[];
  after?: 'enough' | 'end' | 'silence';
}

/**
 * One server's side of a conversation: it sends requests, and keeps each answer under a title, with values that differ
 * between servers for a good reason replaced by their meaning.
 */
export class Conversation {
  readonly outcomes = new Map<string, Outcome>();
  readonly #client: TestClient;
  readonly #normalise = normaliser();

  constructor(client: TestClient) {
    this.#client = client;
  }

  /** An exchange whose result is compared. Resolves with the raw answer. */
  async ask(title: string, path: string, options: RequestOptions = {}): Promise<Answer> {
    const answer = await this.#client.request(path, options);
    this.#keep(title, {
      code: answer.code,
      contentType: answer.headers['content-type'],
      body: this.#normalise(answer.body),
    });
    return answer;
  }

  /** A request whose result is not compared. */
  async quietly(path: string, options: RequestOptions = {}): Promise<Answer> {
    return this.#client.request(path, options);
  }

  /**
   * A watch: its events during `meanwhile`, up to `count` of them.
   * @param query the rest of the query, after `watch=1&`
   */
  async watch(
    title: string,
    query: string,
    {
      count = Infinity,
      meanwhile,
      ...options
    }: RequestOptions & { count?: number; meanwhile?: () => Promise<unknown>; path?: string },
  ): Promise<void> {
    const response = await this.#client.watch(query, options);
    await meanwhile?.();
    const events: WatchEvent[] = [];
    let after: Outcome['after'] = 'enough';
    while (events.length < count) {
      const line = await lineWithin(PATIENCE_MS, response);
      if (line === 'end' || line === 'silence') {
        after = line;
        break;
      }
      events.push(JSON.parse(line) as WatchEvent);
    }
    this.#keep(title, {
      events: withoutRepeatedBookmarks(
        events.map(({ type, object }) => ({ type, object: this.#normalise(object) })),
      ),
      after,
    });
  }

  #keep(title: string, outcome: Outcome): void {
    if (this.outcomes.has(title)) throw new Error(`two exchanges are called "${title}"`);
    this.outcomes.set(title, outcome);
  }
}

async function lineWithin(ms: number, watch: TestWatch): Promise<string> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      watch.line().then((line) => line ?? 'end'),
      sleep(ms, 'silence', { signal: timer.signal }),
    ]);
  } finally {
    timer.abort();
  }
}

const nodeInfo = {
  machineID: '',
  systemUUID: '',
  bootID: '',
  kernelVersion: '',
  osImage: '',
  containerRuntimeVersion: '',
  kubeletVersion: '',
  kubeProxyVersion: '',
  operatingSystem: '',
  architecture: '',
};
const daemonEndpoints = { kubeletEndpoint: { Port: 0 } };
/** Fields that a real server adds, e.g. a Node's default status, and the taint of a Node that is not Ready. */
const additions: Readonly<Record<string, unknown>> = {
  status: { daemonEndpoints, nodeInfo },
  nodeInfo,
  daemonEndpoints,
  // In the object of a bookmark.
  spec: {},
  // In an Event with firstTimestamp.
  eventTime: null,
  // In a Status without details.
  details: {},
  taints: [{ key: 'node.kubernetes.io/not-ready', effect: 'NoSchedule' }],
};

/** Replaces values that must differ by their meaning: which object a UID is of, whether a resourceVersion is new. */
function normaliser(): (body: unknown) => unknown {
  const uids: string[] = [];
  const versions = new Map<string, string>();
  const metadata = (meta: Readonly<Record<string, unknown>>): Record<string, unknown> => {
    const { uid, resourceVersion, creationTimestamp, managedFields: _, ...rest } = meta;
    const named: Record<string, unknown> = { ...rest };
    if (typeof uid === 'string') {
      if (!uids.includes(uid)) uids.push(uid);
      named['uid'] = `object ${uids.indexOf(uid) + 1}`;
      const version = String(resourceVersion);
      named['resourceVersion'] = versions.get(uid) === version ? 'as before' : 'another';
      versions.set(uid, version);
    } else if (typeof resourceVersion === 'string') {
      named['resourceVersion'] = /^\d+$/.test(resourceVersion) ? 'a number' : resourceVersion;
    }
    if (creationTimestamp !== undefined)
      named['creationTimestamp'] = creationTimestamp === null ? null : 'a time';
    if (typeof rest['continue'] === 'string') named['continue'] = rest['continue'] === '' ? '' : 'a token';
    return named;
  };
  const walk = (value: unknown, key = ''): unknown => {
    if (typeof value === 'string') {
      if (key === 'message') return 'words';
      return uids.reduce((text, uid, i) => text.replaceAll(uid, `object ${i + 1}`), value);
    }
    if (Array.isArray(value)) {
      const walked = value.map((one) => walk(one));
      // A validation that runs twice reports its errors twice.
      return key === 'causes' ? distinct(walked) : walked;
    }
    if (typeof value !== 'object' || value === null) return value;
    const fields = key === 'metadata' ? metadata(value as Record<string, unknown>) : value;
    return Object.fromEntries(
      Object.entries(fields)
        .filter(([field, part]) => !isDeepStrictEqual(part, additions[field]))
        .map(([field, part]) => [field, walk(part, field)]),
    );
  };
  return walk;
}

function distinct(values: readonly unknown[]): unknown[] {
  return values.filter((value, i) => values.findIndex((other) => isDeepStrictEqual(value, other)) === i);
}

/** The number of bookmarks is up to the server. */
function withoutRepeatedBookmarks<T extends { type: string }>(events: readonly T[]): T[] {
  return events.filter(({ type }, i) => type !== 'BOOKMARK' || events[i - 1]?.type !== 'BOOKMARK');
}
