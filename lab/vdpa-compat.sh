#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: the kernel's vdpa_sim_blk: a guest moved between the paths; beside it sim-backend's compat profile
# lab: built=yes modules=vhost_iotlb,vhost,vdpa,vhost_vdpa timeout=180
# lab: binaries=vhost-vdpa-frontend/vhost-vdpa-compare,vhost-vdpa-frontend/vhost-vdpa-switch
#
# What is known to differ, and why: crates/vhost-vdpa-frontend/examples/vhost-vdpa-compare/known.rs.

. /lab/lib.sh
. /lab/simulator.sh

moved_on_simulator 20

step "the kernel's simulator"
simulator
vdpa dev show blk0

step "what has no ioctl: the vendor's number, and statistics that there are none of"
vdpa -j dev show blk0 | grep -q '"vendor_id":0,' || fail "$(vdpa -j dev show blk0)"
vdpa dev vstats show blk0 qidx 0 >/tmp/stats 2>&1 || true
grep 'Operation not supported' /tmp/stats || fail "it keeps statistics: $(cat /tmp/stats)"

step "both"
vhost-vdpa-compare /dev/vhost-vdpa-0

step "the simulator goes away"
vdpa dev del blk0
rmmod vdpa_sim_blk
