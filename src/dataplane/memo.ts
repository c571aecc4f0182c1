// SPDX-License-Identifier: Apache-2.0

/**
 * The value of what is computed when it is first asked for, and again only after the garbage collector has taken it: what
 * is large, and made of what is kept anyway, need not be kept for its next use.
 * @param compute gives the same each time.
 */
export function once<T extends object>(compute: () => T): () => T {
  let known: WeakRef<T> | undefined;
  return () => {
    let value = known?.deref();
    if (value === undefined) known = new WeakRef((value = compute()));
    return value;
  };
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
