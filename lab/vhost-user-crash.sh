#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: kill -9 of the disk server under verified I/O, again and again: nothing is lost
# lab: disk=64 queues=2 crashes=yes
# lab: modules=virtio_blk timeout=180

. /lab/lib.sh

kills=10
step "verified I/O on $LAB_QUEUES queues; the server is killed $kills times meanwhile"
# One short pass after the other: within one run fio writes each block once, so that a lost, a stale and a
# repeated write all show. Its own loops would check a block against the wrong pass.
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
    # 0.2 to 1.7 s, at a moment that no request knows.
    sleep "$(awk -v seed="$(od -An -N4 -tu4 /dev/urandom)" 'BEGIN { srand(seed); print 0.2 + 1.5 * rand() }')"
    host crash
    before=$(requests)
    kill -0 $fio 2>/dev/null || fail "the I/O ended before the last kill"
    eventually 20 moved
    step "kill $kill: I/O goes on"
done
touch /tmp/stop
wait $fio
kill -0 $large || fail "the large reads ended: $(cat /tmp/large.log)"
! dmesg | grep -i 'I/O error' || fail "the kernel saw I/O errors"
