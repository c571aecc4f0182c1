// SPDX-License-Identifier: Apache-2.0

/** Where etcd is and our credentials for it; flanneld's --etcd-* flags. */
export interface EtcdOptions {
  /** `http://…`, `https://…` or `host:port`; tried in this order. */
  readonly endpoints: readonly string[];
  /** Above `config` and `subnets/`. */
  readonly prefix: string;
  /** The CA of the server's certificate. Default: the authorities that Node trusts. */
  readonly cafile?: string;
  /** Our certificate and its key: both or neither. */
  readonly certfile?: string;
  readonly keyfile?: string;
  readonly username?: string;
  readonly password?: string;
}

export const DEFAULT_ETCD_PREFIX = '/coreos.com/network';
