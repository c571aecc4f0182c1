#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a bare Debian or Ubuntu machine (git, node >= 20, npm, root) ready to run ripstop: system packages, Node modules
# (with the pinned Node itself), the BPF objects and the CNI shim. Says what it does, does only what is missing, and takes
# well under a second when nothing is.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# What the build, the data plane, the lab and the tests call, by Debian package.
packages="clang-19 llvm-19 libbpf1 libbpf-dev libc6-dev gcc iproute2 nftables iptables util-linux procps kmod
  ethtool tcpdump tshark iperf3 conntrack iputils-ping containernetworking-plugins fonts-dejavu-core bash-completion fish zsh tmux"

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" { print $1 }')
  for package in $packages; do
    printf '%s\n' "$installed" | grep -qx -e "$package" -e "$package"t64 || missing="$missing $package"
  done
else
  say "this is no Debian or Ubuntu: install the equivalents of: $packages"
fi

if [ -n "$missing" ]; then
  [ "$(id -u)" = 0 ] || fail "missing packages:$missing; run as root (sudo), or install them yourself"
  export DEBIAN_FRONTEND=noninteractive
  say "installing$missing"
  log=$(mktemp)
  {
    apt-get update -qq
    # Where the release has no clang-19, its own clang serves as well.
    apt-cache show clang-19 >/dev/null 2>&1 || missing=$(printf '%s' "$missing" | sed 's/clang-19/clang/; s/llvm-19/llvm/')
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing
  } >"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "apt-get could not install$missing (whole log: $log)"; }
  rm -f "$log"
fi

lock=$(sha256sum package-lock.json | cut -d' ' -f1)
if [ "$(cat node_modules/.ripstop-lock 2>/dev/null || true)" != "$lock" ]; then
  say "installing Node modules"
  log=$(mktemp)
  npm ci --no-audit --no-fund >"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "npm ci failed (whole log: $log)"; }
  rm -f "$log"
  # Both node-linux packages bring a bin named node; npm before 11 then links neither.
  for node in node_modules/node-linux-*/bin/node; do
    [ -x node_modules/.bin/node ] || ln -s "../../$node" node_modules/.bin/node
  done
  printf '%s' "$lock" >node_modules/.ripstop-lock
fi

PATH="$PWD/node_modules/.bin:$PATH"
export PATH
node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 22 || (major === 22 && minor >= 19) ? 0 : 1)' ||
  fail "the pinned Node is not there for this platform; install Node 22.19 or newer"

node scripts/build-bpf.ts
node scripts/build-cni.ts

# A real etcd for the tests. Unpacked and not installed: the package would start a server at every boot.
if ! command -v etcd >/dev/null 2>&1 && [ ! -x build/etcd/etcd ] && command -v apt-get >/dev/null 2>&1; then
  say "fetching etcd"
  unpacked=$(mktemp -d)
  if (cd "$unpacked" && { apt-get download -qq etcd-server || { apt-get update -qq && apt-get download -qq etcd-server; }; } &&
    dpkg-deb -x etcd-server_*.deb .) >"$unpacked/log" 2>&1; then
    mkdir -p build/etcd
    mv "$unpacked/usr/bin/etcd" build/etcd/etcd
  else
    say "no etcd from apt: $(tail -n 1 "$unpacked/log"); its tests will be skipped"
  fi
  rm -rf "$unpacked"
fi
