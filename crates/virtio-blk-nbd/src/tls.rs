// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! TLS: whom the client believes, and who it says that it is.

use std::path::PathBuf;

/// TLS of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The certificates that are believed to sign the server's, in PEM.
    pub ca: PathBuf,
    /// The client's certificate and its key, in PEM, for servers that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate. `None`: the host's, and `localhost` over a unix socket.
    pub name: Option<String>,
}

#[cfg(feature = "tls")]
pub(crate) use client::connection;

#[cfg(feature = "tls")]
mod client {
    use std::path::Path;
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

    use super::TlsOptions;
    use crate::{Address, NbdError, tls_session};

    fn unreadable(path: &Path, error: impl std::fmt::Display) -> NbdError {
        NbdError::Tls(format!("{}: {error}", path.display()))
    }

    fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
        tls_session::certificates(path).map_err(|error| unreadable(path, error))
    }

    /// A connection that is about to begin. Files are read each time, as certificates are renewed.
    ///
    /// # Errors
    /// [`NbdError::Tls`] with the file that can't be used.
    pub(crate) fn connection(
        options: &TlsOptions,
        address: &Address,
    ) -> Result<ClientConnection, NbdError> {
        let failed = |error: rustls::Error| NbdError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&options.ca)? {
            roots
                .add(certificate)
                .map_err(|error| unreadable(&options.ca, error))?;
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(failed)?;
        let builder = builder.with_root_certificates(roots);
        let config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
                let config = builder.with_client_auth_cert(chain, secret);
                config.map_err(|error| unreadable(certificate, error))?
            }
        };
        let name = match (&options.name, address) {
            (Some(name), _) => name,
            (None, Address::Tcp { host, .. }) => host,
            (None, Address::Unix(_)) => "localhost",
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| NbdError::Tls(format!("`{name}` is no name of a server: {error}")))?;
        ClientConnection::new(Arc::new(config), name).map_err(failed)
    }
}
