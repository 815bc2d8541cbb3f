#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: an unmodified Linux boots from the disk: its root file system is a partition of it; reboots, too
# lab: disk=256 queues=2 root=yes
# lab: modules=virtio_blk timeout=120

. /lab/lib.sh

expect "root" "$(awk '$2 == "/" && $3 == "ext4" { print $1 }' /proc/mounts)" /dev/vda1
case $LAB_BOOT in
1)
    step "first boot: the root grows by a file"
    dd if=/dev/urandom of=/root/data bs=1M count=16 2>/dev/null
    sha256sum /root/data >/root/sum
    reboot_guest
    ;;
*)
    step "second boot"
    sha256sum -c /root/sum
    mount -o remount,ro /
    e2fsck -f -n /dev/vda1
    ;;
esac
