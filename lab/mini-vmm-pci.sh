#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: mini-vmm in nested KVM: Debian's kernel on our disk on PCI: I/O, trim, reboot, power-off, file system check
# lab: cpus=2 memory=2048 timeout=400 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd binaries=mini-vmm

. /lab/lib.sh
. /lab/nested.sh

boots_twice pci reboot -f
