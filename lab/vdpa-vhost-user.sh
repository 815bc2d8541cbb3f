#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: fio over the slow path through vhost-user: vblk serves a vhost-vdpa device, libblkio's driver and the kernel use it
# lab: cpus=4 modules=virtio_vdpa,vhost_vdpa,virtio_blk,vduse binaries=vblk gnu=vblk-testing timeout=180

. /lab/lib.sh
. /lab/vduse.sh

step "an image becomes /dev/vhost-vdpa-0"
truncate -s 64M /tmp/disk.img
serve inner raw:/tmp/disk.img --queues 2 --attach vhost
eventually 20 test -c /dev/vhost-vdpa-0

step "that is the disk of a vhost-user server"
vblk --json serve vhost-user --socket /tmp/socket --disk vdpa:/dev/vhost-vdpa-0 --queues 2 >/tmp/user.out 2>/tmp/user.log &
echo $! >/tmp/user.pid
eventually 20 grep -q listening /tmp/user.out

step "libblkio's driver uses it, and the kernel gets that as /dev/vda"
vblk-testing vduse --socket /tmp/socket --name outer --queues 2 >/tmp/outer.log 2>&1 &
echo $! >/tmp/outer.pid
eventually 20 test -e /dev/vduse/outer
attach outer
eventually 20 test -b /dev/vda || fail "$(cat /tmp/outer.log)"
expect "sectors" "$(cat /sys/block/vda/size)" $((64 * 2048))

step "verified random writes and reads, depth 1 and 32"
verify /dev/vda --rw=randwrite --size=1M --iodepth=1
verify /dev/vda --rw=randrw --size=4M --offset_increment=8M --numjobs=2 --iodepth=32 --cpus_allowed=0-3 --cpus_allowed_policy=split
blkdiscard --zeroout --offset 0 --length 1048576 /dev/vda
mkfs.ext4 -q /dev/vda
sync
for server in inner user outer; do
    serving $server
done

step "all end in order; the file system is in the image"
detach outer
kill "$(cat /tmp/outer.pid)"
wait "$(cat /tmp/outer.pid)" || true
end_server user
tail -n 1 /tmp/user.out
grep -q '"copied_bytes":0,' /tmp/user.out || fail "data was copied though the device has the client's memory"
end_server inner
e2fsck -f -n /tmp/disk.img >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
