#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a raw image as vhost-user disk: partitions, ext4, verified I/O, fstrim, resize, reboot, fsck
# lab: disk=256 queues=4
# lab: cpus=4 modules=virtio_blk timeout=180

. /lab/lib.sh

disk=/sys/block/vda
allocated() {
    host allocated
}
size_is() {
    [ "$(cat $disk/size)" = "$1" ]
}

if [ "$LAB_BOOT" = 2 ]; then
    step "second boot: partitions, file system and data are still there"
    expect "sectors" "$(cat $disk/size)" $((384 * 2048))
    expect "partitions" "$(ls -d $disk/vda* | wc -l)" 2
    e2fsck -f -n /dev/vda1
    mount /dev/vda1 /mnt
    cd /mnt
    sha256sum -c sums >/tmp/check || fail "$(grep -v OK /tmp/check)"
    step "$(wc -l <sums) files are as they were"
    cd /
    umount /mnt
    exit 0
fi

step "what the disk says of itself"
expect "sectors" "$(cat $disk/size)" $((LAB_DISK_MIB * 2048))
expect "queues" "$(ls $disk/mq | wc -l)" "$LAB_QUEUES"
expect "read-only" "$(cat $disk/ro)" 0
expect "logical block size" "$(cat $disk/queue/logical_block_size)" 512
if [ "$LAB_SERVER" != qsd ]; then
    # qemu-storage-daemon leaves both at their defaults.
    expect "write cache" "$(cat $disk/queue/write_cache)" "write back"
    expect "serial" "$(cat $disk/serial)" "$LAB_SERIAL"
    echo "write through" >$disk/cache_type
    expect "write cache, changed" "$(cat $disk/cache_type)" "write through"
    verify /dev/vda --rw=randwrite --size=1M --iodepth=4
    echo "write back" >$disk/cache_type
    expect "write cache, changed back" "$(cat $disk/cache_type)" "write back"
fi
[ "$(cat $disk/queue/discard_max_bytes)" -ge 4096 ] || fail "no discard"
[ "$(cat $disk/queue/write_zeroes_max_bytes)" -ge 4096 ] || fail "no write zeroes"

step "a GPT with two partitions, found by the kernel"
sfdisk --quiet /dev/vda <<TABLE
label: gpt
size=128MiB, type=linux
type=linux
TABLE
eventually 10 test -b /dev/vda2
expect "sectors of vda1" "$(cat $disk/vda1/size)" $((128 * 2048))

step "verified random writes and reads, depth 1 and 32, one job for each queue"
verify /dev/vda2 --rw=randwrite --size=1M --iodepth=1
verify /dev/vda2 --rw=randrw --size=4M --offset_increment=8M --numjobs=4 --iodepth=32 --cpus_allowed=0-3 --cpus_allowed_policy=split
queues_used=$(awk '/virtio[0-9]+-req\.[0-9]+/ { n = 0; for (i = 2; i <= 5; i++) n += $i; if (n > 0) used++ } END { print used + 0 }' /proc/interrupts)
expect "queues that carried requests" "$queues_used" "$LAB_QUEUES"

step "discard and write zeroes read back as zeroes"
printf 'vblk' | dd of=/dev/vda2 bs=4 conv=notrunc 2>/dev/null
blkdiscard --zeroout --offset 0 --length 1048576 /dev/vda2
expect "bytes after write zeroes" "$(dd if=/dev/vda2 bs=1M count=1 2>/dev/null | tr -d '\000' | wc -c)" 0
blkdiscard /dev/vda2

step "ext4 with files"
mkfs.ext4 -q /dev/vda1
mount /dev/vda1 /mnt
for number in 1 2 3 4 5 6 7 8; do
    dd if=/dev/urandom of=/mnt/file$number bs=64k count=$((number * 2)) 2>/dev/null
done
(cd /mnt && sha256sum file* >sums)

step "fstrim gives space back to the host"
dd if=/dev/urandom of=/mnt/large bs=1M count=48 2>/dev/null
sync
full=$(allocated)
rm /mnt/large
sync
fstrim -v /mnt
trimmed=$(allocated)
step "the image took $full bytes, now $trimmed"
[ $((full - trimmed)) -ge $((40 * 1048576)) ] || fail "less than 40 MiB came back"

step "the image grows under the mounted file system"
host resize 384
eventually 20 size_is $((384 * 2048))
verify /mnt/verify --rw=randrw --size=2M --iodepth=32
rm /mnt/verify
dd if=/dev/vda of=/dev/null bs=1M skip=383 count=1 2>/dev/null

if [ "$LAB_SERVER" != qsd ]; then
    step "the server is replaced under the mounted file system"
    host restart
    echo 3 >/proc/sys/vm/drop_caches
    (cd /mnt && sha256sum -c sums >/tmp/check) || fail "$(grep -v OK /tmp/check)"
fi
umount /mnt
e2fsck -f -n /dev/vda1 >/tmp/check || fail "$(cat /tmp/check)"
step "reboot"
reboot_guest
