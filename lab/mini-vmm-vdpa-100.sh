#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: the same as mini-vmm-vdpa with 100 moves
# lab: cpus=2 memory=2560 timeout=1200 kernel=yes run=named
# lab: modules=irqbypass,kvm,kvm_amd,virtio_vdpa,vhost_vdpa,vduse binaries=mini-vmm,vblk

. /lab/lib.sh
. /lab/vduse.sh
. /lab/nested.sh

switches=100
. /lab/moved.sh
