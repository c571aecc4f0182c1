// SPDX-License-Identifier: Apache-2.0

/** Where etcd is and who we are to it; flanneld's --etcd-* flags. */
export interface EtcdOptions {
  /** `http://…`, `https://…` or `host:port`; tried in this order. */
  readonly endpoints: readonly string[];
  /** Above `config` and `subnets/`. */
  readonly prefix: string;
  /** Who signs the server's certificate; left out: the authorities that Node trusts. */
  readonly cafile?: string;
  /** Our certificate and its key, both or none. */
  readonly certfile?: string;
  readonly keyfile?: string;
  readonly username?: string;
  readonly password?: string;
}

export const DEFAULT_ETCD_PREFIX = '/coreos.com/network';
