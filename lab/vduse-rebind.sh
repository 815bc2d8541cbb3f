#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a VDUSE device goes from virtio_vdpa to vhost_vdpa and back, ten times, under one server, with verified I/O through each
# lab: modules=vhost_iotlb,vhost,vdpa,virtio_vdpa,vhost_vdpa,virtio_blk,vduse binaries=vblk,vduse-backend/vhost-vdpa-abuse timeout=120

. /lab/lib.sh
. /lab/vduse.sh

# mib FILE N: a checksum of its MiB number N.
mib() {
    dd if="$1" bs=1M skip="$2" count=1 2>/dev/null | sha256sum
}
truncate -s 64M /tmp/disk.img
serve disk0 raw:/tmp/disk.img --queues 2
attach disk0
round=0
while [ $round -lt 10 ]; do
    round=$((round + 1))
    vblk vdpa bind disk0 vhost >/dev/null
    eventually 20 test -c /dev/vhost-vdpa-0
    [ ! -b /dev/vda ] || fail "the block device is still there"
    vhost-vdpa-abuse /dev/vhost-vdpa-0 verify $((round + 32)) >/tmp/vhost.log 2>&1 || fail "$(cat /tmp/vhost.log)"
    vblk vdpa bind disk0 virtio >/dev/null
    eventually 20 test -b /dev/vda
    # What came through vhost is what virtio finds.
    expect "MiB $((round + 32))" "$(mib /dev/vda $((round + 32)))" "$(mib /tmp/disk.img $((round + 32)))"
    [ $round = 1 ] || sha256sum -c /tmp/sums >/tmp/check || fail "$(cat /tmp/check)"
    verify /dev/vda --rw=randrw --size=1M --offset=${round}M --iodepth=16
    dd if=/dev/urandom of=/dev/vda bs=1M count=1 oflag=direct 2>/dev/null
    dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null | sha256sum | sed 's|-$|/tmp/head|' >/tmp/sums
    dd if=/tmp/disk.img of=/tmp/head bs=1M count=1 2>/dev/null
    sha256sum -c /tmp/sums >/tmp/check || fail "$(cat /tmp/check)"
    serving disk0
done
step "$round rounds"
detach disk0
end_server disk0
