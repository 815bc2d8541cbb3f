// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds the built-in guest: freestanding Rust for the same target as the VMM, whose `core` is there
//! in any case, linked by a script of its own. Needs nothing a Rust toolchain hasn't got.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=guest");
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("guest");
    let script = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("guest/guest.ld");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args(["guest/main.rs", "--crate-name=guest", "--crate-type=bin"])
        .args(["--edition=2024", "-Dwarnings"])
        .args(["--target", &env::var("TARGET")?])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cdebuginfo=0"])
        .args(["-Coverflow-checks=on", "-Cstrip=symbols"])
        // No vector instructions beyond what KVM can emulate if it must.
        .args(["-Cno-vectorize-loops", "-Cno-vectorize-slp"])
        .args(["-Crelocation-model=static", "-Clinker=cc"])
        .args(["-Clink-args=-nostartfiles -nostdlib -static -no-pie"])
        .args(["-Clink-args=-Wl,--build-id=none -Wl,-n"])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&out);
    if env::var("CARGO_CFG_TARGET_ENV")? == "musl" {
        // Its start-up files would come along.
        rustc.arg("-Clink-self-contained=no");
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("the built-in guest can't be built: {status}").into());
    }
    println!("cargo:rustc-env=GUEST={}", out.display());
    Ok(())
}
