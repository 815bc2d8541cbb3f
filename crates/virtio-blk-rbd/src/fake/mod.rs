// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A library without a cluster: one image in memory, which does and fails what a test wants.

#[allow(clippy::undocumented_unsafe_blocks)] // One argument for all of them stands at their head.
mod functions;
#[allow(clippy::undocumented_unsafe_blocks)] // As there.
mod operations;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::api::{Callback, Handle, UpdateCallback};

pub(crate) use functions::api;

/// Bytes of an object.
pub(crate) const OBJECT: usize = 64 << 10;

/// Clusters by the user that connects to them.
static CLUSTERS: Mutex<Option<HashMap<String, Arc<Fake>>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1000);

/// What an operation does when its time has come.
type Job = Box<dyn FnOnce() + Send>;

/// A cluster with one pool and one image.
pub(crate) struct Fake {
    /// The user that finds it.
    pub user: String,
    /// Functions that fail, with the code that they return or complete with.
    fails: Mutex<HashMap<&'static str, i32>>,
    /// Functions that were called.
    calls: Mutex<Vec<&'static str>>,
    pub data: Mutex<Vec<u8>>,
    /// While true, operations are kept until they are released.
    hold: Mutex<bool>,
    held: Mutex<Vec<Job>>,
    pub features: AtomicU64,
    /// Names and addresses of who has a lock.
    pub lockers: Mutex<Vec<(String, String)>>,
    /// The name of their locks.
    pub cookie: Mutex<String>,
    pub tag: Mutex<String>,
    pub broken: Mutex<Vec<String>>,
    pub settings: Mutex<HashMap<String, String>>,
    /// What the library says that the image holds, if it is not what it does hold.
    pub ranges: Mutex<Option<Vec<(u64, usize)>>>,
    /// Of the image, stronger than those.
    pub image_settings: Mutex<Vec<(&'static str, String)>>,
    /// What another client makes the size just before somebody watches.
    pub resized_first: Mutex<Option<usize>>,
    /// The image was opened read-only the last time: the library watches nothing.
    blind: AtomicBool,
    watch: Mutex<Option<(UpdateCallback, usize)>>,
    /// What is open: connections, pools, images, watches, completions.
    pub open: [AtomicI64; 5],
    /// A function that blocks until the gate is open.
    shut: Mutex<Option<&'static str>>,
    gate: Condvar,
}

/// Places in `Fake::open`.
pub(crate) const RADOS: usize = 0;
pub(crate) const POOL: usize = 1;
pub(crate) const IMAGE: usize = 2;
pub(crate) const WATCH: usize = 3;
pub(crate) const COMPLETION: usize = 4;

/// A completion of the library's.
struct Completion {
    argument: *mut c_void,
    callback: Callback,
    returned: isize,
    fake: Option<Arc<Fake>>,
}

impl Fake {
    /// With an image of so many bytes of zeroes and an exclusive lock.
    pub(crate) fn new(len: usize) -> Arc<Self> {
        let fake = Arc::new(Self {
            user: format!("u{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            fails: Mutex::default(),
            calls: Mutex::default(),
            data: Mutex::new(vec![0; len]),
            hold: Mutex::new(false),
            held: Mutex::default(),
            features: AtomicU64::new(0x3f),
            lockers: Mutex::default(),
            cookie: Mutex::new("auto 1".to_owned()),
            tag: Mutex::new("internal".to_owned()),
            broken: Mutex::default(),
            settings: Mutex::default(),
            resized_first: Mutex::default(),
            blind: AtomicBool::new(false),
            ranges: Mutex::default(),
            image_settings: Mutex::default(),
            watch: Mutex::default(),
            open: Default::default(),
            shut: Mutex::default(),
            gate: Condvar::new(),
        });
        let mut all = CLUSTERS.lock().unwrap();
        let all = all.get_or_insert_default();
        all.insert(fake.user.clone(), fake.clone());
        fake
    }

    fn find(user: &str) -> Option<Arc<Self>> {
        CLUSTERS.lock().unwrap().as_ref()?.get(user).cloned()
    }

    /// From now on a function fails; by 0 it works again.
    pub(crate) fn fail(&self, function: &'static str, code: i32) {
        self.fails.lock().unwrap().insert(function, code);
    }

    /// A function is called. Returns its error, if it has to fail.
    fn call(&self, function: &'static str) -> Result<(), i32> {
        self.calls.lock().unwrap().push(function);
        let mut shut = self.shut.lock().unwrap();
        while *shut == Some(function) {
            shut = self.gate.wait(shut).unwrap();
        }
        drop(shut);
        match self.fails.lock().unwrap().get(function) {
            Some(code) if *code != 0 => Err(*code),
            _ => Ok(()),
        }
    }

    /// The calls since the last time.
    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// A function does not return until [`Fake::open_gate`].
    pub(crate) fn shut_gate(&self, function: &'static str) {
        *self.shut.lock().unwrap() = Some(function);
    }

    pub(crate) fn open_gate(&self) {
        *self.shut.lock().unwrap() = None;
        self.gate.notify_all();
    }

    fn count(&self, what: usize, by: i64) {
        assert!(
            self.open[what].fetch_add(by, Ordering::SeqCst) + by >= 0,
            "{what}"
        );
    }

    /// What is open.
    pub(crate) fn opened(&self) -> [i64; 5] {
        std::array::from_fn(|what| self.open[what].load(Ordering::SeqCst))
    }

    /// Operations end only when they are released.
    pub(crate) fn hold(&self) {
        *self.hold.lock().unwrap() = true;
    }

    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Ends what is held, the newest first, and holds nothing any more.
    pub(crate) fn release(&self) {
        *self.hold.lock().unwrap() = false;
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for job in held.into_iter().rev() {
            job();
        }
    }

    /// Does a job on a thread of the library, now or when it is released.
    fn later(&self, job: Job) {
        if *self.hold.lock().unwrap() {
            self.held.lock().unwrap().push(job);
        } else {
            std::thread::spawn(job);
        }
    }

    /// Another client makes the image larger or smaller.
    pub(crate) fn resize(&self, len: usize) {
        self.data.lock().unwrap().resize(len, 0);
        self.tell();
    }

    fn tell(&self) {
        if self.blind.load(Ordering::SeqCst) {
            return;
        }
        if let Some((callback, argument)) = *self.watch.lock().unwrap() {
            // SAFETY: what was registered, and not taken back.
            unsafe { callback(argument as *mut c_void) };
        }
    }

    fn content(&self) -> MutexGuard<'_, Vec<u8>> {
        self.data.lock().unwrap()
    }
}

/// The cluster that a handle stands for.
unsafe fn fake(handle: Handle) -> &'static Fake {
    // SAFETY: handles of clusters, pools and images are addresses of clusters that the table keeps for good.
    unsafe { &*handle.0.cast_const().cast::<Fake>() }
}
