// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Every interleaving of guest, device, slow path and switch, in a model of what they share: the indices, the event
//! indices, the kick eventfd and the interrupt. Each step below is one access to shared memory or one call.
//!
//! No request may be executed twice or skipped, and the system may only come to rest when all requests of the guest have completed.
//! The rules that make it so are left out one at a time: each omission must be found.

use std::collections::HashSet;

/// Requests of the guest.
const REQUESTS: u8 = if cfg!(debug_assertions) { 2 } else { 3 };

/// A rule to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omit {
    Nothing,
    /// SUSPEND is enough; whether it drained is not looked at.
    DrainedCheck,
    /// The slow path waits for a kick before it looks.
    ScanOnTakeOver,
    /// The guest is not interrupted after it was taken over.
    SignalOnTakeOver,
    /// Rings go back to the device without a kick.
    KickOnReturn,
    /// The slow path stops with requests in flight.
    DrainOnReturn,
    /// The device starts at 0.
    BaseOnReturn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Driver {
    Publish,
    CheckKick,
    Poll,
    Arm,
    Recheck,
    Sleep,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Nobody,
    Device,
    SlowPath,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Server {
    Scan,
    Enable,
    Recheck,
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Unbind,
    Suspend,
    ReadBase,
    Resume,
    ResumeKick,
    Reset,
    StartSlow,
    CloseIntake,
    StopSlow,
    StartFast,
    Bind,
    Kick,
    Signal,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    // The ring.
    avail: u8,
    used: u8,
    avail_event: u8,
    used_event: u8,
    // The events.
    kicked: bool,
    bound: bool,
    doorbell: bool,
    irq: bool,
    // The guest.
    driver: Driver,
    seen: u8,
    // Who serves it.
    who: Who,
    server: Server,
    taken: u8,
    /// Of those taken, how many it still has.
    held: u8,
    woken: bool,
    suspended: bool,
    intake: bool,
    /// A used entry was published at this index, and it is not yet decided whether to interrupt.
    notify: Option<u8>,
    executed: [u8; REQUESTS as usize],
    // The switch.
    step: Step,
    base: u8,
    rounds: u8,
}

impl World {
    fn start(rounds: u8, doorbell: bool) -> Self {
        Self {
            avail: 0,
            used: 0,
            avail_event: 0,
            used_event: 0,
            kicked: false,
            bound: true,
            doorbell,
            irq: false,
            driver: Driver::Publish,
            seen: 0,
            who: Who::Device,
            server: Server::Scan,
            taken: 0,
            held: 0,
            woken: false,
            suspended: false,
            intake: true,
            notify: None,
            executed: [0; REQUESTS as usize],
            step: Step::Unbind,
            base: 0,
            rounds,
        }
    }

    /// The guest kicks: through the eventfd, or through a doorbell page that only the device sees.
    fn guest_kicks(&mut self) {
        if self.doorbell && self.bound && self.who == Who::Device {
            self.woken = true;
        } else {
            self.kick();
        }
    }

    fn kick(&mut self) {
        self.kicked = true;
        self.woken |= self.bound && self.who == Who::Device;
    }

    /// What the guest can do next.
    fn guest(&self, next: &mut Vec<World>) {
        let mut to = |change: &dyn Fn(&mut World)| {
            let mut world = *self;
            change(&mut world);
            next.push(world);
        };
        match self.driver {
            Driver::Publish => to(&|w| {
                w.avail += 1;
                w.driver = Driver::CheckKick;
            }),
            Driver::CheckKick => {
                let wanted = self.avail_event == self.avail - 1;
                let kick = move |w: &mut World| {
                    if wanted {
                        w.guest_kicks();
                    }
                };
                if self.avail < REQUESTS {
                    to(&|w| {
                        kick(w);
                        w.driver = Driver::Publish;
                    });
                }
                to(&|w| {
                    kick(w);
                    w.driver = Driver::Poll;
                });
            }
            Driver::Poll if self.seen < self.used => to(&|w| {
                w.seen += 1;
                if w.seen == REQUESTS {
                    w.driver = Driver::Done;
                }
            }),
            Driver::Poll => {
                if self.avail < REQUESTS {
                    to(&|w| w.driver = Driver::Publish);
                }
                if self.seen < self.avail {
                    to(&|w| w.driver = Driver::Arm);
                }
            }
            Driver::Arm => to(&|w| {
                w.used_event = w.seen;
                w.driver = Driver::Recheck;
            }),
            Driver::Recheck => to(&|w| {
                w.driver = if w.seen < w.used {
                    Driver::Poll
                } else {
                    Driver::Sleep
                };
            }),
            Driver::Sleep if self.irq => to(&|w| {
                w.irq = false;
                w.driver = Driver::Poll;
            }),
            Driver::Sleep | Driver::Done => {}
        }
    }

    /// What the device, or the slow path, can do next.
    fn server(&self, next: &mut Vec<World>) {
        if self.who == Who::Nobody {
            return;
        }
        let mut to = |change: &dyn Fn(&mut World)| {
            let mut world = *self;
            change(&mut world);
            next.push(world);
        };
        if let Some(old) = self.notify {
            to(&|w| {
                w.irq |= w.used_event == old;
                w.notify = None;
            });
        } else if self.held != 0 {
            to(&|w| {
                w.executed[usize::from(w.taken - w.held)] += 1;
                w.held -= 1;
                w.notify = Some(w.used);
                w.used += 1;
            });
        }
        if self.suspended {
            return;
        }
        let can_take = self.intake && self.taken < self.avail;
        match self.server {
            Server::Scan if can_take => to(&|w| {
                w.taken += 1;
                w.held += 1;
            }),
            Server::Scan => to(&|w| w.server = Server::Enable),
            Server::Enable => to(&|w| {
                w.avail_event = w.taken;
                w.server = Server::Recheck;
            }),
            Server::Recheck => to(&|w| {
                w.server = if can_take {
                    Server::Scan
                } else {
                    Server::Sleep
                };
            }),
            Server::Sleep if self.who == Who::Device && self.woken => to(&|w| {
                // The kernel never reads the eventfd.
                w.woken = false;
                w.server = Server::Scan;
            }),
            Server::Sleep if self.who == Who::SlowPath && self.kicked => to(&|w| {
                w.kicked = false;
                w.server = Server::Scan;
            }),
            Server::Sleep => {}
        }
    }

    /// What the switch can do next.
    fn switch(&self, omit: Omit, next: &mut Vec<World>) {
        let mut world = *self;
        let w = &mut world;
        w.step = match self.step {
            Step::Unbind => {
                (w.bound, w.woken) = (false, false);
                Step::Suspend
            }
            Step::Suspend => {
                w.suspended = true;
                Step::ReadBase
            }
            Step::ReadBase => {
                w.base = w.taken;
                if w.base == w.used || omit == Omit::DrainedCheck {
                    Step::Reset
                } else {
                    Step::Resume
                }
            }
            Step::Resume => {
                w.suspended = false;
                w.bound = true;
                w.woken |= w.kicked;
                Step::ResumeKick
            }
            Step::ResumeKick => {
                w.kick();
                Step::Unbind
            }
            Step::Reset => {
                // An interrupt that was not yet sent never is.
                (w.who, w.suspended, w.notify) = (Who::Nobody, false, None);
                w.held = 0;
                Step::StartSlow
            }
            Step::StartSlow => {
                (w.who, w.intake) = (Who::SlowPath, true);
                w.taken = w.base;
                w.irq |= omit != Omit::SignalOnTakeOver;
                w.server = if omit == Omit::ScanOnTakeOver {
                    Server::Sleep
                } else {
                    Server::Scan
                };
                Step::CloseIntake
            }
            Step::CloseIntake => {
                w.intake = false;
                Step::StopSlow
            }
            Step::StopSlow => {
                let drained = w.held == 0 && w.notify.is_none();
                if !drained && omit != Omit::DrainOnReturn {
                    return;
                }
                w.base = w.taken;
                (w.who, w.notify, w.intake) = (Who::Nobody, None, true);
                w.held = 0;
                Step::StartFast
            }
            Step::StartFast => {
                w.who = Who::Device;
                w.taken = if omit == Omit::BaseOnReturn {
                    0
                } else {
                    w.base
                };
                w.server = Server::Sleep;
                Step::Bind
            }
            Step::Bind => {
                w.bound = true;
                w.woken |= w.kicked;
                Step::Kick
            }
            Step::Kick => {
                if omit != Omit::KickOnReturn {
                    w.kick();
                }
                Step::Signal
            }
            Step::Signal => {
                w.irq |= omit != Omit::SignalOnTakeOver;
                w.rounds -= 1;
                if w.rounds == 0 {
                    Step::End
                } else {
                    Step::Unbind
                }
            }
            Step::End => return,
        };
        next.push(world);
    }

    fn wrong(&self) -> Option<&'static str> {
        let executed = &self.executed;
        if executed.iter().any(|&times| times > 1) || self.used > self.avail {
            return Some("a request was executed twice");
        }
        if executed.iter().sum::<u8>() != self.used {
            return Some("a request was returned and not executed");
        }
        if self.who != Who::Nobody && self.taken < self.used {
            return Some("a request is to be taken again");
        }
        None
    }
}

/// Looks at every world that can come about. Returns how many there are, or what is wrong with one.
fn explore(omit: Omit, rounds: u8) -> Result<usize, &'static str> {
    let mut open = vec![World::start(rounds, false), World::start(rounds, true)];
    let mut known: HashSet<World> = open.iter().copied().collect();
    let mut next = Vec::new();
    while let Some(world) = open.pop() {
        if let Some(wrong) = world.wrong() {
            return Err(wrong);
        }
        next.clear();
        world.guest(&mut next);
        world.server(&mut next);
        // Nobody need ever switch again.
        let at_rest = matches!(world.step, Step::Unbind | Step::CloseIntake | Step::End);
        if next.is_empty() && at_rest && world.driver != Driver::Done {
            return Err("everybody waits");
        }
        world.switch(omit, &mut next);
        if next.is_empty() && world.driver != Driver::Done {
            return Err("the switch does not end");
        }
        for &found in &next {
            if known.insert(found) {
                open.push(found);
            }
        }
    }
    Ok(known.len())
}

#[test]
fn no_interleaving_loses_or_repeats_a_request() {
    let worlds = explore(Omit::Nothing, 2).unwrap();
    assert!(
        worlds > 10_000,
        "{worlds} worlds are too few to mean anything"
    );
    println!("{worlds} worlds");
}

#[test]
fn each_rule_is_needed() {
    for (omit, expected) in [
        (Omit::DrainedCheck, "everybody waits"),
        (Omit::ScanOnTakeOver, "everybody waits"),
        (Omit::SignalOnTakeOver, "everybody waits"),
        (Omit::KickOnReturn, "everybody waits"),
        (Omit::DrainOnReturn, "everybody waits"),
        (Omit::BaseOnReturn, "a request is to be taken again"),
    ] {
        assert_eq!(explore(omit, 1), Err(expected), "{omit:?}");
    }
}
