// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]
#![allow(missing_docs)]

use libfuzzer_sys::fuzz_target;
use vblk_fuzz::vduse::{Input, run_alone};

fuzz_target!(|input: Input| run_alone(&input));
