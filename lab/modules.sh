#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: the kernel has vDPA, VDUSE, vhost-vdpa and nested KVM, and their control devices appear
# lab: modules=irqbypass,vhost_iotlb,vhost,vdpa,virtio_vdpa,vhost_vdpa,virtio_blk,vduse,kvm,kvm_amd
# lab: timeout=120

. /lab/lib.sh

step "kernel $(uname -r)"
cut -d' ' -f1 /proc/modules
test -c /dev/vduse/control || fail "no /dev/vduse/control"
test -c /dev/kvm || fail "no /dev/kvm"
step "/dev/vduse/control and /dev/kvm are there; vDPA's management devices:"
vdpa mgmtdev show
vdpa mgmtdev show | grep -q '^vduse:' || fail "vduse isn't a management device"
