// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that lose what is mapped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guarded_mmap::{MapError, Mapping, Protection};

fn page() -> usize {
    // SAFETY: only asks for a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn memory_file(flags: u32, len: usize) -> std::io::Result<File> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    Ok(file)
}

fn get(mapping: &Mapping, at: usize) -> u8 {
    assert!(at < mapping.len());
    // SAFETY: inside the mapping.
    unsafe { mapping.as_ptr().add(at).read_volatile() }
}

fn put(mapping: &Mapping, at: usize, value: u8) {
    assert!(at < mapping.len());
    // SAFETY: inside the mapping, which is for writing where this is used.
    unsafe { mapping.as_ptr().add(at).write_volatile(value) };
}

#[test]
fn a_range_of_any_alignment_is_the_file() {
    let file = memory_file(0, 4 * page()).unwrap();
    let at = page() - 3;
    let mapping = Mapping::new(&file, at as u64, page() + 6, Protection::ReadWrite).unwrap();
    assert_eq!(mapping.len(), page() + 6);
    assert!(!mapping.is_empty());
    put(&mapping, 0, 1);
    put(&mapping, page() + 5, 2);
    let mut bytes = vec![0; page() + 6];
    file.read_exact_at(&mut bytes, at as u64).unwrap();
    assert_eq!((bytes[0], bytes[page() + 5]), (1, 2));
    file.write_all_at(&[3], at as u64 + 1).unwrap();
    assert_eq!(get(&mapping, 1), 3);
    assert!(!mapping.is_poisoned());
}

#[test]
fn what_can_not_be_mapped_is_an_error() {
    let file = memory_file(0, page()).unwrap();
    let map = |offset, len| Mapping::new(&file, offset, len, Protection::Read);
    for (offset, len) in [
        (0, 0),
        (0, usize::MAX),
        (u64::MAX, 1),
        (i64::MAX as u64, page()),
        (page() as u64, isize::MAX as usize),
    ] {
        assert!(
            matches!(map(offset, len), Err(MapError::Range { .. })),
            "{offset} {len}"
        );
    }
    assert!(matches!(map(0, 1 << 60), Err(MapError::Map { .. })));
    let (pipe, _other) = std::io::pipe().unwrap();
    let error = Mapping::new(&pipe, 0, 1, Protection::Read).unwrap_err();
    assert!(matches!(error, MapError::Map { .. }), "{error}");
}

#[test]
fn a_file_cut_off_reads_as_zeroes_and_is_poisoned() {
    let file = memory_file(0, 3 * page()).unwrap();
    let mapping = Mapping::new(&file, 0, 3 * page(), Protection::ReadWrite).unwrap();
    let other = Mapping::new(&file, 0, 3 * page(), Protection::Read).unwrap();
    for index in 0..3 {
        put(&mapping, index * page(), 7);
    }
    file.set_len(page() as u64).unwrap();
    assert_eq!(get(&mapping, 2 * page()), 0);
    assert!(mapping.is_poisoned());
    assert!(!other.is_poisoned(), "nobody touched it");
    put(&mapping, 2 * page() + 1, 9);
    assert_eq!(get(&mapping, 2 * page() + 1), 9, "private memory by now");
    assert_eq!(get(&mapping, 0), 7, "the rest is still the file");
    put(&mapping, 1, 8);
    assert_eq!(get(&other, 1), 8);
    assert_eq!(get(&other, page()), 0);
    assert!(other.is_poisoned());
    // A file that grows again is not what was replaced.
    file.set_len(3 * page() as u64).unwrap();
    assert_eq!(get(&mapping, 2 * page() + 1), 9);
    assert!(mapping.is_poisoned());
}

#[test]
fn a_range_beyond_the_end() {
    let file = memory_file(0, 10).unwrap();
    let beyond = Mapping::new(
        &file,
        100 * page() as u64,
        3 * page(),
        Protection::ReadWrite,
    )
    .unwrap();
    assert!(!beyond.is_poisoned());
    put(&beyond, page(), 1);
    assert_eq!(get(&beyond, page()), 1);
    assert!(beyond.is_poisoned());
    // The rest of the last page is there.
    let last = Mapping::new(&file, 0, page(), Protection::Read).unwrap();
    assert_eq!(get(&last, page() - 1), 0);
    assert!(!last.is_poisoned());
}

#[test]
fn few_mappings_are_used_up_however_many_pages_are_missing() {
    const PAGES: usize = 4000;
    let file = memory_file(0, PAGES * page()).unwrap();
    let mapping = Mapping::new(&file, 0, PAGES * page(), Protection::ReadWrite).unwrap();
    put(&mapping, 0, 1);
    file.set_len(0).unwrap();
    for index in (0..PAGES).step_by(2) {
        put(&mapping, index * page(), 1);
    }
    assert!(mapping.is_poisoned());
    let start = mapping.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let pieces = maps.lines().filter(|line| {
        let first = line.split('-').next().unwrap();
        let first = usize::from_str_radix(first, 16).unwrap();
        (start..start + mapping.len()).contains(&first)
    });
    assert!(pieces.count() <= 130);
}

#[test]
fn huge_pages_that_nobody_has() {
    const HUGE: usize = 2 << 20;
    let file = match memory_file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 4 * HUGE) {
        Ok(file) => file,
        // A kernel without them.
        Err(error) => return println!("no huge pages: {error}"),
    };
    let mapping = Mapping::new(&file, HUGE as u64 + 4096, HUGE, Protection::ReadWrite).unwrap();
    assert_eq!(mapping.page_size(), HUGE);
    assert_eq!(mapping.as_ptr() as usize % HUGE, 4096);
    file.set_len(0).unwrap();
    put(&mapping, HUGE - 1, 3);
    put(&mapping, 0, 4);
    assert_eq!((get(&mapping, HUGE - 1), get(&mapping, 0)), (3, 4));
    assert!(mapping.is_poisoned());
}

#[test]
fn the_alarm_rings_once() {
    let file = memory_file(0, page()).unwrap();
    // SAFETY: the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: a fresh descriptor.
    let alarm = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
    let reader = File::from(alarm.as_fd().try_clone_to_owned().unwrap());
    let map = || {
        Mapping::new(&file, 0, 2 * page(), Protection::Read)
            .unwrap()
            .with_alarm(alarm.clone())
    };
    let mappings = [map(), map()];
    let mut count = [0; 8];
    assert_eq!(get(&mappings[0], 0), 0);
    assert!(std::io::Read::read(&mut &reader, &mut count).is_err());
    file.set_len(0).unwrap();
    for mapping in &mappings {
        get(mapping, 0);
        get(mapping, page());
    }
    assert_eq!(std::io::Read::read(&mut &reader, &mut count).unwrap(), 8);
    assert_eq!(u64::from_ne_bytes(count), 2, "once for each mapping");
}

#[test]
fn errno_is_left_alone() {
    let file = memory_file(0, page()).unwrap();
    let mapping = Mapping::new(&file, 0, page(), Protection::Read).unwrap();
    file.set_len(0).unwrap();
    // SAFETY: the thread's own `errno`.
    unsafe { *libc::__errno_location() = libc::EXDEV };
    get(&mapping, 0);
    let errno = std::io::Error::last_os_error();
    assert_eq!(errno.raw_os_error(), Some(libc::EXDEV));
    assert!(mapping.is_poisoned());
}

/// Threads read and write while the file shrinks and grows, and others map and unmap all the time.
#[test]
fn under_use_by_many() {
    const PAGES: usize = 16;
    const ROUNDS: usize = 300;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let file = memory_file(0, page()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let mappings: Vec<_> = (0..100)
                        .map(|_| Mapping::new(&file, 0, page(), Protection::Read).unwrap())
                        .collect();
                    assert!(mappings.iter().all(|m| get(m, 0) == 0 && !m.is_poisoned()));
                }
            });
        }
        for _ in 0..ROUNDS {
            let file = memory_file(0, PAGES * page()).unwrap();
            let mapping = Mapping::new(&file, 0, PAGES * page(), Protection::ReadWrite).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| (0..PAGES * 8).for_each(|n| put(&mapping, n % PAGES * page(), 1)));
                scope.spawn(|| {
                    for n in 0..PAGES * 8 {
                        assert!(get(&mapping, n % PAGES * page()) <= 1);
                    }
                });
                scope.spawn(|| file.set_len(page() as u64).unwrap());
            });
            get(&mapping, (PAGES - 1) * page());
            assert!(mapping.is_poisoned());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn errno() -> Option<i32> {
    std::io::Error::last_os_error().raw_os_error()
}

#[test]
fn a_revoked_mapping_reaches_the_file_no_more() {
    let file = memory_file(0, 3 * page()).unwrap();
    // SAFETY: the descriptor is fresh.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: a fresh descriptor.
    let alarm = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
    let mapping = Mapping::new(&file, 0, 3 * page(), Protection::ReadWrite).unwrap();
    let mapping = mapping.with_alarm(alarm.clone());
    put(&mapping, 0, 7);
    put(&mapping, page(), 8);
    assert!(!mapping.is_poisoned());
    mapping.revoke().unwrap();
    assert!(mapping.is_poisoned());
    // A system call has nothing to copy from or to.
    let untouched = mapping.as_ptr().wrapping_add(2 * page());
    // SAFETY: the kernel checks the address.
    let got = unsafe { libc::pread(file.as_raw_fd(), untouched.cast(), page(), 0) };
    assert_eq!((got, errno()), (-1, Some(libc::EFAULT)));
    // SAFETY: as above.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), untouched.cast(), page(), 0) };
    assert_eq!((written, errno()), (-1, Some(libc::EFAULT)));
    put(&mapping, 0, 9);
    assert_eq!((get(&mapping, 0), get(&mapping, page())), (9, 0));
    let mut bytes = vec![0; page() + 1];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[0], bytes[page()]), (7, 8));
    let mut count = [0; 8];
    let reader = File::from(alarm.as_fd().try_clone_to_owned().unwrap());
    assert!((&reader).read(&mut count).is_err(), "the alarm rang");
}
