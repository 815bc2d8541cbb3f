# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What lab scripts share whose disk is behind a network, that of the machine with itself: `. /lab/network.sh` after lib.sh
# and vduse.sh.

ip link set lo up

# fail WORDS: as in lib.sh, with what all programs said.
fail() {
    echo "FAILED: $*"
    tail -n 20 /tmp/*.log
    dmesg | tail -n 20
    exit 1
}

# served DISK: the disk becomes /dev/vda.
served() {
    step "$1 becomes /dev/vda"
    serve disk0 "$1" --queues 2 --attach virtio
    eventually 20 test -b /dev/vda
}

requests() {
    awk '{ print $1 + $5 }' /sys/block/vda/stat
}

moved() {
    [ "$(requests)" -gt $((before + 100)) ]
}

# passes: verified I/O until there is /tmp/stop.
passes() {
    pass=0
    until [ -e /tmp/stop ]; do
        pass=$((pass + 1))
        verify /dev/vda --rw=randrw --size=4M --offset=8M --iodepth=16
    done
    step "$pass passes verified"
}

# outlives TIMES LEAVE COME: verified I/O while the commands take the target away and bring it back.
outlives() {
    step "verified I/O; the target leaves and comes back $1 times meanwhile"
    passes &
    passes=$!
    for round in $(seq "$1"); do
        before=$(requests)
        eventually 60 moved
        $2
        # What is in flight comes back, and then nothing moves.
        sleep 1
        before=$(requests)
        sleep 1
        [ "$(requests)" = "$before" ] || fail "I/O without a target"
        $3
        eventually 60 moved
        kill -0 $passes 2>/dev/null || fail "the I/O ended"
        step "round $round: I/O continues"
    done
    touch /tmp/stop
    wait $passes
    serving disk0
    ! dmesg | grep -e 'I/O error' -e 'BUG:' -e 'WARNING:'
}

# files: a file system on /dev/vda, with a file.
files() {
    step "a file system"
    mkfs.ext4 -q /dev/vda
    mount /dev/vda /mnt
    verify /mnt/verify --rw=randrw --size=2M --iodepth=16
    dd if=/dev/urandom of=/mnt/file bs=64k count=8 2>/dev/null
    (cd /mnt && sha256sum file >/tmp/sums)
    umount /mnt
}

# same_files IMAGE: that file system is in the image that the target serves.
same_files() {
    e2fsck -f -n "$1" >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
    debugfs -R "dump file /tmp/file" "$1" 2>/dev/null
    (cd /tmp && sha256sum -c sums >/tmp/check) || fail "$(cat /tmp/check)"
    step "the image holds the same file system"
}
