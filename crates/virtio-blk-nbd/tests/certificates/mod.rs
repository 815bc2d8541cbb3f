// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Certificates for tests, made by openssl.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use virtio_blk_nbd::TlsOptions;

/// A directory with certificates by the names that nbdkit gives them: of an authority, and of a server and a client that it
/// signed.
pub struct Certificates(tempfile::TempDir);

fn openssl(directory: &Path, line: &str) {
    let status = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "openssl {line}");
}

impl Certificates {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(
            path,
            &format!(
                "req -x509 {key} -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority"
            ),
        );
        std::fs::write(
            path.join("names"),
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        )
        .unwrap();
        for who in ["server", "client"] {
            openssl(
                path,
                &format!("req {key} -keyout {who}-key.pem -out {who}.csr -subj /CN={who}"),
            );
            openssl(
                path,
                &format!(
                    "x509 -req -in {who}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out {who}-cert.pem \
                     -days 2 -extfile names"
                ),
            );
        }
        Self(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            ca: self.path("ca-cert.pem"),
            ..TlsOptions::default()
        }
    }

    pub fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.path("client-cert.pem"), self.path("client-key.pem")))
    }
}
