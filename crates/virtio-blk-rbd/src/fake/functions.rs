// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The functions of the library.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::operations::{
    rbd_aio_create_completion, rbd_aio_discard, rbd_aio_flush, rbd_aio_get_return_value,
    rbd_aio_readv, rbd_aio_release, rbd_aio_write_zeroes, rbd_aio_writev,
};
use super::{COMPLETION, Fake, IMAGE, OBJECT, POOL, RADOS, WATCH, fake};
use crate::api::{Api, ConfigOption, DiffCallback, Handle, Progress, UpdateCallback};

/// The table.
pub(crate) fn api() -> &'static Api {
    static API: Api = Api {
        rados_create,
        rados_conf_read_file,
        rados_conf_set,
        rados_conf_get,
        rados_connect,
        rados_shutdown,
        rados_cluster_fsid,
        rados_get_instance_id,
        rados_ioctx_create,
        rados_ioctx_destroy,
        rados_ioctx_get_id,
        rados_ioctx_set_namespace,
        rbd_open,
        rbd_open_read_only,
        rbd_close,
        rbd_get_size,
        rbd_get_features,
        rbd_get_stripe_unit,
        rbd_get_id,
        rbd_config_image_list,
        rbd_config_image_list_cleanup,
        rbd_resize2,
        rbd_list_lockers,
        rbd_lock_break,
        rbd_update_watch,
        rbd_update_unwatch,
        rbd_diff_iterate2,
        rbd_aio_create_completion,
        rbd_aio_release,
        rbd_aio_get_return_value,
        rbd_aio_readv,
        rbd_aio_writev,
        rbd_aio_discard,
        rbd_aio_flush,
        rbd_aio_write_zeroes: Some(rbd_aio_write_zeroes),
    };
    &API
}

/// Leaves the function with its error if it has to fail.
macro_rules! may_fail {
    ($fake:expr, $name:expr) => {
        if let Err(code) = $fake.call($name) {
            return code;
        }
    };
}

// SAFETY of all of them: called as the headers say, with handles that this library gave.

unsafe fn word(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

unsafe fn put(text: &str, buffer: *mut c_char, len: usize) -> c_int {
    if text.len() >= len {
        return -libc::ERANGE;
    }
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len());
        buffer.add(text.len()).write(0);
    }
    0
}

unsafe extern "C" fn rados_create(out: *mut Handle, id: *const c_char) -> c_int {
    let Some(found) = Fake::find(&unsafe { word(id) }) else {
        return -libc::ENOENT;
    };
    may_fail!(found, "rados_create");
    found.count(RADOS, 1);
    unsafe { *out = Handle(Arc::as_ptr(&found).cast_mut().cast()) };
    0
}

unsafe extern "C" fn rados_conf_read_file(rados: Handle, _: *const c_char) -> c_int {
    may_fail!(unsafe { fake(rados) }, "rados_conf_read_file");
    0
}

unsafe extern "C" fn rados_conf_set(
    rados: Handle,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    let fake = unsafe { fake(rados) };
    may_fail!(fake, "rados_conf_set");
    let (name, value) = unsafe { (word(name), word(value)) };
    if name == "rbd_persistent_cache_mode" {
        may_fail!(fake, "rados_conf_set persistent");
    }
    fake.settings.lock().unwrap().insert(name, value);
    0
}

unsafe extern "C" fn rados_conf_get(
    rados: Handle,
    _: *const c_char,
    buffer: *mut c_char,
    len: usize,
) -> c_int {
    may_fail!(unsafe { fake(rados) }, "rados_conf_get");
    unsafe { put("65536", buffer, len) }
}

unsafe extern "C" fn rados_connect(rados: Handle) -> c_int {
    may_fail!(unsafe { fake(rados) }, "rados_connect");
    0
}

unsafe extern "C" fn rados_shutdown(rados: Handle) {
    let fake = unsafe { fake(rados) };
    let open = fake.opened();
    assert!(open[POOL] < open[RADOS], "the pool is closed first");
    fake.count(RADOS, -1);
}

unsafe extern "C" fn rados_cluster_fsid(rados: Handle, buffer: *mut c_char, len: usize) -> c_int {
    may_fail!(unsafe { fake(rados) }, "rados_cluster_fsid");
    unsafe { put("fsid", buffer, len) }
}

unsafe extern "C" fn rados_get_instance_id(_: Handle) -> u64 {
    4242
}

unsafe extern "C" fn rados_ioctx_create(
    rados: Handle,
    _: *const c_char,
    out: *mut Handle,
) -> c_int {
    let fake = unsafe { fake(rados) };
    may_fail!(fake, "rados_ioctx_create");
    fake.count(POOL, 1);
    unsafe { *out = rados };
    0
}

unsafe extern "C" fn rados_ioctx_destroy(pool: Handle) {
    let fake = unsafe { fake(pool) };
    let open = fake.opened();
    assert!(open[IMAGE] < open[POOL], "images are closed first");
    fake.count(POOL, -1);
}

unsafe extern "C" fn rados_ioctx_get_id(_: Handle) -> i64 {
    1
}

unsafe extern "C" fn rados_ioctx_set_namespace(_: Handle, _: *const c_char) {}

unsafe extern "C" fn rbd_open(
    pool: Handle,
    _: *const c_char,
    out: *mut Handle,
    _: *const c_char,
) -> c_int {
    let fake = unsafe { fake(pool) };
    may_fail!(fake, "rbd_open");
    unsafe { open(fake, pool, out, false) }
}

unsafe extern "C" fn rbd_open_read_only(
    pool: Handle,
    _: *const c_char,
    out: *mut Handle,
    _: *const c_char,
) -> c_int {
    let fake = unsafe { fake(pool) };
    may_fail!(fake, "rbd_open_read_only");
    unsafe { open(fake, pool, out, true) }
}

unsafe fn open(fake: &Fake, pool: Handle, out: *mut Handle, blind: bool) -> c_int {
    fake.count(IMAGE, 1);
    fake.blind.store(blind, Ordering::SeqCst);
    unsafe { *out = pool };
    0
}

unsafe extern "C" fn rbd_close(image: Handle) -> c_int {
    let fake = unsafe { fake(image) };
    let failed = fake.call("rbd_close");
    let open = fake.opened();
    assert!(open[WATCH] < open[IMAGE], "nobody watches any more");
    assert_eq!(open[COMPLETION], 0, "nothing is in flight");
    fake.count(IMAGE, -1);
    failed.err().unwrap_or(0)
}

unsafe extern "C" fn rbd_get_size(image: Handle, out: *mut u64) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_get_size");
    unsafe { *out = fake.content().len() as u64 };
    0
}

unsafe extern "C" fn rbd_get_features(image: Handle, out: *mut u64) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_get_features");
    unsafe { *out = fake.features.load(Ordering::Relaxed) };
    0
}

unsafe extern "C" fn rbd_get_stripe_unit(image: Handle, out: *mut u64) -> c_int {
    may_fail!(unsafe { fake(image) }, "rbd_get_stripe_unit");
    unsafe { *out = OBJECT as u64 };
    0
}

unsafe extern "C" fn rbd_get_id(image: Handle, buffer: *mut c_char, len: usize) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_get_id");
    unsafe { put(&fake.user, buffer, len) }
}

unsafe extern "C" fn rbd_config_image_list(
    image: Handle,
    options: *mut ConfigOption,
    count: *mut c_int,
) -> c_int {
    // More than anybody expects.
    const COUNT: c_int = 300;
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_config_image_list");
    let room = unsafe { std::mem::replace(&mut *count, COUNT) };
    if room < COUNT {
        return -libc::ERANGE;
    }
    let own = fake.image_settings.lock().unwrap();
    for at in 0..COUNT as usize {
        let (name, value) = match own.get(COUNT as usize - 1 - at) {
            Some((name, value)) => (*name, value.as_str()),
            None => ("rbd_cache_size", "true"),
        };
        let text = |text: &str| CString::new(text).unwrap().into_raw();
        let option = ConfigOption {
            name: text(name),
            value: text(value),
            source: 2,
        };
        unsafe { options.add(at).write(option) };
    }
    0
}

unsafe extern "C" fn rbd_config_image_list_cleanup(options: *mut ConfigOption, count: c_int) {
    for at in 0..count as usize {
        let option = unsafe { *options.add(at) };
        drop(unsafe {
            (
                CString::from_raw(option.name),
                CString::from_raw(option.value),
            )
        });
    }
}

unsafe extern "C" fn rbd_resize2(
    image: Handle,
    bytes: u64,
    _: bool,
    progress: Progress,
    data: *mut c_void,
) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_resize2");
    unsafe { progress(1, 1, data) };
    fake.resize(bytes as usize);
    0
}

unsafe extern "C" fn rbd_list_lockers(
    image: Handle,
    exclusive: *mut c_int,
    tag: *mut c_char,
    tag_len: *mut usize,
    clients: *mut c_char,
    clients_len: *mut usize,
    cookies: *mut c_char,
    cookies_len: *mut usize,
    addresses: *mut c_char,
    addresses_len: *mut usize,
) -> isize {
    let fake = unsafe { fake(image) };
    if let Err(code) = fake.call("rbd_list_lockers") {
        return code as isize;
    }
    let lockers = fake.lockers.lock().unwrap();
    let names: Vec<&str> = lockers.iter().map(|locker| locker.0.as_str()).collect();
    let places: Vec<&str> = lockers.iter().map(|locker| locker.1.as_str()).collect();
    unsafe {
        *exclusive = 1;
        put(&fake.tag.lock().unwrap(), tag, *tag_len);
        put(&names.join("\0"), clients, *clients_len);
        put(
            &vec![fake.cookie.lock().unwrap().as_str(); names.len()].join("\0"),
            cookies,
            *cookies_len,
        );
        put(&places.join("\0"), addresses, *addresses_len);
    }
    lockers.len() as isize
}

unsafe extern "C" fn rbd_lock_break(image: Handle, _: c_int, owner: *const c_char) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_lock_break");
    let owner = unsafe { word(owner) };
    fake.lockers.lock().unwrap().retain(|(_, at)| *at != owner);
    fake.broken.lock().unwrap().push(owner);
    0
}

unsafe extern "C" fn rbd_update_watch(
    image: Handle,
    number: *mut u64,
    callback: UpdateCallback,
    argument: *mut c_void,
) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_update_watch");
    fake.count(WATCH, 1);
    if let Some(len) = fake.resized_first.lock().unwrap().take() {
        fake.content().resize(len, 0);
    }
    *fake.watch.lock().unwrap() = Some((callback, argument as usize));
    unsafe { *number = 7 };
    0
}

unsafe extern "C" fn rbd_update_unwatch(image: Handle, number: u64) -> c_int {
    let fake = unsafe { fake(image) };
    assert_eq!(number, 7);
    fake.count(WATCH, -1);
    may_fail!(fake, "rbd_update_unwatch");
    *fake.watch.lock().unwrap() = None;
    0
}

unsafe extern "C" fn rbd_diff_iterate2(
    image: Handle,
    _: *const c_char,
    offset: u64,
    len: u64,
    _: u8,
    whole: u8,
    callback: DiffCallback,
    argument: *mut c_void,
) -> c_int {
    let fake = unsafe { fake(image) };
    may_fail!(fake, "rbd_diff_iterate2");
    if let Some(ranges) = &*fake.ranges.lock().unwrap() {
        for (offset, len) in ranges {
            let code = unsafe { callback(*offset, *len, 1, argument) };
            if code < 0 {
                return code;
            }
        }
        return 0;
    }
    let data = fake.content();
    let (mut at, end) = (offset as usize, (offset + len) as usize);
    while at < end {
        let until = ((at / OBJECT + 1) * OBJECT).min(end);
        if data[at..until].iter().any(|byte| *byte != 0) {
            // As librbd 16.2.7: whole objects are named as if the start lay at an object's.
            let wrong = if whole != 0 {
                offset as usize % OBJECT
            } else {
                0
            };
            let code = unsafe { callback((at - wrong) as u64, until - at, 1, argument) };
            if code < 0 {
                return code;
            }
        }
        at = until;
    }
    0
}
