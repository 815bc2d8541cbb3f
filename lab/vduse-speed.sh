#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: 4 KiB random I/O through VDUSE: vblk beside qemu-storage-daemon, on images alike, with 2 CPUs and with 1
# lab: cpus=2 memory=2048 modules=virtio_vdpa,virtio_blk,vduse binaries=vblk build=release run=named timeout=1800

. /lab/lib.sh
. /lab/vduse.sh

# Fio's own cost is part of what is measured. `libaio` is what everybody runs, one system call for each request;
# `io_uring` takes and gives requests in batches and costs less, so that more of what shows is the device.
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
# iops DEVICE CLIENT READ-OR-WRITE DEPTH. On one CPU: with two a client that wakes up on the other one goes to another
# queue, and each such move takes milliseconds in emulation. The servers' threads are free.
iops() {
    # Several words.
    # shellcheck disable=SC2046
    fio --name=speed --filename="$1" --direct=1 $(client "$2") --bs=4k --rw="$3" --iodepth="$4" --cpus_allowed=0 \
        --time_based --runtime=2 --ramp_time=500ms --norandommap --randrepeat=0 --minimal >/tmp/fio.log 2>&1 ||
        fail "$(cat /tmp/fio.log)"
    # Fields of fio's terse format, version 3: IOPS of reads and of writes.
    awk -F';' -v rw="$3" '{ print rw == "randread" ? $8 : $49 }' /tmp/fio.log
}
# device SERVER: where its disk is.
device() {
    for disk in /sys/block/vd*; do
        if [ "$(cat "$disk/serial")" = "$1" ]; then
            echo "/dev/${disk##*/}"
            return
        fi
    done
    return 1
}
servers="qemu vblk null"
# Servers take turns, so that whatever else the host does meanwhile meets all of them.
measure() {
    for client in $clients; do
        for rw in randread randwrite; do
            for depth in 1 32; do
                for server in $servers; do
                    found=$(iops "$(device $server)" $client $rw $depth)
                    echo "$cpus $client $rw $depth $server $found" >>/tmp/found
                    echo "$cpus CPUs, $client $rw depth $depth, $server: $found IOPS"
                done
            done
        done
    done
}

for cpus in 2 1; do
    [ $cpus = 2 ] || echo 0 >/sys/devices/system/cpu/cpu1/online
    vduse_disk qemu 256 $cpus writable=on,serial=qemu
    vblk vdpa add qemu >/dev/null
    truncate -s 256M /tmp/vblk.img
    serve vblk raw:/tmp/vblk.img --serial vblk --attach virtio
    serve null null:256M,zero=off --serial null --attach virtio
    for server in $servers; do
        eventually 20 device $server >/dev/null
        # Written, by this client, so that nothing measures allocation.
        taskset 1 dd if=/dev/zero of="$(device $server)" bs=64k oflag=direct 2>/dev/null || true
    done
    for round in 1 2 3 4 5; do
        step "round $round"
        measure
    done
    end_server vblk
    end_server null
    vblk vdpa del qemu >/dev/null
    qsd=$(cat /tmp/qemu.pid)
    kill "$qsd"
    wait "$qsd" || true
    [ ! -e /dev/vduse/qemu ] || fail "qemu-storage-daemon left its device"
done

step "medians (and ranges) as docs/performance.md has them"
sort -k1,1nr -k2,2r -k3,4 -k5,5 -k6,6n /tmp/found | awk '
    function cell(server) { return sprintf("%d (%d–%d)", v[server, 3], v[server, 1], v[server, 5]) }
    { key = $1 " | " $2 " | " $3 " | " $4 }
    key != last { delete count; last = key }
    {
        v[$5, ++count[$5]] = $6
        if ($5 == "vblk" && count[$5] == 5)
            printf "| %s | %s | %s | %.1f | %s |\n", key, cell("qemu"), cell("vblk"), v["vblk", 3] / v["qemu", 3], cell("null")
    }'
