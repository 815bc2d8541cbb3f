// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks QEMU about the images of all inputs in these folders: `seeds/qcow2`, `corpus/qcow2`.

use arbitrary::{Arbitrary, Unstructured};
use vblk_fuzz::qcow2::{Input, judge};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut inputs = Vec::new();
    for folder in std::env::args_os().skip(1) {
        for file in std::fs::read_dir(folder)? {
            let bytes = std::fs::read(file?.path())?;
            inputs.push(Input::arbitrary(&mut Unstructured::new(&bytes))?);
        }
    }
    let judged = judge(&inputs);
    println!("{judged} of {} images were sound, and are", inputs.len());
    Ok(())
}
