// SPDX-License-Identifier: Apache-2.0
import { checkStatus } from './error.ts';
import { lastErrno, libbpf } from './ffi.ts';

const F_DUPFD_CLOEXEC = 1030;

/** A file descriptor that is closed by {@link close}, or at the end of a `using` block. */
export abstract class BpfHandle {
  #fd: number;

  protected constructor(fd: number) {
    this.#fd = fd;
  }

  /** Its name in error messages, such as `map peers`. */
  protected abstract readonly subject: string;

  /** @throws Error once closed: the number may belong to another file by then. */
  get fd(): number {
    if (this.#fd < 0) throw new Error(`${this.subject} is closed`);
    return this.#fd;
  }

  get closed(): boolean {
    return this.#fd < 0;
  }

  /**
   * Keep it alive in a bpffs beyond this process, until the file is unlinked. The directory must exist.
   * @throws BpfError with EEXIST when the path is taken.
   */
  pin(path: string): void {
    checkStatus('bpf_obj_pin', libbpf().bpf_obj_pin(this.fd, path), `${this.subject} at ${path}`);
  }

  /** Close it. Closing twice is no error. */
  close(): void {
    if (this.#fd < 0) return;
    closeFd(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export function closeFd(fd: number): void {
  libbpf().close(fd);
}

/** A second descriptor for the same object. Each must be closed. */
export function duplicateFd(fd: number): number {
  const copy = libbpf().fcntl(fd, F_DUPFD_CLOEXEC, 3);
  return checkStatus('fcntl', copy < 0 ? -lastErrno() : copy);
}

/** @throws BpfError with ENOENT when nothing is pinned there. */
export function openPinnedFd(path: string): number {
  return checkStatus('bpf_obj_get', libbpf().bpf_obj_get(path), path);
}
