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

step "a root file system"
nested_script <<'NESTED'
if [ $boots -gt 1 ]; then
    (cd /data && sha256sum -c sums >/tmp/check) || fail "$(cat /tmp/check)"
    step "NESTED boot $boots: $(wc -l </data/sums) files are as they were"
    exit 0
fi
expect "CPUs" "$(nproc)" 2
expect "queues" "$(ls /sys/block/vda/mq | wc -l)" 2
expect "serial" "$(cat /sys/block/vda/serial)" mini-vmm-0
echo "bus: $(readlink -f /sys/block/vda/device/..)"
mkdir /data
verify /data/fio --rw=randrw --size=1M --numjobs=2 --iodepth=8 --offset_increment=1M --cpus_allowed=0-1 --cpus_allowed_policy=split
rm /data/fio
for number in 1 2; do
    dd if=/dev/urandom of=/data/file$number bs=64k count=$((number * 4)) 2>/dev/null
done
(cd /data && sha256sum file* >sums)
fstrim -v /
echo 0 >/proc/sys/kernel/printk
nested_reboot dd if=/root/c of=/proc/sysrq-trigger
NESTED
printf c >/tmp/root/root/c
root_image
before=$(stat -c %b /tmp/root.img)

step "the machine"
words=nested.mmio
run /tmp/log --transport mmio || fail "status $?"
said /tmp/log "NESTED boot 2" || fail "no second boot"
ended /tmp/log
echo "blocks of the image before $before, after $(stat -c %b /tmp/root.img)"
