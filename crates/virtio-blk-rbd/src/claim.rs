// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who had an image open for writing on this host: so that the lock of a process that was killed can be told from the
//! lock of one that lives.
//!
//! A file for each image holds as whom the cluster knew the last process that had it open. That process holds a lock of
//! the kernel on the file for as long as it has the image, and writes before it can have any lock of the cluster. Who
//! gets the file's lock therefore knows that what stands there has ended, in whatever container it ran; and if the
//! cluster still has a lock of exactly that client on the image, nobody is behind it. A name whose lock could not be
//! broken stays there beside the next one.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use crate::RbdError;

/// How long a file's lock is waited for: a process that was killed keeps it until the kernel has taken it apart.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 2000 });
const PAUSE: Duration = Duration::from_millis(10);
/// The most bytes of a file that are looked at: more than the names can have of those who have locked an image.
const MOST: u64 = 4096;
/// The most bytes of a file's name: below that a name tells all parts of it.
const LONGEST: usize = 255;

/// As whom a cluster knows a client: `client.` and a number that it never gives to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client(u64);

impl Client {
    pub(crate) const fn new(instance: u64) -> Self {
        Self(instance)
    }

    /// Reads what [`Client::name`] wrote.
    fn read(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("client.")?.strip_suffix('\n')?;
        let number = digits.parse().ok()?;
        // Not "+1" or "01".
        (Self(number).name() == text.trim_end()).then_some(Self(number))
    }

    /// As the cluster writes it.
    pub(crate) fn name(&self) -> String {
        format!("client.{}", self.0)
    }
}

/// The file of an image, locked by this process.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    /// Who had it before, is dead, and still has the image's lock.
    dead: Vec<Client>,
}

impl Claim {
    /// Locks the file `name` in `directory`, which is made if it is not there. Returns who had it before and did not
    /// end in an orderly way, if anybody. The file must be this process's user's: another one could have anybody's lock
    /// broken.
    ///
    /// # Errors
    /// [`RbdError::Claimed`] if another process has it, or what the host says of the file.
    pub(crate) fn take(directory: &Path, name: &str) -> Result<(Self, Vec<Client>), RbdError> {
        Self::take_as(geteuid().as_raw(), directory, name)
    }

    /// The same as the user of this number.
    fn take_as(user: u32, directory: &Path, name: &str) -> Result<(Self, Vec<Client>), RbdError> {
        let path = directory.join(name);
        let failed = |source| RbdError::Call {
            what: format!("use {}", path.display()),
            source,
            hint: "name another directory with state=DIR, or state=off".to_owned(),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        let owner = file.metadata().map_err(failed)?.uid();
        if owner != user {
            let why = format!("it belongs to user {owner}, and this process is user {user}");
            return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        if !lock(&file).map_err(failed)? {
            return Err(RbdError::Claimed { path: path.clone() });
        }
        let mut text = String::new();
        // What is not readable was not written by us.
        let read = (&mut file).take(MOST).read_to_string(&mut text);
        let lines = text.split_inclusive('\n').filter(|_| read.is_ok());
        let before = lines.filter_map(Client::read).collect();
        let claim = Self {
            file,
            dead: Vec::new(),
        };
        Ok((claim, before))
    }

    /// Notes as whom the cluster knows this process, before it can take the image's lock, and which of those before
    /// still have it.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn note(&mut self, client: &Client, dead: Vec<Client>) -> io::Result<()> {
        self.dead = dead;
        self.write(Some(client))
    }

    /// The image is closed: nothing is left of this process in the cluster.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.write(None)
    }

    /// Writes who has to be known to the next process. A kill in between leaves names of dead ones only: a line is whole
    /// or none, and a name is never given again.
    fn write(&mut self, client: Option<&Client>) -> io::Result<()> {
        let names = client.into_iter().chain(&self.dead).map(Client::name);
        let text: String = names.map(|name| name + "\n").collect();
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

/// The name of an image's file: of letters, digits, dashes and percent signs, another one for each image. What is too
/// long for a file ends in a hash of it; two images that have the same can't be open at the same time, and no more than
/// that.
pub(crate) fn file_name(fsid: &str, pool: i64, namespace: &str, image: &str) -> String {
    let mut name = String::from("rbd");
    for part in [fsid, &pool.to_string(), namespace, image] {
        name.push('-');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() {
                name.push(byte.into());
            } else {
                // It can't fail for a string.
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    if name.len() > LONGEST {
        // FNV-1a: other versions of this program must find the same.
        let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        name.truncate(LONGEST - 18);
        let _ = write!(name, "%-{hash:016x}");
    }
    name
}

fn lock(file: &File) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::AGAIN) if start.elapsed() >= PATIENCE => return Ok(false),
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(PAUSE),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ended_in_disorder_is_known_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("not/there/yet");
        let take = || Claim::take(&directory, "x").unwrap();
        let (mut claim, before) = take();
        assert_eq!(before, []);
        claim.note(&Client::new(12345), Vec::new()).unwrap();
        // A shorter one, over the longer.
        claim.note(&Client::new(7), Vec::new()).unwrap();
        drop(claim);
        let (mut claim, before) = take();
        assert_eq!(before, [Client::new(7)]);
        claim.clear().unwrap();
        drop(claim);
        assert_eq!(take().1, []);
    }

    #[test]
    fn who_still_has_a_lock_stays_beside_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let take = || Claim::take(directory.path(), "x").unwrap();
        let (old, new) = (Client::new(12345), Client::new(7));
        take().0.note(&old, Vec::new()).unwrap();
        let (mut claim, before) = take();
        claim.note(&new, before).unwrap();
        drop(claim);
        let (mut claim, before) = take();
        assert_eq!(before, [new, old.clone()]);
        claim.note(&Client::new(8), vec![old.clone()]).unwrap();
        claim.clear().unwrap();
        drop(claim);
        assert_eq!(take().1, [old]);
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let me = geteuid().as_raw();
        Claim::take_as(me, directory.path(), "x").unwrap();
        let error = Claim::take_as(me + 1, directory.path(), "x").unwrap_err();
        assert!(error.to_string().contains("belongs to user"), "{error}");
    }

    #[test]
    fn two_at_a_time_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let _claim = Claim::take(directory.path(), "x").unwrap();
        let error = Claim::take(directory.path(), "x").unwrap_err();
        assert!(matches!(error, RbdError::Claimed { .. }), "{error}");
        Claim::take(directory.path(), "y").unwrap();
    }

    #[test]
    fn what_others_wrote_names_nobody() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "client.1",
            "client.\n",
            "client.x\n",
            "client.+1\n",
            "client.01\n",
            "client.1 client.2\n",
            "\nclient.1",
            "client.99999999999999999999\n",
            "osd.1\n",
            "\0",
            "\u{e9}",
        ] {
            std::fs::write(directory.path().join("x"), text).unwrap();
            assert_eq!(
                Claim::take(directory.path(), "x").unwrap().1,
                [],
                "{text:?}"
            );
        }
        let long = format!("client.{}\n", "1".repeat(100_000));
        std::fs::write(directory.path().join("x"), long).unwrap();
        assert_eq!(Claim::take(directory.path(), "x").unwrap().1, []);
        std::os::unix::fs::symlink("x", directory.path().join("link")).unwrap();
        Claim::take(directory.path(), "link").unwrap_err();
    }

    #[test]
    fn each_image_has_a_name_of_its_own() {
        let names = [
            ("a-b", "c"),
            ("a", "b-c"),
            ("", "a-b-c"),
            ("../x", "c"),
            ("a%2db", "c"),
        ];
        let mut names: Vec<_> = names
            .map(|(space, image)| file_name("f", 1, space, image))
            .into();
        assert!(names.iter().all(|name| !name.contains(['/', '.'])));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
        // Also where they are too long for a file: each byte may become three.
        let name = |space: &str, image| file_name("f", 1, space, image);
        let long = [
            "\u{e9}".repeat(60),
            "\u{e9}".repeat(60) + "x",
            "a".repeat(4096),
        ];
        let mut names: Vec<_> = long.iter().map(|space| name(space, "c")).collect();
        names.push(name(&long[2], "d"));
        assert!(names.iter().all(|name| name.len() <= 255));
        assert!(names.iter().all(|name| !name.contains(['/', '.'])));
        assert_eq!(names[0], name(&long[0], "c"));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4);
    }
}
