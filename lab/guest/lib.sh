# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What lab scripts share. A script starts with `. /lab/lib.sh`; any command that fails ends it.

set -eu

# step WORDS: says what comes next, with the time since the machine started.
step() {
    echo "[$(cut -d' ' -f1 /proc/uptime)] $*"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# expect WHAT ACTUAL WANTED
expect() {
    [ "$2" = "$3" ] || fail "$1 is '$2', expected '$3'"
    echo "$1: $2"
}

# eventually SECONDS COMMAND...: waits until the command is true.
eventually() {
    tries=$(($1 * 10))
    shift
    until "$@"; do
        [ $tries -gt 0 ] || fail "waited in vain for: $*"
        tries=$((tries - 1))
        sleep 0.1
    done
}

# reboot_guest: ends this script here; it is started again with LAB_BOOT one higher.
reboot_guest() {
    sync
    host reboot
    reboot -f
    sleep 60
}

# verify DEVICE OPTIONS...: fio writes with a checksum in each block and reads all of it back.
verify() {
    device=$1
    shift
    fio --name=verify --filename="$device" --direct=1 --ioengine=libaio --bs=4k \
        --verify=crc32c --verify_fatal=1 --randrepeat=0 --group_reporting --minimal "$@" >/tmp/fio.log 2>&1 || {
        tail -n 15 /tmp/fio.log
        dmesg | tail -n 5
        fail "fio on $device: $*"
    }
    # It warns of overlapping jobs without looking whether they do; ours have a range each.
    ! grep -v -e '^3;' -e 'multiple writers may overwrite' /tmp/fio.log || fail "fio on $device complained"
}

# vduse_disk NAME MIB QUEUES [OPTION]: qemu-storage-daemon offers a VDUSE device, /dev/vduse/NAME.
vduse_disk() {
    truncate -s "$2M" "/tmp/$1.img"
    qemu-storage-daemon --blockdev "driver=file,filename=/tmp/$1.img,node-name=node" \
        --export "type=vduse-blk,id=export,node-name=node,name=$1,num-queues=$3,${4:-writable=on}" \
        --pidfile "/tmp/$1.pid" >"/tmp/$1.log" 2>&1 &
    eventually 20 test -e "/dev/vduse/$1"
}
