#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a raw image as /dev/vda through VDUSE: partitions, ext4, verified I/O, fstrim, resize, fsck, outside view
# lab: cpus=4 modules=virtio_vdpa,virtio_blk,vduse,loop binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh

disk=/sys/block/vda
image=/tmp/disk.img
size_is() {
    [ "$(cat $disk/size)" = "$1" ]
}
allocated() {
    echo $(($(stat -c %b $image) * 512))
}

step "an image of 256 MiB becomes a VDUSE device with 4 queues"
truncate -s 256M $image
serve disk0 raw:$image --queues 4 --serial vduse-disk
attach disk0
eventually 20 test -b /dev/vda

step "what the disk says of itself"
expect "sectors" "$(cat $disk/size)" $((256 * 2048))
expect "queues" "$(ls $disk/mq | wc -l)" 4
expect "serial" "$(cat $disk/serial)" vduse-disk
expect "write cache" "$(cat $disk/queue/write_cache)" "write back"
[ "$(cat $disk/queue/discard_max_bytes)" -ge 4096 ] || fail "no discard"

step "a GPT with two partitions, found by the kernel"
sfdisk --quiet /dev/vda <<TABLE
label: gpt
size=128MiB, type=linux
type=linux
TABLE
eventually 10 test -b /dev/vda2

step "verified random writes and reads, depth 1 and 32, one job for each queue"
verify /dev/vda2 --rw=randwrite --size=1M --iodepth=1
verify /dev/vda2 --rw=randrw --size=4M --offset_increment=8M --numjobs=4 --iodepth=32 --cpus_allowed=0-3 --cpus_allowed_policy=split

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

step "fstrim gives space back"
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
truncate -s 384M $image
eventually 20 size_is $((384 * 2048))
verify /mnt/verify --rw=randrw --size=2M --iodepth=32
rm /mnt/verify
dd if=/dev/vda of=/dev/null bs=1M skip=383 count=1 2>/dev/null
umount /mnt
e2fsck -f -n /dev/vda1 >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
cp /sys/block/vda/vda1/start /tmp/start

step "the device goes away in order"
detach disk0
end_server disk0
[ ! -e /dev/vduse/disk0 ] || fail "the device is still there"
[ ! -e /run/vblk/vduse-disk0.state ] || fail "its record is still there"

step "the image outside holds the same file system"
losetup -o $(($(cat /tmp/start) * 512)) /dev/loop0 $image
mount -t ext4 -o ro /dev/loop0 /mnt
cd /mnt
sha256sum -c sums >/tmp/check || fail "$(grep -v OK /tmp/check)"
step "$(wc -l <sums) files are as they were"
