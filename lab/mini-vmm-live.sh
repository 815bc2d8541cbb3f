#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: Debian's ELF kernel in mini-vmm, in mid-I/O: driver unbound, kexec, sudden reset, pause, snapshot and restore
# lab: cpus=2 memory=3072 timeout=600 kernel=yes
# lab: modules=irqbypass,kvm,kvm_amd binaries=mini-vmm

. /lab/lib.sh
. /lab/nested.sh

# number AT FILE: the number of four bytes there.
number() {
    od -An -tu4 -j "$1" -N 4 "$2" | tr -d ' '
}

step "the kernel as ELF, out of the compressed image"
# Documentation/arch/x86/boot.rst: setup_sects, payload_offset and payload_length; the size of the ELF file is the
# payload's last word.
setup=$((($(od -An -tu1 -j 497 -N 1 /lab/vmlinuz) + 1) * 512))
kernel=/tmp/vmlinux
tail -c +$((setup + $(number 584 /lab/vmlinuz) + 1)) /lab/vmlinuz |
    head -c $(($(number 588 /lab/vmlinuz) - 4)) | zstd -q -d >$kernel
expect "kernel" "$(head -c 4 $kernel | tail -c 3)" ELF

step "a root file system"
nested_script <<'NESTED'
# A disk of the VMM's own, a simulated vDPA device on its fast path, and one on its slow path. The first and the last
# are so slow that requests wait in them at any moment.
disks="vdb vdc vdd"
slot_of() {
    case $1 in vdb) echo 0000:00:02.0 ;; vdc) echo 0000:00:03.0 ;; vdd) echo 0000:00:04.0 ;; esac
}

# What was written once is still there.
same() {
    for disk in $disks; do
        dd if=/dev/$disk of=/tmp/read bs=64k count=4 iflag=direct 2>/dev/null
        cmp /random /tmp/read || fail "other data on $disk after $*"
    done
}

# in_flight DISK: requests on a disk, until it goes or this guest ends. Returns when they run.
in_flight() {
    fio --name=load --filename=/dev/$1 --offset=1M --size=8M --rw=randrw --direct=1 --ioengine=libaio \
        --iodepth=16 --time_based --runtime=60 --allow_file_create=0 >/dev/null 2>&1 &
    from=$(awk '{ print $1 }' /sys/block/$1/stat)
    busy() {
        [ "$(awk '{ print $1 }' /sys/block/$1/stat)" -gt $((from + 20)) ]
    }
    eventually 60 busy "$1"
    # Reads and writes in flight, as the kernel counts them.
    flies() {
        flying=$(tr -s ' ' '+' </sys/block/$1/inflight)
        flying=$((${flying#+}))
        [ $flying -gt 0 ]
    }
    # On a busy host there are moments without, whatever the disk.
    case $1 in vdc) flies "$1" || true ;; *) eventually 60 flies "$1" ;; esac
    echo "NESTED $1: $flying in flight"
}

case $boots in
1)
    dd if=/dev/urandom of=/random bs=64k count=4 2>/dev/null
    for disk in $disks; do
        dd if=/random of=/dev/$disk bs=64k oflag=direct 2>/dev/null
        # Requests are in flight on the slow ones at any moment; the other is tried twice.
        for round in 1 2; do
            [ $round = 1 ] || [ $disk = vdc ] || continue
            in_flight $disk
            slot=$(slot_of $disk)
            echo $slot >/sys/bus/pci/drivers/virtio-pci/unbind
            wait
            echo $slot >/sys/bus/pci/drivers/virtio-pci/bind
            eventually 60 test -b /dev/$disk
        done
    done
    same "the driver left"
    for disk in $disks; do
        verify /dev/$disk --rw=randrw --size=256k --iodepth=16 --offset=16M
    done
    step "NESTED the drivers left in mid-I/O and came back"
    kexec -s -l /lab/vmlinuz --initrd=/lab/initramfs --reuse-cmdline
    for disk in $disks; do in_flight $disk; done
    nested_reboot kexec -e
    ;;
2)
    same kexec
    step "NESTED another kernel by kexec in mid-I/O"
    for disk in $disks; do
        verify /dev/$disk --rw=randrw --size=256k --iodepth=16 --offset=16M
        in_flight $disk
    done
    nested_reboot sysrq b
    ;;
esac
same "a sudden reset"
step "NESTED reset in mid-I/O"
round=0
until [ "$(cat /sys/block/vdb/size)" = $((96 * 2048)) ]; do
    round=$((round + 1))
    for disk in $disks; do
        verify /dev/$disk --rw=randrw --size=256k --iodepth=16 --offset=16M
    done
    echo "NESTED verified $round"
done
dd if=/dev/vdb of=/dev/null bs=1M skip=95 count=1 2>/dev/null
exit 0
NESTED
cp /lab/vmlinuz /tmp/root/lab/vmlinuz
cp /tmp/nested.cpio /tmp/root/lab/initramfs
root_image
for name in data sim slow; do truncate -s 64M /tmp/$name.img; done
limit=throttle=iops:200
disks="--disk raw:/tmp/data.img,$limit --disk sim:raw:/tmp/sim.img --disk sim:raw:/tmp/slow.img,$limit"

# until_said TEXT: the machine gets there.
until_said() {
    there() {
        kill -0 $machine 2>/dev/null || fail "the machine has ended before: $1"
        said /tmp/log "$1"
    }
    eventually 300 there "$1"
}

step "the machine"
run /tmp/log $disks --control /tmp/control &
machine=$!
until_said "NESTED verified 1"
expect "boots" "$(grep -c 'NESTED reset in mid-I/O' /tmp/log)" 1
step "pause and resume, under I/O"
for round in 1 2 3; do
    control pause
    control resume
done
step "a snapshot, with the disks as they are then"
control pause
control snapshot /tmp/snapshot
mkdir /tmp/copy
cp /tmp/root.img /tmp/data.img /tmp/sim.img /tmp/slow.img /tmp/copy
control resume
control resize 1 96
wait $machine || fail "status $?"
ended /tmp/log

step "the snapshot continues"
mv /tmp/copy/* /tmp
: >/tmp/log
tail -f /tmp/log &
tail=$!
mini-vmm --disk "$root" $disks --control /tmp/control --restore /tmp/snapshot </dev/null >/tmp/log 2>&1 &
machine=$!
until_said "NESTED verified"
control resize 1 96
wait $machine || fail "status $?"
kill $tail
ended /tmp/log
