// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What stores the blocks: the contract between a device and its medium.
//!
//! A [`Disk`] is the shared control side: what the medium can do ([`Caps`]), how it changes, and how to
//! open a data path. An [`IoQueue`] is one owner's data path: owned operations ([`Op`]) go in, exactly
//! one [`Completion`] comes out for each. The shape is completion based because only that is sound with
//! io_uring and device DMA; a synchronous disk returns [`Submit::Done`] at once.
//!
//! Nothing here knows rings, requests or transports. Offsets and lengths are in **bytes** everywhere in
//! this module; [`Caps`] counts sectors of 512 bytes where the virtio specification does.

mod bitmap;
mod buf;
mod caps;
mod error;
mod extent;
mod handover;
mod op;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

pub use bitmap::{FoundBitmap, StoredBitmap};
pub use buf::IoBuf;
pub use caps::{Alignments, Caps, EraseLimits, SECTOR_SIZE, Topology, ZeroLimits};
pub use error::DiskError;
pub use extent::{Allocation, Extent, Extents};
pub use handover::{ContentStamp, Handover};
pub use op::{Bounds, Completion, Lifetime, Op, OpKind, Token};

/// Something that changed on a disk while it was in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskEvent {
    /// The capacity is now this many sectors of 512 bytes; [`Disk::caps`] already says so.
    Resized {
        /// New capacity in sectors.
        capacity: u64,
    },
    /// The medium reported a failure that no single request stands for (a lost backing device).
    MediaError,
}

/// Called for each [`DiskEvent`], from whatever thread noticed it. Must not block and must not call
/// back into the disk other than through [`Disk::caps`].
pub type DiskListener = Arc<dyn Fn(DiskEvent) + Send + Sync>;

/// The control side of a medium, shared by the device and all its queues.
///
/// Methods take `&self` and may be called from any thread at any time, also while queues are busy.
pub trait Disk: Send + Sync {
    /// What the medium can do now.
    ///
    /// The implementer guarantees that everything advertised was probed, not assumed; that only
    /// [`Caps::capacity`] changes after creation; and that the call is cheap (no I/O). The result
    /// passes [`Caps::validate`].
    fn caps(&self) -> Caps;

    /// Opens a data path that takes at least `depth` operations at a time before it returns
    /// [`Submit::Full`].
    ///
    /// At most [`Caps::max_queues`] may be open at once; the caller keeps that limit. The queue holds
    /// what it needs of the disk: it may outlive every other handle.
    ///
    /// # Errors
    /// The resource that could not be had (a file descriptor, an io_uring, memory).
    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError>;

    /// Why no flush of this disk succeeds any more: an earlier flush or write-back failed, so that writes
    /// which completed may be lost. It stays until the disk is opened anew, and every later
    /// [`OpKind::Flush`] and write with `fua` fails with it, on every queue. `None` if nothing of the kind
    /// happened.
    ///
    /// The implementer of a medium guarantees that no queue's flush can use up an error that belongs to
    /// another queue's writes. A layer returns what the disk underneath says.
    fn flush_error(&self) -> Option<DiskError> {
        None
    }

    /// Takes the medium into use: a transport calls it before it starts the first queue of a device, so
    /// that two servers of one medium can hand it over in a migration. A disk that holds a lock only
    /// while it is in use takes it here and reads anew what it knows of the medium (size, tables).
    /// Returns at once if the disk is active already. May wait for another owner's lock, for a bounded
    /// time that the implementer states. A transport that can't wait leaves this and
    /// [`Disk::deactivate`] to a `runner::Medium` (feature `thread`).
    ///
    /// # Errors
    /// Somebody else uses the medium, or it changed in a way the driver was not told of. The disk stays
    /// inactive, and no queue may be started: the rings wait in the transport, which calls again.
    fn activate(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Ends the use of the medium: a transport calls it after the last queue of a device has stopped and
    /// is dropped. What the disk keeps in memory is written and stable before the lock is let go.
    ///
    /// # Errors
    /// What was kept could not be made stable; the lock is let go all the same, as nobody else could
    /// make it so.
    fn deactivate(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Whether others can change the medium while the disk is not active. A layer that remembers something of the
    /// content (which blocks changed, their checksums) can't vouch for it after such a time, unless the stamps before
    /// and after are equal. Cheap: no I/O.
    ///
    /// A disk that lets go of its medium in [`Disk::deactivate`] returns [`Handover::Released`] from then on until
    /// [`Disk::activate`] has succeeded, also before the first time. A layer returns what the disk underneath says.
    fn handover(&self) -> Handover {
        Handover::Never
    }

    /// Looks at the medium again and takes over what changed (a file that was extended, a block device
    /// that was resized). Listeners are told before it returns. May do I/O.
    ///
    /// # Errors
    /// The medium could not be examined; what was known before stays in force.
    fn refresh(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Makes the medium larger, through the handle that it is open by, and takes the new size over as
    /// [`Disk::refresh`] does. `bytes` is the whole new size. A layer passes it on. May do I/O.
    ///
    /// # Errors
    /// [`DiskError::Unsupported`]: this kind of medium can't be resized through the disk (the default).
    /// [`DiskError::ReadOnly`]; [`DiskError::Config`] for a size that is no multiple of the block size or smaller
    /// than the present one, as that would lose data; the host's error. The size is the old one then.
    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let _ = bytes;
        Err(DiskError::Unsupported)
    }

    /// What the medium holds in a range of bytes, which is not empty and lies inside the capacity: for who copies it, and
    /// wants to leave out what reads as zeroes. Returns at least one extent and at most `most` (which is at least 1); the
    /// first begins at the range's start, each other one where the one before ends, and the last may end before the
    /// range does. Does I/O, in proportion to the range at most: ask for gigabytes, not for all of the disk.
    ///
    /// An operation that had completed before the call is in the result; one that is in flight may be. What was
    /// [`Allocation::Zero`] or [`Allocation::Hole`] read as zeroes at some moment of the call. A disk that can't tell says
    /// that all is [`Allocation::Data`] (the default). A layer passes the call on.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], the medium is not in use ([`Disk::activate`]), or the host's error.
    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        let _ = most;
        Ok(vec![Extent {
            len: range.end.saturating_sub(range.start),
            allocation: Allocation::Data,
        }])
    }

    /// The dirty bitmap of this name that the medium keeps itself. Every change through this disk is marked in it. `None`:
    /// there is none that can be used (the default). A layer passes the call on. May do I/O.
    ///
    /// # Errors
    /// [`DiskError::Config`]: there is one, in which nothing is marked; or the host's error.
    fn stored_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        let _ = name;
        Ok(None)
    }

    /// Adds a listener for changes. It stays for the life of the disk; hold a `Weak` in it where that
    /// matters. A disk that never changes ignores it.
    fn listen(&self, listener: DiskListener) {
        let _ = listener;
    }
}

/// What became of an operation given to [`IoQueue::submit`].
#[derive(Debug)]
pub enum Submit {
    /// Accepted: its [`Completion`] comes out of a later [`IoQueue::reap`].
    Queued,
    /// Finished already, well or badly. It will not come out of [`IoQueue::reap`].
    Done(Completion),
    /// No room: nothing happened, the operation is returned untouched. There is room again after
    /// some completion was reaped.
    Full(Op),
}

/// What became of an operation given to [`IoQueue::execute`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Execute {
    /// Finished, well or badly. Nothing comes out of [`IoQueue::reap`].
    Done(Result<(), DiskError>),
    /// Not inside this call: the caller must [`submit`](IoQueue::submit) it. A declined read may have left anything
    /// in the buffer, a declined write any part of itself on the medium.
    Declined,
    /// Accepted without its buffer: its [`Completion`], with the token of the call and an empty buffer, comes out of
    /// a later [`IoQueue::reap`]. Only where the caller gave a token.
    Taken,
}

impl Execute {
    /// The result of an operation that is finished. `None`: it was declined, or taken.
    pub fn done(self) -> Option<Result<(), DiskError>> {
        match self {
            Self::Done(result) => Some(result),
            Self::Declined | Self::Taken => None,
        }
    }
}

/// How the owner of an [`IoQueue`] learns that [`IoQueue::reap`] has something.
#[derive(Debug)]
pub enum Wait<'a> {
    /// When this descriptor polls readable. Level triggered: it stays readable until `reap` took
    /// everything; the owner never reads from it.
    Fd(BorrowedFd<'a>),
    /// There is no notification: call `reap` again and again while operations are in flight.
    Poll,
    /// Never: every `submit` returns [`Submit::Done`] (or `Full`), and `execute` takes nothing.
    Inline,
}

/// One owner's data path into a [`Disk`].
///
/// **Two ways in.** [`IoQueue::execute`] is the only call that tries to finish an operation without owning it: a
/// caller that wants that calls it first, and gives [`IoQueue::submit`] what was declined. `submit` does not try
/// again what `execute` declined; a disk that works inside the call may of course do so there, too.
/// `execute_or_submit`, a method of `dyn IoQueue`, does both for a caller that has an [`Op`].
///
/// **Exactly once.** Every operation for which `submit` did not return [`Submit::Full`], and every one that was
/// taken by `execute`, yields exactly one [`Completion`], through [`Submit::Done`] or through `reap`. Operations
/// complete in any order; there is no ordering between operations in flight, also not between overlapping ones.
///
/// **Layers.** A layer forwards both calls. What it can't do inside the call (hold an operation back, change it, keep
/// one that failed) it declines in `execute` without asking the queue underneath, and then asks that one itself when
/// the operation goes down (`execute_or_submit`). A layer that follows operations by token passes no token on, so
/// that nothing is taken behind its back.
///
/// **All or nothing.** `Ok` means the whole buffer was transferred; short transfers and `EINTR` are the
/// queue's business. After an error the affected range holds old data, new data or a mix (a failed
/// read: the buffer's content is undefined).
///
/// **Ownership.** An accepted operation's buffer belongs to the queue until its completion hands it
/// back. Dropping the queue blocks until the medium no longer touches any buffer (by cancelling or by
/// waiting), then drops the operations without completing them.
///
/// **Stops have a bound.** A transport must end a stop, a reset or the loss of its client in a stated time,
/// so an implementer must not make it wait for what it holds back by its own choice:
/// [`IoQueue::release_held`] lets go of that, [`IoQueue::cancel`] ends what can be ended, and neither call
/// waits. What the medium itself does not finish can't be hurried: dropping the queue then blocks, and the
/// transport leaves that to a thread it does not wait for
/// (`runner::QueueThread::detach`). The buffers stay mapped until the queue is
/// dropped, however late.
///
/// **Hostile operations.** Offsets, lengths and alignment come from a guest. The caller has checked
/// that `offset + len` lies inside the capacity it last saw; an implementer must still fail an
/// operation outside its medium with [`DiskError::OutOfRange`] (a disk may shrink), a write to a
/// read-only medium with [`DiskError::ReadOnly`], a kind it does not offer with
/// [`DiskError::Unsupported`], and must never panic, loop without bound or allocate in proportion to
/// an operation's length.
pub trait IoQueue: Send {
    /// Hands an operation over. Where batching pays, the work may wait until `flush_batch`.
    fn submit(&mut self, op: Op) -> Submit;

    /// Executes an operation inside the call, or declines it. Waits no longer than `submit` may. The default declines
    /// everything.
    ///
    /// With a `token` the queue may also take the operation: a disk that only hands addresses to a device needs no
    /// [`Op`] for that. The token is then as for [`Op::token`], and `flush_batch`, `reap` and `cancel` apply as to an
    /// operation that was submitted. The buffer stays with the caller, which leaves it as it is until the completion.
    /// The queue must itself hold what keeps the memory mapped that it still uses (a [`part`](IoBuf::part) of the
    /// buffer, or a translation that only it ends): a caller that fails may drop the buffer at any time.
    ///
    /// Without a token the buffer is not used after the call returned.
    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        let _ = (kind, buf, token);
        Execute::Declined
    }

    /// Starts everything that was submitted since the last call. The owner calls it after each batch
    /// of submissions.
    ///
    /// # Errors
    /// The queue itself is broken (not one operation): the owner must stop using it, and drops it.
    fn flush_batch(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    /// Moves finished operations to the end of `done`, without waiting. Returns how many.
    ///
    /// # Errors
    /// As for [`IoQueue::flush_batch`]. Completions already appended to `done` are valid.
    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError>;

    /// How to learn that `reap` has something. The kind never changes during the life of a queue.
    fn wait(&self) -> Wait<'_>;

    /// When `reap` should be called next although nothing told so: a layer that holds operations back
    /// says until when. `None`: never.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Lets go of every operation that is held back for a reason of the queue's own: a limit, a pause, a
    /// delay, a policy for errors. The owner calls it when it is about to stop and waits for all operations.
    ///
    /// From then on the queue holds nothing back. What it held goes to the medium in the order of
    /// submission, as does everything submitted later; an operation that had already failed and was kept
    /// to be tried again completes with its error. A layer must pass the call on to the queue underneath,
    /// also to one that it opens later. The call does not wait, and each operation still completes exactly
    /// once, through [`IoQueue::reap`].
    fn release_held(&mut self) {}

    /// Asks for an operation to finish early, as far as that is possible. It still completes exactly
    /// once: with [`DiskError::Cancelled`] if it was stopped, else with its result. Unknown tokens are
    /// ignored.
    fn cancel(&mut self, token: Token) {
        let _ = token;
    }
}

impl dyn IoQueue + '_ {
    /// Executes an operation inside the call where the queue can, else submits it: for a caller that has an [`Op`]
    /// which was not offered to [`IoQueue::execute`] yet.
    pub fn execute_or_submit(&mut self, op: Op) -> Submit {
        match self.execute(&op.kind, &op.buf, None) {
            Execute::Done(result) => Submit::Done(op.complete(result)),
            // Nothing is taken without a token.
            Execute::Declined | Execute::Taken => self.submit(op),
        }
    }
}

#[cfg(test)]
mod tests;
