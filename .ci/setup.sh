# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# For scripts of this repository (`. .ci/setup.sh`): what they need beside Rust is installed where it is missing, on Debian.

# die WORDS: ends the script with an error.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need_rust: finds cargo.
need_rust() {
    if ! command -v cargo >/dev/null && [[ -f ${CARGO_HOME:-$HOME/.cargo}/env ]]; then
        # rustup was installed, but this shell was started before.
        . "${CARGO_HOME:-$HOME/.cargo}/env"
    fi
    command -v cargo >/dev/null || die 'cargo is missing: install Rust with https://rustup.rs'
}

# need PROGRAM PACKAGE...: installs Debian's packages where the program is missing: as root, or by a sudo that asks nothing.
need() {
    local program=$1 as_root=()
    shift
    # Not the shell's own of that name.
    ! type -P "$program" >/dev/null || return 0
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo -n) ||
            die "$program is missing: as root, on Debian: apt-get install $*"
    fi
    command -v apt-get >/dev/null || die "$program is missing: install it (on Debian: $*)"
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}
