// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls of the raw disk, one safe function each where that is possible.
//!
//! Results of I/O are in the kernel's own form, a count or a negated `errno`, because io_uring returns
//! in that form too and both go through the same state machine.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `ioctl` request numbers are `int` on musl and `unsigned long` elsewhere.
type Request = libc::Ioctl;

/// Device size in bytes, as a `u64`.
const BLKGETSIZE64: Request = 0x8008_1272_u32 as Request;
/// Whether a device is set read-only, as an `int`.
const BLKROGET: Request = 0x125E;
/// Discard a byte range, given as two `u64`.
const BLKDISCARD: Request = 0x1277;
/// Securely discard a byte range, given as two `u64`.
const BLKSECDISCARD: Request = 0x127D;
/// Offset of the first aligned block in bytes, as an `int`.
const BLKALIGNOFF: Request = 0x127A;

/// What a call may do to a byte range of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Erase {
    /// `BLKDISCARD`.
    Discard,
    /// `BLKSECDISCARD`.
    Secure,
}

/// A count, or the negated `errno` of the call that just failed.
fn outcome(result: libc::ssize_t) -> i32 {
    if result >= 0 {
        // The kernel moves at most 2^31 - 4096 bytes per call.
        result as i32
    } else {
        -last_errno()
    }
}

/// The calling thread's `errno`.
fn last_errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// `preadv2`, or `pread` where that does.
///
/// # Safety
/// The segments must be valid for writes for the length of the call.
pub(crate) unsafe fn preadv2(file: &File, iov: &[libc::iovec], offset: u64, flags: i32) -> i32 {
    if let ([one], 0) = (iov, flags) {
        let at = offset as libc::off_t;
        // SAFETY: as below. The kernel need not copy a list then.
        return outcome(unsafe { libc::pread(file.as_raw_fd(), one.iov_base, one.iov_len, at) });
    }
    // SAFETY: the descriptor is open, the segments are valid by the caller's word.
    outcome(unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            iov.as_ptr(),
            iov.len() as libc::c_int,
            offset as libc::off_t,
            flags,
        )
    })
}

/// `pwritev2`, or `pwrite` where that does.
///
/// # Safety
/// The segments must be valid for reads for the length of the call.
pub(crate) unsafe fn pwritev2(file: &File, iov: &[libc::iovec], offset: u64, flags: i32) -> i32 {
    if let ([one], 0) = (iov, flags) {
        let at = offset as libc::off_t;
        // SAFETY: as in `preadv2`.
        return outcome(unsafe { libc::pwrite(file.as_raw_fd(), one.iov_base, one.iov_len, at) });
    }
    // SAFETY: as in `preadv2`.
    outcome(unsafe {
        libc::pwritev2(
            file.as_raw_fd(),
            iov.as_ptr(),
            iov.len() as libc::c_int,
            offset as libc::off_t,
            flags,
        )
    })
}

/// `fdatasync`: 0 or a negated `errno`.
pub(super) fn fdatasync(file: &File) -> i32 {
    // SAFETY: the descriptor is open.
    outcome(unsafe { libc::fdatasync(file.as_raw_fd()) } as libc::ssize_t)
}

/// Whether the write-back of a page failed since the last `fdatasync` of this open file description, which is told
/// now: 0 or a negated `errno`. Writes nothing; may wait for the write-back of the first page that is on its way.
///
/// `sync_file_range` looks at what `fdatasync` looks at, after it has waited for the range (`fs/sync.c`).
pub(super) fn write_back_error(file: &File) -> i32 {
    // SAFETY: the descriptor is open; no memory is involved.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE) };
    match outcome(result as libc::ssize_t) {
        // Not a failed write-back: the call itself is refused.
        refused if [libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::ESPIPE].contains(&-refused) => 0,
        outcome => outcome,
    }
}

/// `fallocate`: 0 or a negated `errno`.
pub(crate) fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> i32 {
    // SAFETY: the descriptor is open; no memory is involved.
    outcome(unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            offset as libc::off_t,
            len as libc::off_t,
        )
    } as libc::ssize_t)
}

/// `lseek` with `SEEK_DATA` or `SEEK_HOLE`; or the `errno`. The position that it moves is nobody's: all transfers have
/// their own.
pub(super) fn seek(file: &File, offset: u64, whence: i32) -> Result<u64, i32> {
    // SAFETY: the descriptor is open; no memory is involved.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    u64::try_from(found).map_err(|_| last_errno())
}

/// Discards a range of a block device: 0 or a negated `errno`.
pub(super) fn erase(file: &File, how: Erase, offset: u64, len: u64) -> i32 {
    let range = [offset, len];
    let request = match how {
        Erase::Discard => BLKDISCARD,
        Erase::Secure => BLKSECDISCARD,
    };
    // SAFETY: both requests read two u64 from the pointer.
    outcome(unsafe { libc::ioctl(file.as_raw_fd(), request, range.as_ptr()) } as libc::ssize_t)
}

/// Whether a block device can erase securely.
///
/// The kernel (from 5.19 on) looks at the ability before it looks at the range, and a misaligned range
/// is never erased: so asking for one is a question without consequences.
pub(super) fn can_secure_erase(file: &File) -> bool {
    erase(file, Erase::Secure, 1, 1) == -libc::EINVAL
}

/// What a block device says about itself; all in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockInfo {
    pub size: u64,
    pub logical: u32,
    pub physical: u32,
    pub io_min: u32,
    pub io_opt: u32,
    pub align_offset: u32,
}

/// Asks a block device about itself.
pub(super) fn block_info(file: &File) -> io::Result<BlockInfo> {
    let int = |request: Request| -> io::Result<u32> {
        let mut value: libc::c_int = 0;
        // SAFETY: each of the requests below writes one int through the pointer.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u32::try_from(value).unwrap_or(0))
    };
    Ok(BlockInfo {
        size: block_size_bytes(file)?,
        logical: int(libc::BLKSSZGET)?,
        physical: int(libc::BLKPBSZGET)?,
        io_min: int(libc::BLKIOMIN)?,
        io_opt: int(libc::BLKIOOPT)?,
        align_offset: int(BLKALIGNOFF)?,
    })
}

/// Whether a block device takes no writes, though it may be opened for them.
pub(super) fn is_read_only_device(file: &File) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value != 0)
}

/// The size of a block device in bytes.
pub(super) fn block_size_bytes(file: &File) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: the request writes one u64 through the pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

/// ext2 to ext4.
const EXT: u32 = 0xEF53;
const XFS: u32 = 0x5846_5342;
const BTRFS: u32 = 0x9123_683E;

/// The type of the file system that a file is in; 0 if unknown.
fn file_system(file: &File) -> u32 {
    // SAFETY: `statfs` is plain data.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the pointer valid.
    let failed = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut info) } < 0;
    // The field's type differs between targets; the number fits 32 bits in all of them.
    if failed { 0 } else { info.f_type as u32 }
}

/// Whether a regular file lives in memory (tmpfs, ramfs, hugetlbfs), where I/O never waits for a device.
pub(super) fn is_in_memory(file: &File) -> bool {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58F6;
    const HUGETLBFS: u32 = 0x9584_58F6;
    [TMPFS, RAMFS, HUGETLBFS].contains(&file_system(file))
}

/// Whether a regular file is in a file system that may punch holes. Which ones do is known; trying it would change
/// the file. Some do for some files only (ext2 and ext3 share a number with ext4; network and stacked file systems
/// ask another one): that shows at the first discard.
pub(super) fn may_punch(file: &File) -> bool {
    const HUGETLBFS: u32 = 0x9584_58F6;
    const OVERLAYFS: u32 = 0x794C_7630;
    const FUSE: u32 = 0x6573_5546;
    const NFS: u32 = 0x6969;
    const CIFS: u32 = 0xFF53_4D42;
    const SMB2: u32 = 0xFE53_4D42;
    const CEPH: u32 = 0x00C3_6400;
    const GFS2: u32 = 0x0116_1970;
    const OCFS2: u32 = 0x7461_636F;
    const ZFS: u32 = 0x2FC1_2FC1;
    const GPFS: u32 = 0x4750_4653;
    const NTFS3: u32 = 0x7366_746E;
    const OTHERS: [u32; 12] = [
        HUGETLBFS, OVERLAYFS, FUSE, NFS, CIFS, SMB2, CEPH, GFS2, OCFS2, ZFS, GPFS, NTFS3,
    ];
    has_local_cache(file) || OTHERS.contains(&file_system(file))
}

/// Whether a file system of this host sets a file's times at every change, as precisely as the kernel's clock is.
pub(super) fn keeps_times(file: &File) -> bool {
    [EXT, XFS, BTRFS].contains(&file_system(file))
}

/// The kernel's coarse clock, by which it sets the times of files: seconds and nanoseconds.
pub(super) fn coarse_time() -> Option<(u64, u64)> {
    // SAFETY: `timespec` is plain data.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) } < 0;
    let parts = (now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
    (!failed).then_some(parts)
}

/// Whether a regular file's page cache can be mapped: all reads and writes of it go through the page cache of
/// this host.
pub(super) fn has_local_cache(file: &File) -> bool {
    const F2FS: u32 = 0xF2F5_2010;
    const BCACHEFS: u32 = 0xCA45_1A4E;
    [EXT, XFS, BTRFS, F2FS, BCACHEFS].contains(&file_system(file)) || is_in_memory(file)
}

/// How often the calling thread has waited for a device because it touched a page. -1: unknown.
pub(super) fn major_faults() -> i64 {
    // SAFETY: `rusage` is plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid.
    match unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) } {
        0 => usage.ru_majflt as i64,
        _ => -1,
    }
}

/// Alignments for direct I/O as the kernel tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DioAlign {
    /// It tells: memory and offset alignment in bytes.
    Known { memory: u32, offset: u32 },
    /// It tells that this file can't do direct I/O.
    Never,
    /// It doesn't tell (Linux before 6.1, or a file system that leaves it out).
    Untold,
}

/// `statx` with `STATX_DIOALIGN`.
pub(super) fn dio_align(file: &File) -> DioAlign {
    // SAFETY: `statx` is plain data.
    let mut info: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path empty and terminated, the result pointer valid.
    let failed = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut info,
        )
    } < 0;
    if failed || info.stx_mask & libc::STATX_DIOALIGN == 0 {
        return DioAlign::Untold;
    }
    match (info.stx_dio_mem_align, info.stx_dio_offset_align) {
        (0, _) | (_, 0) => DioAlign::Never,
        (memory, offset) => DioAlign::Known { memory, offset },
    }
}

/// A call about a lock of an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockCall {
    /// `F_OFD_SETLK`: sets it, without waiting.
    Set,
    /// `F_OFD_GETLK`: tells whether it could be set.
    Get,
}

/// One call about a lock. The kind of lock that the kernel leaves there is the answer.
pub(super) fn lock_bytes(
    file: &File,
    call: LockCall,
    kind: libc::c_int,
    first: i64,
    len: i64,
) -> io::Result<libc::c_short> {
    let command = match call {
        LockCall::Set => libc::F_OFD_SETLK,
        LockCall::Get => libc::F_OFD_GETLK,
    };
    // SAFETY: `flock` is plain data.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = first;
    lock.l_len = len;
    // SAFETY: the descriptor is open, the pointer valid.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type)
}

/// Takes `O_NONBLOCK` off again: io_uring would return `EAGAIN` instead of waiting.
pub(super) fn make_blocking(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
