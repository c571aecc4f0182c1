// SPDX-License-Identifier: Apache-2.0

/** The value of what is computed when it is first asked for, and only then. */
export function once<T>(compute: () => T): () => T {
  let value: { readonly of: T } | undefined;
  return () => (value ??= { of: compute() }).of;
}

/** A function of an object that remembers its result for as long as that object lives; results are shared, so keep them. */
export function perObject<A extends object, R extends object>(
  compute: (argument: A) => R,
): (argument: A) => R {
  const results = new WeakMap<A, R>();
  return (argument) => {
    let result = results.get(argument);
    if (result === undefined) results.set(argument, (result = compute(argument)));
    return result;
  };
}
