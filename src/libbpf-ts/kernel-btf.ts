// SPDX-License-Identifier: Apache-2.0
import { type Btf, readBtf } from './btf.ts';
import { checkStatus } from './error.ts';
import { libbpf } from './ffi.ts';
import { closeFd } from './handle.ts';
import { Info } from './info.ts';

/** The types that the kernel keeps under this id, such as the `btfId` of a map. @throws BpfError without such an id. */
export function kernelBtf(id: number): Btf {
  const subject = `BTF id ${id}`;
  const fd = checkStatus('bpf_btf_get_fd_by_id', libbpf().bpf_btf_get_fd_by_id(id), subject);
  try {
    const [BTF, SIZE] = [0, 8]; // struct bpf_btf_info of linux/bpf.h
    const bytes = new Uint8Array(new Info().fill(fd, subject).u32(SIZE));
    const info = new Info();
    info.setU32(SIZE, bytes.length);
    info.lend(BTF, bytes);
    info.fill(fd, subject);
    return readBtf(bytes);
  } finally {
    closeFd(fd);
  }
}
