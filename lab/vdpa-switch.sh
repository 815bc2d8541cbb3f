#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a guest with verified I/O moved between fast and slow path, over our VDUSE device and qemu-storage-daemon's
# lab: cpus=2 modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,vduse timeout=200
# lab: binaries=vblk,vhost-vdpa-frontend/vhost-vdpa-switch

. /lab/lib.sh
. /lab/vduse.sh

moves 50
