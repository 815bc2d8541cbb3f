#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: kill -9 of the VDUSE server under verified I/O, twenty times: the next one goes on, nothing is lost
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh

kills=20
truncate -s 64M /tmp/disk.img
serve disk0 raw:/tmp/disk.img --queues 2
attach disk0
eventually 20 test -b /dev/vda

step "verified I/O on 2 queues; the server is killed $kills times meanwhile"
# One short pass after the other: within one run fio writes each block once, so that a lost, a stale and a
# repeated write all show.
passes() {
    pass=0
    until [ -e /tmp/stop ]; do
        pass=$((pass + 1))
        verify /dev/vda --rw=randrw --rwmixwrite=70 --size=4M --offset_increment=16M --numjobs=2 --iodepth=32
    done
    step "$pass passes verified"
}
requests() {
    awk '{ print $1 + $5 }' /sys/block/vda/stat
}
moved() {
    [ "$(requests)" -gt $((before + 100)) ]
}

# Large reads beside them keep the server busy, so that small requests overtake them: a server that only
# counts requests, instead of noting which are in flight, loses some.
fio --name=large --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randread --bs=1M --iodepth=16 \
    --numjobs=2 --time_based --runtime=1000 >/tmp/large.log 2>&1 &
large=$!
passes &
fio=$!
kill=0
while [ $kill -lt $kills ]; do
    kill=$((kill + 1))
    # 0.2 to 1.2 s, at a moment that no request knows.
    sleep "$(awk -v seed="$(od -An -N4 -tu4 /dev/urandom)" 'BEGIN { srand(seed); print 0.2 + rand() }')"
    kill -9 "$(cat /tmp/disk0.pid)"
    wait "$(cat /tmp/disk0.pid)" 2>/dev/null || true
    # Meanwhile the image may have grown: the next server says so.
    [ $kill != 10 ] || truncate -s 96M /tmp/disk.img
    before=$(requests)
    kill -0 $fio 2>/dev/null || fail "the I/O ended before the last kill"
    serve disk0 raw:/tmp/disk.img --queues 2
    grep -q '"taken_over":true' /tmp/disk0.out || fail "not taken over: $(cat /tmp/disk0.out)"
    eventually 20 moved
    [ $((kill % 5)) != 0 ] || step "kill $kill: I/O goes on"
done
touch /tmp/stop
wait $fio
kill -0 $large || fail "the large reads ended: $(cat /tmp/large.log)"
kill $large
wait $large || true
expect "sectors" "$(cat /sys/block/vda/size)" $((96 * 2048))
! dmesg | grep -i 'I/O error' || fail "the kernel saw I/O errors"

step "other options than before: the server says what to do"
kill -9 "$(cat /tmp/disk0.pid)"
wait "$(cat /tmp/disk0.pid)" 2>/dev/null || true
! vblk serve vduse --disk raw:/tmp/disk.img --name disk0 --queues 1 2>/tmp/said || fail "it accepted one queue"
cat /tmp/said
grep -q 'vdpa dev del disk0' /tmp/said || fail "it does not say what to do"
serve disk0 raw:/tmp/disk.img --queues 2
detach disk0
end_server disk0

step "an orphan that nobody uses is made anew"
serve disk0 raw:/tmp/disk.img --queues 2
kill -9 "$(cat /tmp/disk0.pid)"
wait "$(cat /tmp/disk0.pid)" 2>/dev/null || true
serve disk0 raw:/tmp/disk.img --queues 1
end_server disk0
[ ! -e /dev/vduse/disk0 ] || fail "the device is still there"
