// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The exports of a server.

use std::sync::{Arc, PoisonError, RwLock};

use crate::export::{Export, ExportError};

/// The exports of a server, which may come and go while it serves. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Exports(Arc<RwLock<Vec<Arc<Export>>>>);

impl Exports {
    /// Adds one.
    ///
    /// # Errors
    /// [`ExportError::Exists`].
    pub fn add(&self, export: Arc<Export>) -> Result<(), ExportError> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if list.iter().any(|other| other.name() == export.name()) {
            return Err(ExportError::Exists(export.name().to_owned()));
        }
        list.push(export);
        Ok(())
    }

    /// Takes one away. Clients that use it keep it until they go; nobody else finds it. `None` if there is none.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let at = list.iter().position(|export| export.name() == name)?;
        Some(list.remove(at))
    }

    /// All of them, in the order in which they were added.
    pub fn list(&self) -> Vec<Arc<Export>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// That of a name; the first one if the name is empty and no export has that.
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = list.iter().find(|export| export.name() == name);
        let found = found.or_else(|| list.first().filter(|_| name.is_empty()));
        found.cloned()
    }
}
