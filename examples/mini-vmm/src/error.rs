// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the VMM gave up.

use std::io;

/// Anything that ends the VMM or refuses a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM can't be opened.
    #[error(
        "/dev/kvm can't be used ({0}): this needs a host with KVM and the right to open it. \
         In a virtual machine without nested KVM run `cargo xtask lab mini-vmm-pci` instead: \
         it does the same inside a software-emulated host"
    )]
    NoKvm(#[source] kvm_ioctls::Error),
    /// KVM refused an operation.
    #[error("KVM: {what}: {source}")]
    Kvm {
        /// The operation.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The system refused an operation.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Guest memory can't be had or reached.
    #[error("guest memory: {0}")]
    Memory(String),
    /// What is to be run can't be loaded.
    #[error("{image}: {why}")]
    Boot {
        /// The file.
        image: String,
        /// What is wrong with it.
        why: String,
    },
    /// A disk can't be used.
    #[error("disk {disk}: {why}")]
    Disk {
        /// Its name.
        disk: String,
        /// What is wrong with it.
        why: String,
    },
    /// A vCPU can't continue.
    #[error("vCPU {index} stopped: {why}")]
    Vcpu {
        /// Its number.
        index: u8,
        /// What it met.
        why: String,
    },
    /// A snapshot can't be taken or restored.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// A command is refused.
    #[error("{0}")]
    Control(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when KVM or the system refused.
pub trait Context<T> {
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, kvm_ioctls::Error> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Kvm { what, source })
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what.to_owned(),
            source,
        })
    }
}

/// As [`Context`], with a file's name.
pub trait OnFile<T> {
    fn on(self, verb: &str, path: &std::path::Path) -> Result<T>;
}

impl<T> OnFile<T> for io::Result<T> {
    fn on(self, verb: &str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: format!("can't {verb} {}", path.display()),
            source,
        })
    }
}
