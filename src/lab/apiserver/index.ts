// SPDX-License-Identifier: Apache-2.0
export { issueCertificates } from './certificates.ts';
export { ApiServer, type ApiServerOptions } from './server.ts';
export { type Fault, Faults, type Injection, type Scope } from './faults.ts';
export { kubeconfigText } from './kubeconfig.ts';
export { listenInNetns } from './netns.ts';
export type { StoreEvent } from './history.ts';
export type { KubeObject, ObjectInput } from './objects.ts';
export type { ResourceName } from './resources.ts';
export type { RequestInfo, Verb } from './routes.ts';
export { StatusError } from './status.ts';
export { Store } from './store.ts';
