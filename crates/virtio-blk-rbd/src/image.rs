// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An open image.

use std::ffi::c_char;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::api::{Api, FEATURE_DIRTY_CACHE, FEATURE_EXCLUSIVE_LOCK, Handle, LOCK_EXCLUSIVE};
use crate::cache;
use crate::caps::Shape;
use crate::claim::{Claim, Client, file_name};
use crate::cluster::{Cluster, checked, string, text};
use crate::handle::{OpenHandle, open_handle, open_reader};
use crate::shell::{printable, shell_word};
use crate::size::Size;
use crate::watch::{Bell, Watch, ask, unknown};
use crate::{RbdError, RbdOptions};

/// How long opening an image waits for the cluster.
pub(crate) const OPEN_PATIENCE: Duration = Duration::from_secs(30);
/// How long closing an image is waited for: then nothing waits for it any more.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of each list of lockers. There is one locker at most with the kind of lock that counts.
const LIST: usize = 4096;

/// What operations go to.
pub(crate) struct Target {
    pub api: &'static Api,
    pub handle: Handle,
    /// As it is written on command lines.
    pub name: String,
    /// Another client took the image away; that was said.
    fenced: AtomicBool,
}

impl Target {
    /// An operation has failed.
    pub(crate) fn failed(&self, errno: i32) {
        // `EBLOCKLISTED` of the OSDs.
        if errno == libc::ESHUTDOWN && !self.fenced.swap(true, Ordering::Relaxed) {
            log::error!(
                "{}: the cluster no longer takes anything from this process: another client broke its lock on the \
                 image. Every operation fails until the disk is opened anew",
                self.name
            );
        }
    }
}

/// An open image. Dropping it closes it, on a thread that is waited for a short time only, as the cluster may be gone.
pub(crate) struct Image {
    target: Arc<Target>,
    size: Arc<Size>,
    /// `None`: it is a snapshot, whose size stays.
    bell: Option<Arc<Bell>>,
    shape: Shape,
    /// Until it is closed.
    opened: Option<Opened>,
}

/// What has to be closed, from the first to the last: also by dropping it.
struct Opened {
    watch: Option<Watch>,
    handle: OpenHandle,
    cluster: Cluster,
    claim: Option<Claim>,
}

impl Image {
    /// Opens an image. Waits for the cluster for a bounded time: what it does later is undone when it has.
    ///
    /// # Errors
    /// What is wrong, with what to do.
    pub(crate) fn open(
        api: &'static Api,
        options: &RbdOptions,
        patience: Duration,
    ) -> Result<Self, RbdError> {
        let (send, receive) = channel();
        let name = options.name().to_string();
        let failed = |source| RbdError::Call {
            what: format!("open {name}"),
            source,
            hint: String::new(),
        };
        let own = options.clone();
        std::thread::Builder::new()
            .name("rbd-open".to_owned())
            .spawn(move || {
                // Nobody may be there any more: it is closed then.
                let _ = send.send(Self::try_open(api, &own));
            })
            .map_err(failed)?;
        match receive.recv_timeout(patience) {
            Ok(opened) => opened,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(RbdError::Silent {
                    what: name,
                    seconds: patience.as_secs(),
                    conf: options.words(),
                })
            }
        }
    }

    fn try_open(api: &'static Api, options: &RbdOptions) -> Result<Self, RbdError> {
        let name = format!("rbd:{}", options.name());
        let cluster = Cluster::connect(api, options)?;
        let handle = if options.is_read_only() {
            open_reader(api, &cluster, options)
        } else {
            open_handle(api, &cluster, options, true)
        }?;
        let mut opened = Opened {
            watch: None,
            handle,
            cluster,
            claim: None,
        };
        let image = opened.handle.image;
        if !options.is_read_only() {
            // SAFETY: open, and this call does not end before the library's.
            if let Some(setting) = unsafe { cache::overridden(api, image, cache::OFF) }? {
                return Err(has_cache(&setting.to_string_lossy(), options));
            }
            opened.claim = opened.take_over(options)?;
        }
        // SAFETY: open, and this call does not end before the library's.
        let bytes = unsafe { ask(api, image) }.map_err(unknown)?;
        let size = Arc::new(Size::new(name.clone(), bytes));
        if options.name().snapshot().is_none() {
            // SAFETY: the image is closed after the watch has ended, see `Opened`.
            let watch = unsafe { Watch::start(api, image, &name, size.clone()) }?;
            // What has changed before it was watched.
            watch.bell().look(OPEN_PATIENCE)?;
            opened.watch = Some(watch);
        }
        let shape = Shape {
            stripe_unit: stripe_unit(api, image),
            discard: opened.cluster.number(c"rbd_discard_granularity_bytes"),
            write_zeroes: api.rbd_aio_write_zeroes.is_some(),
            read_only: options.is_read_only(),
        };
        Ok(Self {
            target: Arc::new(Target {
                api,
                handle: image,
                name,
                fenced: AtomicBool::new(false),
            }),
            size,
            bell: opened.watch.as_ref().map(|watch| watch.bell().clone()),
            shape,
            opened: Some(opened),
        })
    }

    pub(crate) const fn target(&self) -> &Arc<Target> {
        &self.target
    }

    pub(crate) const fn size(&self) -> &Arc<Size> {
        &self.size
    }

    /// Looks at the size again, for so long at most. Listeners are told before this returns.
    ///
    /// # Errors
    /// The cluster's, or it does not respond. The size is taken over when it does.
    pub(crate) fn look(&self, patience: Duration) -> Result<(), RbdError> {
        self.bell
            .as_ref()
            .map_or(Ok(()), |bell| bell.look(patience))
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let Some(opened) = self.opened.take() else {
            return;
        };
        let (send, receive) = channel();
        let thread = std::thread::Builder::new()
            .name("rbd-close".to_owned())
            .spawn(move || {
                opened.close();
                let _ = send.send(());
            });
        let name = &self.target.name;
        if thread.is_err() {
            log::warn!("{name}: there is no thread to close the image, so it was closed here");
        }
        if let Err(RecvTimeoutError::Timeout) = receive.recv_timeout(CLOSE_PATIENCE) {
            log::warn!(
                "{name}: the cluster does not respond while the image is closed; nothing waits for that any more"
            );
        }
    }
}

impl Opened {
    fn close(self) {
        let Self {
            watch,
            handle,
            cluster,
            claim,
        } = self;
        drop(watch);
        let closed = handle.close();
        drop(cluster);
        if closed && let Some(mut claim) = claim {
            // What stands there names nobody who has a lock, so it does no harm if it stays.
            let _ = claim.clear();
        }
    }

    /// Claims the image on this host, and takes its lock away from a predecessor that was killed.
    ///
    /// # Errors
    /// Another process has the image, or the directory can't be used.
    fn take_over(&self, options: &RbdOptions) -> Result<Option<Claim>, RbdError> {
        let OpenHandle {
            api, image, name, ..
        } = &self.handle;
        let features = self.handle.features()?;
        if features & FEATURE_DIRTY_CACHE != 0 {
            let (words, name) = (options.words(), options.name());
            return Err(RbdError::Image(format!(
                "a persistent cache of another client holds writes of it: end that client, or on its host have `rbd{words} \
                 persistent-cache flush {name}` write them. `rbd{words} persistent-cache invalidate {name}` gives them up"
            )));
        }
        let has_lock = features & FEATURE_EXCLUSIVE_LOCK != 0;
        if !has_lock {
            log::warn!(
                "{name}: the image has no exclusive lock, so nothing fences off other writers, nor what a process that was killed \
                 has under way: `rbd{} feature enable {} \
                 exclusive-lock` gives it one",
                options.words(),
                options.name()
            );
        }
        let lockers = self.lockers()?;
        let by_hand = |locker: &&Locker| !locker.is_the_librarys();
        if let Some(locker) = lockers.iter().find(by_hand) {
            // librbd would wait for its end for ever.
            return Err(RbdError::Locked {
                client: printable(&locker.client),
                address: printable(&locker.address),
                command: format!(
                    "rbd{} lock rm {} {} {}",
                    options.words(),
                    shell_word(&options.name().to_string()),
                    shell_word(&locker.cookie),
                    shell_word(&locker.client)
                ),
            });
        }
        let Some(directory) = options.state_directory() else {
            if options.lacks_state() {
                log::warn!(
                    "{name}: XDG_RUNTIME_DIR names no directory for the state, so other processes on this host are not kept \
                     from writing the image, and if this one is killed its lock stays for half a minute: name one with \
                     state=DIR, or say state=off"
                );
            }
            return Ok(None);
        };
        let mut id: [c_char; 128] = [0; 128];
        // SAFETY: open; the buffer has that length.
        let code = unsafe { (api.rbd_get_id)(*image, id.as_mut_ptr(), id.len()) };
        if code == -libc::EINVAL {
            log::warn!(
                "{name}: an image of the first format has no id, so other processes on this host are not kept from \
                 writing it: `rbd{} migration prepare` makes one of the second format of it",
                options.words()
            );
            return Ok(None);
        }
        checked(code, || format!("ask for the id of {name}"), String::new)?;
        let file = file_name(
            &self.cluster.fsid()?,
            self.cluster.pool_id(),
            options.name().namespace(),
            &string(&id),
        );
        let (mut claim, mut dead) = Claim::take(&directory, &file)?;
        dead.retain(|client| {
            let locker = lockers.iter().find(|locker| locker.client == client.name());
            locker.is_some_and(|locker| !(has_lock && self.break_lock(locker)))
        });
        claim
            .note(&Client::new(self.cluster.instance()), dead)
            .map_err(|source| RbdError::Call {
                what: format!("write to {}", directory.display()),
                source,
                hint: "name another directory with state=DIR, or state=off".to_owned(),
            })?;
        Ok(Some(claim))
    }

    /// Takes the image's lock away from a client that is known to be dead. Returns whether it has it no more.
    fn break_lock(&self, dead: &Locker) -> bool {
        let OpenHandle {
            api, image, name, ..
        } = &self.handle;
        let Locker {
            client, address, ..
        } = dead;
        let Ok(owner) = text(address, "the address") else {
            return false;
        };
        let began = Instant::now();
        // SAFETY: open; the address ends in zero. The library looks again whether it is that client's lock.
        let code = unsafe { (api.rbd_lock_break)(*image, LOCK_EXCLUSIVE, owner.as_ptr()) };
        if code < 0 {
            let error = RbdError::call(
                format!("break the lock of {client} ({address}), which was killed"),
                code.into(),
                "the first write waits until the cluster gives it up, half a minute. The user needs `profile rbd` to \
                 break it",
            );
            log::warn!("{name}: {error}");
        } else {
            log::warn!(
                "{name}: broke the lock of {client} ({address}), which was killed: {} ms",
                began.elapsed().as_millis()
            );
        }
        code >= 0
    }

    /// Who has a lock on the image.
    ///
    /// # Errors
    /// The cluster's.
    fn lockers(&self) -> Result<Vec<Locker>, RbdError> {
        let OpenHandle {
            api, image, name, ..
        } = &self.handle;
        let mut exclusive = 0;
        let mut lists: [Vec<c_char>; 4] = std::array::from_fn(|_| vec![0; LIST]);
        let mut lengths = [LIST; 4];
        let [tag, clients, cookies, addresses] = &mut lists;
        let [tag_len, clients_len, cookies_len, addresses_len] = &mut lengths;
        // SAFETY: open; each buffer has the length that is given with it.
        let count = unsafe {
            (api.rbd_list_lockers)(
                *image,
                &raw mut exclusive,
                tag.as_mut_ptr(),
                tag_len,
                clients.as_mut_ptr(),
                clients_len,
                cookies.as_mut_ptr(),
                cookies_len,
                addresses.as_mut_ptr(),
                addresses_len,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let what = format!("ask who has a lock on {name}");
            return Err(RbdError::call(what, count as i64, ""));
        };
        let tag = string(tag);
        let each = entries(clients)
            .zip(entries(cookies))
            .zip(entries(addresses));
        let locker = |((client, cookie), address)| Locker {
            client,
            tag: tag.clone(),
            cookie,
            address,
        };
        Ok(each.take(count).map(locker).collect())
    }
}

/// Who has a lock on an image.
struct Locker {
    /// As the cluster writes it.
    client: String,
    /// What all who have the lock call it.
    tag: String,
    /// The client's own name for the lock.
    cookie: String,
    address: String,
}

impl Locker {
    /// Whether the library took it, which gives it up when another client asks. Who locks by hand may choose either name,
    /// but no exclusive lock of a command has a tag.
    fn is_the_librarys(&self) -> bool {
        self.tag == TAG && self.cookie.starts_with(AUTOMATIC)
    }
}

/// The tag of librbd's own locks.
const TAG: &str = "internal";

/// What the names of librbd's own locks begin with.
const AUTOMATIC: &str = "auto ";

/// The texts of a list, each up to its zero byte.
fn entries(list: &[c_char]) -> impl Iterator<Item = String> {
    list.split(|byte| *byte == 0).map(string)
}

/// An image that is to be written has a cache by a setting of its own or of its pool.
fn has_cache(setting: &str, options: &RbdOptions) -> RbdError {
    let (words, name) = (options.words(), options.name());
    RbdError::Image(format!(
        "it has {setting} as a setting of its own or of its pool, and writes that have completed would be lost with \
         this process or this host: `rbd{words} config image rm {name} {setting}`, or `rbd{words} config pool rm {} \
         {setting}`",
        name.pool()
    ))
}

/// Bytes of the image that lie together in one object.
fn stripe_unit(api: &Api, image: Handle) -> Option<u64> {
    let mut bytes = 0;
    // SAFETY: open; the number is there to be written.
    let code = unsafe { (api.rbd_get_stripe_unit)(image, &raw mut bytes) };
    (code >= 0).then_some(bytes)
}
