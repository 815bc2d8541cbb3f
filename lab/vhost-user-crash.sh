#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: kill -9 of the disk server under verified I/O, again and again: nothing is lost
# lab: disk=64 queues=2 crashes=yes
# lab: modules=virtio_blk timeout=180

. /lab/lib.sh

kills=8
step "verified I/O on $LAB_QUEUES queues; the server is killed $kills times meanwhile"
verify /dev/vda --rw=randrw --size=16M --offset_increment=16M --numjobs=2 --iodepth=32 --time_based --runtime=20 --do_verify=1 &
fio=$!
kill=0
while [ $kill -lt $kills ]; do
    kill=$((kill + 1))
    # 0.2 to 2.2 s, at a moment that no request knows.
    sleep "$(awk -v seed="$(od -An -N4 -tu4 /dev/urandom)" 'BEGIN { srand(seed); print 0.2 + 2 * rand() }')"
    before=$(awk '{ print $1 + $5 }' /sys/block/vda/stat)
    host crash
    kill -0 $fio 2>/dev/null || fail "fio ended before the last kill"
    moved() {
        [ "$(awk '{ print $1 + $5 }' /sys/block/vda/stat)" -gt $((before + 100)) ]
    }
    eventually 20 moved
    step "kill $kill: I/O goes on"
done
wait $fio || fail "fio: $(cat /tmp/fio.log)"
! dmesg | grep -i 'I/O error' || fail "the kernel saw I/O errors"
step "fio verified all it wrote"
