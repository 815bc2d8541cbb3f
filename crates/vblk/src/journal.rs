// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What failed on a disk: the first of each kind is logged, all are counted, and a line now and then tells of those
//! that came since. A guest can make as many errors as it likes: the log gets a line of each kind in ten seconds at most.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use virtio_blk_core::disk::DiskError;
use virtio_blk_core::runner::{ErrorCause, RequestError};
use virtio_blk_disks::policy::PolicyEvent;

use crate::output;

/// How often a kind is told of at most.
const INTERVAL: Duration = Duration::from_secs(10);
/// The most kinds that are told apart; what is beyond counts as [`OTHER`].
const MAX_KINDS: usize = 100;
const OTHER: &str = "other";

/// Errors of one kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failures {
    /// The operation: `read`, `write`, `flush`, `discard`, `write-zeroes`, `secure-erase`, `lifetime`; `request` for one
    /// that the driver made wrong; `size` where the disk's size could not be read; `queue` for a queue that broke; `hold` for operations that a policy holds.
    pub operation: String,
    /// The name of the host's error number, such as `ENOSPC`; or what else it was.
    pub error: String,
    /// The host's error number.
    pub errno: Option<i32>,
    /// How many, since the start.
    pub count: u64,
    /// The last of them in words.
    pub last: String,
    /// When that was, in seconds since 1970.
    pub at: f64,
}

struct Entry {
    failures: Failures,
    /// Those that the log does not have yet.
    untold: u64,
    told: Instant,
}

/// The errors of a disk, by kind.
pub struct Journal {
    disk: String,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
}

/// One error.
struct Failure<'a> {
    operation: &'a str,
    error: String,
    errno: Option<i32>,
    words: String,
}

/// The name of an error number that disks fail with.
fn errno_name(errno: i32) -> String {
    let name = match errno {
        1 => "EPERM",
        4 => "EINTR",
        5 => "EIO",
        6 => "ENXIO",
        9 => "EBADF",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        14 => "EFAULT",
        16 => "EBUSY",
        19 => "ENODEV",
        22 => "EINVAL",
        26 => "ETXTBSY",
        27 => "EFBIG",
        28 => "ENOSPC",
        30 => "EROFS",
        _ => return uncommon(errno),
    };
    name.to_owned()
}

/// Numbers that differ between architectures are named by the constants of the system's own library.
fn uncommon(errno: i32) -> String {
    use rustix::io::Errno;
    let name = [
        (Errno::NODATA, "ENODATA"),
        (Errno::TIME, "ETIME"),
        (Errno::NOLINK, "ENOLINK"),
        (Errno::REMOTEIO, "EREMOTEIO"),
        (Errno::ILSEQ, "EILSEQ"),
        (Errno::OVERFLOW, "EOVERFLOW"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::STALE, "ESTALE"),
        (Errno::DQUOT, "EDQUOT"),
        (Errno::SHUTDOWN, "ESHUTDOWN"),
        (Errno::CONNRESET, "ECONNRESET"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::HOSTDOWN, "EHOSTDOWN"),
        (Errno::CANCELED, "ECANCELED"),
    ];
    let found = name.iter().find(|(known, _)| known.raw_os_error() == errno);
    found.map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).to_owned())
}

/// What kind of error it is, in a word.
fn error_name(error: &DiskError) -> String {
    let word = match error {
        DiskError::Unsupported => "unsupported",
        DiskError::OutOfRange => "out of range",
        DiskError::ReadOnly => "read-only",
        DiskError::Misaligned => "misaligned",
        DiskError::FlushLost { .. } => "flush lost",
        DiskError::Io(_) => return error.errno().map_or_else(|| OTHER.to_owned(), errno_name),
        _ => OTHER,
    };
    word.to_owned()
}

/// The error without what its kind says already.
fn words(error: &DiskError) -> String {
    match error {
        DiskError::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

impl Journal {
    /// Of a disk of this name.
    pub fn new(disk: String) -> Self {
        Self {
            disk,
            entries: Mutex::default(),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what went wrong in a queue. Does not block.
    pub fn note(&self, error: &RequestError<'_>) {
        let queue = error.queue;
        match error.cause {
            // The driver wanted it so.
            ErrorCause::Operation {
                error: DiskError::Cancelled,
                ..
            } => {}
            ErrorCause::Operation {
                request,
                offset,
                len,
                error,
            } => self.note_operation(
                request.name(),
                offset,
                len,
                &format!(" (queue {queue})"),
                error,
            ),
            ErrorCause::Chain(_) => self.add(
                log::Level::Warn,
                Failure {
                    operation: "request",
                    error: "malformed".to_owned(),
                    errno: None,
                    words: error.to_string(),
                },
            ),
            ErrorCause::Queue(_) => self.add(
                log::Level::Error,
                Failure {
                    operation: "queue",
                    error: "broken".to_owned(),
                    errno: None,
                    words: error.to_string(),
                },
            ),
            _ => {}
        }
    }

    /// Notes an operation that the disk failed; `place` says for whom. Does not block.
    pub fn note_operation(
        &self,
        name: &str,
        offset: u64,
        len: u64,
        place: &str,
        error: &DiskError,
    ) {
        let what = match len {
            0 => name.to_owned(),
            _ => format!("{name} of {len} bytes at byte {offset}"),
        };
        self.add(
            log::Level::Error,
            Failure {
                operation: name,
                error: error_name(error),
                errno: error.errno(),
                words: format!("{what} failed{place}: {}", words(error)),
            },
        );
    }

    /// Notes that the disk's size can't be read. Does not block.
    pub fn note_size(&self, error: &DiskError) {
        self.add(
            log::Level::Warn,
            Failure {
                operation: "size",
                error: error_name(error),
                errno: error.errno(),
                words: format!("the disk's size can't be read: {error}"),
            },
        );
    }

    /// Notes what became of operations that failed under a policy. Does not block.
    pub fn note_policy(&self, event: &PolicyEvent) {
        match event {
            PolicyEvent::Held(operation) => self.add(
                log::Level::Warn,
                Failure {
                    operation: "hold",
                    error: operation
                        .errno
                        .map_or_else(|| OTHER.to_owned(), errno_name),
                    errno: operation.errno,
                    words: format!("{operation}; `vblk ctl SOCKET resume` has it tried again"),
                },
            ),
            PolicyEvent::Resumed { operations } => {
                log::warn!(
                    "{}: operations that had failed are tried again: {operations}",
                    self.disk
                );
            }
            PolicyEvent::Failed { operations } => self.add(
                log::Level::Warn,
                Failure {
                    operation: "hold",
                    error: "stopped".to_owned(),
                    errno: None,
                    words: format!(
                        "a queue stopped: operations that were held have failed for good: {operations}"
                    ),
                },
            ),
            _ => {}
        }
    }

    fn add(&self, level: log::Level, failure: Failure<'_>) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = at.unwrap_or_default().as_secs_f64();
        let mut entries = self.entries();
        let mut key = (failure.operation.to_owned(), failure.error.clone());
        if entries.len() >= MAX_KINDS && !entries.contains_key(&key) {
            key = (OTHER.to_owned(), OTHER.to_owned());
        }
        let is_first = !entries.contains_key(&key);
        let (operation, error) = key.clone();
        let entry = entries.entry(key).or_insert_with(|| Entry {
            failures: Failures {
                operation,
                error,
                errno: failure.errno,
                count: 0,
                last: String::new(),
                at,
            },
            untold: 0,
            told: Instant::now(),
        });
        entry.failures.count += 1;
        entry.failures.at = at;
        if is_first {
            log::log!(
                level,
                "{}: {} [{}]; more like it are counted",
                self.disk,
                failure.words,
                failure.error
            );
        } else {
            entry.untold += 1;
        }
        entry.failures.last = failure.words;
    }

    /// Logs how many came since the last time, of each kind of which nothing was told for a while; `all`: of each kind.
    pub fn tell(&self, all: bool) {
        for entry in self.entries().values_mut() {
            if entry.untold != 0 && (all || entry.told.elapsed() >= INTERVAL) {
                let Failures {
                    operation,
                    error,
                    last,
                    ..
                } = &entry.failures;
                log::warn!(
                    "{}: {} more errors of the kind {operation}, {error}; the last: {last}",
                    self.disk,
                    output::thousands(entry.untold)
                );
                entry.untold = 0;
                entry.told = Instant::now();
            }
        }
    }

    /// All kinds that happened.
    pub fn failures(&self) -> Vec<Failures> {
        let entries = self.entries();
        entries
            .values()
            .map(|entry| entry.failures.clone())
            .collect()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("disk", &self.disk).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(operation: &str, error: String) -> Failure<'_> {
        Failure {
            operation,
            error,
            errno: None,
            words: String::new(),
        }
    }

    #[test]
    fn kinds_are_counted_apart_and_are_not_without_number() {
        let journal = Journal::new("disk".to_owned());
        for number in 0..200 {
            journal.add(log::Level::Warn, failure("read", errno_name(number)));
            journal.add(log::Level::Warn, failure("write", "ENOSPC".to_owned()));
        }
        let failures = journal.failures();
        assert_eq!(failures.len(), MAX_KINDS + 1);
        let count = |operation: &str| -> u64 {
            let of = failures.iter().filter(|one| one.operation == operation);
            of.map(|one| one.count).sum()
        };
        assert_eq!(count("write"), 200);
        assert_eq!(count("read") + count(OTHER), 200);
    }

    #[test]
    fn numbers_have_names() {
        for (number, name) in [
            (libc::ENOSPC, "ENOSPC"),
            (libc::EDQUOT, "EDQUOT"),
            (libc::EIO, "EIO"),
            (libc::ESTALE, "ESTALE"),
            (9999, "errno 9999"),
        ] {
            assert_eq!(errno_name(number), name);
        }
        assert_eq!(error_name(&DiskError::from_errno(28)), "ENOSPC");
        assert_eq!(error_name(&DiskError::OutOfRange), "out of range");
    }
}
