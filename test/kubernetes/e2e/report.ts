// SPDX-License-Identifier: Apache-2.0

/** The result of a spec in Ginkgo's report. */

export type State = 'passed' | 'failed' | 'skipped' | 'left out';

export interface Spec {
  /** Its full name, which `--ginkgo.focus` matches. */
  readonly name: string;
  readonly state: State;
  /** Why it failed, or skipped itself: the first line of its message. */
  readonly message: string;
}

/** The fields of Ginkgo's JSON report (types.Report) that are read. */
interface Report {
  readonly SpecReports: readonly {
    readonly ContainerHierarchyTexts: readonly string[] | null;
    readonly LeafNodeType: string;
    readonly LeafNodeText: string;
    readonly State: string;
    readonly NumAttempts: number;
    readonly Failure?: { readonly Message: string; readonly ForwardedPanic?: string };
  }[];
}

/**
 * The specs of a report, by name, without its setup nodes. The report has every spec of the program; those that the
 * filters excluded are `left out`, those that skipped themselves are `skipped`.
 * @param text the JSON that `--report-complete-ginkgo` writes
 * @throws Error when the suite's own setup failed, so that no spec has a result
 */
export function readReport(text: string): Spec[] {
  const specs: Spec[] = [];
  for (const { SpecReports } of JSON.parse(text) as Report[]) {
    for (const { ContainerHierarchyTexts, LeafNodeType, LeafNodeText, State, Failure } of SpecReports) {
      const said = Failure?.Message ?? '';
      const message = (said || Failure?.ForwardedPanic || '').trim().split('\n')[0] ?? '';
      if (LeafNodeType === 'It') {
        const name = [...(ContainerHierarchyTexts ?? []), LeafNodeText].join(' ');
        specs.push({ name, state: stateOf(State, message), message });
      } else if (State !== 'passed' && State !== 'skipped') {
        throw new Error(`${LeafNodeType} ${State}: ${message}`);
      }
    }
  }
  return specs.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/**
 * Whether a filter excluded a spec. Ginkgo calls it `skipped`, like a spec that skipped itself, but without a message.
 */
function stateOf(state: string, message: string): State {
  if (state === 'passed') return 'passed';
  if (state === 'skipped') return message === '' ? 'left out' : 'skipped';
  return state === 'pending' ? 'skipped' : 'failed';
}

/** A regular expression that only this spec matches: Ginkgo applies it to the suite's description and the name. */
export const onlySpec = (name: string): string =>
  `${name.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`)}$`;
