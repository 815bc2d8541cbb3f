#!/usr/bin/env bash
# Copyright 2026 The vblk Authors.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Builds and runs examples/quickstart on a machine that has Rust. Arguments go to it.
set -euo pipefail
cd "$(dirname "$0")"

. .ci/setup.sh
need_rust
need cc gcc libc6-dev

exec cargo run --release -p quickstart -- "$@"
