#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a busy guest moves ten times between two servers of one raw image; once the one it goes to is killed
# lab: disk=128 queues=2 migrates=yes
# lab: cpus=2 memory=512 modules=virtio_blk timeout=300

. /lab/lib.sh

# What is on the first half of the disk must outlive all moves; fio works on the second.
step "what must stay"
dd if=/dev/urandom of=/tmp/before bs=1M count=8 2>/dev/null
dd if=/tmp/before of=/dev/vda bs=1M oflag=direct 2>/dev/null

# stays: the data is still there, and on the disk, not in the page cache.
stays() {
    dd if=/dev/vda of=/tmp/after bs=1M count=8 iflag=direct 2>/dev/null
    cmp /tmp/before /tmp/after || fail "other data after $*"
}

work() {
    passes=0
    while [ ! -e /tmp/enough ]; do
        verify /dev/vda --offset=64M --rw=randrw --size=2M --numjobs=2 --offset_increment=2M --iodepth=16
        passes=$((passes + 1))
        # Never empty for who reads it.
        echo $passes >/tmp/passes.new
        mv /tmp/passes.new /tmp/passes
    done
}
work &
work=$!
at_work() {
    [ "$(cat /tmp/passes 2>/dev/null || echo 0)" -gt "$1" ]
}
eventually 60 at_work 0

for move in 1 2 3 4 5 6 7 8 9 10; do
    host migrate
    step "move $move"
    stays "move $move"
done

step "the other side is killed"
host migrate dies
stays "a move in vain"
# It works on, and can still be moved.
eventually 60 at_work "$(cat /tmp/passes)"
host migrate
stays "the move after it"
eventually 60 at_work "$(cat /tmp/passes)"

touch /tmp/enough
wait $work
step "$(cat /tmp/passes) passes of fio, each byte compared"
