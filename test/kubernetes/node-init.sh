#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node, in mount, UTS, PID and network namespaces of its own: makes the node's root file system, starts
# containerd, kubelet and kube-proxy and keeps them running. Its end is the node's power cut.
#
#   node-init.sh DISK
#
# DISK is a folder that survives a reboot: upper/ holds what the node has written to its root, containerd/ and kubelet/
# what must not lie on an overlay, and config/ what node.ts has written for this boot: env (shell variables) and files.
set -u
disk=$1
. "$disk/config/env"

# ---- the root: the machine's root below, the node's disk above, and mounts that a boot makes -----------------------------
root=$disk/root
mkdir -p "$root" "$disk/upper" "$disk/work" "$disk/containerd" "$disk/kubelet"
mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" overlay "$root" || exit 1
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
# A sysfs of this network namespace (`ip netns exec` would mount one that hides the control groups).
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
[ "$BPFFS" = no ] || mount -t bpf -o mode=700 bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root/run/lock" "$root/run/services" "$root/run/sysctl" "$root/run/old" \
  "$root/var/lib/containerd" "$root/var/lib/kubelet" "$root/opt/cni/bin" "$root/etc/cni/net.d" "$root/var/log"
mount --bind "$disk/containerd" "$root/var/lib/containerd"
mount --bind "$disk/kubelet" "$root/var/lib/kubelet"
# The programs, and the node's configuration, at their usual paths.
for folder in "$PROGRAMS" "$disk/config"; do
  mkdir -p "$root$folder"
  mount --bind "$folder" "$root$folder"
done
cp "$disk/config/hosts" "$disk/config/resolv.conf" "$root/etc/"
[ -e "$root/opt/cni/bin/loopback" ] || cp /usr/lib/cni/* "$root/opt/cni/bin/"
# Beside a current containerd a current portmap.
[ ! -e "$PROGRAMS/portmap" ] || cp "$PROGRAMS/portmap" "$root/opt/cni/bin/"
# kubelet writes settings of the whole machine: give it files that already have its values.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 \
  kernel/keys/root_maxbytes=25000000; do
  file=$root/run/sysctl/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "$root/proc/sys/${setting%=*}"
done
cd "$root" || exit 1
pivot_root . run/old || exit 1
umount -l /run/old && rmdir /run/old
cd /
# Containers' mounts propagate only from a shared root.
mount --make-rshared /
[ "$SHARED_RUN" = yes ] || mount --make-rprivate /run
hostname "$NAME"
export PATH="$PROGRAMS:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# ---- the services, started again when they end, as systemd would -------------------------------------------------------
service() { # NAME COMMAND...; /run/services/NAME.off holds it back
  local name=$1
  shift
  while :; do
    while [ -e "/run/services/$name.off" ]; do sleep 0.1; done
    "$@" >>"/var/log/$name.log" 2>&1 &
    echo $! >"/run/services/$name.pid"
    wait $!
    sleep 1
  done &
}
for name in $OFF; do : >"/run/services/$name.off"; done
service containerd containerd --config "$disk/config/containerd.toml"
while [ ! -S /run/containerd/containerd.sock ]; do sleep 0.1; done
service kubelet kubelet --config="$disk/config/kubelet.yaml" --kubeconfig="$disk/config/kubelet.kubeconfig" \
  --hostname-override="$NAME" --node-ip="$NODE_IPS" --v=2
service kube-proxy kube-proxy --config="$disk/config/kube-proxy.yaml"
# Orphans become children of this process, and are reaped.
while :; do wait -n || sleep 0.5; done
