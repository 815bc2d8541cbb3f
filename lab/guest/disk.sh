# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What lab scripts share that use /dev/vda as any Linux does, whatever serves it: `. /lab/disk.sh` after lib.sh.

disk=/sys/block/vda

# sectors_are NUMBER: the kernel's size of the disk.
sectors_are() {
    [ "$(cat $disk/size)" = "$1" ]
}

two_partitions() {
    step "a GPT with two partitions, found by the kernel"
    sfdisk --quiet /dev/vda <<TABLE
label: gpt
size=128MiB, type=linux
type=linux
TABLE
    eventually 10 test -b /dev/vda2
    expect "sectors of vda1" "$(cat $disk/vda1/size)" $((128 * 2048))
}

# On the second partition.
verified_io() {
    step "verified random writes and reads, depth 1 and 32, one job for each queue"
    verify /dev/vda2 --rw=randwrite --size=1M --iodepth=1
    verify /dev/vda2 --rw=randrw --size=4M --offset_increment=8M --numjobs=4 --iodepth=32 --cpus_allowed=0-3 --cpus_allowed_policy=split
}

# On the second partition.
zeroes() {
    step "discard and write zeroes read back as zeroes"
    printf 'vblk' | dd of=/dev/vda2 bs=4 conv=notrunc 2>/dev/null
    blkdiscard --zeroout --offset 0 --length 1048576 /dev/vda2
    expect "bytes after write zeroes" "$(dd if=/dev/vda2 bs=1M count=1 2>/dev/null | tr -d '\000' | wc -c)" 0
    blkdiscard /dev/vda2
}

# Mounts the first partition, on /mnt.
files() {
    step "ext4 with files"
    mkfs.ext4 -q /dev/vda1
    mount /dev/vda1 /mnt
    for number in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/mnt/file$number bs=64k count=$((number * 2)) 2>/dev/null
    done
    (cd /mnt && sha256sum file* >sums)
}

same_files() {
    (cd /mnt && sha256sum -c sums >/tmp/check) || fail "$(grep -v OK /tmp/check)"
    step "$(wc -l </mnt/sums) files are as they were"
}

# trimmed COMMAND...: which prints the bytes that the image takes.
trimmed() {
    step "fstrim gives space back"
    dd if=/dev/urandom of=/mnt/large bs=1M count=48 2>/dev/null
    sync
    full=$("$@")
    rm /mnt/large
    sync
    fstrim -v /mnt
    left=$("$@")
    step "the image took $full bytes, now $left"
    [ $((full - left)) -ge $((40 * 1048576)) ] || fail "less than 40 MiB came back"
}

# grown MIB COMMAND...: which makes the image that large.
grown() {
    step "the image grows under the mounted file system"
    mib=$1
    shift
    "$@"
    eventually 20 sectors_are $((mib * 2048))
    verify /mnt/verify --rw=randrw --size=2M --iodepth=32
    rm /mnt/verify
    dd if=/dev/vda of=/dev/null bs=1M skip=$((mib - 1)) count=1 2>/dev/null
}

unmounted() {
    umount /mnt
    e2fsck -f -n /dev/vda1 >/tmp/check 2>&1 || fail "$(cat /tmp/check)"
}

# killed TIMES COMMAND...: verified I/O on two queues, while the command kills the server and starts it again.
killed() {
    kills=$1
    shift
    step "verified I/O on 2 queues; the server is killed $kills times meanwhile"
    # Large reads beside them keep the server busy, so that small requests overtake them: a server that only
    # counts requests, instead of noting which are in flight, loses some.
    fio --name=large --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randread --bs=1M --iodepth=16 \
        --numjobs=2 --time_based --runtime=1000 >/tmp/large.log 2>&1 &
    large=$!
    passes &
    passes=$!
    kill=0
    while [ $kill -lt "$kills" ]; do
        kill=$((kill + 1))
        # 0.2 to 1.2 s, at a moment that no request knows.
        sleep "$(awk -v seed="$(od -An -N4 -tu4 /dev/urandom)" 'BEGIN { srand(seed); print 0.2 + rand() }')"
        "$@"
        before=$(requests)
        kill -0 $passes 2>/dev/null || fail "the I/O ended before the last kill"
        eventually 20 moved
        [ $((kill % 5)) != 0 ] || step "kill $kill: I/O continues"
    done
    touch /tmp/stop
    wait $passes
    kill -0 $large || fail "the large reads ended: $(cat /tmp/large.log)"
    kill $large
    wait $large || true
    ! dmesg | grep -i 'I/O error' || fail "the kernel saw I/O errors"
}

# One short pass after the other: within one run fio writes each block once, so that a lost, a stale and a repeated
# write all show. Its own loops would check a block against the wrong pass.
passes() {
    pass=0
    until [ -e /tmp/stop ]; do
        pass=$((pass + 1))
        verify /dev/vda --rw=randrw --rwmixwrite=70 --size=4M --offset_increment=16M --numjobs=2 --iodepth=32
    done
    step "$pass passes verified"
}

requests() {
    awk '{ print $1 + $5 }' $disk/stat
}

moved() {
    [ "$(requests)" -gt $((before + 100)) ]
}
