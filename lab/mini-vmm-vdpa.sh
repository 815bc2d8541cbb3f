#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: Debian in mini-vmm on a VDUSE device of ours, moved between the paths under fio; pause, snapshot, resize, plugging
# lab: cpus=2 memory=2560 timeout=1200 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd,virtio_vdpa,vhost_vdpa,vduse binaries=mini-vmm,vblk

. /lab/lib.sh
. /lab/vduse.sh
. /lab/nested.sh

switches=20
. /lab/moved.sh
