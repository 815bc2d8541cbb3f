#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: vblk vdpa: list, add, show, bind to virtio, vhost, none and back, delete; what is refused, and why
# lab: binaries=vblk modules=vdpa,vduse,virtio_vdpa,virtio_blk,vhost_vdpa timeout=180

. /lab/lib.sh

# refused STATUS WORDS ARGUMENT...: vblk vdpa ends with this status and says these words.
refused() {
    wanted=$1 words=$2
    shift 2
    status=0
    vblk vdpa "$@" >/tmp/out 2>/tmp/said || status=$?
    echo "vblk vdpa $*: $(cat /tmp/said)"
    [ $status = "$wanted" ] || fail "status $status, not $wanted"
    grep -qF -- "$words" /tmp/said || fail "it doesn't say '$words'"
    [ "$(wc -l </tmp/said)" = 1 ] || fail "not one line"
}

# field NAME: of the JSON line on the standard input.
field() {
    sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"
}

# bound DRIVER NODE: what `list` says of disk0.
bound() {
    vblk vdpa list --json | grep '"name":"disk0"' >/tmp/line
    expect "driver" "$(field driver </tmp/line)" "$1"
    expect "node" "$(field node </tmp/line)" "$2"
}

step "a VDUSE device and its parent"
vduse_disk disk0 64 4
vduse_disk disk1 32 1 writable=off
vblk vdpa mgmt
expect "management devices" "$(vblk vdpa mgmt --json)" '{"classes":["net","block"],"name":"vduse"}'
expect "devices" "$(vblk vdpa list --json)" ""

step "what can't be added"
refused 1 "there is no /dev/vduse/nosuch" add nosuch
refused 1 "Fail to find the specified management device" add disk0 --mgmtdev nosuch
refused 1 "Some provided attributes are not supported" add disk0 --features 0x200000000
refused 1 "try without --mac and --mtu and --max-vqp" add disk0 --mac 02:00:00:00:00:01 --mtu 1500 --max-vqp 2
refused 2 "can't be \"..\"" add ..
refused 2 "can't have '/'" add ../disk0
refused 2 "at most 255 bytes" add "$(printf %256s x | tr ' ' x)"

step "added: virtio_vdpa was loaded first"
vblk vdpa add disk0
bound virtio_vdpa /dev/vda
vblk vdpa show disk0
vblk vdpa show disk0 --json >/tmp/shown
expect "bytes" "$(field bytes </tmp/shown)" $((64 * 1048576))
expect "queues" "$(field queues </tmp/shown)" 4
vdpa dev show disk0 >/tmp/shown
grep -q 'type block mgmtdev vduse vendor_id 0 max_vqs 4 max_vq_size 256' /tmp/shown || fail "$(cat /tmp/shown)"
refused 1 "vblk vdpa del disk0" add disk0
refused 1 "the kernel has statistics of network devices only" stats disk0
refused 1 "is no network device" set disk0 --mac 02:00:00:00:00:01
vblk vdpa add disk1
vblk vdpa list
expect "devices" "$(vblk vdpa list --json | wc -l)" 2
expect "read-only" "$(vblk vdpa show disk1 --json | field read_only)" true
verify /dev/vda --rw=randrw --size=1M --iodepth=16
printf 'vblk keeps this' | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null

step "virtio, vhost, none and back"
vblk vdpa bind disk0 vhost
bound vhost_vdpa /dev/vhost-vdpa-0
test -c /dev/vhost-vdpa-0 || fail "no /dev/vhost-vdpa-0"
[ ! -e /dev/vda ] || fail "/dev/vda is still there"
vblk vdpa bind disk0 vhost
vblk vdpa bind disk0 virtio
bound virtio_vdpa /dev/vda
expect "content" "$(dd if=/dev/vda bs=15 count=1 2>/dev/null)" "vblk keeps this"
vblk vdpa bind disk0 none
bound null null
rmmod vhost_vdpa
refused 1 "modprobe vhost_vdpa" bind disk0 vhost
modprobe vhost_vdpa
bound null null
vblk vdpa bind disk0 vhost
bound vhost_vdpa /dev/vhost-vdpa-0

step "unbinding waits for the user of the device"
exec 4<>/dev/vhost-vdpa-0
# Not by its own copy of the open file. What others said before must not be taken for its word.
rm -f /tmp/said
vblk vdpa bind disk0 virtio 4>&- 2>/tmp/said &
waiting=$!
eventually 20 test -s /tmp/said 4>&-
kill -0 $waiting || fail "it didn't wait"
expect "what it says" "$(cat /tmp/said)" "[WARN ] waiting until /dev/vhost-vdpa-0 is closed by dash ($$)"
exec 4>&-
wait $waiting
bound virtio_vdpa /dev/vda
verify /dev/vda --rw=randrw --size=1M --iodepth=16

step "who may, and what isn't there"
expect "devices for anybody" "$(setpriv --reuid 1000 --regid 1000 --clear-groups vblk vdpa list --json | wc -l)" 2
status=0
setpriv --reuid 1000 --regid 1000 --clear-groups vblk vdpa del disk0 2>/tmp/said || status=$?
expect "status" $status 1
grep -q 'needs root' /tmp/said || fail "$(cat /tmp/said)"
refused 1 "there is no vDPA device \"nosuch\"" show nosuch
refused 1 "there is no vDPA device \"nosuch\"" bind nosuch none

step "deleted"
vblk vdpa del disk0
[ ! -e /dev/vda ] || fail "/dev/vda is still there"
vblk vdpa del disk1
refused 1 "vblk vdpa list" del disk0
expect "devices" "$(vblk vdpa list --json)" ""

step "without the modules"
for disk in disk0 disk1; do
    kill "$(cat /tmp/$disk.pid)"
    eventually 20 test ! -e /dev/vduse/$disk
done
rmmod vduse
refused 1 "modprobe vduse" add disk0
rmmod virtio_vdpa
rmmod vhost_vdpa
rmmod vdpa
refused 1 "modprobe vdpa" list
refused 1 "modprobe vdpa" bind disk0 virtio
