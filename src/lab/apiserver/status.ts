// SPDX-License-Identifier: Apache-2.0

/** The reasons in a Status, by HTTP code, where the code alone determines the reason. */
const reasons = {
  400: 'BadRequest',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'NotFound',
  405: 'MethodNotAllowed',
  406: 'NotAcceptable',
  409: 'Conflict',
  410: 'Expired',
  413: 'RequestEntityTooLarge',
  415: 'UnsupportedMediaType',
  422: 'Invalid',
  429: 'TooManyRequests',
  500: 'InternalError',
  503: 'ServiceUnavailable',
  504: 'Timeout',
} as const;

export type StatusCode = keyof typeof reasons;

export interface StatusCause {
  reason: string;
  message: string;
  field?: string;
}

/** The `details` of a Status: the object that it is about. */
export interface StatusDetails {
  name?: string;
  kind?: string;
  uid?: string;
  causes?: StatusCause[];
  retryAfterSeconds?: number;
}

/** meta.k8s.io `Status`, the body of every answer without an object. */
export interface Status {
  kind: 'Status';
  apiVersion: 'v1';
  metadata: Record<string, never>;
  status: 'Success' | 'Failure';
  message?: string;
  reason?: string;
  details?: StatusDetails;
  /** Of a failure. */
  code?: number;
}

/** A refusal. `handle` in http.ts turns it into the answer. */
export class StatusError extends Error {
  override readonly name = 'StatusError';
  readonly code: StatusCode;
  readonly reason: string;
  readonly details: StatusDetails | undefined;

  constructor(code: StatusCode, message: string, options: { reason?: string; details?: StatusDetails } = {}) {
    super(message);
    this.code = code;
    this.reason = options.reason ?? reasons[code];
    this.details = options.details;
  }

  get body(): Status {
    return {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Failure',
      message: this.message,
      reason: this.reason,
      ...(this.details && { details: this.details }),
      code: this.code,
    };
  }
}

export function notFound(plural: string, name: string): StatusError {
  return new StatusError(404, `${plural} "${name}" not found`, { details: { name, kind: plural } });
}

export function alreadyExists(plural: string, name: string): StatusError {
  return new StatusError(409, `${plural} "${name}" already exists`, {
    reason: 'AlreadyExists',
    details: { name, kind: plural },
  });
}

export function conflict(plural: string, name: string, why: string): StatusError {
  return new StatusError(409, `cannot change ${plural} "${name}": ${why}`, {
    details: { name, kind: plural },
  });
}

/** 422 with one cause for each invalid field. */
export function invalid(kind: string, name: string, causes: StatusCause[]): StatusError {
  const text = causes.map(({ field, message }) => (field ? `${field}: ${message}` : message)).join(', ');
  return new StatusError(422, `${kind} "${name}" is invalid: ${text}`, { details: { name, kind, causes } });
}

/** 410: the client must list again. Sent as the answer itself, or in the stream as an ERROR event. */
export function expired(message: string): StatusError {
  return new StatusError(410, message);
}
