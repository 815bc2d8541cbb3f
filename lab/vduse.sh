#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a raw image as /dev/vda through VDUSE: partitions, ext4, verified I/O, fstrim, resize, fsck, outside view
# lab: cpus=4 modules=virtio_vdpa,virtio_blk,vduse,loop binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh
. /lab/disk.sh

image=/tmp/disk.img
allocated() {
    echo $(($(stat -c %b $image) * 512))
}

step "an image of 256 MiB becomes a VDUSE device with 4 queues"
truncate -s 256M $image
serve disk0 raw:$image --queues 4 --serial vduse-disk
attach disk0
eventually 20 test -b /dev/vda

step "what the disk says of itself"
expect "sectors" "$(cat $disk/size)" $((256 * 2048))
expect "queues" "$(ls $disk/mq | wc -l)" 4
expect "serial" "$(cat $disk/serial)" vduse-disk
expect "write cache" "$(cat $disk/queue/write_cache)" "write back"
[ "$(cat $disk/queue/discard_max_bytes)" -ge 4096 ] || fail "no discard"

two_partitions
verified_io
zeroes
files
trimmed allocated
grown 384 truncate -s 384M $image
unmounted
cp $disk/vda1/start /tmp/start

step "the device goes away in order"
detach disk0
end_server disk0
[ ! -e /dev/vduse/disk0 ] || fail "the device is still there"
[ ! -e /run/vblk/vduse-disk0.state ] || fail "its record is still there"

step "the image outside holds the same file system"
losetup -o $(($(cat /tmp/start) * 512)) /dev/loop0 $image
mount -t ext4 -o ro /dev/loop0 /mnt
same_files
