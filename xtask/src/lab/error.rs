// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong on the host's side of the lab.

use std::io;
use std::path::Path;

/// Why a lab could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or system operation failed.
    #[error("{what}")]
    Io {
        /// What was tried, with the path it was tried on.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program that was started ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Tool {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines it wrote to its standard error.
        stderr: String,
    },
    /// Something the lab needs is not there and could not be fetched.
    #[error("{what}; {hint}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A lab script's header can't be used.
    #[error("{script}: {what}")]
    Script {
        /// The script's name.
        script: String,
        /// What is wrong with it.
        what: String,
    },
    /// The disk server on the host misbehaved.
    #[error("disk server: {what}")]
    Server {
        /// What it did.
        what: String,
    },
    /// QEMU met a known bug of its own.
    #[error("a bug of QEMU's: {what}")]
    Emulator {
        /// How it ended and what it said.
        what: String,
    },
    /// The virtual machine did not do what was asked.
    #[error("virtual machine: {what}")]
    Vm {
        /// What happened.
        what: String,
    },
}

/// The result of a lab operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was tried, and on which path, to an I/O error.
pub trait Context<T> {
    /// Names the operation and the path.
    ///
    /// # Errors
    /// The same error, wrapped.
    fn on(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: format!("can't {verb} {}", path.display()),
            source,
        })
    }
}
