#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a qcow2 image with layers as /dev/vda of the host and in a container: limited, measured, drained, backed up
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=180

. /lab/lib.sh
. /lab/vduse.sh

ctl() {
    vblk --json ctl /tmp/disk0.ctl "$@"
}
# Looks at the statistics, and says how many operations there were in all.
operations() {
    ctl stats >/tmp/stats
    sum=0
    for count in $(sed 's/.*"total"://' /tmp/stats | grep -o '"count":[0-9]*' | cut -d: -f2); do
        sum=$((sum + count))
    done
    echo $sum
}
# number KEY: the number behind the first "KEY": of what comes in.
number() {
    grep -o "\"$1\":[0-9]*" | head -n 1 | cut -d: -f2
}

step "a qcow2 image becomes /dev/vda of this host"
qemu-img create -q -f qcow2 /tmp/disk.qcow2 64M
serve disk0 qcow2:/tmp/disk.qcow2,dirty=backup,meter --queues 1 --control /tmp/disk0.ctl --attach virtio
eventually 20 test -b /dev/vda
expect "sectors" "$(cat /sys/block/vda/size)" $((64 * 2048))
verify /dev/vda --rw=randrw --size=512k --iodepth=8 --offset=32M
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/mnt/first bs=64k count=16 2>/dev/null

step "limited to 200 operations a second while it is in use"
ctl dirty backup --new >/dev/null
ctl layers dirty=backup,throttle=iops:200,meter | grep -q '"settled":true' || fail "not settled"
before=$(operations)
# Hundredths of a second, as busybox has no finer clock.
start=$(cut -d' ' -f1 /proc/uptime | tr -d .)
fio --name=load --filename=/mnt/load --ioengine=libaio --iodepth=16 --direct=1 --bs=4k --rw=randwrite --size=640k --minimal \
    >/tmp/fio.log 2>&1 || fail "$(cat /tmp/fio.log)"
after=$(operations)
millis=$((($(cut -d' ' -f1 /proc/uptime | tr -d .) - start) * 10))
echo "$((after - before)) operations in $millis ms, $(number released </tmp/stats) of them held back"
# At most what the limit gives in that time, what a late timer may make up for, and flushes, which are not held back.
[ $((after - before)) -le $((millis / 5 + millis / 250 + 30)) ] || fail "more than the limit allows"
[ "$(number released </tmp/stats)" -gt 50 ] || fail "nothing was held back"
ctl layers --remove throttle >/dev/null

step "one moment of it, while a writer continues"
dd if=/dev/zero of=/mnt/writer bs=64k count=400 oflag=direct 2>/dev/null &
writer=$!
ctl drain --hold 30 | grep -q '"drained":true' || fail "no drain"
ctl dirty backup --take --save /tmp/backup.marks >/tmp/taken
cp /tmp/disk.qcow2 /tmp/copy.qcow2
ctl resume >/dev/null
wait $writer
grep -q '"ranges":\[\[' /tmp/taken || fail "nothing was marked"
sound /tmp/copy.qcow2
umount /mnt
e2fsck -f -n /dev/vda >/tmp/check 2>&1 || fail "$(cat /tmp/check)"

step "the same disk in a container that has nothing else"
chown 1000:1000 /dev/vda
root=/tmp/root
mkdir -p $root/dev $root/usr $root/tmp
for link in bin sbin lib lib64; do
    ln -s usr/$link $root/$link
done
touch $root/dev/vda
chown -R 1000:1000 $root
cat >/tmp/inside <<'INSIDE'
set -eu
mount --rbind /usr /tmp/root/usr
mount --bind /dev/vda /tmp/root/dev/vda
mount -t tmpfs tmpfs /tmp/root/tmp
exec chroot /tmp/root /bin/dash -eu -c '
    set -- /dev/*
    [ "$*" = /dev/vda ]
    cd /tmp
    fio --name=inside --filename=/dev/vda --ioengine=psync --bs=4k --rw=randrw --size=512k --offset=48M --direct=1 \
        --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; exit 1; }
'
INSIDE
setpriv --reuid=1000 --regid=1000 --clear-groups \
    unshare --user --map-root-user --mount dash /tmp/inside || fail "the container failed"
serving disk0
end_server disk0
sound /tmp/disk.qcow2

step "a raw image on a full file system: errors reach the driver, and nothing that was written is lost"
mkdir /tmp/small
mount -t tmpfs -o size=4M tmpfs /tmp/small
truncate -s 32M /tmp/small/disk.img
serve disk0 raw:/tmp/small/disk.img,verify,dirty=all,meter --queues 1 --control /tmp/disk0.ctl --attach virtio
eventually 20 test -b /dev/vda
dd if=/dev/urandom of=/tmp/known bs=64k count=16 2>/dev/null
dd if=/tmp/known of=/dev/vda bs=64k oflag=direct 2>/dev/null
! dd if=/dev/zero of=/dev/vda bs=64k seek=16 oflag=direct 2>/tmp/said || fail "there was room"
grep -q 'No space\|Input/output' /tmp/said || fail "$(cat /tmp/said)"
ctl stats >/tmp/stats
[ "$(grep -o '"write":{[^}]*' /tmp/stats | number errors)" -gt 0 ] || fail "the meter counted no error: $(cat /tmp/stats)"
grep -q '"lie":null' /tmp/stats || fail "a lie: $(cat /tmp/stats)"
dd if=/dev/vda of=/tmp/found bs=64k count=16 iflag=direct 2>/dev/null
cmp /tmp/known /tmp/found || fail "written data was lost"
step "and it continues when there is room"
mount -o remount,size=64M /tmp/small
dd if=/dev/urandom of=/dev/vda bs=64k seek=16 count=480 oflag=direct 2>/dev/null
dd if=/dev/vda of=/tmp/found bs=64k count=16 iflag=direct 2>/dev/null
cmp /tmp/known /tmp/found || fail "written data was lost"
ctl stats | grep -q '"lie":null' || fail "a lie"
end_server disk0
