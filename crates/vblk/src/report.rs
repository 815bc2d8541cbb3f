// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said on standard error: log lines, words for people, and why the program failed. With `--json` each
//! line there is a JSON object.
//!
//! A server's lines go through a thread of their own, so that a pipe that nobody reads, or a full disk, holds up
//! neither a guest's requests nor the server's end.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

/// Lines that wait to be written.
const WAITING: usize = 1024;
/// How long the end of the program waits until they are.
const PATIENCE: Duration = Duration::from_secs(1);

static WRITER: OnceLock<LineWriter> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Tells when everything before it is written.
    Mark(SyncSender<()>),
}

/// Lines that are missing in the log and were not told of.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Writes lines on a thread of its own. Lines that find no room are counted and dropped.
struct LineWriter {
    lines: SyncSender<Message>,
}

fn write_lines(lines: &Receiver<Message>) {
    let mut telling = Telling::default();
    loop {
        let message = match DROPPED.load(Ordering::Relaxed) {
            0 => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            _ => lines.recv_timeout(telling.left(Instant::now())),
        };
        match message {
            Ok(Message::Line(line)) => write_now(&line),
            Ok(Message::Mark(written)) => {
                // Nobody waits for it any more.
                let _ = written.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        tell_dropped(telling.due(&DROPPED, Instant::now()));
    }
}

/// When it was told last that lines are missing. The line that tells it may be one of those that find no room, so it
/// comes at most once a second.
#[derive(Default)]
struct Telling(Option<Instant>);

impl Telling {
    const PAUSE: Duration = Duration::from_secs(1);

    /// How long until it may be told again.
    fn left(&self, now: Instant) -> Duration {
        let next = self.0.map(|told| told + Self::PAUSE);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// How many lines are to be told of now, which are no longer among the `dropped`.
    fn due(&mut self, dropped: &AtomicU64, now: Instant) -> u64 {
        if !self.left(now).is_zero() {
            return 0;
        }
        let count = dropped.swap(0, Ordering::Relaxed);
        if count != 0 {
            self.0 = Some(now);
        }
        count
    }
}

/// Logs how many lines are missing at this place.
fn tell_dropped(count: u64) {
    if count != 0 {
        log::warn!("{count} lines of the log were dropped here: they were more than it takes");
    }
}

/// Nothing can be done about an error, and nobody can be told of it.
fn write_now(bytes: &[u8]) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn write(bytes: &[u8]) {
    let Some(writer) = WRITER.get() else {
        return write_now(bytes);
    };
    match writer.lines.try_send(Message::Line(bytes.to_vec())) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Err(TrySendError::Disconnected(_)) => write_now(bytes),
    }
}

/// Waits until what was said is written, for a second at most.
pub fn flush() {
    tell_dropped(DROPPED.swap(0, Ordering::Relaxed));
    let Some(writer) = WRITER.get() else { return };
    let (written, wait) = sync_channel(1);
    if writer.lines.try_send(Message::Mark(written)).is_ok() {
        // It may take too long.
        let _ = wait.recv_timeout(PATIENCE);
    }
}

/// Has lines written by a thread of their own from now on.
pub fn detach() -> io::Result<()> {
    let (lines, wait) = sync_channel(WAITING);
    std::thread::Builder::new()
        .name("vblk-log".into())
        .spawn(move || write_lines(&wait))?;
    // It is called once.
    let _ = WRITER.set(LineWriter { lines });
    Ok(())
}

/// Lines of the libraries that the log takes at once, and how many it takes a second after that: what is logged because
/// of what a guest or a client does must not fill the host's disk. This program's own lines are counted where they are
/// made.
const BURST: f64 = 200.0;
const RATE: f64 = 10.0;

/// What there is room for.
struct Room {
    lines: f64,
    since: Instant,
}

impl Room {
    /// Takes room for one line, if there is some.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.lines = (self.lines + passed * RATE).min(BURST);
        let has_room = self.lines >= 1.0;
        if has_room {
            self.lines -= 1.0;
        }
        has_room
    }
}

/// The logger with its limit.
struct Limited {
    logger: env_logger::Logger,
    /// `None`: all is wanted.
    room: Option<Mutex<Room>>,
}

impl log::Log for Limited {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.logger.matches(record) {
            return;
        }
        let is_ours = record.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        let has_room = || match &self.room {
            Some(room) => {
                let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
                room.take(Instant::now())
            }
            None => true,
        };
        if is_ours || has_room() {
            self.logger.log(record);
        } else {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The logger's way out.
struct LogTarget;

impl Write for LogTarget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the log up. `verbose`: how often `-v` was given; the variable `VBLK_LOG` wins.
pub fn start_log(verbose: u8, json: bool) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() && !json;
    let style = match colours {
        true => env_logger::WriteStyle::Always,
        false => env_logger::WriteStyle::Never,
    };
    let mut builder =
        env_logger::Builder::from_env(env_logger::Env::new().filter_or("VBLK_LOG", level));
    builder
        .format_timestamp(None)
        .format_target(false)
        .write_style(style)
        .target(env_logger::Target::Pipe(Box::new(LogTarget)));
    if json {
        builder.format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            let line =
                json!({"event": "log", "level": level, "message": record.args().to_string()});
            writeln!(out, "{line}")
        });
    }
    let logger = builder.build();
    log::set_max_level(logger.filter());
    let room = Room {
        lines: BURST,
        since: Instant::now(),
    };
    let limited = Limited {
        logger,
        // Who asks for all wants all.
        room: (verbose < 2).then(|| Mutex::new(room)),
    };
    // There is no other.
    let _ = log::set_boxed_logger(Box::new(limited));
}

/// Says something to people.
pub fn say(words: fmt::Arguments<'_>) {
    write(format!("{words}\n").as_bytes());
}

/// The error and its causes on one line, each cause once.
pub fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

/// The system's error number behind an error.
pub fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let code = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if code.is_some() {
            return code;
        }
        cause = error.source();
    }
    None
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line.
    Usage,
    /// What it asks for.
    Failed,
    /// What it asks for makes no sense for this kind of disk: the status of `qemu-img check`.
    Unsupported,
}

impl Kind {
    /// The exit status.
    pub const fn status(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Failed => 1,
            Self::Unsupported => 63,
        }
    }
}

/// Says why the program ends, as the last thing: one line, with `json` an object whose fields stay as they are.
pub fn fail(kind: Kind, message: &str, errno: Option<i32>, json: bool) {
    flush();
    let line = match json {
        true => {
            let name = match kind {
                Kind::Usage => "usage",
                Kind::Failed => "failed",
                Kind::Unsupported => "unsupported",
            };
            json!({"event": "error", "kind": name, "message": message, "errno": errno, "status": kind.status()})
                .to_string()
        }
        false => format!("vblk: {message}"),
    };
    write(format!("{line}\n").as_bytes());
    flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that tells it is dropped each time, too.
    #[test]
    fn what_is_missing_is_told_once_a_second() {
        let (dropped, since) = (AtomicU64::new(1), Instant::now());
        let mut telling = Telling::default();
        let (mut lines, mut sum) = (0, 0);
        for millis in 0..=10_000 {
            let count = telling.due(&dropped, since + Duration::from_millis(millis));
            if count != 0 {
                lines += 1;
                sum += count;
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            let left = telling.left(since + Duration::from_millis(millis));
            assert!(left <= Telling::PAUSE);
        }
        assert_eq!((lines, sum), (11, 11));
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "and none is forgotten");
    }

    #[test]
    fn the_log_takes_a_burst_and_then_a_rate() {
        let since = Instant::now();
        let mut room = Room {
            lines: BURST,
            since,
        };
        let mut taken = |millis: u64| {
            let now = since + Duration::from_millis(millis);
            (0..1000).filter(|_| room.take(now)).count()
        };
        assert_eq!(
            [taken(0), taken(50), taken(1050), taken(3_600_000)],
            [200, 0, 10, 200]
        );
    }
}
