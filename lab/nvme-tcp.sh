#!/bin/sh
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# about: a namespace of an NVMe/TCP target, by the kernel's host, served as raw:/dev/nvme0n1; the target leaves under verified I/O
# lab: cpus=2 modules=nvmet_tcp,nvme_tcp,virtio_vdpa,virtio_blk,vduse binaries=vblk timeout=240

. /lab/lib.sh
. /lab/vduse.sh
. /lab/network.sh

nqn=nqn.2026-11.lab.vblk:disk
nvmet=/sys/kernel/config/nvmet
export=$nvmet/ports/1/subsystems/$nqn

step "a target with an image of 64 MiB, and a connection to it"
mount -t configfs configfs /sys/kernel/config
truncate -s 64M /tmp/disk.img
mkdir $nvmet/subsystems/$nqn
echo 1 >$nvmet/subsystems/$nqn/attr_allow_any_host
mkdir $nvmet/subsystems/$nqn/namespaces/1
echo 1 >$nvmet/subsystems/$nqn/namespaces/1/buffered_io
printf /tmp/disk.img >$nvmet/subsystems/$nqn/namespaces/1/device_path
echo 1 >$nvmet/subsystems/$nqn/namespaces/1/enable
mkdir $nvmet/ports/1
for setting in trtype=tcp adrfam=ipv4 traddr=127.0.0.1 trsvcid=4420; do
    echo ${setting#*=} >$nvmet/ports/1/addr_${setting%=*}
done

came() {
    ln -s $nvmet/subsystems/$nqn $export
}

# All connections end, and none is accepted.
left() {
    rm $export
}

came
# How long requests wait for a target that is away, and how often it is looked for.
echo "transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn=$nqn,nr_io_queues=2,ctrl_loss_tmo=120,reconnect_delay=1" >/dev/nvme-fabrics
eventually 20 test -b /dev/nvme0n1
expect "sectors" "$(cat /sys/block/nvme0n1/size)" $((64 * 2048))

served raw:/dev/nvme0n1,direct=on
outlives 3 left came
files
end_server disk0
echo 1 >/sys/class/nvme/nvme0/delete_controller
same_files /tmp/disk.img
