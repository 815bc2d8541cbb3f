#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: one command makes /dev/vda or /dev/vhost-vdpa-0 of an image, and SIGTERM undoes it all
# lab: modules=vhost_iotlb,vhost,vdpa,virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=120

. /lab/lib.sh
. /lab/vduse.sh

node() {
    grep '"event":"attached"' /tmp/disk0.out | sed 's/.*"node":"\{0,1\}\([^"}]*\).*/\1/'
}
gone() {
    [ ! -e /dev/vduse/disk0 ] || fail "/dev/vduse/disk0 is still there"
    [ ! -e /sys/bus/vdpa/devices/disk0 ] || fail "it is still on the bus"
    [ ! -e /run/vblk/vduse-disk0.state ] || fail "its record is still there"
}

truncate -s 64M /tmp/disk.img
step "to this host"
serve disk0 raw:/tmp/disk.img --attach virtio
eventually 20 grep -q attached /tmp/disk0.out
expect "node" "$(node)" /dev/vda
verify /dev/vda --rw=randrw --size=1M --iodepth=8
step "killed, and started again the same way"
kill_server disk0
serve disk0 raw:/tmp/disk.img --attach virtio -vv
eventually 20 grep -q attached /tmp/disk0.out
expect "node" "$(node)" /dev/vda
verify /dev/vda --rw=randrw --size=1M --iodepth=8
# What the kernel tells of its version and of the address space.
grep -q 'VDUSE version [01], features' /tmp/disk0.log || fail "no version"
grep -q 'memory from 0x0 to 0x[0-9a-f]*: the bounce buffer' /tmp/disk0.log || fail "no bounce buffer is told"
end_server disk0
gone

step "to a virtual machine, but the module is missing"
! vblk serve vduse --disk raw:/tmp/disk.img --name disk0 --attach vhost 2>/tmp/said || fail "without a module"
cat /tmp/said
grep -q vhost_vdpa /tmp/said || fail "it does not name the module"
gone

step "with it"
modprobe vhost_vdpa
serve disk0 raw:/tmp/disk.img --attach vhost
eventually 20 grep -q attached /tmp/disk0.out
expect "node" "$(node)" /dev/vhost-vdpa-0
[ -c /dev/vhost-vdpa-0 ] || fail "no node"
end_server disk0
gone

step "what is missing is said"
rmmod vduse
! vblk serve vduse --disk raw:/tmp/disk.img --name disk0 2>/tmp/said || fail "without vduse"
cat /tmp/said
grep -q 'modprobe vduse' /tmp/said || fail "it does not say what to do"
