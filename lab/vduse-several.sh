#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: two VDUSE devices in one process: the kernel gives one up, the other works on
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=120

. /lab/lib.sh
. /lab/vduse.sh

truncate -s 32M /tmp/disk0.img
truncate -s 48M /tmp/disk1.img
serve disk0 raw:/tmp/disk0.img --attach virtio --control /tmp/control \
    --disk raw:/tmp/disk1.img,meter --name disk1 --queues 1 --msg-timeout 1
eventually 20 test -b /dev/vda
eventually 20 test -e /dev/vduse/disk1
attach disk1
eventually 20 test -b /dev/vdb
expect "sectors" "$(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)" "$((32 * 2048)) $((48 * 2048))"
verify /dev/vda --rw=randrw --size=2M --iodepth=16
verify /dev/vdb --rw=randrw --size=2M --iodepth=16
expect "disks" "$(vblk --json ctl /tmp/control disks)" '{"disks":["disk0","disk1"]}'
vblk --json ctl /tmp/control --disk disk1 stats | grep -q '"write":{' || fail "disk1 counted nothing"

step "the process is stopped for longer than disk1 has time to answer"
kill -STOP "$(cat /tmp/disk0.pid)"
detach disk1
kill -CONT "$(cat /tmp/disk0.pid)"
eventually 20 grep -q 'disk1: the kernel gave device disk1 up' /tmp/disk0.log
serving disk0
verify /dev/vda --rw=randrw --size=2M --iodepth=16

step "the end tells of it, and the other is gone in order"
status=0
kill "$(cat /tmp/disk0.pid)"
wait "$(cat /tmp/disk0.pid)" || status=$?
cat /tmp/disk0.log
expect "status" $status 1
[ ! -e /dev/vduse/disk0 ] || fail "disk0 is still there"
serve disk1 raw:/tmp/disk1.img
grep -q 'made anew' /tmp/disk1.log || fail "not made anew: $(cat /tmp/disk1.log)"
end_server disk1
