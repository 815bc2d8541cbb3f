#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: the raw disk's engines on a block device that knows its past: no power cut loses what a flush or FUA promised
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vduse-backend/raw-power-cut timeout=120

. /lab/lib.sh

mkdir -p /run/vblk
step "each engine, with and without the page cache"
raw-power-cut disk0 /dev/vda 160
