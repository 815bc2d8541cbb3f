#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a virtio PCI function behind an IOMMU as vDPA parent (vp_vdpa): both paths, moves under load, doorbells, hot-add, unplugging
# lab: cpus=2 function=64 built=yes modules=vhost_iotlb,vhost,vdpa,vhost_vdpa,virtio_vdpa,vduse,irqbypass,kvm,kvm_amd timeout=300
# lab: binaries=vblk,vhost-vdpa-frontend/vhost-vdpa-switch,vhost-vdpa-frontend/vhost-vdpa-doorbells

. /lab/lib.sh
. /lab/vduse.sh

# Mapped memory is pinned.
ulimit -l unlimited

step "the function goes from virtio-pci to vp_vdpa"
insmod /lab/built/vp_vdpa.ko
for function in /sys/bus/pci/devices/*; do
    # A modern virtio block device.
    [ "$(cat "$function/device")" != 0x1042 ] || bdf=${function##*/}
done
echo "$bdf" >/sys/bus/pci/drivers/virtio-pci/unbind
echo vp-vdpa >"/sys/bus/pci/devices/$bdf/driver_override"
echo "$bdf" >/sys/bus/pci/drivers_probe
vblk vdpa mgmt
vblk vdpa add vp0 --mgmtdev "pci/$bdf" >/dev/null
vblk vdpa bind vp0 vhost >/dev/null
eventually 20 test -c /dev/vhost-vdpa-0
vblk vdpa list

# Kicks that go through the parent's driver.
trace=/sys/kernel/debug/tracing
echo 'p:kick vp_vdpa_kick_vq' >$trace/kprobe_events
echo 1 >$trace/events/kprobes/kick/enable
kicks() {
    awk '{ print $2 }' $trace/kprobe_profile
}

step "doorbell pages in a KVM guest: mapped on the fast path, taken away on the slow one"
vhost-vdpa-doorbells /dev/vhost-vdpa-0 5
# Those that were made while the VMM took kicks, and no others.
before=$(kicks)
[ "$before" -lt 100 ] || fail "$before kicks went through the parent's driver"

step "the slow path is the disk of another device, which the kernel's driver takes"
modprobe virtio_blk
serve outer vdpa:/dev/vhost-vdpa-0 --queues 2 --attach virtio
eventually 20 test -b /dev/vda
verify /dev/vda --rw=randrw --size=2M --offset_increment=8M --numjobs=2 --iodepth=16
# The next guest expects zeroes.
blkdiscard --zeroout --length 1048576 /dev/vda
end_server outer
expect "kicks through the parent's driver" "$(kicks)" "$before"

step "a guest that checks what it reads is moved; the function is unplugged meanwhile, and stays until it is closed"
echo 64 >/tmp/mib
cat >/tmp/grow <<'GROW'
[ -e /tmp/unplugged ] || host unplug
touch /tmp/unplugged
mib=$(($(cat /tmp/mib) + 16))
echo $mib >/tmp/mib
host resize $mib
GROW
GROW='sh /tmp/grow' vhost-vdpa-switch /dev/vhost-vdpa-0 2 20 10 >/tmp/moves || fail "$(cat /tmp/moves)"
cat /tmp/moves
[ "$(kicks)" -gt 100 ] || fail "hardly a kick was seen"
host unplugged
[ ! -e "/sys/bus/pci/devices/$bdf" ] || fail "the function is still there"
expect "devices" "$(vblk vdpa list --json)" ""
! dmesg | grep -e 'BUG:' -e 'WARNING:' -e 'DMAR.*fault'
