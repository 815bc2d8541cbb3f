#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: an image in memory, written without system calls: a full file system below it gives errors, and nothing else is lost
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk

. /lab/lib.sh
. /lab/vduse.sh

# put COLOUR FIRST COUNT: writes MiB of that byte to the device.
put() {
    head -c $(($3 << 20)) /dev/zero | tr '\0' "$1" | dd of=/dev/vda bs=64k iflag=fullblock oflag=direct seek=$(($2 * 16)) 2>/tmp/dd.log
}
# has COLOUR FIRST COUNT
has() {
    head -c $(($3 << 20)) /dev/zero | tr '\0' "$1" >/tmp/expected
    dd if=/dev/vda bs=64k iflag=direct skip=$(($2 * 16)) count=$(($3 * 16)) 2>/dev/null | cmp - /tmp/expected ||
        fail "not all of $3 MiB from $2 on are $1"
}

mkdir /tmp/small
mount -t tmpfs -o size=12M tmpfs /tmp/small
truncate -s 8M /tmp/small/image
serve disk0 raw:/tmp/small/image --attach virtio
eventually 20 test -b /dev/vda
step "each part is written twice, the second time without a system call"
put a 0 8
put b 0 8
has b 0 8
grep -q /tmp/small/image "/proc/$(cat /tmp/disk0.pid)/maps" || fail "the image is not mapped"

step "a part is given back, and something else takes its place"
blkdiscard -o 0 -l $((4 << 20)) /dev/vda
dd if=/dev/zero of=/tmp/small/other bs=64k 2>/dev/null || true
before=$(stat -c %b /tmp/small/image)
if put c 0 4; then
    fail "written where there was no room"
fi
grep -q "No space left\|Input/output error" /tmp/dd.log || fail "$(cat /tmp/dd.log)"
serving disk0
has b 4 4
put d 4 4
has d 4 4

step "there is room again"
rm /tmp/small/other
put e 0 4
has e 0 4
has d 4 4
echo "blocks of the image: $before when it was full, now $(stat -c %b /tmp/small/image)"
end_server disk0
