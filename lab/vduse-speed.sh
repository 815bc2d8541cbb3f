#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: 4 KiB random I/O through VDUSE: vblk beside qemu-storage-daemon, on the same image, with 2 CPUs and with 1
# lab: cpus=2 modules=virtio_vdpa,virtio_blk,vduse binaries=vblk build=release run=named timeout=900

. /lab/lib.sh
. /lab/vduse.sh

# With two CPUs a request that goes to the other one wakes it up, which takes milliseconds in emulation; with one,
# what counts is what each request costs. Fio's own cost is part of what is measured: as little of it as can be.
iops() {
    fio --name=speed --filename=/dev/vda --direct=1 --ioengine=libaio --bs=4k --rw="$1" --iodepth="$2" \
        --time_based --runtime=3 --ramp_time=1 --norandommap --randrepeat=0 --minimal >/tmp/fio.log 2>&1 ||
        fail "$(cat /tmp/fio.log)"
    # Fields of fio's terse format, version 3: IOPS of reads and of writes.
    awk -F';' -v rw="$1" '{ print rw == "randread" ? $8 : $49 }' /tmp/fio.log
}
measure() {
    for rw in randread randwrite; do
        for depth in 1 32; do
            step "$(nproc) CPUs, $1, $rw depth $depth: $(iops $rw $depth) IOPS"
        done
    done
}
# The image that qemu-storage-daemon makes is vblk's, too; written, so that none measures allocation.
fill() {
    dd if=/dev/zero of=/tmp/disk0.img bs=1M count=256 2>/dev/null
}
daemon() {
    vduse_disk disk0 256 "$(nproc)"
    fill
    vblk vdpa add disk0 >/dev/null
    eventually 20 test -b /dev/vda
    measure "$1"
    vblk vdpa del disk0 >/dev/null
    qsd=$(cat /tmp/disk0.pid)
    kill "$qsd"
    wait "$qsd" || true
    [ ! -e /dev/vduse/disk0 ] || fail "qemu-storage-daemon left its device"
}
# ours LABEL DISK OPTION...
ours() {
    label=$1
    shift
    serve disk0 "$@" --attach virtio
    eventually 20 test -b /dev/vda
    measure "$label"
    end_server disk0
}

for cpus in 2 1; do
    [ $cpus = 2 ] || echo 0 >/sys/devices/system/cpu/cpu1/online
    for round in 1 2 3; do
        daemon "round $round, qemu-storage-daemon"
        ours "round $round, vblk" raw:/tmp/disk0.img
    done
    ours "a disk that does nothing" null:256M,zero=off
done
