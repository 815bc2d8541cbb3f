// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares `sim-backend`'s `compat` profile with the kernel's `vdpa_sim_blk`: each operation of the vDPA table, a script
//! of requests and the table of malformed queues run on both, and what each of them returns is compared line by line.
//! The lab's `vdpa-compat` runs it on a new device.
//!
//!     vhost-vdpa-compare NODE
//!
//! A difference that `known.rs` does not list, and a listed one that is gone, is a failure; differences are printed. The program sees the kernel's
//! device through vhost-vdpa: operations without an ioctl (`get_generation`, `get_vendor_id`, `get_vq_align`,
//! `use_va`, `get_vendor_vq_stats`, `reset_map`, `unbind_mm`, `free`) are not compared here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod known;
mod operations;
mod queues;
mod requests;
mod rig;

use rig::{Rig, Transcript};

fn transcript(mut rig: Rig) -> Transcript {
    operations::script(&mut rig);
    requests::script(&mut rig);
    queues::script(&mut rig);
    rig.into_transcript()
}

fn main() {
    let node = std::env::args()
        .nth(1)
        .expect("usage: vhost-vdpa-compare NODE");
    let kernel = transcript(Rig::kernel(&node));
    let ours = transcript(Rig::ours());
    assert_eq!(kernel.len(), ours.len(), "the scripts are not the same");
    let mut listed: Vec<&known::Difference> = known::DIFFERENCES.iter().collect();
    let (mut equal, mut bad) = (0, 0);
    for ((step, theirs), (_, ours)) in kernel.iter().zip(&ours) {
        let found = listed.iter().position(|known| known.step == step);
        match found.map(|at| listed.swap_remove(at)) {
            None if theirs == ours => equal += 1,
            Some(known) if theirs == known.kernel && ours == known.ours => {
                println!("{step}: {}", known.why);
            }
            known => {
                bad += 1;
                println!("{step}: DIFFERS\n  kernel {theirs}\n  ours   {ours}");
                if let Some(known) = known {
                    println!("  listed {} and {}", known.kernel, known.ours);
                }
            }
        }
    }
    for known in &listed {
        println!(
            "{}: listed as different, and no step of the scripts",
            known.step
        );
    }
    let differ = known::DIFFERENCES.len();
    println!("{equal} steps equal, {differ} listed as different, {bad} not as expected");
    assert!(bad == 0 && listed.is_empty(), "see above");
}
