#!/usr/bin/env bash
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Passes the tests on a machine that has Rust and a C linker. Arguments go to `cargo test`, or to the command in CARGO_TEST
# that takes its place (`cargo xtask coverage`).
set -euo pipefail
cd "$(dirname "$0")"

die() {
    printf 'tests.sh: %s\n' "$*" >&2
    exit 1
}

if ! command -v cargo >/dev/null && [[ -f ${CARGO_HOME:-$HOME/.cargo}/env ]]; then
    # rustup was installed, but this shell was started before.
    . "${CARGO_HOME:-$HOME/.cargo}/env"
fi
command -v cargo >/dev/null || die 'cargo is missing: install Rust with https://rustup.rs'
if ! command -v cc >/dev/null; then
    [[ $(id -u) = 0 ]] && command -v apt-get >/dev/null ||
        die 'cc is missing: install gcc (as root, on Debian: apt-get install gcc libc6-dev)'
    apt-get update -q
    apt-get install -qy --no-install-recommends gcc libc6-dev
fi
# The judge of qcow2 images.
if ! command -v qemu-img >/dev/null; then
    [[ $(id -u) = 0 ]] && command -v apt-get >/dev/null ||
        die 'qemu-img is missing: install it (as root, on Debian: apt-get install qemu-utils)'
    apt-get update -q
    apt-get install -qy --no-install-recommends qemu-utils
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# Two words at least.
read -ra test <<<"${CARGO_TEST:-cargo test}"
"${test[@]}" --workspace --all-features --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

# One line for all of cargo's `test result:` lines.
awk '/^test result:/ {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
            if ($i ~ /^ignored/) ignored += $(i - 1)
        }
        programs++
    }
    END {
        printf "\n%d passed; %d failed; %d ignored; in %d test programs\n",
            passed, failed, ignored, programs
    }' "$log"
exit "$status"
