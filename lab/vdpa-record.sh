#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: records what the kernel's vDPA netlink family says, for the tests of vdpa-bus
# lab: binaries=vdpa-bus/vdpa-record modules=vdpa,vduse,virtio_vdpa,vhost_vdpa,virtio_blk timeout=120
#
# To take new bytes into the tests:
#     cargo xtask lab vdpa-record
#     sed -n '/^# kernel/,/^# end/p' target/lab/run/vdpa-record/output.log >crates/vdpa-bus/tests/recorded/NAME.txt

. /lab/lib.sh

vduse_disk disk0 64 4
vduse_disk disk1 32 1 writable=off
step "record"
echo "# kernel $(uname -r)"
vdpa-record "management devices" mgmt
vdpa-record "no devices" devices
vdpa-record "device missing" device nosuch
vdpa-record "delete missing" delete nosuch
vdpa-record "add unknown to VDUSE" add nosuch vduse
vdpa-record "add by nobody" add disk0 nosuch
vdpa-record "add with bus" add disk0 nosuch/vduse
vdpa-record "add with features" add disk0 vduse 8589934592
vdpa-record "add" add disk0 vduse
vdpa-record "add twice" add disk0 vduse
vdpa-record "add second" add disk1 vduse
vdpa-record "devices" devices
vdpa-record "device" device disk0
vdpa-record "config" config disk0
vdpa-record "config read-only" config disk1
vdpa-record "configs" configs
vdpa-record "stats" stats disk0
vdpa-record "delete" delete disk0
vdpa-record "delete twice" delete disk0
setpriv --reuid 1000 --regid 1000 --clear-groups vdpa-record "add without privilege" add disk0 vduse
echo "# end"
