// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The functions of the library that start operations, and their completions.

use std::ffi::{c_int, c_void};

use super::{COMPLETION, Completion, Fake, fake};
use crate::api::{Callback, Handle};

// SAFETY of all of them: called as the headers say, with handles that this library gave.

pub(super) unsafe extern "C" fn rbd_aio_create_completion(
    argument: *mut c_void,
    callback: Callback,
    out: *mut Handle,
) -> c_int {
    let completion = Box::new(Completion {
        argument,
        callback,
        returned: 0,
        fake: None,
    });
    unsafe { *out = Handle(Box::into_raw(completion).cast()) };
    0
}

pub(super) unsafe extern "C" fn rbd_aio_release(completion: Handle) {
    let completion = unsafe { Box::from_raw(completion.0.cast::<Completion>()) };
    if let Some(fake) = completion.fake {
        fake.count(COMPLETION, -1);
    }
}

pub(super) unsafe extern "C" fn rbd_aio_get_return_value(completion: Handle) -> isize {
    unsafe { (*completion.0.cast::<Completion>()).returned }
}

/// Starts an operation that does `work` when its time has come. A name with `late ` in front fails then, and the name
/// itself at once.
unsafe fn operation(
    image: Handle,
    names: (&'static str, &'static str),
    completion: Handle,
    work: impl FnOnce(&Fake) -> isize + Send + 'static,
) -> c_int {
    let fake = unsafe { fake(image) };
    if let Err(code) = fake.call(names.0) {
        return code;
    }
    let owner = Fake::find(&fake.user).unwrap();
    fake.count(COMPLETION, 1);
    unsafe { (*completion.0.cast::<Completion>()).fake = Some(owner) };
    fake.later(Box::new(move || {
        let returned = match fake.call(names.1) {
            Err(code) => code as isize,
            Ok(()) => work(fake),
        };
        // SAFETY: the completion is there until its owner was told.
        unsafe {
            let inside = completion.0.cast::<Completion>();
            (*inside).returned = returned;
            ((*inside).callback)(completion, (*inside).argument);
        }
    }));
    0
}

/// Addresses of segments, as they are when the operation is done.
struct Segments(*const libc::iovec, usize);
// SAFETY: the submitter keeps them until the completion.
unsafe impl Send for Segments {}

impl Segments {
    /// Addresses and lengths.
    fn all(&self) -> Vec<(*mut u8, usize)> {
        let all = unsafe { std::slice::from_raw_parts(self.0, self.1) };
        all.iter()
            .map(|one| (one.iov_base.cast(), one.iov_len))
            .collect()
    }
}

pub(super) unsafe extern "C" fn rbd_aio_readv(
    image: Handle,
    segments: *const libc::iovec,
    count: c_int,
    offset: u64,
    completion: Handle,
) -> c_int {
    let segments = Segments(segments, count as usize);
    let work = move |fake: &Fake| {
        let data = fake.content();
        let mut at = offset as usize;
        for (base, len) in segments.all() {
            let part = data.get(at..).unwrap_or_default();
            let part = &part[..part.len().min(len)];
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), base, part.len()) };
            at += part.len();
        }
        at as isize - offset as isize
    };
    let names = ("rbd_aio_readv", "late rbd_aio_readv");
    unsafe { operation(image, names, completion, work) }
}

pub(super) unsafe extern "C" fn rbd_aio_writev(
    image: Handle,
    segments: *const libc::iovec,
    count: c_int,
    offset: u64,
    completion: Handle,
) -> c_int {
    let segments = Segments(segments, count as usize);
    let work = move |fake: &Fake| {
        let mut data = fake.content();
        let mut at = offset as usize;
        for (base, len) in segments.all() {
            let part = &mut data[at..at + len];
            unsafe { std::ptr::copy_nonoverlapping(base.cast_const(), part.as_mut_ptr(), len) };
            at += len;
        }
        0
    };
    let names = ("rbd_aio_writev", "late rbd_aio_writev");
    unsafe { operation(image, names, completion, work) }
}

pub(super) unsafe extern "C" fn rbd_aio_discard(
    image: Handle,
    offset: u64,
    len: u64,
    completion: Handle,
) -> c_int {
    let work = move |fake: &Fake| {
        fake.content()[offset as usize..(offset + len) as usize].fill(0);
        0
    };
    let names = ("rbd_aio_discard", "late rbd_aio_discard");
    unsafe { operation(image, names, completion, work) }
}

pub(super) unsafe extern "C" fn rbd_aio_write_zeroes(
    image: Handle,
    offset: u64,
    len: usize,
    completion: Handle,
    flags: c_int,
    _: c_int,
) -> c_int {
    let work = move |fake: &Fake| {
        fake.content()[offset as usize..offset as usize + len].fill(0);
        0
    };
    let names = match flags {
        0 => ("rbd_aio_write_zeroes", "late rbd_aio_write_zeroes"),
        _ => ("rbd_aio_write_zeroes thick", "late rbd_aio_write_zeroes"),
    };
    unsafe { operation(image, names, completion, work) }
}

pub(super) unsafe extern "C" fn rbd_aio_flush(image: Handle, completion: Handle) -> c_int {
    let names = ("rbd_aio_flush", "late rbd_aio_flush");
    unsafe { operation(image, names, completion, |_| 0) }
}
