#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: mini-vmm in nested KVM: Debian's kernel on our disk on MMIO: I/O, trim, panic and reboot; the built-in guest, also moved
# lab: cpus=2 memory=2048 timeout=400 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd binaries=mini-vmm,quickstart

. /lab/lib.sh
. /lab/nested.sh

step "the built-in guest, then the same one attacking"
mini-vmm </dev/null
mini-vmm --hostile 1 </dev/null

step "the README's first command: the same guest, moved between the paths"
quickstart </dev/null >/tmp/log 2>&1 || fail "quickstart"
cat /tmp/log
grep -q "A guest's driver wrote" /tmp/log || fail "KVM runs guests here, and quickstart has none"

boots_twice mmio sysrq c
