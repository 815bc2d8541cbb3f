#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: 4 KiB random I/O through VDUSE: vblk beside qemu-storage-daemon, on the same image, with 2 CPUs and with 1
# lab: cpus=2 modules=virtio_vdpa,virtio_blk,vduse binaries=vblk build=release run=named timeout=1800

. /lab/lib.sh
. /lab/vduse.sh

# Fio's own cost is part of what is measured. `libaio` is what everybody runs, one system call for each request;
# `io_uring` takes and gives requests in batches and costs half as much, so that more of what shows is the device.
clients="libaio io_uring"
client() {
    case $1 in
    libaio) echo --ioengine=libaio ;;
    io_uring)
        echo --ioengine=io_uring --fixedbufs --registerfiles --gtod_reduce=1 \
            --iodepth_batch=16 --iodepth_batch_complete_min=1 --iodepth_batch_complete_max=32
        ;;
    esac
}
# iops CLIENT READ-OR-WRITE DEPTH. On one CPU: with two CPUs a request that comes from the other one each time it is
# woken goes to another queue, and wakes a CPU up, which takes milliseconds in emulation. The server's threads are free.
iops() {
    # Several words.
    # shellcheck disable=SC2046
    fio --name=speed --filename=/dev/vda --direct=1 $(client "$1") --bs=4k --rw="$2" --iodepth="$3" --cpus_allowed=0 \
        --time_based --runtime=3 --ramp_time=1 --norandommap --randrepeat=0 --minimal >/tmp/fio.log 2>&1 ||
        fail "$(cat /tmp/fio.log)"
    # Fields of fio's terse format, version 3: IOPS of reads and of writes.
    awk -F';' -v rw="$2" '{ print rw == "randread" ? $8 : $49 }' /tmp/fio.log
}
measure() {
    for client in $clients; do
        for rw in randread randwrite; do
            for depth in 1 32; do
                found=$(iops $client $rw $depth)
                echo "$(nproc) $client $rw $depth $1 $found" >>/tmp/found
                step "$(nproc) CPUs, $1, $client $rw depth $depth: $found IOPS"
            done
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
    measure qemu
    vblk vdpa del disk0 >/dev/null
    qsd=$(cat /tmp/disk0.pid)
    kill "$qsd"
    wait "$qsd" || true
    [ ! -e /dev/vduse/disk0 ] || fail "qemu-storage-daemon left its device"
}
# ours LABEL DISK
ours() {
    serve disk0 "$2" --attach virtio
    eventually 20 test -b /dev/vda
    measure "$1"
    end_server disk0
}

for cpus in 2 1; do
    [ $cpus = 2 ] || echo 0 >/sys/devices/system/cpu/cpu1/online
    for round in 1 2 3; do
        step "round $round"
        daemon
        ours vblk raw:/tmp/disk0.img
        ours null null:256M,zero=off
    done
done

step "medians (and ranges); as docs/performance.md has them"
sort -k1,1nr -k2,2r -k3,4 -k5,5 -k6,6n /tmp/found | awk '
    function cell(server) { return sprintf("%d (%d–%d)", v[server, 2], v[server, 1], v[server, 3]) }
    { key = $1 " | " $2 " | " $3 " | " $4 }
    key != last { delete count; last = key }
    {
        v[$5, ++count[$5]] = $6
        if ($5 == "vblk" && count[$5] == 3)
            printf "| %s | %s | %s | %.1f | %s |\n", key, cell("qemu"), cell("vblk"), v["vblk", 2] / v["qemu", 2], cell("null")
    }'
