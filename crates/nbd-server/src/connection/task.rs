// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a request asks of the disk, or why it can't be done.

use std::ops::Range;

use virtio_blk_core::disk::{Caps, DiskError, OpKind, SECTOR_SIZE};
use virtio_blk_nbd::proto::{Command, CommandFlags, Errno, MAX_PAYLOAD, ReplyMode, Request};

/// Why a request fails.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) text: String,
    /// The range ends behind the capacity, which may be an old one.
    pub(super) is_beyond: bool,
}

impl Refusal {
    fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self {
            errno,
            text: text.into(),
            is_beyond: false,
        }
    }

    /// What a request beyond the end fails with.
    const fn beyond(command: Command) -> Errno {
        match command {
            Command::WRITE | Command::WRITE_ZEROES => Errno::NOSPC,
            _ => Errno::INVAL,
        }
    }

    /// Of an operation of this command that the disk failed.
    pub(super) fn of_disk(error: &DiskError, command: Command) -> Self {
        let errno = match error {
            DiskError::Unsupported => Errno::NOTSUP,
            DiskError::OutOfRange => Self::beyond(command),
            DiskError::ReadOnly => Errno::PERM,
            DiskError::Misaligned => Errno::INVAL,
            error => match error.errno() {
                // Those would say that the request was wrong, which it was not.
                Some(libc::EINVAL | libc::EPERM | libc::ESHUTDOWN) | None => Errno::IO,
                Some(errno) => Errno::of_host(errno),
            },
        };
        Self::new(errno, error.to_string())
    }
}

/// Discards or zeroes, in pieces that the disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    pub(super) at: u64,
    pub(super) end: u64,
    /// Bytes of a piece.
    step: u64,
    /// `None`: discard.
    zeroes: Option<Zeroes>,
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zeroes {
    unmap: bool,
    fua: bool,
}

impl Iterator for Pieces {
    type Item = OpKind;

    fn next(&mut self) -> Option<OpKind> {
        let (offset, left) = (self.at, self.end.saturating_sub(self.at));
        if left == 0 {
            return None;
        }
        let len = left.min(self.step);
        self.at += len;
        Some(match self.zeroes {
            None => OpKind::Discard { offset, len },
            Some(Zeroes { unmap, fua }) => OpKind::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            },
        })
    }
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Task {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        len: usize,
        fua: bool,
    },
    Flush,
    /// And a flush afterwards?
    Erase(Pieces, bool),
    BlockStatus {
        range: Range<u64>,
        one: bool,
    },
}

/// Whether the commands that clients send make sense here.
pub(super) struct Rules {
    pub(super) mode: ReplyMode,
    pub(super) read_only: bool,
    pub(super) has_contexts: bool,
}

impl Rules {
    /// What a request asks of a disk that can do this.
    ///
    /// # Errors
    /// Why it fails.
    pub(super) fn check(&self, request: &Request, caps: &Caps) -> Result<Task, Refusal> {
        let invalid = |text: &str| Err(Refusal::new(Errno::INVAL, text));
        let Request {
            flags,
            command,
            offset,
            length,
            ..
        } = *request;
        let allowed = match command {
            Command::READ if self.mode != ReplyMode::Simple => CommandFlags::DF,
            // A client must set it, but QEMU 10.0 does not.
            Command::WRITE if self.mode == ReplyMode::Extended => CommandFlags::PAYLOAD_LEN,
            Command::WRITE_ZEROES => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::BLOCK_STATUS => CommandFlags::REQ_ONE,
            _ => CommandFlags::NONE,
        };
        if flags.without(allowed | CommandFlags::FUA) != CommandFlags::NONE {
            return invalid("a flag that the command does not have");
        }
        let fua = flags.contains(CommandFlags::FUA);
        let changes = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES].contains(&command);
        match command {
            Command::FLUSH => return Ok(Task::Flush),
            Command::READ | Command::BLOCK_STATUS => {}
            _ if changes && self.read_only => {
                return Err(Refusal::new(Errno::PERM, "the export is read-only"));
            }
            Command::WRITE => {}
            Command::TRIM if caps.discard.is_some() => {}
            Command::WRITE_ZEROES if caps.write_zeroes.is_some() => {}
            _ => return Err(Refusal::new(Errno::INVAL, "a command that is not offered")),
        }
        if length == 0 {
            return invalid("a length of 0");
        }
        if !caps.contains(offset, length) {
            return Err(Refusal {
                is_beyond: true,
                ..Refusal::new(Refusal::beyond(command), "beyond the end of the export")
            });
        }
        let block = u64::from(caps.align.guest_block);
        if (offset | length) & (block - 1) != 0 {
            let text = format!("offset and length must be multiples of {block} bytes");
            return Err(Refusal::new(Errno::INVAL, text));
        }
        let carries = [Command::READ, Command::WRITE].contains(&command);
        let len = match usize::try_from(length) {
            Ok(len) if !carries || length <= MAX_PAYLOAD.into() => len,
            _ if carries => {
                let text = format!("more than {MAX_PAYLOAD} bytes at a time");
                return Err(Refusal::new(Errno::INVAL, text));
            }
            _ => 0,
        };
        let step = |sectors: u32| {
            let bytes = u64::from(sectors) * SECTOR_SIZE;
            (bytes - bytes % block).max(block)
        };
        let end = offset + length;
        Ok(match command {
            Command::READ => Task::Read { offset, len },
            Command::WRITE => Task::Write { offset, len, fua },
            Command::BLOCK_STATUS if self.has_contexts => Task::BlockStatus {
                range: offset..end,
                one: flags.contains(CommandFlags::REQ_ONE),
            },
            Command::BLOCK_STATUS => return invalid("no context was agreed upon"),
            Command::TRIM => {
                let limits = caps.discard.map_or(1, |limits| limits.max_sectors);
                let pieces = Pieces {
                    at: offset,
                    end,
                    step: step(limits),
                    zeroes: None,
                };
                // A discard has no flag for it.
                Task::Erase(pieces, fua && caps.flush)
            }
            _ => {
                let may_unmap = caps.write_zeroes.is_some_and(|limits| limits.may_unmap);
                let unmap = may_unmap && !flags.contains(CommandFlags::NO_HOLE);
                if flags.contains(CommandFlags::FAST_ZERO) && !unmap {
                    let text = "zeroes without a hole are not known to be fast here";
                    return Err(Refusal::new(Errno::NOTSUP, text));
                }
                let limits = caps.write_zeroes.map_or(1, |limits| limits.max_sectors);
                let pieces = Pieces {
                    at: offset,
                    end,
                    step: step(limits),
                    zeroes: Some(Zeroes { unmap, fua }),
                };
                Task::Erase(pieces, false)
            }
        })
    }
}
