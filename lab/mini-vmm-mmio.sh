#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: mini-vmm in nested KVM: Debian's kernel on our disk on MMIO: I/O, trim, panic and reboot; the built-in guest
# lab: cpus=2 memory=2048 timeout=400 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd binaries=mini-vmm

. /lab/lib.sh
. /lab/nested.sh

step "the built-in guest, then the same one attacking"
mini-vmm </dev/null
mini-vmm --hostile 1 </dev/null

boots_twice mmio sysrq c
