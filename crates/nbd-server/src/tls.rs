// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! TLS: who the server says that it is, and whom it believes.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, crypto};
use virtio_blk_nbd::tls_session::{self, Step, TlsSession};

use crate::channel::Talk;

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, with those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of authorities: only clients with a certificate of theirs are served. `None`: every client is.
    pub client_ca: Option<PathBuf>,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {path}: {why}")]
pub struct TlsError {
    path: String,
    why: String,
}

impl TlsError {
    fn new(path: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            path: path.display().to_string(),
            why: why.to_string(),
        }
    }
}

/// Who a server is, and whom it believes.
#[derive(Clone, Debug)]
pub struct TlsIdentity(Arc<ServerConfig>);

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    tls_session::certificates(path).map_err(|error| TlsError::new(path, error))
}

impl TlsIdentity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] with the file that can't be used.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let TlsFiles {
            certificate,
            key,
            client_ca,
        } = files;
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(certificate, error))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots
                        .add(root)
                        .map_err(|error| TlsError::new(path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier
                    .build()
                    .map_err(|error| TlsError::new(path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(certificate)?;
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::new(key, error))?;
        let config = builder.with_single_cert(chain, secret);
        let config = config.map_err(|error| TlsError::new(certificate, error))?;
        Ok(Self(Arc::new(config)))
    }

    /// Makes the handshake on a connection that is plain so far.
    ///
    /// # Errors
    /// The client is not believed, or does not believe the server, broke the protocol, or took too long.
    pub(crate) fn shake_hands(&self, talk: &mut Talk<'_>) -> io::Result<Box<TlsSession>> {
        let tls = ServerConnection::new(self.0.clone()).map_err(io::Error::other)?;
        let mut session = Box::new(TlsSession::new(tls));
        loop {
            talk.check()?;
            match session.handshake(talk.channel.as_fd())? {
                Step::Done => return Ok(session),
                Step::Receive => talk.wait(PollFlags::IN)?,
                Step::Send => talk.wait(PollFlags::OUT)?,
            }
        }
    }
}
