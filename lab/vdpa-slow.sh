#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: the slow path on a real vhost-vdpa: one VDUSE device is the disk of another; verified I/O through both
# lab: cpus=4 modules=virtio_vdpa,vhost_vdpa,virtio_blk,vduse binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh

step "an image of 64 MiB becomes a VDUSE device that vhost_vdpa takes"
truncate -s 64M /tmp/disk.img
serve inner raw:/tmp/disk.img --queues 2
attach inner
vblk vdpa bind inner vhost >/dev/null
eventually 10 test -e /sys/bus/vdpa/devices/inner/vhost-vdpa-0
eventually 10 test -c /dev/vhost-vdpa-0

step "what vblk says of it"
vblk --json disk info vdpa:/dev/vhost-vdpa-0 >/tmp/info || fail "$(cat /tmp/inner.log)"
cat /tmp/info
grep -q '"bytes":67108864' /tmp/info || fail "not the image's size"

step "it is the disk of another device, which the kernel's driver takes"
serve outer vdpa:/dev/vhost-vdpa-0 --queues 2
attach outer
eventually 20 test -b /dev/vda
expect "sectors" "$(cat /sys/block/vda/size)" $((64 * 2048))

step "verified random writes and reads, depth 1 and 32"
verify /dev/vda --rw=randwrite --size=1M --iodepth=1
verify /dev/vda --rw=randrw --size=4M --offset_increment=8M --numjobs=2 --iodepth=32 --cpus_allowed=0-3 --cpus_allowed_policy=split
serving inner
serving outer

step "discard and write zeroes go through"
printf 'vblk' | dd of=/dev/vda bs=4 conv=notrunc 2>/dev/null
blkdiscard --zeroout --offset 0 --length 1048576 /dev/vda
expect "bytes after write zeroes" "$(dd if=/dev/vda bs=1M count=1 2>/dev/null | tr -d '\000' | wc -c)" 0
blkdiscard /dev/vda

step "a file system, and the same one in the image"
mkfs.ext4 -q /dev/vda
sync
e2fsck -f -n /dev/vda >/tmp/check 2>&1 || fail "$(cat /tmp/check)"

step "the image grows, and so do both devices"
truncate -s 96M /tmp/disk.img
eventually 20 sh -c '[ "$(cat /sys/block/vda/size)" = 196608 ]'

step "the devices go away in order"
detach outer
end_server outer
detach inner
end_server inner
e2fsck -f -n /tmp/disk.img >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
