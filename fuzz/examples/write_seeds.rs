// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes the seeds to `seeds/`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    vblk_fuzz::seeds::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds"))
}
