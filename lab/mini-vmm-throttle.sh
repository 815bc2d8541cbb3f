#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a qcow2 image through VDUSE and vhost-vdpa to Debian in mini-vmm: limited on the slow path, then fast again
# lab: cpus=2 memory=2560 timeout=600 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd,vhost_vdpa,vduse binaries=mini-vmm,vblk

. /lab/lib.sh
. /lab/vduse.sh
. /lab/nested.sh

# A guest in a guest in emulation is far from 2,000; the same with that limit and a quick guest is vdpa-throttle.
limit=20

# rate: what the guest reads in a second, the third time that it says so from now on.
rate() {
    count=$(($(grep -c "NESTED rate" /tmp/log || true) + 3))
    reached() {
        [ "$(grep -c "NESTED rate" /tmp/log)" -ge $count ]
    }
    eventually 300 reached
    sed -n 's/.*NESTED rate //p' /tmp/log | tr -d '\r' | sed -n ${count}p
}

step "a root file system, and a qcow2 image behind a VDUSE device"
nested_script <<'NESTED'
while true; do
    verify /dev/vdb --rw=randrw --size=128k --iodepth=4
    # Terse version 3: operations a second of reads is field 8.
    fio --name=rate --filename=/dev/vdb --direct=1 --ioengine=libaio --rw=randread --bs=4k --iodepth=4 \
        --time_based --runtime=2 --minimal >/tmp/fio || fail "$(cat /tmp/fio)"
    echo "NESTED rate $(cut -d';' -f8 /tmp/fio)"
done
NESTED
root_image
qemu-img create -q -f qcow2 /tmp/disk.qcow2 64M
serve disk0 qcow2:/tmp/disk.qcow2 --attach vhost
eventually 20 test -c /dev/vhost-vdpa-0

# at PATH: where the second disk must be.
at() {
    control stats
    paths=$(grep -o '"path": "[a-z]*"' /tmp/answer) || fail "no paths: $(cat /tmp/answer)"
    expect "path" "$paths" "\"path\": \"$1\""
}

step "the machine, without a limit"
run /tmp/log --disk vdpa:/dev/vhost-vdpa-0 --control /tmp/control &
machine=$!
eventually 300 said /tmp/log "NESTED rate"
at fast
free=$(rate)
step "on the fast path: $free operations a second"
[ "$free" -gt $((limit * 2)) ] || fail "too slow for a limit to show"

step "limited to $limit, on the slow path"
control layers --disk 1 throttle=iops:$limit
at slow
limited=$(rate)
step "on the slow path: $limited operations a second"
[ "$limited" -le $((limit * 3 / 2)) ] && [ "$limited" -ge $((limit / 2)) ] || fail "not the limit"

step "without a limit again"
control layers --disk 1
at fast
again=$(rate)
step "on the fast path: $again operations a second"
[ "$again" -gt $((limit * 2)) ] || fail "still limited"
control power-off
wait $machine || fail "status $?"
serving disk0
end_server disk0
sound /tmp/disk.qcow2
