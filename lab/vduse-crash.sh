#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: kill -9 of the VDUSE server under verified I/O, twenty times: the next one continues, nothing is lost
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh
. /lab/disk.sh

truncate -s 64M /tmp/disk.img
serve disk0 raw:/tmp/disk.img --queues 2
attach disk0
eventually 20 test -b /dev/vda

crash() {
    kill_server disk0
    # Meanwhile the image may have grown: the next server says so.
    [ $kill != 10 ] || truncate -s 96M /tmp/disk.img
    serve disk0 raw:/tmp/disk.img --queues 2
    grep -q '"taken_over":true' /tmp/disk0.out || fail "not taken over: $(cat /tmp/disk0.out)"
}
killed 20 crash
expect "sectors" "$(cat /sys/block/vda/size)" $((96 * 2048))

step "other options than before: the server says what to do"
kill_server disk0
! vblk serve vduse --disk raw:/tmp/disk.img --name disk0 --queues 1 2>/tmp/said || fail "it accepted one queue"
cat /tmp/said
grep -q 'vdpa dev del disk0' /tmp/said || fail "it does not say what to do"
serve disk0 raw:/tmp/disk.img --queues 2
detach disk0
end_server disk0

step "an orphan that nobody uses is made anew"
serve disk0 raw:/tmp/disk.img --queues 2
kill_server disk0
serve disk0 raw:/tmp/disk.img --queues 1
end_server disk0
[ ! -e /dev/vduse/disk0 ] || fail "the device is still there"
