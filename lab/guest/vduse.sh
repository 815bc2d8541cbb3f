# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What lab scripts about VDUSE share: `. /lab/vduse.sh` after lib.sh.

# serve NAME DISK OPTIONS...: starts `vblk serve vduse`, waits until it serves.
serve() {
    name=$1
    disk_spec=$2
    shift 2
    : >"/tmp/$name.out"
    vblk --json serve vduse --disk "$disk_spec" --name "$name" "$@" >"/tmp/$name.out" 2>>"/tmp/$name.log" &
    echo $! >"/tmp/$name.pid"
    tries=200
    until grep -q listening "/tmp/$name.out"; do
        kill -0 "$(cat "/tmp/$name.pid")" 2>/dev/null || fail "no server: $(cat "/tmp/$name.log")"
        [ $tries -gt 0 ] || fail "the server does not come up: $(cat "/tmp/$name.log")"
        tries=$((tries - 1))
        sleep 0.05
    done
}

# The server of NAME must still be there.
serving() {
    kill -0 "$(cat "/tmp/$1.pid")" 2>/dev/null || fail "the server is gone: $(cat "/tmp/$1.log")"
}

# kill_server NAME: as a crash would.
kill_server() {
    kill -9 "$(cat "/tmp/$1.pid")"
    wait "$(cat "/tmp/$1.pid")" 2>/dev/null || true
}

attach() {
    vdpa dev add name "$1" mgmtdev vduse || fail "vdpa dev add: $(cat "/tmp/$1.log")"
}

detach() {
    vdpa dev del "$1" || fail "vdpa dev del: $(cat "/tmp/$1.log")"
}

# end_server NAME: SIGTERM, and status 0.
end_server() {
    kill "$(cat "/tmp/$1.pid")"
    wait "$(cat "/tmp/$1.pid")" || fail "the server of $1 failed: $(cat "/tmp/$1.log")"
    cat "/tmp/$1.log"
}

# moves COUNT: a guest that checks what it reads is moved between the paths, over our device and then over
# qemu-storage-daemon's.
moves() {
    step "our VDUSE device"
    truncate -s 64M /tmp/disk0.img
    serve disk0 raw:/tmp/disk0.img --queues 4 --serial switched --attach vhost
    eventually 20 test -c /dev/vhost-vdpa-0
    GROW='truncate -s $(($(stat -c %s /tmp/disk0.img) + 16777216)) /tmp/disk0.img' \
        vhost-vdpa-switch /dev/vhost-vdpa-0 4 "$1" 10 >/tmp/moves || fail "$(cat /tmp/moves /tmp/disk0.log)"
    cat /tmp/moves
    # From Linux 7.3 on VDUSE passes SUSPEND on, and ours has it.
    case "$(uname -r)" in
    [1-6].* | 7.[0-2].*) method="with vCPUs paused" ;;
    *) method="by SUSPEND" ;;
    esac
    grep -q "[ ,][1-9][0-9]* $method" /tmp/moves || fail "not one was $method"
    serving disk0
    end_server disk0

    step "qemu-storage-daemon's"
    vduse_disk disk1 64 4
    vblk vdpa add disk1 >/dev/null
    eventually 20 test -c /dev/vhost-vdpa-0
    # It unmaps memory under requests when the map changes.
    vhost-vdpa-switch /dev/vhost-vdpa-0 4 "$1" 10 gently || fail "$(cat /tmp/disk1.log)"
    vblk vdpa del disk1 >/dev/null
    kill "$(cat /tmp/disk1.pid)"
    wait "$(cat /tmp/disk1.pid)" || true
}

# sound IMAGE: a qcow2 image without damage. Clusters that belong to nobody are none: status 3.
sound() {
    status=0
    qemu-img check "$1" >/tmp/check 2>&1 || status=$?
    [ $status = 0 ] || [ $status = 3 ] || fail "$1: $(grep -v '^Leaked' /tmp/check)"
    echo "$1: $(grep -c '^Leaked' /tmp/check || true) leaked clusters"
}
