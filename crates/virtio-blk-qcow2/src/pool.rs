// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads of an image that is in use: workers, which wait for the disk, and the keeper.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;

use virtio_blk_core::disk::DiskError;

use crate::image::Image;
use crate::job::Job;
use crate::keeper::Keeper;
use crate::sync::{lock, wait};
use crate::worker::Worker;
use crate::writer::{Entries, Shelf, Writer};

/// Most workers of an image. All but the first start when there is work for them.
const WORKERS: usize = 4;

#[derive(Debug, Default)]
struct Work {
    jobs: VecDeque<Job>,
    /// Workers that wait for one.
    idle: usize,
    closed: bool,
}

/// Operations that wait for a worker.
#[derive(Debug, Default)]
pub struct Line {
    work: Mutex<Work>,
    more: Condvar,
}

impl Line {
    /// Adds an operation. Whether there are more than workers that wait for one.
    pub fn put(&self, job: Job) -> bool {
        let mut work = lock(&self.work);
        work.jobs.push_back(job);
        let many = work.jobs.len() > work.idle;
        drop(work);
        self.more.notify_one();
        many
    }

    /// Adds operations.
    pub fn put_all(&self, jobs: Vec<Job>) {
        if !jobs.is_empty() {
            lock(&self.work).jobs.extend(jobs);
            self.more.notify_all();
        }
    }

    /// The next operation. `None`: there will be none.
    pub fn next(&self) -> Option<Job> {
        let mut work = lock(&self.work);
        loop {
            match work.jobs.pop_front() {
                Some(job) => return Some(job),
                None if work.closed => return None,
                None => {
                    work.idle += 1;
                    work = wait(&self.more, work);
                    work.idle -= 1;
                }
            }
        }
    }

    fn close(&self) {
        lock(&self.work).closed = true;
        self.more.notify_all();
    }
}

/// The threads of an image. They end when this is dropped: then no queue is left, the clusters that were ready for use
/// are free again, and the file is complete.
pub struct Pool {
    image: Arc<Image>,
    line: Arc<Line>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// How many there are, or were to be.
    started: AtomicUsize,
    keeper: Option<JoinHandle<()>>,
    shelf: Arc<Shelf>,
    /// Starts when a queue first has entries for it. `None`: that failed.
    writer: OnceLock<Option<JoinHandle<()>>>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The host has no more threads or descriptors; the disk's.
    pub fn new(image: &Arc<Image>) -> Result<Self, DiskError> {
        let line = Arc::new(Line::default());
        image.begin();
        let mut pool = Self {
            image: image.clone(),
            line: line.clone(),
            workers: Mutex::default(),
            started: AtomicUsize::new(0),
            keeper: None,
            shelf: Arc::default(),
            writer: OnceLock::new(),
        };
        image.base.medium.hold();
        image.data.hold();
        if let Some((backing, _)) = &image.backing {
            backing.hold();
        }
        image.desk.open();
        image.reserve.drain(image.read_only);
        let keeper = Keeper::new(image.clone(), line.clone())?;
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run)
        };
        pool.keeper = Some(start("qcow2-keeper", Box::new(move || keeper.run()))?);
        // The first one's paths exist, or there is no queue.
        let worker = Worker::new(image.clone(), line)?;
        let thread = start("qcow2", Box::new(move || worker.run()))?;
        lock(&pool.workers).push(thread);
        pool.started.store(1, Ordering::Relaxed);
        Ok(pool)
    }

    /// Hands an operation over.
    pub fn put(&self, job: Job) {
        if self.line.put(job) && self.started.load(Ordering::Relaxed) < WORKERS {
            self.start_worker();
        }
    }

    /// Whether entries can be handed over to be written.
    pub fn writes_entries(&self) -> bool {
        let start = || {
            let (image, line) = (self.image.clone(), self.line.clone());
            let writer = Writer::new(image, line, self.shelf.clone()).ok()?;
            let thread = std::thread::Builder::new().name("qcow2-entries".into());
            thread.spawn(move || writer.run()).ok()
        };
        self.writer.get_or_init(start).is_some()
    }

    /// Hands entries over to be written. The caller has seen that this is possible.
    pub fn write_entries(&self, entries: Entries) {
        self.shelf.put(entries);
    }

    /// Starts another worker. If that fails, there is one less.
    fn start_worker(&self) {
        if self.started.fetch_add(1, Ordering::Relaxed) >= WORKERS {
            return;
        }
        let (image, line) = (self.image.clone(), self.line.clone());
        let work = move || match Worker::new(image, line) {
            Ok(worker) => worker.run(),
            Err(error) => log::warn!("a qcow2 image has one thread less than it could: {error}"),
        };
        match std::thread::Builder::new().name("qcow2".into()).spawn(work) {
            Ok(thread) => lock(&self.workers).push(thread),
            Err(error) => log::warn!("a qcow2 image has one thread less than it could: {error}"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.line.close();
        for thread in lock(&self.workers).drain(..) {
            let _ = thread.join();
        }
        self.shelf.close();
        if let Some(writer) = self.writer.take().flatten() {
            let _ = writer.join();
        }
        self.image.desk.close();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        self.image.settle_bitmaps();
        self.image.end();
    }
}
