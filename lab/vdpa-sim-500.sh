#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a guest moved 500 times between the paths over the kernel's vdpa_sim_blk, by SUSPEND and RESUME
# lab: built=yes modules=vhost_iotlb,vhost,vdpa,vhost_vdpa timeout=600 run=named
# lab: binaries=vhost-vdpa-frontend/vhost-vdpa-switch

. /lab/lib.sh
. /lab/simulator.sh

moved_on_simulator 500
