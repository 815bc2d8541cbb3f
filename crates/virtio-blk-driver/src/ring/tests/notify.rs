// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn kicks_follow_the_flags_without_event_index() {
    let mut bench = Bench::new(8, RingConfig::default());
    let mem = Arc::clone(&bench.mem);
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "nothing published");
    bench.add(0);
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "nothing published");
    bench.publish();
    assert!(bench.ring.needs_kick(&*mem).unwrap());
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "once is enough");
    let flags = bench.ring.layout().used_flags();
    mem.store_u16(flags, USED_F_NO_NOTIFY, Ordering::Relaxed)
        .unwrap();
    bench.add(1);
    bench.publish();
    assert!(!bench.ring.needs_kick(&*mem).unwrap());
}

#[test]
fn kicks_follow_the_event_index() {
    // Published so far, device's event, newly published, kick?
    for (start, event, count, kick) in [
        (0, 0, 1, true),
        (0, 1, 1, false),
        (0, 2, 3, true),
        (0, 3, 3, false),
        (0, 0xffff, 3, false),
        (0xfffe, 0xffff, 1, false),
        (0xfffe, 0xffff, 2, true),
        (0xfffe, 0, 3, true),
        (0xffff, 0xffff, 1, true),
    ] {
        let mut bench = Bench::new(
            8,
            RingConfig {
                event_idx: true,
                start,
                ..RingConfig::default()
            },
        );
        let at = bench.ring.layout().avail_event();
        bench.mem.store_u16(at, event, Ordering::Relaxed).unwrap();
        // Must be ignored.
        let flags = bench.ring.layout().used_flags();
        bench
            .mem
            .store_u16(flags, USED_F_NO_NOTIFY, Ordering::Relaxed)
            .unwrap();
        for cookie in 0..count {
            bench.add(cookie);
        }
        bench.publish();
        let result = bench.ring.needs_kick(&*bench.mem).unwrap();
        assert_eq!(result, kick, "{start} {event} {count}");
    }
}

#[test]
fn interrupts_without_event_index() {
    let mut bench = Bench::new(8, RingConfig::default());
    let (mem, layout) = (Arc::clone(&bench.mem), *bench.ring.layout());
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.ring.disable_interrupts(&*mem).unwrap();
    assert_eq!(bench.load(layout.avail_flags()), AVAIL_F_NO_INTERRUPT);
    let head = bench.add(0);
    bench.publish();
    assert!(!bench.ring.enable_interrupts(&*mem).unwrap());
    assert_eq!(bench.load(layout.avail_flags()), 0);
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.use_one(0, head.into(), 0);
    assert!(bench.ring.interrupt_due(&*mem).unwrap());
    assert!(bench.ring.enable_interrupts(&*mem).unwrap(), "one is there");
    bench.ring.disable_interrupts(&*mem).unwrap();
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.ring.audit(&*mem).unwrap();
}

#[test]
fn interrupts_with_event_index() {
    let config = RingConfig {
        event_idx: true,
        start: 0xfffe,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(8, config);
    let (mem, layout) = (Arc::clone(&bench.mem), *bench.ring.layout());
    let heads: Vec<_> = (0..4).map(|cookie| bench.add(cookie)).collect();
    bench.publish();
    assert!(!bench.ring.interrupt_after(&*mem, 3).unwrap());
    assert_eq!(bench.load(layout.used_event()), 0);
    for (index, due) in [(0xfffe, false), (0xffff, false), (0, true)] {
        bench.use_one(
            index,
            heads[usize::from(index.wrapping_sub(0xfffe))].into(),
            0,
        );
        assert_eq!(bench.ring.interrupt_due(&*mem).unwrap(), due, "{index:#x}");
    }
    assert!(
        bench.ring.interrupt_after(&*mem, 3).unwrap(),
        "three are there"
    );
    assert!(!bench.ring.interrupt_after(&*mem, 4).unwrap());
    for cookie in 0..3 {
        assert_eq!(bench.poll().unwrap().unwrap().cookie, cookie);
    }
    assert!(!bench.ring.enable_interrupts(&*mem).unwrap());
    assert_eq!(bench.load(layout.used_event()), 1);
    bench.ring.disable_interrupts(&*mem).unwrap();
    bench.use_one(1, heads[3].into(), 0);
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    assert_eq!(bench.load(layout.used_event()), 0, "far from the next one");
    assert_eq!(
        bench.load(layout.avail_flags()),
        0,
        "not used with event index"
    );
    bench.ring.audit(&*mem).unwrap();
}
