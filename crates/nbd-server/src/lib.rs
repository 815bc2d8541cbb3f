// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]

mod channel;
mod connection;
mod context;
mod counters;
mod export;
mod exports;
mod handshake;
mod pages;
mod server;
#[cfg(feature = "tls")]
mod tls;

pub use context::{Bitmaps, Marked};
pub use counters::Counters;
pub use export::{ErrorListener, Export, ExportError, ExportOptions, OperationError};
pub use exports::Exports;
pub use server::{Listener, Security, Server, ServerError, ServerHandle, ServerOptions};
#[cfg(feature = "tls")]
pub use tls::{TlsError, TlsFiles, TlsIdentity};
