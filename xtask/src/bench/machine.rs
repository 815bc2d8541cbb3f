// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where and when it was measured.

use std::fmt;
use std::fs;

use serde::Serialize;

use crate::command::{Error, command, output};

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    kernel: String,
    /// Empty where there is none.
    qemu: String,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// `date` can't be run.
    pub fn look() -> Result<Self, Error> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or(std::env::consts::ARCH, |rest| {
                rest.trim_matches([' ', '\t', ':'])
            });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        // Only the comparison needs it, and has failed by now if it is missing.
        let qemu = output(&mut command("qemu-storage-daemon", ["--version"])).unwrap_or_default();
        let qemu = qemu.split_whitespace().nth(2).unwrap_or_default();
        Ok(Self {
            date: output(&mut command("date", ["--utc", "+%F"]))?
                .trim()
                .into(),
            cpu: cpu.into(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().into(),
            qemu: qemu.into(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {} CPUs, Linux {}",
            self.date, self.cpu, self.cores, self.kernel
        )?;
        if !self.qemu.is_empty() {
            write!(f, ", QEMU {}", self.qemu)?;
        }
        Ok(())
    }
}
