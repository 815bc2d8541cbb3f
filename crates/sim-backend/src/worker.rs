// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that serves a simulator's queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::model::{Model, Work};

/// New requests per pass over a queue, before the other queues and the control side get their turn.
const BUDGET: usize = 64;

/// The thread. Ends when told to.
pub(crate) struct Worker {
    ending: Arc<AtomicBool>,
    model: Arc<dyn Model>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn spawn(model: Arc<dyn Model>) -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("vdpa-sim".into()).spawn({
            let (model, ending) = (model.clone(), ending.clone());
            move || run(&*model, &ending)
        })?;
        Ok(Self {
            ending,
            model,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        self.model.notifier().wake_worker();
        if let Some(thread) = self.thread.take() {
            // A panic of a disk's was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn run(model: &dyn Model, ending: &AtomicBool) {
    let notifier = model.notifier();
    let mut deadlines = vec![None; usize::from(model.nvqs())];
    while !ending.load(Ordering::SeqCst) {
        let mut more = false;
        for (vq, deadline) in (0..).zip(&mut deadlines) {
            if !notifier.take(vq) && !deadline.is_some_and(|at| Instant::now() >= at) {
                continue;
            }
            *deadline = None;
            match model.work(vq, BUDGET) {
                Work::Idle | Work::InFlight => {}
                Work::More => {
                    notifier.signal(vq);
                    more = true;
                }
                Work::Until(at) => *deadline = Some(at),
            }
        }
        let kick = |vq| model.kick_vq(vq);
        if more {
            notifier.poll_now(kick);
        } else {
            notifier.wait(timeout(deadlines.iter().flatten().min().copied()), kick);
        }
    }
}

/// The time until then in milliseconds, rounded up; -1 for never.
fn timeout(until: Option<Instant>) -> i32 {
    until.map_or(-1, |at| {
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
    })
}
