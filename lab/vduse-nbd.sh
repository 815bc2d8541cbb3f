#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: an export of an NBD server as /dev/vda through VDUSE: the server is killed under verified I/O; mkfs, fsck
# lab: cpus=2 modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=240

. /lab/lib.sh
. /lab/vduse.sh
. /lab/network.sh

target() {
    vblk serve nbd --disk raw:/tmp/disk.img --socket /tmp/nbd.sock >/tmp/nbd.out 2>>/tmp/nbd.log &
    target=$!
}

killed() {
    kill -9 $target
    wait $target || true
}

step "an NBD server with an image of 64 MiB"
truncate -s 64M /tmp/disk.img
target
eventually 20 test -S /tmp/nbd.sock

# What it acknowledged is in the page cache, which outlives it.
served nbd:unix:/tmp/nbd.sock,reconnect=60,unflushed=trust
outlives 3 killed target
files
end_server disk0
kill $target
wait $target || fail "the NBD server failed: $(cat /tmp/nbd.log)"
same_files /tmp/disk.img
