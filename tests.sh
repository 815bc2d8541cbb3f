#!/usr/bin/env bash
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Passes the tests on a machine that has Rust. Arguments go to `cargo test`, or to the command in CARGO_TEST
# that takes its place (`cargo xtask coverage`).
set -euo pipefail
cd "$(dirname "$0")"

. .ci/setup.sh
need_rust
need cc gcc libc6-dev
# The judge of qcow2 images.
need qemu-img qemu-utils
# What the NBD client is tested against; qemu-nbd comes with qemu-img.
need nbdkit nbdkit
need nbdcopy libnbd-bin
# Certificates for its TLS.
need openssl openssl
need kill procps
# docs/backup.md is run as it stands.
need jq jq

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
