# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# The kernel's vDPA simulator of a block device: `. /lab/simulator.sh` after lib.sh, in a machine with `built=yes`.

# simulator: makes its device blk0, which vhost_vdpa takes. Its disk is empty.
simulator() {
    for module in vringh vdpa_sim vdpa_sim_blk; do
        lsmod | grep -q "^$module " || insmod "/lab/built/$module.ko"
    done
    vdpa dev add name blk0 mgmtdev vdpasim_blk
    eventually 10 test -c /dev/vhost-vdpa-0
}

# moved_on_simulator COUNT: a guest that checks what it reads is moved between the paths, by SUSPEND and RESUME.
moved_on_simulator() {
    step "a guest moved $1 times over the kernel's simulator"
    simulator
    vhost-vdpa-switch /dev/vhost-vdpa-0 1 "$1" 10 >/tmp/moves || fail "$(cat /tmp/moves)"
    cat /tmp/moves
    # Half of them lead to the slow path.
    grep -q "[ ,]$(($1 / 2)) by SUSPEND" /tmp/moves || fail "not all were by SUSPEND"
    vdpa dev del blk0
}
