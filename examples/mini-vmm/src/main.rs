// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program; all of it is in the library.

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    mini_vmm::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    eprintln!("mini-vmm: only for x86_64");
    std::process::ExitCode::FAILURE
}
