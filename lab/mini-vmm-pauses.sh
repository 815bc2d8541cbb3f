#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: Debian in mini-vmm on a raw disk, paused and resumed under fio for 15 minutes: what the emulator makes of that
# lab: cpus=2 memory=2560 timeout=1500 kernel=yes run=named modules=irqbypass,kvm,kvm_amd binaries=mini-vmm

. /lab/lib.sh
. /lab/nested.sh

seconds=900

step "a root file system"
nested_script <<'NESTED'
echo "NESTED works"
while :; do
    rm -f /fio
    verify /fio --rw=randrw --size=4M --numjobs=2 --iodepth=32 --offset_increment=4M --cpus_allowed=0-1 --cpus_allowed_policy=split
done
NESTED
root_image

step "the machine"
# Requests take up to 20 ms each and pass one another, so that pauses meet many in flight.
root=raw:/tmp/root.img,fault=delay:0.02/reorder:on
: >/tmp/log
run /tmp/log --control /tmp/control &
machine=$!
eventually 300 said /tmp/log "NESTED works"
end=$(($(date +%s) + seconds))
pauses=0
while [ "$(date +%s)" -lt $end ]; do
    control pause
    control resume
    pauses=$((pauses + 1))
    sleep 0.05
done
step "$pauses pauses in $seconds s"
control power-off
wait $machine || fail "status $?"
