#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: kill -9 of the disk server under verified I/O, again and again: nothing is lost
# lab: disk=64 queues=2 crashes=yes
# lab: modules=virtio_blk timeout=180

. /lab/lib.sh
. /lab/disk.sh

killed 10 host crash
