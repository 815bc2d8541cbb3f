// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection to a cluster, and to one pool there.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;

use crate::api::{Api, Handle};
use crate::cache::{COPY_ON_READ, MEMORY_CACHE, PERSISTENT_CACHE};
use crate::{RbdError, RbdOptions};

/// Seconds that connecting takes at most: after that the library gives up.
const CONNECT_PATIENCE: &CStr = c"20";

/// A connection to a cluster and to one of its pools. Dropping it ends it.
pub(crate) struct Cluster {
    api: &'static Api,
    rados: Handle,
    /// The pool, once it is open.
    pool: Handle,
}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// [`RbdError::Call`] with what to do.
    pub(crate) fn connect(api: &'static Api, options: &RbdOptions) -> Result<Self, RbdError> {
        let user = options.user().map(|user| text(user, "id")).transpose()?;
        let mut rados = Handle::NONE;
        // SAFETY: `rados` is there to be written; the name is null or ends in zero.
        let code = unsafe { (api.rados_create)(&raw mut rados, pointer(user.as_deref())) };
        checked(
            code,
            || "prepare a connection to the cluster".to_owned(),
            String::new,
        )?;
        let mut cluster = Self {
            api,
            rados,
            pool: Handle::NONE,
        };
        cluster.configure(options)?;
        // SAFETY: a handle that is not connected yet.
        let code = unsafe { (api.rados_connect)(rados) };
        checked(
            code,
            || "connect to the cluster".to_owned(),
            || connect_hint(code, options),
        )?;
        cluster.open_pool(options)?;
        Ok(cluster)
    }

    fn configure(&self, options: &RbdOptions) -> Result<(), RbdError> {
        let path = match options.conf_path() {
            Some(path) => Some(
                CString::new(path.as_os_str().as_bytes())
                    .map_err(|_| RbdError::Image("conf= has a zero byte in it".to_owned()))?,
            ),
            None => None,
        };
        // SAFETY: the handle is live; the path is null or ends in zero.
        let code = unsafe { (self.api.rados_conf_read_file)(self.rados, pointer(path.as_deref())) };
        let what = || match options.conf_path() {
            Some(path) => format!("read the cluster's configuration {}", path.display()),
            None => "read the cluster's configuration /etc/ceph/ceph.conf".to_owned(),
        };
        checked(code, what, || "name it with conf=FILE".to_owned())?;
        let patience = options
            .patience()
            .map(|patience| text(&patience.as_secs().to_string(), "timeout"))
            .transpose()?;
        let mut settings = vec![
            // A cache here would be lost with this process, of which the guest does not learn.
            (MEMORY_CACHE, c"false"),
            // One on an SSD of this host would be lost with the host, and other hosts would read what is older.
            (PERSISTENT_CACHE, c"disabled"),
            // The guest may change its memory while a write is on its way.
            (c"rbd_disable_zero_copy_writes", c"true"),
            (c"client_mount_timeout", CONNECT_PATIENCE),
        ];
        if options.is_read_only() {
            settings.push((COPY_ON_READ, c"false"));
        }
        if let Some(patience) = &patience {
            settings.push((c"rados_osd_op_timeout", patience));
            settings.push((c"rados_mon_op_timeout", patience));
        }
        for (name, value) in settings {
            // SAFETY: the handle is live, both strings end in zero.
            let code =
                unsafe { (self.api.rados_conf_set)(self.rados, name.as_ptr(), value.as_ptr()) };
            // Before Ceph 15 there was no such cache.
            if code == -libc::ENOENT && name == PERSISTENT_CACHE {
                continue;
            }
            checked(
                code,
                || format!("set {}", name.to_string_lossy()),
                String::new,
            )?;
        }
        Ok(())
    }

    fn open_pool(&mut self, options: &RbdOptions) -> Result<(), RbdError> {
        let name = options.name();
        let pool = text(name.pool(), "the pool's name")?;
        // SAFETY: connected; the name ends in zero, the handle is there to be written.
        let code =
            unsafe { (self.api.rados_ioctx_create)(self.rados, pool.as_ptr(), &raw mut self.pool) };
        checked(
            code,
            || format!("open the pool {}", name.pool()),
            || {
                format!(
                    "`ceph{} osd pool ls` shows those there are",
                    options.words()
                )
            },
        )?;
        let namespace = text(name.namespace(), "the namespace")?;
        // SAFETY: the pool is open and not used otherwise yet; the name ends in zero.
        unsafe { (self.api.rados_ioctx_set_namespace)(self.pool, namespace.as_ptr()) };
        Ok(())
    }

    /// The pool, for as long as this lives.
    pub(crate) const fn pool(&self) -> Handle {
        self.pool
    }

    /// As whom the cluster knows this connection: a number that it never gives again.
    pub(crate) fn instance(&self) -> u64 {
        // SAFETY: connected.
        unsafe { (self.api.rados_get_instance_id)(self.rados) }
    }

    /// What the cluster is called.
    pub(crate) fn fsid(&self) -> Result<String, RbdError> {
        let mut buffer = [0; 64];
        // SAFETY: connected; the buffer has that length.
        let code =
            unsafe { (self.api.rados_cluster_fsid)(self.rados, buffer.as_mut_ptr(), buffer.len()) };
        checked(
            code,
            || "ask for the cluster's name".to_owned(),
            String::new,
        )?;
        Ok(string(&buffer))
    }

    /// The pool's number.
    pub(crate) fn pool_id(&self) -> i64 {
        // SAFETY: the pool is open.
        unsafe { (self.api.rados_ioctx_get_id)(self.pool) }
    }

    /// A number in the configuration, if it is there and one.
    pub(crate) fn number(&self, name: &CStr) -> Option<u64> {
        let mut buffer = [0; 64];
        // SAFETY: the handle is live, the name ends in zero, the buffer has that length.
        let code = unsafe {
            (self.api.rados_conf_get)(self.rados, name.as_ptr(), buffer.as_mut_ptr(), buffer.len())
        };
        (code >= 0).then(|| string(&buffer).parse().ok()).flatten()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: each is closed once, the pool before the connection; no image of it is open any more, as images
        // own their cluster.
        unsafe {
            if self.pool != Handle::NONE {
                (self.api.rados_ioctx_destroy)(self.pool);
            }
            (self.api.rados_shutdown)(self.rados);
        }
    }
}

fn connect_hint(code: i32, options: &RbdOptions) -> String {
    let user = options.user().unwrap_or("admin");
    match -code {
        libc::ENOENT => format!(
            "is there a keyring for client.{user}? `ceph{} auth get client.{user}` on a machine of the cluster makes one",
            options.words()
        ),
        libc::EACCES | libc::EPERM => {
            format!("the cluster does not believe client.{user}: check id= and its keyring")
        }
        libc::ETIMEDOUT => format!(
            "no monitor responds: `ceph{} status` shows what is wrong, and `mon host` in the configuration where they are",
            options.words()
        ),
        _ => String::new(),
    }
}

/// A text for the library.
///
/// # Errors
/// It has a zero byte in it.
pub(crate) fn text(text: &str, what: &str) -> Result<CString, RbdError> {
    CString::new(text).map_err(|_| RbdError::Image(format!("{what} has a zero byte in it")))
}

/// A text for the library, or null.
pub(crate) fn pointer(text: Option<&CStr>) -> *const c_char {
    text.map_or(std::ptr::null(), CStr::as_ptr)
}

/// A text of the library's, up to its zero byte.
pub(crate) fn string(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = (buffer.iter())
        .map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()))
        .collect();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Whether a call succeeded.
///
/// # Errors
/// [`RbdError::Call`] if the code is negative.
pub(crate) fn checked(
    code: i32,
    what: impl FnOnce() -> String,
    hint: impl FnOnce() -> String,
) -> Result<(), RbdError> {
    if code >= 0 {
        return Ok(());
    }
    Err(RbdError::call(what(), code.into(), hint()))
}
