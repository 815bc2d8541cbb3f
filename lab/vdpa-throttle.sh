#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a qcow2 image through vhost-vdpa to a guest: limited to 2,000 operations a second on the slow path, then fast again
# lab: cpus=2 modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,vduse timeout=180
# lab: binaries=vblk,vhost-vdpa-frontend/vhost-vdpa-throttle

. /lab/lib.sh
. /lab/vduse.sh

step "a qcow2 image becomes /dev/vhost-vdpa-0"
qemu-img create -q -f qcow2 /tmp/disk.qcow2 64M
serve disk0 qcow2:/tmp/disk.qcow2 --queues 2 --attach vhost
eventually 20 test -c /dev/vhost-vdpa-0
step "a guest, with a limit that comes and goes"
vhost-vdpa-throttle /dev/vhost-vdpa-0 2 2000 2 || fail "$(cat /tmp/disk0.log)"
serving disk0
end_server disk0
sound /tmp/disk.qcow2
