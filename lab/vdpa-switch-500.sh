#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: as vdpa-switch, with 500 moves over each parent
# lab: cpus=2 modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,vduse timeout=900 run=named
# lab: binaries=vblk,vhost-vdpa-frontend/vhost-vdpa-switch

. /lab/lib.sh
. /lab/vduse.sh

moves 500
