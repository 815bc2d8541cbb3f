#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: libblkio's drivers compare every byte: vhost-vdpa on our VDUSE device; vhost-user over our slow path to it, no copies
# lab: cpus=2 modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,vduse binaries=vblk gnu=vblk-testing timeout=200

. /lab/lib.sh
. /lab/vduse.sh

# The device, with an empty disk.
device() {
    rm -f /tmp/disk0.img
    truncate -s 64M /tmp/disk0.img
    serve disk0 raw:/tmp/disk0.img --queues 2 --attach vhost
    eventually 20 test -c /dev/vhost-vdpa-0
}
check() {
    vblk-testing verify --socket "$1" --ops 1500 --queues 2 --queue-size 64 --max-depth 16 || fail "$(cat /tmp/*.log)"
    serving disk0
}

step "its vhost-vdpa driver on our VDUSE device"
device
check /dev/vhost-vdpa-0
end_server disk0

step "its vhost-user driver, with that device as the disk of vblk serve vhost-user"
device
vblk --json serve vhost-user --socket /tmp/socket --disk vdpa:/dev/vhost-vdpa-0 --queues 2 >/tmp/user.out 2>/tmp/user.log &
echo $! >/tmp/user.pid
eventually 20 grep -q listening /tmp/user.out
check /tmp/socket
end_server user
tail -n 1 /tmp/user.out
grep -q '"copied_bytes":0,' /tmp/user.out || fail "data was copied though the device has the client's memory"
end_server disk0
