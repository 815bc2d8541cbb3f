// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A KVM guest that kicks a `/dev/vhost-vdpa-N` by its doorbell pages: mapped into it on the fast path, taken away on the
//! slow one. The lab's `vdpa-pci` runs it.
//!
//!     vhost-vdpa-doorbells NODE MOVES
//!
//! The driver that checks what it reads is in this process; for each kick it has a virtual CPU write to the page of the
//! queue. A write that gets through to the hardware makes no exit; one that exits is a kick for the VMM. Anything that is
//! not as it must be ends it with a message.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(target_arch = "x86_64")]
mod cpu;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/common/guest.rs"]
#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(target_arch = "x86_64")]
mod kicker;
#[cfg(target_arch = "x86_64")]
mod run;

fn main() {
    #[cfg(target_arch = "x86_64")]
    run::main();
    #[cfg(not(target_arch = "x86_64"))]
    panic!("its guest is one of x86_64");
}
