#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: mini-vmm in nested KVM: Debian's kernel with its root on our disk, on PCI and on MMIO
# lab: cpus=2 memory=3072 timeout=1200 kernel=yes run=named
# lab: modules=irqbypass,kvm,kvm_amd binaries=mini-vmm

. /lab/lib.sh

cmdline="console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off"

# run LOG OPTIONS...: a machine with two vCPUs and the root disk; its console goes to LOG. $ending is for the
# guest's command line.
run() {
    log=$1
    shift
    : >"$log"
    tail -f "$log" &
    tail=$!
    status=0
    mini-vmm --kernel /lab/vmlinuz --initramfs /tmp/nested.cpio --cmdline "$cmdline ${ending#,}" \
        --disk raw:/tmp/root.img --cpus 2 --memory 256 "$@" </dev/null >"$log" 2>&1 || status=$?
    kill $tail
    return $status
}

# said LOG WORDS: whether the guest printed that.
said() {
    grep -q "$2" "$1"
}

step "the built-in guest, then the same one attacking"
mini-vmm </dev/null
mini-vmm --hostile 1 </dev/null

step "a root file system for the guest in the guest"
mkdir -p /tmp/root /tmp/nested/bin
cp -a /usr /bin /sbin /lib /lib64 /etc /busybox /tmp/root
rm /tmp/root/usr/bin/mini-vmm
for directory in dev proc sys run tmp mnt lab root; do
    mkdir -p /tmp/root/$directory /tmp/nested/$directory
done
cp /lab/lib.sh /tmp/root/lab/lib.sh
cat >/tmp/root/nested <<'NESTED'
#!/usr/bin/dash
export PATH=/usr/sbin:/usr/bin:/busybox HOME=/root
trap 'echo "NESTED ended with $?"; sync; poweroff -f' EXIT
. /lab/lib.sh
mount -t tmpfs tmpfs /tmp
boots=$(($(cat /boots 2>/dev/null || echo 0) + 1))
echo $boots >/boots
expect "CPUs" "$(nproc)" 2
expect "queues" "$(ls /sys/block/vda/mq | wc -l)" 2
expect "serial" "$(cat /sys/block/vda/serial)" mini-vmm-0
echo "bus: $(readlink -f /sys/block/vda/device/..)"
if grep -q nested.live /proc/cmdline; then
    slot=/sys/bus/pci/devices/0000:00:02.0
    dd if=/dev/urandom of=/tmp/random bs=64k count=4 2>/dev/null
    dd if=/tmp/random of=/dev/vdb bs=64k oflag=direct 2>/dev/null
    # The driver leaves and comes back, also in the middle of I/O: resets and negotiations.
    for round in 1 2 3; do
        fio --name=load --filename=/dev/vdb --offset=1M --size=8M --rw=randread --direct=1 --ioengine=libaio \
            --iodepth=16 --time_based --runtime=60 --allow_file_create=0 >/dev/null 2>&1 &
        busy() {
            [ "$(awk '{ print $1 }' /sys/block/vdb/stat)" -gt 200 ]
        }
        eventually 60 busy
        echo 0000:00:02.0 >/sys/bus/pci/drivers/virtio-pci/unbind
        wait
        echo 0000:00:02.0 >/sys/bus/pci/drivers/virtio-pci/bind
        eventually 60 test -b /dev/vdb
    done
    dd if=/dev/vdb of=/tmp/read bs=64k count=4 iflag=direct 2>/dev/null
    cmp /tmp/random /tmp/read || fail "other data after the driver came back"
    step "NESTED the driver left in mid-I/O and came back three times"
    for round in 1 2 3 4; do
        verify /dev/vdb --rw=randrw --size=2M --iodepth=16 --offset=$((round * 4))M
        echo "NESTED verified $round"
    done
    grown() {
        [ "$(cat /sys/block/vdb/size)" = $((96 * 2048)) ]
    }
    eventually 120 grown
    dd if=/dev/vdb of=/dev/null bs=1M skip=95 count=1 2>/dev/null
    step "NESTED the disk grew"
    found() {
        echo 1 >/sys/bus/pci/rescan
        [ -b /dev/vdc ]
    }
    eventually 60 found
    verify /dev/vdc --rw=randwrite --size=1M --iodepth=4
    disk=$(readlink -f /sys/block/vdc/device/..)
    echo 1 >"$disk/remove"
    step "NESTED a disk came and went"
    exit 0
fi
if [ $boots -gt 1 ]; then
    (cd /data && sha256sum -c sums >/tmp/check) || fail "$(cat /tmp/check)"
    step "NESTED boot $boots: $(wc -l </data/sums) files are as they were"
    exit 0
fi
mkdir /data
verify /data/fio --rw=randrw --size=1M --numjobs=2 --iodepth=8 --offset_increment=1M --cpus_allowed=0-1 --cpus_allowed_policy=split
rm /data/fio
for number in 1 2 3 4; do
    dd if=/dev/urandom of=/data/file$number bs=64k count=$((number * 4)) 2>/dev/null
done
(cd /data && sha256sum file* >sums)
dd if=/dev/urandom of=/data/large bs=1M count=16 2>/dev/null
sync
rm /data/large
fstrim -v /
echo "NESTED interrupts: $(grep -c 'virtio[0-9]*-req\|virtio[0-9]' /proc/interrupts)"
sync
trap - EXIT
if grep -q nested.panic /proc/cmdline; then
    step "NESTED panics"
    echo c >/proc/sysrq-trigger
fi
step "NESTED reboots"
mount -o remount,ro /
reboot -f
sleep 100
NESTED
mkdir -p /tmp/nested/usr/lib
cp -a /usr/lib/modules /tmp/nested/usr/lib
ln -s usr/lib /tmp/nested/lib
cp /bin/busybox /tmp/nested/bin/busybox
cat >/tmp/nested/init <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /busybox
/bin/busybox --install -s /busybox
export PATH=/busybox
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
modprobe virtio_mmio
modprobe virtio_blk
tries=0
until [ -b /dev/vda ] || [ $tries = 200 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
mount -t ext4 /dev/vda /mnt || poweroff -f
for directory in dev proc sys; do
    mount --move /$directory /mnt/$directory
done
exec switch_root /mnt /nested
INIT
chmod +x /tmp/nested/init /tmp/root/nested
mkdir -p /tmp/nested/dev
mknod /tmp/nested/dev/console c 5 1
(cd /tmp/nested && find . | busybox cpio -o -H newc >/tmp/nested.cpio 2>/dev/null)

# The second one does not reboot in order: it panics.
for case in pci mmio,nested.panic; do
    transport=${case%,*}
    step "Debian's kernel, its root file system on $transport: write, reboot, read, power off ($case)"
    rm -f /tmp/root.img
    truncate -s 256M /tmp/root.img
    mke2fs -q -t ext4 -d /tmp/root /tmp/root.img
    before=$(stat -c %b /tmp/root.img)
    ending=${case#"$transport"}
    run /tmp/log --transport $transport || fail "status $?"
    said /tmp/log "NESTED boot 2" || fail "no second boot"
    said /tmp/log "NESTED ended with 0" || fail "the guest's script failed"
    e2fsck -f -n /tmp/root.img >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
    echo "blocks of the image before $before, after $(stat -c %b /tmp/root.img)"
done

step "live: pause, snapshot, resume, resize, hot-plug, all under I/O"
rm -f /tmp/root.img /tmp/data.img
truncate -s 256M /tmp/root.img
truncate -s 64M /tmp/data.img
mke2fs -q -t ext4 -d /tmp/root /tmp/root.img
control() {
    mini-vmm ctl --control /tmp/control "$@" >/tmp/answer || fail "ctl $*"
}
# A machine in the background; then what is done to it from the first verified round on.
live() {
    run /tmp/log --disk raw:/tmp/data.img --control /tmp/control "$@" &
    machine=$!
}
finish() {
    eventually 300 said /tmp/log "NESTED verified 4"
    control resize 1 96
    control add-disk memory:8M
    eventually 120 said /tmp/log "NESTED a disk came and went"
    wait $machine || fail "status $?"
    said /tmp/log "NESTED ended with 0" || fail "the guest's script failed"
    e2fsck -f -n /tmp/root.img >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
}
ending=nested.live
: >/tmp/log
live
eventually 300 said /tmp/log "NESTED verified 1"
for round in 1 2 3; do
    control pause
    control resume
done
control pause
control snapshot /tmp/snapshot
control stats
cat /tmp/answer
mkdir /tmp/copy
cp /tmp/root.img /tmp/data.img /tmp/copy
control resume
finish
step "the same from the snapshot, with the disks as they were then"
mv /tmp/copy/root.img /tmp/copy/data.img /tmp
: >/tmp/log
mini-vmm --disk raw:/tmp/root.img --disk raw:/tmp/data.img --queues 2 --control /tmp/control \
    --restore /tmp/snapshot </dev/null >/tmp/log 2>&1 &
machine=$!
finish
tail -n 8 /tmp/log
