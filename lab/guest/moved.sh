# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Debian in mini-vmm on a VDUSE device of ours, moved between the paths: `. /lab/moved.sh` after lib.sh, vduse.sh and
# nested.sh, with the number of moves in $switches.

# at PATH: where the first disk must be.
at() {
    control stats
    grep -q "\"path\": \"$1\"" /tmp/answer || fail "not on the path $1: $(cat /tmp/answer)"
}

step "a root file system on a VDUSE device that vhost_vdpa takes"
nested_script <<'NESTED'
expect "queues" "$(ls /sys/block/vda/mq | wc -l)" "$(sed -n 's/.*nested.queues=\([0-9]*\).*/\1/p' /proc/cmdline)"
echo "NESTED works"
round=0
until [ -e /tmp/grown ]; do
    round=$((round + 1))
    rm -f /fio
    verify /fio --rw=randrw --size=4M --numjobs=2 --iodepth=32 --offset_increment=4M --cpus_allowed=0-1 --cpus_allowed_policy=split
    echo "NESTED verified $round"
    [ "$(cat /sys/block/vda/size)" != $((320 * 2048)) ] || touch /tmp/grown
done
step "NESTED the disk grew"
found() {
    echo 1 >/sys/bus/pci/rescan
    [ -b /dev/vdb ]
}
eventually 60 found
verify /dev/vdb --rw=randwrite --size=512k --iodepth=4
disk=$(readlink -f /sys/block/vdb/device/..)
echo 1 >"$disk/remove"
step "NESTED a disk came and went"
exit 0
NESTED
root_image
# Requests take up to 20 ms each and pass one another, so that moves meet many in flight.
serve disk0 raw:/tmp/root.img,fault=delay:0.02/reorder:on --queues 4 --attach vhost
eventually 20 test -c /dev/vhost-vdpa-0

step "the machine"
: >/tmp/log
root=vdpa:/dev/vhost-vdpa-0
# Layers halve the queues.
words="nested.queues=2"
run /tmp/log --control /tmp/control &
machine=$!
eventually 300 said /tmp/log "NESTED works"
at fast
step "interrupts of the fast path come without the VMM"
# interrupts: those that passed it.
interrupts() {
    control stats
    sed -n 's/.*"interrupts": \([0-9]*\).*/\1/p' /tmp/answer
}
before=$(interrupts)
eventually 300 said /tmp/log "NESTED verified 1"
at fast
passed=$(($(interrupts) - before))
echo "in a round of fio: $passed passed it"
[ $passed -lt 20 ] || fail "too many"

step "$switches moves"
moved=0
refused=0
flying=0
busy=0

# count: what was in flight at the last move, by its report.
count() {
    number=$(sed -n 's/.*"in_flight": \([0-9]*\).*/\1/p' /tmp/answer | head -n 1)
    flying=$((flying + ${number:-0}))
    [ "${number:-0}" = 0 ] || busy=$((busy + 1))
}

# move PATH COMMAND...: has the command take the guest there; it may be refused, but not often.
move() {
    path=$1
    shift
    until mini-vmm ctl --control /tmp/control "$@" >/tmp/answer 2>&1; do
        refused=$((refused + 1))
        [ $refused -lt 50 ] || fail "refused too often: $(cat /tmp/answer)"
    done
    at "$path"
    count
    moved=$((moved + 1))
    # The guest had to wait for what was in flight; it asks for more.
    sleep 0.1
}

while [ $moved -lt "$switches" ]; do
    # Every other time by a layer.
    if [ $((moved % 4)) = 0 ]; then
        move slow layers meter
        move fast layers
    else
        move slow switch slow
        move fast switch fast
    fi
done
cat /tmp/answer
step "$moved moves, $busy of them with requests in flight, $flying in all; $refused tries in vain"
[ $busy -gt $((moved / 10)) ] || fail "hardly ever a request in flight"

step "pause and resume on both paths"
for path in slow fast; do
    control switch $path
    control pause
    at paused
    control resume
    at $path
done

step "a snapshot, then the machine continues from it, and its disk is what it was"
control pause
control snapshot /tmp/snapshot
control power-off
wait $machine || fail "status $?"
: >/tmp/log
tail -f /tmp/log &
tail=$!
mini-vmm --disk $root --control /tmp/control --restore /tmp/snapshot </dev/null >/tmp/log 2>&1 &
machine=$!
eventually 300 said /tmp/log "NESTED verified"

step "the image grows; a disk comes and goes"
truncate -s 320M /tmp/root.img
eventually 120 said /tmp/log "NESTED the disk grew"
control add-disk memory:8M
eventually 120 said /tmp/log "NESTED a disk came and went"
wait $machine || fail "status $?"
kill $tail
serving disk0
end_server disk0
ended /tmp/log
