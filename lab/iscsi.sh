#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a disk of an iSCSI target, by the kernel's initiator, served as raw:/dev/sda; the target is killed under verified I/O
# lab: cpus=2 modules=iscsi_tcp,sd_mod,virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=240

. /lab/lib.sh
. /lab/vduse.sh
. /lab/network.sh

iqn=iqn.2026-11.lab.vblk:disk

target() {
    tgtd -f >>/tmp/tgtd.log 2>&1 &
    target=$!
    control() {
        tgtadm --lld iscsi "$@" >/tmp/tgtadm.log 2>&1
    }
    eventually 20 control --op new --mode target --tid 1 -T $iqn
    control --op new --mode logicalunit --tid 1 --lun 1 -b /tmp/disk.img || fail "$(cat /tmp/tgtadm.log)"
    control --op bind --mode target --tid 1 -I ALL || fail "$(cat /tmp/tgtadm.log)"
}

killed() {
    kill -9 $target
    wait $target || true
}

step "a target with an image of 64 MiB, and a session with it"
mkdir -p /var/run/tgtd /run/lock/iscsi /etc/iscsi
# iscsid talks to root only, by name.
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
truncate -s 64M /tmp/disk.img
target
echo "InitiatorName=iqn.2026-11.lab.vblk:host" >/etc/iscsi/initiatorname.iscsi
cat >/etc/iscsi/iscsid.conf <<'CONF'
node.startup = manual
# How long requests wait for a target that is away.
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
CONF
iscsid -f >/tmp/iscsid.log 2>&1 &
logged_in() {
    iscsiadm -m discovery -t sendtargets -p 127.0.0.1 >/tmp/iscsiadm.log 2>&1 &&
        iscsiadm -m node -T $iqn -p 127.0.0.1 --login >>/tmp/iscsiadm.log 2>&1
}
eventually 20 logged_in
eventually 20 test -b /dev/sda
expect "sectors" "$(cat /sys/block/sda/size)" $((64 * 2048))

served raw:/dev/sda,direct=on
outlives 3 killed target
files
end_server disk0
iscsiadm -m node -T $iqn -p 127.0.0.1 --logout >/dev/null
same_files /tmp/disk.img
