#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a raw image as vhost-user disk: partitions, ext4, verified I/O, fstrim, resize, reboot, fsck
# lab: disk=256 queues=4
# lab: cpus=4 modules=virtio_blk timeout=180

. /lab/lib.sh
. /lab/disk.sh

if [ "$LAB_BOOT" = 2 ]; then
    step "second boot: partitions, file system and data are still there"
    expect "sectors" "$(cat $disk/size)" $((384 * 2048))
    expect "partitions" "$(ls -d $disk/vda* | wc -l)" 2
    e2fsck -f -n /dev/vda1
    mount /dev/vda1 /mnt
    same_files
    umount /mnt
    exit 0
fi

step "what the disk says of itself"
expect "sectors" "$(cat $disk/size)" $((LAB_DISK_MIB * 2048))
expect "queues" "$(ls $disk/mq | wc -l)" "$LAB_QUEUES"
expect "read-only" "$(cat $disk/ro)" 0
expect "logical block size" "$(cat $disk/queue/logical_block_size)" 512
if [ "$LAB_SERVER" != qsd ]; then
    # qemu-storage-daemon leaves both at their defaults.
    expect "write cache" "$(cat $disk/queue/write_cache)" "write back"
    expect "serial" "$(cat $disk/serial)" "$LAB_SERIAL"
    echo "write through" >$disk/cache_type
    expect "write cache, changed" "$(cat $disk/cache_type)" "write through"
    verify /dev/vda --rw=randwrite --size=1M --iodepth=4
    echo "write back" >$disk/cache_type
    expect "write cache, changed back" "$(cat $disk/cache_type)" "write back"
fi
[ "$(cat $disk/queue/discard_max_bytes)" -ge 4096 ] || fail "no discard"
[ "$(cat $disk/queue/write_zeroes_max_bytes)" -ge 4096 ] || fail "no write zeroes"

two_partitions
verified_io
queues_used=$(awk '/virtio[0-9]+-req\.[0-9]+/ { n = 0; for (i = 2; i <= 5; i++) n += $i; if (n > 0) used++ } END { print used + 0 }' /proc/interrupts)
expect "queues that carried requests" "$queues_used" "$LAB_QUEUES"
zeroes
files
trimmed host allocated
grown 384 host resize 384

if [ "$LAB_SERVER" != qsd ]; then
    step "the server is replaced under the mounted file system"
    host restart
    echo 3 >/proc/sys/vm/drop_caches
    same_files
fi
unmounted
step "reboot"
reboot_guest
