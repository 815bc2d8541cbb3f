#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: resets with I/O in flight, malformed requests, hot-added memory, a disk that hangs: the server lives and answers; what changes right after a hand-over is seen
# lab: modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,vduse,loop binaries=vblk,vduse-backend/vhost-vdpa-abuse,virtio-blk-disks/hand-over-times timeout=180

. /lab/lib.sh
. /lab/vduse.sh

abuse() {
    timeout 100 vhost-vdpa-abuse /dev/vhost-vdpa-0 "$@" || fail "$* $(cat /tmp/disk0.log)"
    serving disk0
}
# peer CASE ARGUMENT...: what qemu-storage-daemon does: for the record, in a machine that is thrown away.
peer() {
    step "qemu-storage-daemon: $1"
    # The one before is left behind, as what becomes of its device takes the kernel its time.
    peers=$((${peers-0} + 1))
    name=peer$peers
    vduse_disk $name 64 1
    echo 2 >/sys/class/vduse/$name/msg_timeout
    vblk vdpa add $name >/dev/null
    qsd=$(cat /tmp/$name.pid)
    status=0
    node=$(vblk --json vdpa show $name | sed -n 's|.*"\(/dev/vhost-vdpa-[0-9]*\)".*|\1|p')
    eventually 20 test -c "$node"
    timeout 20 vhost-vdpa-abuse "$node" "$@" >/tmp/peer.log 2>&1 || status=$?
    if kill -0 "$qsd" 2>/dev/null; then
        echo "it lives; the driver ended with status $status"
    else
        wait "$qsd" && status=0 || status=$?
        echo "it died with status $status"
    fi
    tail -n 2 /tmp/$name.log /tmp/peer.log
}

# A file system that can be frozen: writes to the image hang then.
truncate -s 128M /tmp/fs.img
mkfs.ext4 -q -I 256 /tmp/fs.img
losetup /dev/loop0 /tmp/fs.img
mount -t ext4 /dev/loop0 /mnt
step "what is changed right after a hand-over"
hand-over-times /mnt || fail "not seen"
rm /mnt/handed-over.img

dd if=/dev/zero of=/mnt/disk.img bs=1M count=64 2>/dev/null
serve disk0 raw:/mnt/disk.img --queues 1 --msg-timeout 10 --attach vhost
eventually 20 test -c /dev/vhost-vdpa-0

step "resets with requests in flight"
abuse reset 50
step "malformed requests, then a reset"
abuse malformed 20
step "memory comes and goes under requests"
abuse hot-add 50
step "resets while the disk hangs for longer than msg_timeout"
abuse stall "fsfreeze --freeze /mnt" "fsfreeze --unfreeze /mnt"
expect "msg_timeout" "$(cat /sys/class/vduse/disk0/msg_timeout)" 10
end_server disk0
umount /mnt

peer reset 50
peer malformed 20
peer hot-add 50
