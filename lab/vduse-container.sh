#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a process with its own mounts and user namespace, that has only the device node, uses a VDUSE disk
# lab: modules=virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=120

. /lab/lib.sh
. /lab/vduse.sh

truncate -s 64M /tmp/disk.img
serve disk0 raw:/tmp/disk.img --queues 1
attach disk0
eventually 20 test -b /dev/vda
chown 1000:1000 /dev/vda

step "a root directory with a shell, fio, and one device"
root=/tmp/root
mkdir -p $root/dev $root/usr $root/tmp $root/proc
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
    [ ! -e /sys/class ]
    cd /tmp
    fio --name=inside --filename=/dev/vda --ioengine=psync --bs=4k --rw=randrw --size=2M --direct=1 \
        --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio.log 2>&1 || { cat /tmp/fio.log; exit 1; }
    printf "from the container" >/dev/vda
'
INSIDE
setpriv --reuid=1000 --regid=1000 --clear-groups \
    unshare --user --map-root-user --mount dash /tmp/inside || fail "the container failed"
blockdev --flushbufs /dev/vda
expect "the image begins with" "$(dd if=/tmp/disk.img bs=18 count=1 2>/dev/null)" "from the container"
detach disk0
end_server disk0
