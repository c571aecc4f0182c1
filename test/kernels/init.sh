#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Process 1 of the virtual machine: runs the program that the kernel's command line names, on the second serial port, which
# is free of the kernel's messages.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
# The types of each source need to be stripped only once.
export NODE_COMPILE_CACHE=/run/compiled
# Where peerPath() looks for programs.
export XDG_CACHE_HOME=/cache
exec </dev/ttyS1 >/dev/ttyS1 2>/dev/ttyS0
node "/ripstop/test/kernels/$1.ts"
sync
echo b >/proc/sysrq-trigger
