// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Unix sockets to listen on: made with the right mode and group from the start, by one starter at a time.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

/// Connections that may wait.
const BACKLOG: i32 = 128;

/// How long another starter in the same directory may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where to listen. As text: `fd:N`, or a path (one that begins with `fd:` is written `./fd:…`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A path, where a socket is made.
    Path(PathBuf),
    /// A descriptor of a socket that listens already, inherited from the process that started this one (as
    /// systemd does for socket units, from 3 on).
    Descriptor(RawFd),
}

impl FromStr for SocketAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("fd:") {
            None => Ok(Self::Path(text.into())),
            Some(number) => match number.parse() {
                Ok(fd) if fd >= 0 => Ok(Self::Descriptor(fd)),
                _ => Err(format!(
                    "{number:?} is not the number of a descriptor (a path is written ./{text})"
                )),
            },
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Descriptor(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// Who may connect to a socket that is made at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits of the socket's file: write permission is what connecting takes. `None`: 0660
    /// with a group, else what the process's umask leaves.
    pub mode: Option<u32>,
    /// The group of the socket's file ([`group_id`] knows its number). `None`: the process's.
    pub group: Option<u32>,
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{0} is in use by another server: stop it, or give another path")]
    InUse(PathBuf),
    /// The path exists and is no socket.
    #[error("{0} exists and is not a socket: give another path")]
    NotASocket(PathBuf),
    /// Another process has the directory locked.
    #[error(
        "can't listen on {0}: another process keeps its directory locked (flock), as a server does while it \
         starts or ends"
    )]
    Locked(PathBuf),
    /// The mode has bits that are no permissions.
    #[error("{0:#o} is no socket's mode: give three octal digits")]
    Mode(u32),
    /// The socket can't be made.
    #[error("can't listen on {path}: {source}")]
    Bind {
        /// The socket's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An inherited descriptor is not what it should be.
    #[error(
        "descriptor {fd} is no unix stream socket that listens ({source}): pass one from the process that starts \
         this one"
    )]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it lacks.
        source: io::Error,
    },
}

/// The number of a group, given by name or number.
///
/// # Errors
/// The system knows no such group.
pub fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let unknown = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no group {group:?}: give a group's name or number"),
        )
    };
    let name = std::ffi::CString::new(group).map_err(|_| unknown())?;
    // More than any list of members that is sensible.
    let mut space = vec![0; 1 << 20];
    // SAFETY: all zeroes is a value of this plain structure.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: a C string, a structure to fill, memory of the length given for what it points to, and a
    // place for the result; all outlive the call.
    let error = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            &raw mut entry,
            space.as_mut_ptr(),
            space.len(),
            &raw mut found,
        )
    };
    match error {
        0 if found.is_null() => Err(unknown()),
        0 => Ok(entry.gr_gid),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The lock of a directory in which a socket is made or removed. Nothing is left of it.
struct DirectoryLock {
    /// Unlocked when it is closed. `None` where there can't be a lock: the directory can't be read, or its
    /// file system has none.
    _directory: Option<File>,
}

impl DirectoryLock {
    /// Locks the directory of `path`; `None` if it stays locked by somebody else.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let directory = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Some(Self { _directory: None }));
            }
            other => other?,
        };
        let started = Instant::now();
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let _directory = Some(directory);
                    return Ok(Some(Self { _directory }));
                }
                Err(Errno::WOULDBLOCK) if started.elapsed() > PATIENCE => return Ok(None),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    // Starters keep it for much less than this.
                    std::thread::sleep(Duration::from_millis(5));
                }
                // A file system without locks.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::INVAL | Errno::BADF) => {
                    return Ok(Some(Self { _directory: None }));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A unix socket that listens. Its file, if this made it, is removed when it is dropped, unless another
/// server has the path by then.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    address: SocketAddress,
    /// Device and number of the socket's file, to know it again.
    inode: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `address`; `options` are for a path.
    ///
    /// # Errors
    /// As for [`Listener::bind`] and [`Listener::inherit`].
    pub fn open(address: &SocketAddress, options: &SocketOptions) -> Result<Self, SocketError> {
        match address {
            SocketAddress::Path(path) => Self::bind(path, options),
            SocketAddress::Descriptor(fd) => Self::inherit(*fd),
        }
    }

    /// Makes a socket at `path`. A socket that a dead server left there is replaced. Nobody can connect
    /// before mode and group are as `options` say. Of two processes that do this for one path at a time one
    /// gets it, and the other learns that it is in use.
    ///
    /// # Errors
    /// [`SocketError`]; the path is as it was, or a dead server's socket is gone from it.
    pub fn bind(path: &Path, options: &SocketOptions) -> Result<Self, SocketError> {
        let failed = |source: io::Error| SocketError::Bind {
            path: path.to_owned(),
            source,
        };
        if let Some(mode) = options.mode.filter(|mode| mode & !0o777 != 0) {
            return Err(SocketError::Mode(mode));
        }
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let lock = DirectoryLock::of(path)
            .map_err(failed)?
            .ok_or_else(|| SocketError::Locked(path.to_owned()))?;
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if is_alive(&address).map_err(failed)? => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let made = make(&address, options).map_err(|error| failed(error.into()))?;
        let inode = inode(path).map_err(failed)?;
        let this = Self {
            listener: made.into(),
            address: SocketAddress::Path(path.to_owned()),
            inode: Some(inode),
        };
        // Dropped from here on, it removes its file; that needs the lock, which is released first.
        let ready = adjust(path, options).and_then(|()| Ok(listen(&this.listener, BACKLOG)?));
        drop(lock);
        ready.map_err(failed)?;
        Ok(this)
    }

    /// Takes a descriptor of a unix stream socket that listens, inherited from the process that started this
    /// one. It is duplicated; `fd` stays as it is.
    ///
    /// # Errors
    /// It is something else, or not open.
    pub fn inherit(fd: RawFd) -> Result<Self, SocketError> {
        let failed = |source: io::Error| SocketError::Descriptor { fd, source };
        // SAFETY: a number and a flag; what is not an open descriptor fails.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: a fresh descriptor that nobody else has.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        let other = |what: &str| failed(io::Error::new(io::ErrorKind::InvalidInput, what));
        match sockopt::socket_domain(&copy) {
            Ok(AddressFamily::UNIX) => {}
            Ok(_) => return Err(other("it is a socket of another family")),
            Err(error) => return Err(failed(error.into())),
        }
        if sockopt::socket_type(&copy) != Ok(SocketType::STREAM) {
            return Err(other("it is not a stream socket"));
        }
        if sockopt::socket_acceptconn(&copy) != Ok(true) {
            return Err(other("it does not listen"));
        }
        Ok(Self {
            listener: copy.into(),
            address: SocketAddress::Descriptor(fd),
            inode: None,
        })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it listens.
    pub fn address(&self) -> &SocketAddress {
        &self.address
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (SocketAddress::Path(path), Some(ours)) = (&self.address, self.inode) {
            // Without the lock another server could come between the look and the removal.
            let lock = DirectoryLock::of(path);
            if matches!(lock, Ok(Some(_))) && inode(path).is_ok_and(|found| found == ours) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Whether somebody listens. Never waits. A socket that this process may not connect to is an error: it may be
/// another user's server.
fn is_alive(address: &SocketAddrUnix) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&client, address) {
        // A full queue of connections, or a socket of another type, is somebody's.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(Errno::ACCESS | Errno::PERM) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a socket is there that this process may not connect to, so that it can't be told whether a server \
             uses it: give another path, or remove it if none does",
        )),
        Err(error) => Err(error.into()),
    }
}

/// A socket bound to a path, on which nobody can connect yet.
fn make(address: &SocketAddrUnix, options: &SocketOptions) -> rustix::io::Result<OwnedFd> {
    let made = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if options.mode.is_some() || options.group.is_some() {
        // Linux takes the file's mode from here (and the umask): nobody's until all is set.
        fchmod(&made, Mode::empty())?;
    }
    bind(&made, address)?;
    Ok(made)
}

/// Gives the socket's file its group and mode.
fn adjust(path: &Path, options: &SocketOptions) -> io::Result<()> {
    if options.group.is_some() {
        std::os::unix::fs::lchown(path, None, options.group)?;
    }
    let mode = match (options.mode, options.group) {
        (Some(mode), _) => mode,
        // A group is given so that it may connect.
        (None, Some(_)) => 0o660,
        (None, None) => return Ok(()),
    };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Device and number of a file; links are not followed.
fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests;
