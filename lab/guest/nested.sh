# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What lab scripts share that boot Debian in mini-vmm, in the lab's nested KVM: `. /lab/nested.sh` after lib.sh.
# Each exit from that guest is very dear there, so its kernel is spared what the tests don't need.

# fail WORDS: as in lib.sh; but a guest that triple-faults without a word of its kernel is the emulator's fault, now and
# then (README.md), and the lab tries again.
fail() {
    echo "FAILED: $*"
    # The machine may have something to say.
    sleep 2
    tail -n 30 /tmp/log || true
    if grep -q "a triple fault" /tmp/log && ! grep -q -e "Kernel panic" -e "Oops" -e "BUG: " /tmp/log; then
        exit 75
    fi
    exit 1
}

# control COMMAND...: to the machine; its answer is in /tmp/answer.
control() {
    mini-vmm ctl --control /tmp/control "$@" >/tmp/answer || fail "ctl $*: $(cat /tmp/disk0.log 2>/dev/null)"
}

cmdline="console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr nowatchdog 8250.nr_uarts=1"

# nested_script: makes a root file system for the guest in /tmp/root, and an initramfs that finds it on /dev/vda.
# Its first process is what comes on standard input.
nested_script() {
    mkdir -p /tmp/root /tmp/nested/bin /tmp/nested/dev
    cp -a /usr /bin /sbin /lib /lib64 /etc /busybox /tmp/root
    # Binaries under test are not for the guest, nor are modules: it gets what it needs from its initramfs.
    rm -rf /tmp/root/usr/lib/modules /tmp/root/usr/bin/mini-vmm /tmp/root/usr/bin/quickstart /tmp/root/usr/bin/vblk /tmp/root/usr/bin/qemu-*
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

# nested_reboot COMMAND...: ends this boot, by the command.
nested_reboot() {
    sync
    trap - EXIT
    step "NESTED ends with $*"
    mount -o remount,ro /
    "$@"
    sleep 100
}

# sysrq KEY: of the kernel's own, without its last words.
sysrq() {
    echo 0 >/proc/sys/kernel/printk
    printf '%s' "$1" >/proc/sysrq-trigger
}
NESTED
    cat >>/tmp/root/nested
    for module in virtio_mmio virtio_blk; do
        find /usr/lib/modules -name "$module.ko" -exec cp {} /tmp/nested \;
    done
    cp /bin/busybox /tmp/nested/bin/busybox
    cat >/tmp/nested/init <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /busybox
/bin/busybox --install -s /busybox
export PATH=/busybox
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# That of PCI is in the kernel.
grep -q nested.mmio /proc/cmdline && insmod /virtio_mmio.ko
insmod /virtio_blk.ko
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
    mknod /tmp/nested/dev/console c 5 1
    (cd /tmp/nested && find . | busybox cpio -o -H newc >/tmp/nested.cpio 2>/dev/null)
}

# root_image: /tmp/root.img, as if the guest had never been started.
root_image() {
    rm -f /tmp/root.img
    truncate -s 256M /tmp/root.img
    mke2fs -q -t ext4 -E lazy_itable_init=1 -d /tmp/root /tmp/root.img
}

# run LOG OPTIONS...: a machine with two vCPUs and the root disk; its console goes to LOG. $words are more of the
# guest's command line, $root is its first disk, $kernel its kernel.
words=""
root=raw:/tmp/root.img
kernel=/lab/vmlinuz
run() {
    log=$1
    shift
    : >"$log"
    tail -f "$log" &
    tail=$!
    status=0
    mini-vmm --kernel "$kernel" --initramfs /tmp/nested.cpio --cmdline "$cmdline $words" \
        --disk "$root" --cpus 2 --memory 256 "$@" </dev/null >"$log" 2>&1 || status=$?
    kill $tail
    # Its last words may have come too late for `tail`.
    [ $status = 0 ] || tail -n 20 "$log"
    return $status
}

# said LOG WORDS: whether the guest printed that.
said() {
    grep -q "$2" "$1"
}

# ended LOG: the guest's script is through, without an error, and so is the file system on its disk.
ended() {
    said "$1" "NESTED ended with 0" || fail "the guest's script failed"
    e2fsck -f -n /tmp/root.img >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
}

# boots_twice TRANSPORT COMMAND...: a guest uses the disk behind that transport, ends its first boot by the command, and
# finds its files in the second.
boots_twice() {
    transport=$1
    shift
    step "a root file system"
    {
        echo "ending='$*'"
        cat <<'NESTED'
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
nested_reboot $ending
NESTED
    } | nested_script
    root_image
    before=$(stat -c %b /tmp/root.img)

    step "the machine"
    words=nested.$transport
    run /tmp/log --transport "$transport" || fail "status $?"
    said /tmp/log "NESTED boot 2" || fail "no second boot"
    ended /tmp/log
    echo "blocks of the image before $before, after $(stat -c %b /tmp/root.img)"
}
