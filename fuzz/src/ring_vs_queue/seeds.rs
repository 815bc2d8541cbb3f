// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeds for the comparison.

use super::*;

fn desc(flags: u8, len: u8) -> Desc {
    Desc {
        flags,
        addr: Place::Home,
        len: Len::Short { len },
        link: Link::Right,
    }
}

const fn offer(table: u8, descs: Vec<Desc>) -> Step {
    Step::Offer {
        chain: Chain {
            table,
            excess: 0,
            descs,
        },
    }
}

fn request() -> Vec<Desc> {
    vec![desc(0, 16), desc(0, 0), desc(1, 200), desc(1, 1)]
}

const fn complete(pick: u8) -> Step {
    Step::Complete { pick, len: 77 }
}

fn input(memory: Kind, start: u16, event_idx: bool, steps: Vec<Step>) -> Input {
    Input {
        memory,
        exponent: 4,
        more: 1,
        start,
        event_idx,
        steps,
    }
}

/// The seeds, by name.
pub(crate) fn all() -> Vec<(&'static str, Input)> {
    use Step::{Disable, Enable, Pop, Publish, Restart};
    let traffic = || {
        vec![
            offer(0, request()),
            offer(1, request()),
            offer(3, request()),
            Disable,
            Pop,
            Pop,
            complete(1),
            Publish,
            Step::Event { ahead: 0 },
            Pop,
            complete(0),
            complete(0),
            Publish,
            Enable,
            Pop,
            Restart,
            offer(0, request()),
            Enable,
            Pop,
            Step::Flags { flags: 1 },
            complete(0),
            Publish,
        ]
    };
    let mut looped = request();
    looped[3].link = Link::To { index: 1 };
    let mut far = request();
    far[1].link = Link::To { index: 300 };
    let mut huge = request();
    huge[2].len = Len::Raw { len: u32::MAX };
    let mut backward = request();
    backward.reverse();
    let mut nested = request();
    nested[2].flags |= 4;
    let malformed = vec![
        offer(0, looped.clone()),
        offer(1, looped),
        offer(0, far.clone()),
        offer(1, far),
        offer(0, huge),
        Pop,
        Pop,
        Pop,
        Pop,
        Pop,
        offer(0, backward),
        offer(1, nested),
        offer(1, vec![desc(1, 1); 40]),
        Pop,
        Pop,
        Pop,
        complete(0),
        complete(3),
        Publish,
        Step::Head { head: 1 },
        Pop,
        Step::Head { head: 99 },
        Pop,
    ];
    let jump = vec![offer(0, request()), Pop, Step::Jump { index: 900 }, Pop];
    vec![
        ("traffic", input(Kind::Single, 0, false, traffic())),
        ("event-index", input(Kind::Gapped, 65_534, true, traffic())),
        (
            "behind-iommu",
            input(Kind::Fragmented { seed: 1 }, 7, true, traffic()),
        ),
        (
            "malformed",
            input(Kind::Single, 65_535, true, malformed.clone()),
        ),
        (
            "malformed-behind-iommu",
            input(Kind::Fragmented { seed: 2 }, 0, false, malformed),
        ),
        ("jump", input(Kind::Single, 0, false, jump)),
    ]
}
