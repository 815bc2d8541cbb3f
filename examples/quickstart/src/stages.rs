// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Work in two stages, each with a bound: until a guest runs, and until the work is done.

use std::error::Error;
use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Why the work was not done.
#[derive(Debug)]
pub enum Failure {
    /// Nothing can be said of the device: this machine runs no guest.
    NoGuest(String),
    /// The guest ran, and the work went wrong.
    Work(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGuest(why) => write!(f, "this machine runs no guest: {why}"),
            Self::Work(error) => error.fmt(f),
        }
    }
}

impl Error for Failure {}

impl From<Box<dyn Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => *failure,
            Err(error) => Self::Work(error),
        }
    }
}

enum Stage<T> {
    Running,
    Over(Result<T, Failure>),
}

/// Tells of the first stage's end.
pub struct Stages<T>(Sender<Stage<T>>);

impl<T> Stages<T> {
    /// A guest runs.
    pub fn running(&self) {
        // If it comes too late nobody listens, and the result is not used either.
        let _ = self.0.send(Stage::Running);
    }
}

/// Does `work` on a thread of its own, which must tell within `start` that a guest runs, and
/// end within `patience` after that. A thread that does not is left alone.
///
/// # Errors
/// [`Failure::NoGuest`] if it was too late to tell; [`Failure::Work`] if it was too late to end; what `work` returns.
pub fn bounded<T: Send + 'static, F>(
    start: Duration,
    patience: Duration,
    work: impl FnOnce(&Stages<T>) -> Result<T, F> + Send + 'static,
) -> Result<T, Failure>
where
    F: Into<Failure>,
{
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let stages = Stages(sender);
        let over = work(&stages).map_err(Into::into);
        let _ = stages.0.send(Stage::Over(over));
    });
    match receiver.recv_timeout(start) {
        Ok(Stage::Running) => {}
        Ok(Stage::Over(result)) => return result,
        Err(_) => {
            let why = format!("KVM took one, but within {start:?} it did not run");
            return Err(Failure::NoGuest(why));
        }
    }
    match receiver.recv_timeout(patience) {
        Ok(Stage::Over(result)) => result,
        Ok(Stage::Running) | Err(_) => {
            let why = format!("requests are stuck: no end within {patience:?}");
            Err(Failure::Work(why.into()))
        }
    }
}
