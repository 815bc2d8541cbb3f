// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU time.

use std::io;
use std::time::Duration;

use crate::Error;

/// User and system time of all threads a process has and had, to the nanosecond. Kernel threads that
/// work for an io_uring of the process count; the kernel's own (writeback) don't.
///
/// # Errors
/// There is no such process.
pub fn of_process(pid: u32) -> Result<Duration, Error> {
    let mut clock = 0;
    // SAFETY: the pointer is valid.
    let code = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    if code != 0 {
        let source = io::Error::from_raw_os_error(code);
        return Err(Error::io(format!("the CPU clock of process {pid}"))(source));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: as above.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        let source = io::Error::last_os_error();
        return Err(Error::io(format!("the CPU clock of process {pid}"))(source));
    }
    Ok(Duration::new(
        time.tv_sec.cast_unsigned(),
        time.tv_nsec as u32,
    ))
}

/// User and system time of all processes that this one has started and waited for.
///
/// # Errors
/// The kernel's.
pub fn of_children() -> Result<Duration, Error> {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Err(Error::io("the CPU time of the children")(
            io::Error::last_os_error(),
        ));
    }
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.cast_unsigned())
            + Duration::from_micros(time.tv_usec.cast_unsigned())
    };
    Ok(of(usage.ru_utime) + of(usage.ru_stime))
}

/// Time that the CPUs of this machine were not idle, in sum, to a hundredth of a second.
///
/// # Errors
/// `/proc/stat` can't be read.
pub fn of_machine() -> Result<Duration, Error> {
    let path = "/proc/stat";
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    // cpu user nice system idle iowait irq softirq steal guest guest_nice; guest is in user already.
    let busy: u64 = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .enumerate()
        .filter(|(field, _)| ![3, 4].contains(field))
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum();
    // The kernel reports to user space in hundredths on every architecture of ours.
    Ok(Duration::from_millis(busy * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_on_while_this_process_works() {
        let pid = std::process::id();
        let (process, machine) = (of_process(pid).unwrap(), of_machine().unwrap());
        // Until both have moved: a hang would mean that one stands still.
        while of_process(pid).unwrap() <= process || of_machine().unwrap() <= machine {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // One above the largest process number a kernel can have.
        assert!(of_process(4_194_305).is_err());
    }
}
